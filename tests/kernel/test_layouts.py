#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every layout, both ways: the kernel takes our arrays, and we take them back.

For each array: `create` it (on zeros with --assume-clean, or on garbage with a
resync), fill it and write here and there through `serve`, stop. In the guest:
mdadm --examine and --assemble accept it, its content is the same, a `check`
finds no mismatch; then the kernel writes here and there, and stops. Back here:
`serve` reads what the kernel wrote, complete and with each member left out
(RAID-6: and with pairs left out).
"""

import concurrent.futures
import itertools
import os
import shutil
import tempfile

import lab
import vm
from harness import (KIB, LAYOUTS_5, LAYOUTS_6, MIB, Server, create, expect, expect_content, images_make, resync_wait,
                     rng_for, writes_random)

CHUNKS = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
METADATA = ["1.2", "1.2", "1.1", "1.2", "1.0"]
ARRAYS_PER_GUEST = 11
PATTERN_BYTES = MIB


class Array:
    """One array's parameters, its images and the bytes that must be in it."""

    def __init__(self, index, level, layout, members, chunk):
        self.key = f"a{index}"
        self.level, self.layout, self.chunk = level, layout, chunk
        self.metadata = METADATA[index % len(METADATA)]
        self.resync = index % 3 == 0
        self.name = f"raid{level} {layout} {members} members {chunk}K v{self.metadata}"
        self.count = members
        self.rng = rng_for("layouts", index)
        self.paths = []
        self.model = bytearray()
        self.kernel_writes = []
        self.problem = None

    def member_bytes(self):
        """Room for more than one period of the layout, and for the superblock's headroom."""
        return max(6 * MIB, (self.count + 3) * self.chunk * KIB + 4 * MIB)


def arrays():
    """Each layout of each level with two (numbers of members, chunk); together they cover 3-8 members and all chunks."""
    layouts = [(4, "none")] + [(5, name) for name in LAYOUTS_5] + [(6, name) for name in LAYOUTS_6]
    made = []
    chunks = itertools.cycle(CHUNKS)
    for turn, (level, layout) in itertools.product(range(2), layouts):
        least = 4 if level == 6 else 3
        members = least + (len(made) * 7 + turn * 5) % (8 - least + 1)
        made.append(Array(len(made), level, layout, members, next(chunks)))
    return made


def fill(array, work):
    """Ours: create, fill, small writes, stop in order."""
    garbage = array.rng if array.resync else None
    array.paths = images_make(work, array.count, array.member_bytes(), array.key + "-", garbage)
    options = [] if array.resync else ["--assume-clean"]
    layout = array.layout if array.level != 4 else None
    create(array.paths, *options, level=array.level, chunk=array.chunk, layout=layout, metadata=array.metadata)
    with Server(array.paths) as server:
        handle = server.connect()
        if array.resync:
            resync_wait(array.paths[0], array.metadata)
        array.model = bytearray(array.rng.randbytes(handle.get_size()))
        for offset in range(0, len(array.model), 4 * MIB):
            handle.pwrite(array.model[offset:offset + 4 * MIB], offset)
        writes_random(handle, array.model, array.rng, 40)
        handle.flush()
        handle.shutdown()


def guest_script(group, pattern):
    """One script for a group of arrays; also applies the kernel's writes to the models."""
    script = [lab.GUEST]
    for number, array in enumerate(group):
        device = f"md{number}"
        disks = " ".join(f"/dev/{array.key}-{i}" for i in range(array.count))
        script.append(f"""
echo "@{array.key} examine $(mdadm --examine {disks} 2>&1 | grep -c 'Checksum : .* correct')"
mdadm --assemble /dev/{device} {disks} 2>&1
echo "@{array.key} assemble $?"
echo "@{array.key} state $(cat /sys/block/{device}/md/resync_start) degraded $(cat /sys/block/{device}/md/degraded)"
hash {device} {array.key}
check {device} {array.key}
""")
        for _ in range(14):
            unit = array.rng.choice([512, 4096, 4096])
            count = array.rng.randint(1, 200 * KIB // unit) if array.rng.random() < 0.4 else array.rng.randint(1, 3)
            skip = array.rng.randint(0, PATTERN_BYTES // unit - count)
            seek = array.rng.randint(0, len(array.model) // unit - count)
            script.append(f"dd if=/pattern of=/dev/{device} bs={unit} count={count} skip={skip} seek={seek} "
                          "conv=notrunc 2>/dev/null")
            array.model[seek * unit:(seek + count) * unit] = pattern[skip * unit:(skip + count) * unit]
        script.append(f"mdadm --stop /dev/{device} 2>&1; echo \"@{array.key} stop $?\"")
    return "\n".join(script)


def guest_run(group):
    import hashlib  # pylint: disable=import-outside-toplevel
    filled = [array for array in group if array.problem is None]
    wanted = {array.key: hashlib.sha256(array.model).hexdigest() for array in filled}
    pattern = rng_for("pattern", group[0].key).randbytes(PATTERN_BYTES)
    script = guest_script(filled, pattern)
    disks = {os.path.basename(path): path for array in filled for path in array.paths}
    ran = vm.run(script, disks=disks, files={"/pattern": pattern}, timeout=400)
    print(ran.output, f"guest: {ran.seconds:.1f} s", sep="\n")
    for array in filled:
        said = lab.facts(ran.output, array.key)
        array.problem = verdict(array, said, wanted[array.key])


def verdict(array, said, wanted):
    good = {"examine": str(array.count), "assemble": "0", "state": "none degraded 0", "sha256": wanted,
            "mismatch": "0", "stop": "0"}
    wrong = [f"{word}: {said.get(word)}, not {text}" for word, text in good.items() if said.get(word) != text]
    return "in the kernel: " + "; ".join(wrong) if wrong else None


def read_back(array):
    """What the kernel left, complete and degraded; read-only, so that each start finds the same images."""
    expect(array.problem is None, array.problem)
    lost_sets = [()] + [(i,) for i in range(array.count)]
    if array.level == 6:
        lost_sets += [(i, (i + 1) % array.count) for i in range(array.count)] + [(0, array.count // 2)]
    for lost in lost_sets:
        left = [path for i, path in enumerate(array.paths) if i not in lost]
        with Server(left, "--readonly") as server:
            expect_content(server.read_all(), array.model, f"read after the kernel's writes, without {lost}")


def group_run(group, report):
    work = tempfile.mkdtemp(prefix="stripelog-kernel-")
    try:
        for array in group:
            try:
                fill(array, work)
            except Exception as problem:  # pylint: disable=broad-except
                array.problem = f"create and fill: {problem}"
        if any(array.problem is None for array in group):
            try:
                guest_run(group)
            except vm.GuestFailed as failure:
                for array in group:
                    array.problem = array.problem or f"the guest failed: {failure}"
        for array in group:
            report.case(array.name, read_back, array)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run():
    report = lab.Report("test_layouts")
    todo = arrays()
    groups = [todo[i::-(-len(todo) // ARRAYS_PER_GUEST)] for i in range(-(-len(todo) // ARRAYS_PER_GUEST))]
    # Two at a time: a guest keeps one processor busy.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda group: group_run(group, report), groups))
    print(f"  {len(todo)} arrays, {sum(array.count for array in todo)} members")
    report.end()


if __name__ == "__main__":
    lab.main(run)
