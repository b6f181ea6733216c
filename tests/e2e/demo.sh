#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# demo.sh PROGRAM: an array's life in a minute, with real data and a real NBD client.
#
# Makes a RAID-5 of four image files with a write journal, puts a file system with
# real files on it, kills the server in the middle of writing, looks at what it left,
# recovers the journal, kills it again with the write-back cache full, loses a member,
# and compares every byte after each step.
# Every check that fails ends the demo with 1.
set -eu

program=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
member_mib=256
journal_mib=64
# Debian's python3, for which python3-libnbd is.
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
work=$(mktemp -d "${TMPDIR:-/var/tmp}/stripelog-demo.XXXXXX")
socket=$work/nbd.sock
uri="nbd+unix:///?socket=$socket"
server=
step_number=0

cleanup()
{
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

step()
{
    step_number=$((step_number + 1))
    printf '\n%d. %s\n' "$step_number" "$*"
}

note()
{
    printf '   %s\n' "$*"
}

fail()
{
    printf 'demo: %s\n' "$*" >&2
    [ ! -s "$work/messages" ] || sed 's/^/   server: /' "$work/messages" >&2
    exit 1
}

# serve MEMBER...: in the background, until it says that it is ready.
serve()
{
    printf '   $ stripelog serve --socket=nbd.sock --control=ctl %s &\n' "$*"
    : >"$work/ready"
    (cd "$work" && exec "$program" serve --socket="$socket" --control=ctl "$@" >ready 2>messages) &
    server=$!
    waited=0
    until grep -q '^stripelog: ready ' "$work/ready"; do
        kill -0 "$server" 2>/dev/null || fail 'the server did not start'
        waited=$((waited + 1))
        [ "$waited" -lt 600 ] || fail 'the server was not ready within 60 s'
        sleep 0.1
    done
    sed 's/^/     /' "$work/ready"
}

stop()
{
    printf '   $ stripelog stop ./ctl\n'
    (cd "$work" && "$program" stop ./ctl) || fail 'the array was not stopped'
    status=0
    wait "$server" || status=$?
    server=
    [ "$status" -eq 0 ] || fail "the server ended with $status"
}

# resync_offset in the superblock of m0: all ones when parity is right and the array is clean.
resync_offset()
{
    od -A n -t x8 -j $((4096 + 208)) -N 8 "$work/m0" | tr -d ' '
}

resync_wait()
{
    waited=0
    until [ "$(resync_offset)" = ffffffffffffffff ]; do
        waited=$((waited + 1))
        [ "$waited" -lt 600 ] || fail 'the resync did not end within 60 s'
        sleep 0.1
    done
}

sum()
{
    sha256sum | cut -d ' ' -f 1
}

# The image's part of what the array holds now.
array_sum()
{
    nbdcopy "$uri" - | head -c "$image_bytes" | sum
}

same()
{
    now=$(array_sum)
    [ "$now" = "$image_sum" ] || fail "the data has changed: sha256 $now"
    note "sha256 of the data: $now, unchanged"
}

# kill_under_load QUARTER: writes there, and no mercy.
kill_under_load()
{
    python3 load.py "$uri" "$1" >load.out 2>&1 &
    load=$!
    sleep 1.5
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    server=
    wait "$load" || { cat load.out; fail 'the load failed by itself'; }
    grep -q 'acknowledged' load.out || { cat load.out; fail 'the load did not run'; }
    note "$(cat load.out)"
}

# verify QUARTER: what was acknowledged there.
verify()
{
    python3 load.py "$uri" "$1" verify >load.out || { cat load.out; fail 'acknowledged writes are gone'; }
    note "$(cat load.out)"
}

printf 'stripelog demo, in %s\n' "$work"
cd "$work"

step 'Real data: a file system with files of this machine'
mkdir files
kib=0
for directory in /usr/include /usr/share/perl /usr/share/doc /usr/share/zoneinfo /usr/lib/python3* /usr/share/*; do
    if [ ! -d "$directory" ] || [ -e "files/${directory##*/}" ]; then
        continue
    fi
    size=$(du -skx "$directory" | cut -f 1)
    [ $((kib + size)) -le 150000 ] || continue
    kib=$((kib + size))
    cp -a "$directory" files/ 2>/dev/null || true
done
truncate -s 240M image
mkfs.ext4 -q -E root_owner=0:0 -d files image
image_bytes=$(stat -c %s image)
image_sum=$(sum <image)
files=$(find files -type f | wc -l)
note "$files files, $((kib / 1024)) MiB, in an ext4 image of $((image_bytes >> 20)) MiB"
note "sha256 $image_sum"

step 'A RAID-5 of four image files, and a fifth for its journal'
truncate -s ${member_mib}M m0 m1 m2 m3
truncate -s ${journal_mib}M journal
printf '   $ stripelog create --level=5 --chunk=64K --write-journal=journal m0 m1 m2 m3\n'
"$program" create --level=5 --chunk=64K --write-journal=journal m0 m1 m2 m3 >out 2>&1 || { cat out; fail 'create failed'; }
sed 's/^/     /' out
serve m0 m1 m2 m3 journal
note 'It is served at once; its first resync runs beside.'
nbdinfo "$uri" | grep -E 'export-size|can_flush|can_multi_conn|block_size_max' | sed 's/^[[:space:]]*/     /'
nbdcopy --flush image "$uri"
same
resync_wait
note 'The first resync is done.'

step 'kill -9 under load'
cat >load.py <<'LOAD'
# load.py URI QUARTER: writes all over a quarter of the array, 32 at a time, until the server is gone; a FLUSH after
# every 500. Remembers which were acknowledged. load.py URI QUARTER verify: reads those back.
import json, random, sys, nbd

quarter = int(sys.argv[2])
memory = f"acknowledged-{quarter}"

def data(slot):
    return random.Random(slot).randbytes(4096 * (1 + slot % 4))

handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
length = handle.get_size() // 4
if sys.argv[3:] == ["verify"]:
    acknowledged = json.load(open(memory))
    wrong = sum(handle.pread(len(data(slot)), 16384 * slot) != data(slot) for slot in acknowledged)
    print(f"{len(acknowledged)} acknowledged writes read back, {wrong} wrong")
    sys.exit(wrong > 0 or not acknowledged)

slots = list(range(quarter * length // 16384 + 1, (quarter + 1) * length // 16384))
random.shuffle(slots)
sent = {}
acknowledged = []
flush = None     # under way: its number, and how many writes had been acknowledged
flushed = 0

def reap():
    for cookie in [cookie for cookie in sent if handle.aio_command_completed(cookie)]:
        acknowledged.append(sent.pop(cookie))

try:
    while True:
        while slots and len(sent) < 32:
            slot = slots.pop()
            buffer = nbd.Buffer.from_bytearray(bytearray(data(slot)))
            sent[handle.aio_pwrite(buffer, 16384 * slot)] = slot
        if not flush and len(acknowledged) >= flushed + 500:
            flush = (handle.aio_flush(), len(acknowledged))
        handle.poll(-1)
        reap()
        if flush and handle.aio_command_completed(flush[0]):
            flushed, flush = flush[1], None
except nbd.Error:
    print(f"{len(acknowledged)} writes acknowledged, {flushed} of them flushed, {len(sent)} under way when the server died")
    json.dump(acknowledged, open(memory, "w"))
LOAD
kill_under_load 2

step 'What the crash left, looked at without writing to it'
printf '   $ stripelog recover --dry-run m0 m1 m2 m3 journal\n'
before=$(sha256sum m0 m1 m2 m3 journal)
"$program" recover --dry-run m0 m1 m2 m3 journal >out 2>messages || fail 'the journal cannot be read'
sed 's/^/     /' out
replayed=$(sed -n 's/^\([0-9]*\) data-parity stripes would be replayed.*/\1/p' out)
[ "${replayed:-0}" -gt 0 ] || fail 'the journal holds nothing to recover'
printf '   $ stripelog recover --to=rescued m0 m1 m3 journal      # without m2\n'
"$program" recover --to=rescued m0 m1 m3 journal >out 2>messages || fail 'the content cannot be rescued'
rescued_sum=$(sum <rescued)
[ "$(head -c "$image_bytes" rescued | sum)" = "$image_sum" ] || fail 'the rescued data has changed'
rm rescued
[ "$(sha256sum m0 m1 m2 m3 journal)" = "$before" ] || fail 'looking changed the devices'
note 'The data is there, also without one member; the five files are what they were.'

step 'Recover the journal'
printf '   $ stripelog recover m0 m1 m2 m3 journal\n'
"$program" recover m0 m1 m2 m3 journal >out 2>messages || fail 'the recovery failed'
sed 's/^/     /' out
grep -q "^$replayed data-parity stripes replayed" out || fail 'the recovery did not do what the dry run said'
[ "$(resync_offset)" = ffffffffffffffff ] || fail 'a resync is pending in spite of the journal'
note 'No resync is needed: parity agrees with data wherever the crash came.'
serve m0 m1 m2 m3 journal
same
verify 2
whole_sum=$(nbdcopy "$uri" - | sum)
[ "$whole_sum" = "$rescued_sum" ] || fail 'recovered, the array is not what was rescued without a member'
stop
note 'Stopped in order. All of the array reads as it was rescued without m2.'

step 'The same with the write-back cache'
serve --journal-mode=write-back m0 m1 m2 m3 journal
kill_under_load 3
printf '   $ stripelog recover --dry-run m0 m1 m2 m3 journal\n'
"$program" recover --dry-run m0 m1 m2 m3 journal >out 2>messages || fail 'the journal cannot be read'
sed 's/^/     /' out
cached=$(sed -n 's/.* \([0-9]*\) data-only stripes.*/\1/p' out)
[ "${cached:-0}" -gt 0 ] || fail 'the journal holds nothing that was only cached'
serve --journal-mode=write-back m0 m1 m2 m3 journal
printf '   $ stripelog status ./ctl\n'
"$program" status ./ctl | sed -n '/^journal/,/^  in memory/s/^/     /p'
note 'What was cached is cached again.'
verify 3
whole_sum=$(nbdcopy "$uri" - | sum)
stop
note 'Stopped in order: all of it is on the members, with its parity.'

step 'Lose a member'
printf '   $ rm m2\n'
rm m2
serve m0 m1 m3 journal
sed 's/^/     /' messages
same
degraded_sum=$(nbdcopy "$uri" - | sum)
[ "$degraded_sum" = "$whole_sum" ] || fail 'what the load wrote reads differently without the member'
note 'All of the array reads as it did with four members.'
verify 2
verify 3
nbdcopy "$uri" - | head -c "$image_bytes" >copy
e2fsck -fn copy >fsck.out 2>&1 || { cat fsck.out; fail 'the file system is damaged'; }
note "e2fsck: $(tail -n 1 fsck.out)"
stop

cat <<SUMMARY

What this showed: an array with a write journal that Linux md would take as its own,
made and served without a kernel driver. SIGKILL in the middle of writing cost nothing
that had been acknowledged: $replayed stripes were finished from the journal, no resync
was needed, and the write hole is closed. What the crash left could be read and rescued
without writing to it. And with a quarter of the disks gone all $files files are there,
byte for byte, and every acknowledged write: also those that a write-back cache held
when it was killed, $cached stripes that were on the journal alone.
SUMMARY
