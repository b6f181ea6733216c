#!/bin/sh
# do: everything a person does here, a verb each; `./do help` lists them.
#
# It needs nothing but a shell and apt: every verb first installs the Debian
# packages that it needs and that are missing, and only those. When none is
# missing it touches no network. Everything it makes lies under build/.
#
#   build/plain     what a user builds: release, no tests
#   build/test      release with tests, warnings are errors (gcc)
#   build/clang     the same with clang, compiled only
#   build/sanitize  address and undefined-behaviour sanitizers, with tests
#   build/bench     release with the benchmark programs
#   build/fuzz      libFuzzer targets, clang
#   build/logs      a log for every step and every test that failed
# Lists of packages are words to be split:
# shellcheck disable=SC2086
set -eu

top=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$top"
unset CDPATH
# Debian's own programs first: the packages below bring modules for its python3, not for another one.
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
export PATH
logs=build/logs
kill_rounds=250       # of ./do soak, in either mode; some 20 minutes. A fifth under the sanitizers
power_cuts=60         # the same, some 8 minutes
postgres_kills=5      # a minute
results=$logs/results # one line a result: status, name, remark; tab-separated

packages_build='gcc libc6-dev meson ninja-build pkgconf libisal-dev liburing-dev libboost-context-dev libjansson-dev libblkid-dev uuid-dev'
packages_test='libcmocka-dev libnbd-bin python3-libnbd python3 qemu-utils fio e2fsprogs fuse3 mount mdadm xz-utils'
packages_postgres='postgresql'
packages_check='clang clang-format-14 valgrind shellcheck mandoc binutils'
packages_kernel='qemu-system-x86 mdadm busybox-static'
packages_bench='nbdkit gnuplot-nox python3 mount'

# --- words and packages ---

say()
{
    printf '%s\n' "$*"
}

die()
{
    printf 'do: %s\n' "$*" >&2
    exit 1
}

usage_error()
{
    printf 'do: %s\n' "$1" >&2
    say 'usage: ./do VERB [ARGUMENT]; ./do help lists the verbs' >&2
    exit 2
}

packages_missing()
{
    for package in "$@"; do
        # A line for each architecture. A package that was never installed may be known too: "not-installed".
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || printf '%s ' "$package"
    done
}

as_root()
{
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        say "do: neither root nor sudo here, cannot run: $*" >&2
        return 1
    fi
}

apt_get()
{
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
}

# packages_install PACKAGE...: install those that are missing; false if that fails.
packages_install()
{
    if ! command -v dpkg-query >/dev/null 2>&1; then
        say "do: not a Debian system; going on in the hope that these are here: $*" >&2
        return 0
    fi
    missing=$(packages_missing "$@")
    [ -n "$missing" ] || return 0
    say "== installing $missing"
    mkdir -p "$logs"
    if { apt_get update && apt_get install -y --no-install-recommends $missing; } >"$logs/apt.log" 2>&1; then
        return 0
    fi
    tail -n 15 "$logs/apt.log" >&2
    say "do: apt-get could not install: $missing(log: $logs/apt.log)" >&2
    return 1
}

# PostgreSQL's server, for the tests that want one; without it they are skipped. Its package would make and start a
# database of its own on this machine: it is told not to, for as long as it takes.
packages_install_postgres()
{
    [ -n "$(packages_missing $packages_postgres)" ] || return 0
    postgres_conf=/etc/postgresql-common/createcluster.conf
    packages_install postgresql-common || return 0
    as_root cp -p "$postgres_conf" "$postgres_conf.before" || return 0
    say 'create_main_cluster = false' | as_root tee -a "$postgres_conf" >/dev/null
    packages_install $packages_postgres || say 'do: going on without PostgreSQL' >&2
    as_root mv "$postgres_conf.before" "$postgres_conf"
}

need()
{
    packages_install "$@" || die "install these packages and try again: $(packages_missing "$@")"
}

# --- results ---

results_begin()
{
    mkdir -p "$logs"
    : >"$results"
}

result()
{
    printf '%s\t%s\t%s\n' "$1" "$2" "${3-}" >>"$results"
    case $1 in
    fail) say "   FAILED $2 (${3-})" ;;
    skip) say "   skipped $2: ${3-}" ;;
    esac
}

# results_end: name what failed, then the one line that counts; false if anything failed.
results_end()
{
    say
    awk -F '\t' '$1 == "fail" { print "FAILED   " $2 "  log: " $3 } $1 == "skip" { print "skipped  " $2 ": " $3 }' "$results"
    awk -F '\t' '{ n[$1]++ } END { printf "%d passed, %d failed, %d skipped\n", n["pass"], n["fail"], n["skip"]
                   exit n["fail"] > 0 || n["pass"] == 0 }' "$results"
}

# step NAME COMMAND...: one check of its own. Its output goes to a log; exit 77 means skipped, the last line says why.
step()
{
    step_name=$1
    shift
    step_log=$logs/$(printf '%s' "$step_name" | tr ' /' '__').log
    say "== $step_name"
    step_status=0
    "$@" >"$step_log" 2>&1 || step_status=$?
    case $step_status in
    0) result pass "$step_name" ;;
    77) result skip "$step_name" "$(tail -n 1 "$step_log")" ;;
    *)
        tail -n 20 "$step_log"
        result fail "$step_name" "$step_log"
        ;;
    esac
    return 0
}

passed()
{
    awk -F '\t' -v name="$1" '$1 == "pass" && $2 == name { found = 1 } END { exit !found }' "$results"
}

# --- building ---

# build_tree DIRECTORY MESON-OPTION...: configure it once, then compile.
build_tree()
{
    tree=$1
    shift
    if [ ! -f "$tree/build.ninja" ]; then
        rm -rf "$tree"
        meson setup "$@" "$tree" || return
    fi
    ninja -C "$tree"
}

build_clang()
{
    CC=clang build_tree build/clang --werror -Dtests=true -Doptimization=0
}

build_sanitize()
{
    build_tree build/sanitize --werror --buildtype=debugoptimized -Dtests=true \
        -Db_sanitize=address,undefined -Dc_args=-fno-sanitize-recover=undefined
}

build_plain()
{
    need $packages_build
    mkdir -p "$logs"
    build_tree build/plain --buildtype=release >"$logs/build_plain.log" 2>&1 || {
        tail -n 30 "$logs/build_plain.log" >&2
        die "the build failed (log: $logs/build_plain.log)"
    }
}

# --- check ---

# test_tree NAME DIRECTORY MESON-TEST-OPTION...: run its tests and take over every result.
test_tree()
{
    name=$1
    tree=$2
    shift 2
    say "== $name: tests"
    rm -rf "$tree/meson-logs"
    mkdir -p "$tree/meson-logs"
    # More than there are CPUs: some only wait.
    meson test -C "$tree" --no-rebuild --num-processes $(($(nproc) * 2)) "$@" >"$logs/$name.log" 2>&1 || true
    if ! python3 tests/tally.py "$name" "$tree/meson-logs" "$logs" >>"$results"; then
        result fail "$name tests" "$logs/$name.log"
    fi
    awk -F '\t' -v name="$name: " '
        index($2, name) == 1 { n[$1]++; if ($1 != "pass") print "   " $1 " " $2 "  " $3 }
        END { printf "   %d passed, %d failed, %d skipped\n", n["pass"], n["fail"], n["skip"] }' "$results"
}

# The tests of the pure parts and the run-time under memcheck. Leaks are the sanitizers' business, who know a child
# that ends early from one that leaks; and a server with threads is too slow here for the times that its test allows,
# as are the recovery decision over every log of eight steps and parity over all that the kernel wrote.
unit_tests_valgrind()
{
    unit_tests=$(python3 tests/tally.py --unit-tests build/test | tr ' ' '\n' |
        grep -vxE 'nbd-server-threads|journal_records|golden_layouts|parity|array_journal' | tr '\n' ' ')
    test_tree valgrind build/test --timeout-multiplier 20 \
        --wrap "valgrind --quiet --error-exitcode=99 --leak-check=no --suppressions=$top/tests/valgrind.supp" \
        parity array_journal $unit_tests # the longest first
}

c_files()
{
    find src include tests bench -name '*.[ch]' -type f
}

shell_files()
{
    # Everything that says so on its first line.
    find ./do .ci tests bench docs -type f ! -name '*.md' | while read -r file; do
        case $(head -n 1 "$file" | tr -d '\0') in
        '#!/bin/sh'* | '#!/bin/bash'* | '#!/usr/bin/env bash'* | '#!/usr/bin/env sh'*) printf '%s\n' "$file" ;;
        esac
    done
}

check_format()
{
    c_files | xargs clang-format-14 --dry-run -Werror
}

check_shell()
{
    shell_files | tee /dev/stderr | xargs shellcheck -x
}

check_install()
{
    root=$PWD/build/install
    rm -rf "$root"
    DESTDIR=$root meson install -C build/test --no-rebuild || return 1
    find "$root" -type f
    binary=$(find "$root" -name stripelog -type f -path '*/bin/*')
    [ -n "$binary" ] || { say 'no program installed'; return 1; }
    "$binary" --version || return 1
    for page in docs/man/*.[1-9]; do
        [ -n "$(find "$root" -path "*/man/man*/${page##*/}*")" ] || { say "not installed: $page"; return 1; }
    done
    # A program of somebody else's: the archive holds all modules.
    printf '#include <stripelog.h>\nint main(void) { return stripelog_open(0, 0, 0, 0, 0) == 0; }\n' >build/user.c
    gcc -o build/user -I "$(dirname "$(find "$root" -name stripelog.h)")" build/user.c \
        "$(find "$root" -name libstripelog.a)" -l:libboost_context.a -luring -lisal -pthread || return 1
    ./build/user || return 1
    # The coroutine library is C++ by origin: nothing of that may be left to carry along.
    ! readelf -d "$binary" | grep -E 'NEEDED.*(stdc\+\+|boost)'
}

# A released array program keeps its assertions.
check_assertions()
{
    if grep -rn 'NDEBUG' src include meson.build --include='*.[ch]' --include=meson.build; then
        say 'assertions stay on in release builds'
        return 1
    fi
}

verb_check()
{
    need $packages_build $packages_test $packages_check
    packages_install_postgres
    results_begin
    step 'build gcc -Werror' build_tree build/test --werror -Dtests=true
    step 'build clang -Werror' build_clang
    step 'build sanitizers' build_sanitize
    step 'C is formatted' check_format
    step 'shell scripts are clean' check_shell
    step 'assertions are on' check_assertions
    if passed 'build gcc -Werror'; then
        step 'meson install' check_install
        test_tree gcc build/test
        unit_tests_valgrind
    fi
    if passed 'build sanitizers'; then
        test_tree sanitize build/sanitize --timeout-multiplier 4
    fi
    results_end
}

# --- the real kernel ---

verb_check_kernel()
{
    need $packages_build libnbd-bin python3 python3-libnbd
    results_begin
    if ! packages_install $packages_kernel; then
        for test in tests/kernel/test_*.py; do
            result skip "$test" "QEMU or mdadm is not to be had"
        done
        results_end || true
        return 0
    fi
    build_plain
    # The kernel is downloaded by name and version, so the lists must be of today.
    if [ ! -d "${XDG_CACHE_HOME:-$HOME/.cache}/stripelog-kernel/kernel" ]; then
        apt_get update >"$logs/apt.log" 2>&1 || say 'do: apt-get update failed; trying with the lists as they are' >&2
    fi
    for test in tests/kernel/test_*.py; do
        say "== $test"
        name=$(basename "$test" .py)
        status=0
        STRIPELOG=$top/build/plain/stripelog RESULTS=$results LOGS=$logs python3 "$test" >"$logs/$name.log" 2>&1 || status=$?
        case $status in
        0) grep -E '^ +[0-9]+ arrays|^summary' "$logs/$name.log" || true ;;
        77) result skip "$name" "$(tail -n 1 "$logs/$name.log")" ;;
        *)
            tail -n 20 "$logs/$name.log"
            # What failed is named already, unless the test itself broke down.
            grep -q "^fail	$name" "$results" || result fail "$name" "$logs/$name.log"
            ;;
        esac
    done
    awk -F '\t' '{ n[$1]++ } END { exit !(n["pass"] == 0 && n["fail"] == 0) }' "$results" && {
        results_end || true # nothing but skips
        return 0
    }
    results_end
}

# --- the rest ---

verb_build()
{
    build_plain
    say 'build/plain/stripelog'
}

verb_demo()
{
    need $packages_build libnbd-bin python3-libnbd e2fsprogs
    say '== building'
    build_plain
    sh tests/e2e/demo.sh build/plain/stripelog
}

verb_bench()
{
    need $packages_build $packages_bench
    mkdir -p "$logs"
    build_tree build/bench --buildtype=release -Dbench=true >"$logs/build_bench.log" 2>&1 || {
        tail -n 30 "$logs/build_bench.log" >&2
        die "the build failed (log: $logs/build_bench.log)"
    }
    for runner in bench/run.py bench/run; do
        if [ -x "$runner" ]; then
            BUILD=$top/build/bench "$runner" "$@"
            return
        fi
    done
    die 'no benchmark here'
}

seconds_or()
{
    case ${1-} in
    '') printf '%s' "$2" ;;
    *[!0-9]*) usage_error "not a number of seconds: $1" ;;
    *) printf '%s' "$1" ;;
    esac
}

verb_fuzz()
{
    seconds=$(seconds_or "${1-}" 600)
    need $packages_build clang libcmocka-dev
    results_begin
    CC=clang step 'build fuzzers' build_tree build/fuzz --buildtype=debugoptimized -Dtests=true -Dfuzz=true -Db_lundef=false
    passed 'build fuzzers' || { results_end; return; }
    for target in build/fuzz/tests/fuzz/fuzz_*; do
        if [ ! -f "$target" ] || [ ! -x "$target" ]; then
            continue
        fi
        fuzzer=$(basename "$target")
        mkdir -p "build/corpus/$fuzzer" "build/findings/$fuzzer"
        # New inputs go to the first directory; what the project keeps is only read.
        set -- "build/corpus/$fuzzer"
        [ ! -d "tests/fuzz/corpus/$fuzzer" ] || set -- "$@" "tests/fuzz/corpus/$fuzzer"
        step "$fuzzer" "$target" -max_total_time="$seconds" -timeout=20 -print_final_stats=1 \
            -artifact_prefix="build/findings/$fuzzer/" "$@"
        grep -E '^stat::(number_of_executed_units|new_units_added)' "$logs/$fuzzer.log" || true
    done
    results_end
}

# The server killed again and again under a real client; then round after round of new seeds for the simulator, half
# of the machine on the release build, half on the sanitizers'.
verb_soak()
{
    seconds=$(seconds_or "${1-}" 3600)
    need $packages_build libcmocka-dev python3 python3-libnbd libnbd-bin fuse3 mount e2fsprogs
    packages_install_postgres
    results_begin
    step 'build gcc -Werror' build_tree build/test --werror -Dtests=true
    step 'build sanitizers' build_sanitize
    if ! passed 'build gcc -Werror' || ! passed 'build sanitizers'; then
        results_end
        return
    fi
    seed=$(date +%s)
    soak_program test '' $kill_rounds $power_cuts $postgres_kills
    soak_program sanitize ', sanitizers' $((kill_rounds / 5)) $((power_cuts / 5)) 1
    end=$(($(date +%s) + seconds))
    while [ "$(date +%s)" -lt "$end" ]; do
        build/sanitize/tests/sim/sim --seed "$seed" --histories 400 >"$logs/soak.sanitize.log" 2>&1 &
        sanitize_pid=$!
        soak "seeds $seed and 8000 on" "$logs/soak.release.log" \
            build/test/tests/sim/sim --seed "$seed" --histories 8000
        soak "seeds $seed and 400 on, sanitizers" "$logs/soak.sanitize.log" wait "$sanitize_pid"
        seed=$((seed + 8000))
    done
    results_end
}

# soak_program BUILD REMARK KILLS CUTS DATABASE-KILLS: the program of that build, ended in every way, from seed $seed on.
soak_program()
{
    STRIPELOG=$top/build/$1/stripelog
    export STRIPELOG PYTHONDONTWRITEBYTECODE=1
    step "$3 rounds of SIGKILL in either mode, seed $seed$2" python3 tests/e2e/test_kill.py "$3" "$seed"
    step "$4 power cuts in either mode, seed $seed$2" python3 tests/e2e/test_power_cut.py "$4" "$seed"
    step "$5 kills under PostgreSQL, seed $seed$2" python3 tests/e2e/test_postgres.py "$5" "$seed"
}

# soak NAME LOG COMMAND...: one round; what failed keeps its log.
soak()
{
    soak_name=$1
    soak_log=$2
    shift 2
    if "$@" >"$soak_log.part" 2>&1; then
        soak_status=pass
    else
        soak_status=fail
    fi
    [ ! -s "$soak_log.part" ] || cat "$soak_log.part" >"$soak_log"
    rm -f "$soak_log.part"
    say "   $soak_status: $soak_name"
    if [ "$soak_status" = fail ]; then
        cp "$soak_log" "$soak_log.$seed"
        tail -n 20 "$soak_log"
    fi
    result "$soak_status" "$soak_name" "$soak_log.$seed"
}

verb_format()
{
    need clang-format-14
    c_files | xargs clang-format-14 -i
}

verb_help()
{
    cat <<'HELP'
usage: ./do VERB [ARGUMENT]

  demo              build, then show an array being made, served, killed and verified
  check             every check and test that needs no virtual machine
  check-kernel      the tests against the real Linux md driver, in a virtual machine
  bench [ARG...]    measure, as ratios against other programs; a table and a plot
  soak [SECONDS]    the server killed 500 times, then the simulator, seed after seed (3600)
  fuzz [SECONDS]    every fuzz target for so long (600)
  build             build/plain/stripelog, a release build
  format            clang-format over all C files
  help              this

Missing Debian packages are installed first, and only the missing ones.
HELP
}

[ $# -ge 1 ] || usage_error 'what shall I do?'
verb=$1
shift
case $verb in
demo) verb_demo ;;
check) verb_check ;;
check-kernel) verb_check_kernel ;;
bench) verb_bench "$@" ;;
soak) verb_soak "$@" ;;
fuzz) verb_fuzz "$@" ;;
build) verb_build ;;
format) verb_format ;;
help | --help | -h) verb_help ;;
*) usage_error "no such verb: $verb" ;;
esac
