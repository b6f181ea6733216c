#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many data-only stripes the real kernel recovers, in a guest of so much memory.

    memory.py [OPTION ...] LEVEL MEMBERS BLOCKS STRIPES ...

For each number of STRIPES, an array is made whose log holds that many data-only
stripes with so many BLOCKS each, scattered over the array. The kernel assembles
it; a line says what came of it: the stripe cache that it had in the end, what the
guest had of memory before and after, what of it the stripes took. No test:
docs/testing.md says what it has shown.

The log is written here, block by block, so that there may be more in it than
stripelog would leave.
"""

import argparse
import math
import os
import re
import struct
import sys
import tempfile

import lab
import vm
from harness import MIB, crc32c, create, expect, images_make, superblock_edit

CHUNK = 64 << 10
CHUNK_BLOCKS = CHUNK // 4096
PAYLOADS = (4096 - 32) // 20  # of a meta block
META_MAGIC = 0x6433C509
SEQ_FIRST = 1000


class Log:
    """Entries of DATA, one behind the other from the ring's beginning on. All blocks are the same."""

    def __init__(self, path):
        self.image = open(path, "r+b")
        self.image.seek(4096)
        superblock = self.image.read(256)
        self.base = struct.unpack_from("<Q", superblock, 128)[0] * 512
        self.seed = crc32c(0xFFFFFFFF, superblock[16:32])
        self.block = b"data-only stripe" * 256
        self.checksum = crc32c(self.seed, self.block)
        self.seq, self.position = SEQ_FIRST, 0
        self.payloads = []

    def stripe_add(self, blocks, parity=None):
        """blocks: places in the array, in blocks. All of a stripe stand in one entry.

        parity: the stripe's place, if its parity is logged as well; where its other blocks are zero, that of one
        block is the same again.
        """
        if len(self.payloads) + len(blocks) + 1 > PAYLOADS:
            self.flush()
        self.payloads += [(0, block) for block in blocks]
        if parity is not None:
            self.payloads.append((1, parity))

    def flush(self):
        used = 32 + 20 * len(self.payloads)
        head = struct.pack("<IIB3xIQQ", META_MAGIC, 0, 1, used, self.seq, self.position // 512)
        body = b"".join(struct.pack("<HHIQI", kind, 0, 8, block * 8, self.checksum) for kind, block in self.payloads)
        meta = (head + body).ljust(4096, b"\0")
        meta = meta[:4] + struct.pack("<I", crc32c(self.seed, meta)) + meta[8:]
        self.image.seek(self.base + self.position)
        self.image.write(meta + self.block * len(self.payloads))
        self.position += 4096 * (1 + len(self.payloads))
        self.seq += 1
        self.payloads = []

    def end(self):
        if self.payloads:
            self.flush()
        self.image.close()


def array_make(work, options, stripes):
    """The images, the journal last; its log holds the stripes in an order that jumps about."""
    data = options.members - (2 if options.level == 6 else 1)
    total = stripes + options.complete
    expect(options.blocks <= data, f"a stripe of {options.members} members has {data} blocks")
    rows = -(-total * options.stride // CHUNK_BLOCKS)
    paths = images_make(work, options.members, 2 * MIB + rows * CHUNK, "m")
    journal = os.path.join(work, "journal")
    with open(journal, "wb") as image:
        image.truncate(MIB + max(4 * MIB, int(options.ring * total) * 4096))
    create(paths, "--assume-clean", f"--write-journal={journal}", level=options.level, chunk=CHUNK >> 10)
    log = Log(journal)
    count = rows * CHUNK_BLOCKS // options.stride
    step = next(step for step in range(int(count * 0.618) + 1, 2 * count) if math.gcd(step, count) == 1)
    for number in range(total):
        stripe = number * step % count * options.stride
        row, inside = divmod(stripe, CHUNK_BLOCKS)
        # Which members they are does not matter; the chunks of a row stand one behind the other in the array.
        blocks = [(row * data + (number + i) % data) * CHUNK_BLOCKS + inside for i in range(options.blocks)]
        is_complete = number * options.complete // total != (number + 1) * options.complete // total
        log.stripe_add(blocks, stripe if is_complete else None)
    log.end()
    superblock_edit(journal, {152: struct.pack("<Q", 0)})  # the tail
    return paths + [journal]


SCRIPT = r"""
[ @PLAIN@ = 1 ] || echo 1 >/sys/module/md_mod/parameters/start_ro
echo "@a before $(grep MemAvailable /proc/meminfo)"
(
    mdadm --assemble /dev/md0 --run @DEVICES@ >/said 2>&1
    echo "assembled: $? $(cat /sys/block/md0/md/array_state) $(cat /sys/block/md0/md/stripe_cache_size)" >>/said
    mdadm --readwrite /dev/md0 2>&1
    echo $? >/status
) &
tries=0
while [ ! -e /status ] && [ $tries -lt @SECONDS@ ]; do
    sleep 1
    tries=$((tries + 1))
    [ $((tries % 10)) != 0 ] || echo "$tries s: $(grep MemFree /proc/meminfo) stripes $(grep raid /proc/slabinfo | head -n 1)"
done
cat /said
[ -e /status ] || echo "@a hangs after $tries s; stripe cache $(cat /sys/block/md0/md/stripe_cache_size)"
echo "@a assemble $(cat /status)"
echo "@a after $(grep MemAvailable /proc/meminfo)"
echo "@a slab $(grep raid /proc/slabinfo)"
echo "@a cache $(cat /sys/block/md0/md/stripe_cache_size)"
dmesg | grep -E 'md/raid|md0|journal|recovering|ut of memory|page alloc|oom|Mem-Info|pages RAM' | tail -n 20
"""


def tried(options, stripes):
    """Did the kernel recover them? Prints what it said."""
    with tempfile.TemporaryDirectory(prefix="stripelog-memory-") as work:
        paths = array_make(work, options, stripes)
        disks = {os.path.basename(path): path for path in paths}
        script = SCRIPT.replace("@DEVICES@", " ".join(f"/dev/{name}" for name in disks))
        script = script.replace("@SECONDS@", str(options.seconds)).replace("@PLAIN@", str(int(options.plain)))
        try:
            ran = vm.run(script, disks=disks, timeout=options.seconds + 120, snapshot=True, memory_mib=options.memory)
        except vm.GuestFailed as failure:
            print(failure, flush=True)
            return False
    said = lab.facts(ran.output, "a")
    found = re.search(r"recovering (\d+) data-only", ran.output)
    good = said.get("assemble") == "0" and found and int(found.group(1)) == stripes
    print(f"raid{options.level} of {options.members}, {options.blocks} blocks a stripe, {stripes} stripes, "
          f"{options.memory} MiB: {'recovered' if good else 'FAILED'} in {ran.seconds:.0f} s; "
          f"stripe cache {said.get('cache')}; {said.get('before')} -> {said.get('after')}; {said.get('slab')}", flush=True)
    if not good:
        print(ran.output, flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description="how many data-only stripes the kernel recovers")
    parser.add_argument("--memory", type=int, default=512, help="of the guest, in MiB (512)")
    parser.add_argument("--complete", type=int, default=0, help="stripes with parity in the log as well, in between (0)")
    parser.add_argument("--ring", type=float, default=20, help="room in the ring, in blocks for each stripe (20)")
    parser.add_argument("--stride", type=int, default=1, help="only each so many-th stripe is in the log (1)")
    parser.add_argument("--plain", action="store_true", help="assemble it to be written to at once")
    parser.add_argument("--seconds", type=int, default=120, help="for the kernel, before it is said to hang (120)")
    parser.add_argument("level", type=int)
    parser.add_argument("members", type=int)
    parser.add_argument("blocks", type=int, help="in the log of each data-only stripe")
    parser.add_argument("stripes", type=int, nargs="+")
    options = parser.parse_args()
    failed = [stripes for stripes in options.stripes if not tried(options, stripes)]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
