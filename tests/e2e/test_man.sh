#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# test_man.sh PROGRAM: every subcommand has a manual page; the page names exactly the options that --help names.
set -eu

program=$1
pages=$(dirname -- "$0")/../../docs/man
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

wrong()
{
    printf '%s\n' "$*"
    failures=$((failures + 1))
}

# compare NAME PAGE: "$work/help" has the help text.
compare()
{
    grep -oE -- '(^|[^a-z-])--[a-z][a-z-]*' "$work/help" | grep -oE -- '--[a-z][a-z-]*' | sort -u >"$work/from-help"
    sed -nE 's/^\.It Fl -([a-z][a-z-]*).*/--\1/p' "$2" | sort -u >"$work/from-page"
    [ -s "$work/from-help" ] || wrong "$1: --help names no options"
    for option in $(comm -23 "$work/from-help" "$work/from-page"); do
        wrong "$1: $option is in --help, not in $2"
    done
    for option in $(comm -13 "$work/from-help" "$work/from-page"); do
        wrong "$1: $option is in $2, not in --help"
    done
    if command -v mandoc >/dev/null && ! mandoc -T lint -W error "$2"; then
        wrong "$2: see above"
    fi
}

"$program" --version | grep -qE '^stripelog [0-9]+\.[0-9]+' || wrong '--version does not say "stripelog N.N"'
"$program" --help >"$work/help"
compare stripelog "$pages/stripelog.1"

# The commands of `stripelog --help`: the first word of each indented line.
commands=$(sed -nE 's/^  ([a-z][a-z-]*)( .*|$)/\1/p' "$work/help" | sort -u)
[ -n "$commands" ] || wrong '--help names no commands'
for command in $commands; do
    page=$pages/stripelog-$command.1
    if [ ! -f "$page" ]; then
        wrong "$command has no manual page"
        continue
    fi
    grep -qx ".It Cm $command" "$pages/stripelog.1" || wrong "$command is not in stripelog.1"
    "$program" "$command" --help >"$work/help"
    compare "$command" "$page"
    "$program" "$command" --version | grep -q '^stripelog ' || wrong "$command --version does not work"
done
for page in "$pages"/stripelog-*.1; do
    command=${page##*/stripelog-}
    command=${command%.1}
    printf '%s\n' "$commands" | grep -qx "$command" || wrong "$page is about no command"
done

[ "$failures" -eq 0 ] || exit 1
printf 'pages and --help agree: %s\n' "$(printf '%s' "$commands" | tr '\n' ' ')"
