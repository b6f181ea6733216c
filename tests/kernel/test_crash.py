#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Arrays that were not stopped in order, or not complete, handed from one side to the other.

Two guests and our own server in between:

 1. The kernel makes arrays. Some it stops; some it is writing to when its
    machine is cut off (one of them with a write-intent bitmap).
 2. We resync the crashed ones; write to the one with a bitmap; write to those
    whose members we leave out; and are ourselves killed while writing to
    arrays that we made.
 3. The kernel takes them all: no mismatch in what we resynced, no stale member
    taken for a current one, a resync of what we left dirty.
 4. We read once more what the kernel resynced.

The load, on either side, writes to the second half of an array only. There each
512-byte sector must be what it was, or what was being written. The first half
must not change.
"""

import hashlib
import os
import shutil
import tempfile
import time

import lab
import vm
from harness import (MIB, Failed, Server, create, expect, expect_content, images_make, resync_offset, resync_wait,
                     rng_for, writes_random)

MEMBER_BYTES = 10 * MIB


class Array:
    """One array: its images, its device in the guests, and the bytes known to be in it."""

    def __init__(self, key, work, level, members, chunk, what, options=""):
        self.key, self.level, self.count, self.chunk, self.what = key, level, members, chunk, what
        self.options = options
        self.name = f"{what}, raid{level} of {members}"
        self.paths = images_make(work, members, MEMBER_BYTES, key + "-")
        self.model = b""
        self.written = {}
        self.lost = ()

    def devices(self, without=()):
        return " ".join(f"/dev/{self.key}-{i}" for i in range(self.count) if i not in without)

    def left(self):
        return [path for i, path in enumerate(self.paths) if i not in self.lost]

    def half(self):
        """Where the load begins: the middle, at the start of a row."""
        row = self.chunk * 1024 * (self.count - (2 if self.level == 6 else 1))
        return len(self.model) // 2 // row * row

    def expect_after_load(self, got):
        """The first half as it was; each sector of the second as it was or as something that was written to it."""
        half = self.half()
        expect_content(got[:half], self.model[:half], "the half that nobody wrote to")
        for start in range(half, len(got), 512):
            sector = got[start:start + 512]
            if sector == self.model[start:start + 512]:
                continue
            allowed = self.written.get(start // 4096, [bytes(4096)] if not self.written else [])
            inside = start % 4096
            if not any(block[inside:inside + 512] == sector for block in allowed):
                raise Failed(f"sector at {start} holds what nobody wrote there")


def arrays_make(work):
    return [
        Array("kc5", work, 5, 4, 64, "crashed by the kernel"),
        Array("kc6", work, 6, 5, 16, "crashed by the kernel"),
        Array("kc4", work, 4, 3, 128, "crashed by the kernel"),
        Array("kcb", work, 5, 4, 64, "crashed by the kernel with a bitmap", "--bitmap=internal --bitmap-chunk=64"),
        Array("kb", work, 5, 5, 32, "the kernel's with a bitmap, written by us", "--bitmap=internal"),
        Array("km5", work, 5, 4, 64, "the kernel's, written by us without one member"),
        Array("km6", work, 6, 6, 64, "the kernel's, written by us without two members"),
        Array("kmb", work, 5, 4, 64, "the kernel's with a bitmap, written by us without one member",
              "--bitmap=internal"),
        Array("oc4", work, 4, 4, 32, "our server killed"),
        Array("oc5", work, 5, 5, 64, "our server killed"),
        Array("oc6", work, 6, 5, 128, "our server killed"),
    ]


# --- 1. the kernel makes arrays, and its machine is cut off ---


def kernel_makes(arrays):
    base = rng_for("base").randbytes(8 * MIB)
    script = [lab.GUEST, "set -e"]
    for number, array in enumerate(arrays):
        script.append(f"""
mdadm --create /dev/md{number} --run --assume-clean --level={array.level} --raid-devices={array.count} \\
    --chunk={array.chunk} {array.options} {array.devices()} >/create 2>&1 || cat /create
for i in 0 1 2 3 4 5 6 7 8; do
    dd if=/base of=/dev/md{number} bs=1M seek=$((i * 8)) conv=notrunc 2>/dev/null || true
done
sync
echo "@{array.key} bytes $(($(cat /sys/block/md{number}/size) * 512))"
""")
        if not array.key.startswith("kc"):
            script.append(f"mdadm --stop /dev/md{number} 2>&1")
    for number, array in enumerate(arrays):
        if array.key.startswith("kc"):
            row = array.chunk * 1024 * (array.count - (2 if array.level == 6 else 1))
            script.append(f"""
half=$(($(cat /sys/block/md{number}/size) * 512 / 2 / {row} * {row} / 4096))
(
    RANDOM={number + 1}
    while :; do
        dd if=/dev/zero of=/dev/md{number} bs=4096 count=$((RANDOM % 20 + 1)) seek=$((half + RANDOM % (half - 20))) \\
            oflag=direct conv=notrunc 2>/dev/null
    done
) &
""")
    script += ["sleep 2", "echo PULL", "sleep 60"]
    disks = {os.path.basename(path): path for array in arrays for path in array.paths}
    ran = vm.run("\n".join(script), disks=disks, files={"/base": base}, timeout=180, crash_on="PULL")
    print(ran.output, f"first guest: {ran.seconds:.1f} s", sep="\n")
    for array in arrays:
        size = int(lab.facts(ran.output, array.key)["bytes"])
        array.model = (base * (size // len(base) + 1))[:size]


# --- 2. ours ---


def crashed_resynced(array):
    """What the kernel left dirty: readable at once, resynced, clean at the end."""
    expect(resync_offset(array.paths[0]) != 2**64 - 1, "the crash left no mark")
    with Server(array.paths) as server:
        during = server.read_all()
        array.expect_after_load(during)
        resync_wait(array.paths[0])
        expect_content(server.read_all(), during, "read again after the resync")
    array.model = during


def bitmap_written(array):
    array.model = bytearray(array.model)
    with Server(array.paths) as server:
        handle = server.connect()
        writes_random(handle, array.model, rng_for(array.key), 60)
        handle.flush()
        handle.shutdown()


def degraded_written(array):
    rng = rng_for(array.key)
    array.lost = tuple(rng.sample(range(array.count), 2 if array.level == 6 else 1))
    array.model = bytearray(array.model)
    with Server(array.left()) as server:
        expect_content(server.read_all(), array.model, "read degraded")
        handle = server.connect()
        writes_random(handle, array.model, rng, 60)
        handle.flush()
        expect_content(server.read_all(), array.model, "read degraded after writing")
        handle.shutdown()


def ours_killed(array):
    """A load of 4 KiB writes, 32 at a time, and SIGKILL in the middle of it."""
    import nbd  # pylint: disable=import-outside-toplevel
    create(array.paths, "--assume-clean", level=array.level, chunk=array.chunk)
    rng = rng_for(array.key)
    server = Server(array.paths)
    handle = server.connect()
    array.model = rng.randbytes(handle.get_size())
    for offset in range(0, len(array.model), 4 * MIB):
        handle.pwrite(array.model[offset:offset + 4 * MIB], offset)
    handle.flush()
    first, end = array.half() // 4096, len(array.model) // 4096
    deadline = time.monotonic() + 1.0
    try:
        while time.monotonic() < deadline:
            block = rng.randrange(first, end)
            data = rng.randbytes(4096)
            array.written.setdefault(block, []).append(data)
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), block * 4096)
            while handle.aio_in_flight() >= 32:
                handle.poll(1000)
        server.kill()
    finally:
        server.kill()
        server.discard()
    expect(resync_offset(array.paths[0]) != 2**64 - 1, "no mark of the crash in the superblock")


# --- 3. the kernel takes them ---


def kernel_takes(arrays):
    script = [lab.GUEST]
    for number, array in enumerate(arrays):
        device, key = f"md{number}", array.key
        script.append(f"""
mdadm --assemble /dev/{device} --run {array.devices()} 2>&1
echo "@{key} assemble $?"
echo "@{key} start $(cat /sys/block/{device}/md/resync_start)"
echo "@{key} degraded $(cat /sys/block/{device}/md/degraded)"
hash {device} {key}
""")
        for lost in array.lost:
            # Back as new members: what we wrote without them must rebuild to the same.
            script.append(f"mdadm --zero-superblock /dev/{key}-{lost}; mdadm /dev/{device} --add /dev/{key}-{lost} 2>&1")
        script.append(f"""
fast {device}
tries=0
while [ "$(cat /sys/block/{device}/md/degraded)" != 0 ] && [ $tries -lt 600 ]; do
    sleep 0.1; tries=$((tries + 1))
done
echo "@{key} rebuilt $(cat /sys/block/{device}/md/degraded)"
idle {device}
check {device} {key}
mdadm --stop /dev/{device} 2>&1; echo "@{key} stop $?"
""")
    disks = {os.path.basename(path): path for array in arrays for path in array.paths}
    ran = vm.run("\n".join(script), disks=disks, timeout=400)
    print(ran.output, f"second guest: {ran.seconds:.1f} s", sep="\n")
    return ran.output


def verdict(array, output):
    said = lab.facts(output, array.key)
    ours_dirty = array.key.startswith("oc")
    good = {"assemble": "0", "degraded": str(len(array.lost)), "rebuilt": "0", "mismatch": "0", "stop": "0"}
    if not ours_dirty:
        good["start"] = "none"
        good["sha256"] = hashlib.sha256(array.model).hexdigest()
    wrong = [f"{word}: {said.get(word)}, not {text}" for word, text in good.items() if said.get(word) != text]
    if ours_dirty and said.get("start") == "none":
        wrong.append("the kernel saw no need for a resync")
    expect(not wrong, "in the kernel: " + "; ".join(wrong))
    # 4. What the kernel left is what we read.
    with Server(array.paths, "--readonly") as server:
        got = server.read_all()
    if ours_dirty:
        array.expect_after_load(got)
    else:
        expect_content(got, array.model, "read after the kernel")


def run():
    report = lab.Report("test_crash")
    work = tempfile.mkdtemp(prefix="stripelog-kernel-")
    try:
        arrays = arrays_make(work)
        kernel_makes([array for array in arrays if array.key.startswith("k")])
        steps = {"kc": crashed_resynced, "kb": bitmap_written, "km": degraded_written, "oc": ours_killed}
        ready = [array for array in arrays
                 if report.case(array.name + ": our part", steps[array.key[:2]], array)]
        output = kernel_takes(ready)
        for array in ready:
            report.case(array.name + ": the kernel's part", verdict, array, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report.end()


if __name__ == "__main__":
    lab.main(run)
