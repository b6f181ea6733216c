#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Arrays with a write-back cache, left to the kernel by a server that was killed.

 1. Our server is killed in write-back while a client writes, again and again, each
    time upon the log that the last one left, until the log is as wanted: only
    data-only stripes; only stripes with parity, of a cache that was just written
    out; both, in a ring that has wrapped around. RAID-4, 5 and 6. The kernel
    recovers the images, we recover a copy: the same content, parity that agrees,
    and the same with each member left out of ours.
 2. What the kernel left in write-back mode (tests/golden) goes live in our cache;
    the server is killed, at once or after some load; the kernel goes on with it.
 3. As many data-only stripes as our server leaves, in the place where they cost a
    kernel the most: in a machine of 512 MiB it recovers them.
"""

import concurrent.futures
import hashlib
import json
import os
import shutil
import tempfile
import time

import lab
from harness import MIB, WRITE_BACK, Server, create_cached, expect, journal_mode, rng_for, stripelog
from journaled import (RING_LEAST, TRIES, Array, array_new, expect_taken, golden, golden_array, log_of, read_all, recover,
                       taken)
from load import Model, load_and_kill, whole

KERNEL_MEMORY_MIB = 512


def stripes_of(array):
    """How many stripes in the log are data-only, and how many have their parity there."""
    ended = stripelog("recover", "--dry-run", "--json", *array.files)
    expect(ended.returncode == 0, f"recover --dry-run: {ended.returncode}\n{ended.stderr}")
    told = json.loads(ended.stdout)
    return told["data_only_stripes"], told["data_parity_stripes"]


def our_recovery(array, model, work):
    """What our recovery makes of a copy; judged, and read with each member left out."""
    ours = array.copy(array.key + "-copy", "a copy", os.path.join(work, f"{array.key}-copy"))
    said = recover(ours)
    content = read_all(ours)
    model.expect(content, "our recovery of a copy")
    for lost in range(len(ours.members)):
        files = [path for number, path in enumerate(ours.members) if number != lost] + [ours.journal]
        with Server(files, "--readonly") as server:
            expect(server.read_all() == content, f"our recovery of a copy differs without member {lost}")
    shutil.rmtree(ours.folder)
    array.content = content
    return said


# --- 1. killed under load ---


# The server of each is killed until its log is as the last word says.
KILLED = [
    ("ka", 4, 4, None, 64, 32 * MIB, "data-only"),
    ("kb", 5, 5, "left-asymmetric", 16, 32 * MIB, "data-only"),
    ("kc", 6, 5, "left-symmetric", 64, 32 * MIB, "data-only"),
    ("kd", 5, 3, "right-symmetric", 128, 32 * MIB, "data-parity"),
    ("ke", 6, 6, "ddf-N-continue", 32, 32 * MIB, "data-parity"),
    ("kf", 4, 5, None, 32, RING_LEAST, "both"),
    ("kg", 5, 4, "left-symmetric", 64, RING_LEAST, "both"),
    ("kh", 6, 6, "left-symmetric-6", 4, RING_LEAST, "both"),
]


def is_as_wanted(log, stripes, wanted):
    only, parity = stripes
    if wanted == "data-only":
        return only > 0 and parity == 0
    if wanted == "data-parity":
        return only == 0 and parity > 0
    return only > 0 and parity > 0 and log["wrapped"]


def kill_drained(server):
    """While what was cached is on its way to the members, or has just come there."""
    journal_mode(server, "write-through")
    server.process.kill()


def killed_under_load(array, wanted, work):
    rng = rng_for("write-back", array.key)
    model, version = None, 0
    for number in range(60):
        server = Server(array.files, WRITE_BACK)
        if model is None:
            model = Model(server.read_all())
        # Whole stripes are not cached, nor is more than the log can hold; both is what one of them wants.
        load = load_and_kill(server, model, rng, rng.uniform(0.05, 0.5), version=version,
                             blocks_max=80 if wanted == "both" else 12,
                             kill=(lambda _load, server=server: kill_drained(server)) if wanted == "data-parity" else None)
        version = load.version
        log, stripes = log_of(array), stripes_of(array)
        said = our_recovery(array, model, work)
        if is_as_wanted(log, stripes, wanted):
            print(f"{array.key}: {wanted} after {number + 1} kills, {load.acked} acknowledged: {log}; {said}")
            return
        if wanted == "data-only":
            # Again from a log with nothing in it: what a start finds data-only is written out by and by.
            recover(array)
        model.settle(array.content)
    expect(False, f"the log was never {wanted}; the last: {log}, {stripes}")


def run_killed(report, work, pool):
    arrays = []
    for key, level, count, layout, chunk, ring, wanted in KILLED:
        what = f"killed in write-back, raid{level} of {count}, {layout or 'raid4'}, {wanted}"
        array = array_new(key, what, level, count, work, ring, layout, chunk)
        array.ready = report.case(f"{array.name}: our part", killed_under_load, array, wanted, work)
        arrays.append((array, wanted))
    ready = [array for array, _wanted in arrays if array.ready]
    guest = pool.submit(taken, ready, tries=TRIES, name="killed")
    return [([array], guest, wanted) for array, wanted in arrays]


# --- 2. what the kernel left, in our cache ---


# And whether the server gets some load before it is killed.
GOLDEN = [("raid4-wb-dirty", False), ("raid5-wb-load", False), ("raid5-wb-wrapped", True), ("raid6-wb-dirty", True)]


def golden_cached(array, case, loaded, work):
    model = Model(case.content())
    rng = rng_for("write-back", array.key)
    old = log_of(array)
    server = Server(array.files, WRITE_BACK)
    if loaded:
        load_and_kill(server, model, rng, 0.2, blocks_max=8)
    else:
        server.kill()
        server.discard()
    new, stripes = log_of(array), stripes_of(array)
    print(f"{array.key}: {old} became {new}; {stripes}; {our_recovery(array, model, work)}")
    expect(new["seq_first"] != old["seq_first"], "the log is the kernel's yet")
    expect(stripes[0] > 0, "nothing was cached when the server was killed")


def run_golden(report, work, pool):
    arrays = []
    for number, (name, loaded) in enumerate(GOLDEN):
        case = golden.cases()[name]
        what = f"golden {name}, cached by us, killed {'under load' if loaded else 'at once'}"
        array = golden_array(case, f"g{number}", what, os.path.join(work, name))
        array.ready = report.case(f"{array.name}: our part", golden_cached, array, case, loaded, work)
        arrays.append(array)
    guest = pool.submit(taken, [array for array in arrays if array.ready], tries=TRIES, name="golden")
    return [(arrays, guest, "data-only")]


# --- 3. the most that we leave ---


# Of 9 members it is 8192 stripes, for which a kernel wants 332 MB; no other number of members comes nearer to 320 MiB.
# The kernel keeps free stripes in eight lists, by number, and makes room for as many again when one is empty: it
# takes no more than 1024 stripes whose numbers are all multiples of 8.
MOST_MEMBERS = 9
MOST_STRIPES = 8192
CLASSES = 8
MOST_WRITTEN = 1280


def most_block(number):
    """A block of each eighth stripe."""
    row, inside = divmod(number * CLASSES, 16)
    return row * 16 * (MOST_MEMBERS - 2) + inside


def most_written(array):
    """Faster than it is written out."""
    import nbd  # pylint: disable=import-outside-toplevel
    server = Server(array.files, WRITE_BACK)
    try:
        handle = server.connect()
        for number in range(MOST_WRITTEN):
            block = most_block(number)
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(whole(block, number + 1))), block * 4096)
            while handle.aio_in_flight() >= 32:
                handle.poll(1000)
        while handle.aio_in_flight():
            handle.poll(1000)
    finally:
        server.kill()
        server.discard()


def most_left(array):
    most_written(array)
    stripes = stripes_of(array)
    print(f"{array.key}: {stripes}")
    # More than half of them: the stripe cache of the kernel has to grow to as much as for all.
    most = MOST_STRIPES // CLASSES
    expect(most // 2 < stripes[0] <= most, f"{stripes[0]} data-only stripes, of {most}")
    # A killed server takes nothing from the files: all is there.
    content = bytearray(4096 * CLASSES * (MOST_MEMBERS - 2) * MOST_WRITTEN)
    for number in range(MOST_WRITTEN):
        block = most_block(number)
        content[block * 4096:(block + 1) * 4096] = whole(block, number + 1)
    array.sha256 = hashlib.sha256(content).hexdigest()
    with Server(array.files, "--readonly") as server:
        handle = server.connect()
        expect(handle.get_size() == len(content), f"{handle.get_size()} bytes, not {len(content)}")
        for at in range(0, len(content), 4 * MIB):
            expect(handle.pread(min(4 * MIB, len(content) - at), at) == content[at:at + 4 * MIB],
                   f"something is lost from {at} on")
        handle.shutdown()


def run_most(report, work, pool):
    folder = os.path.join(work, "most")
    os.makedirs(folder)
    paths = create_cached(folder, MOST_MEMBERS, MIB + MOST_WRITTEN * CLASSES * 4096, level=6, log_bytes=64 * MIB)
    array = Array("most", "killed with the most stripes cached", 6, folder)
    for number, path in enumerate(paths):
        array.members.append(os.path.join(folder, f"most-{number}"))
        os.rename(path, array.members[-1])
    array.journal = array.members.pop()
    array.ready = report.case(f"{array.name}: our part", most_left, array)
    guest = pool.submit(taken, [array] if array.ready else [], tries=TRIES, name="most",
                        memory_mib=KERNEL_MEMORY_MIB)
    return [([array], guest, "data-only")]


def run():
    report = lab.Report("test_write_back")
    work = tempfile.mkdtemp(prefix="stripelog-kernel-")
    start = time.monotonic()
    try:
        # Two at a time: a guest keeps one processor busy.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            guests = run_most(report, work, pool) + run_golden(report, work, pool) + run_killed(report, work, pool)
            for arrays, guest, recovers in guests:
                for array in arrays:
                    if array.ready:
                        report.case(f"{array.name}: the kernel's part",
                                    lambda array=array, guest=guest, recovers=recovers:
                                    expect_taken(array, guest.result(), recovers))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"  {sum(len(arrays) for arrays, _guest, _word in guests)} arrays in {time.monotonic() - start:.0f} s")
    report.end()


if __name__ == "__main__":
    lab.main(run)
