#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Arrays with a write journal, handed from one side to the other.

 1. What the kernel left (tests/golden) we recover; the kernel opens it: the same
    content, no mismatch between data and parity.
 2. Our server is killed while a client writes, RAID-4, 5 and 6, with logs that
    wrap around, that do not, and that are full. The kernel recovers what it left,
    we recover a copy: the same content.
 3. Our recovery of what the kernel left in write-back mode is killed half-way; the
    kernel goes on with it.
 4. We create and fill arrays; mdadm and the kernel accept them, and find what we
    wrote. The kernel writes to them, in write-through and in write-back mode, on
    journals with and without a volatile cache, and is cut off. The kernel recovers
    that, we recover a copy: the same content.
"""

import concurrent.futures
import os
import shutil
import tempfile
import time

import lab
import vm
from harness import KIB, MIB, Server, expect, rng_for
from journaled import (READ_ONLY_FIRST, RING_LEAST, SILENCE, TIMEOUT, TRIES, array_new, expect_taken, golden, golden_array, log_of,
                       read_all, recover, script_take, taken)
from load import Model, load_and_kill

# --- what is handed to the kernel ---


GOLDEN = ["raid4-wb-dirty", "raid5-wb-wrapped", "raid5-wb-lossy", "raid5-wb-dirty-degraded", "raid6-wt-dirty"]


def golden_recovered(array, case):
    print(f"{array.key}: {recover(array)}")
    array.content = read_all(array)
    if case.facts["problems"]:
        expect(not case.broken_promises(array.content), "durable writes are lost")
    else:
        expect(array.content == case.content(), "not what the kernel's own recovery read")


def changed_wait(path, process):
    """Until somebody writes to the file, or the process is gone."""
    before = os.stat(path).st_mtime_ns
    while os.stat(path).st_mtime_ns == before and process.poll() is None:
        pass


def golden_interrupted(array, case, work):
    """Killed in our recovery, when it has begun a new log and not yet written out what it logged again."""
    old = log_of(array)
    array.content = case.content()
    rng = rng_for(array.key)
    for tries in range(100):
        attempt = array.copy(array.key, array.what, os.path.join(work, f"{array.key}-attempt{tries}"))
        server = Server(attempt.files, wait=False)
        changed_wait(attempt.journal, server.process)
        time.sleep(rng.uniform(0, 0.03))
        server.kill()
        server.discard()
        new = log_of(attempt)
        if new["seq_first"] != old["seq_first"] and new["data_blocks"] > 0:
            print(f"{array.key}: killed in the attempt {tries + 1}: {old} became {new}")
            array.members, array.journal = attempt.members, attempt.journal
            return
        shutil.rmtree(attempt.folder)
    expect(False, "no kill came in the middle of a recovery")


# The server of each is killed until its log is as the last word says.
KILLED = [
    ("ka", 4, 4, None, 64, RING_LEAST, "wrapped"),
    ("kb", 5, 4, "left-symmetric", 16, RING_LEAST, "wrapped"),
    ("kc", 6, 5, "left-symmetric", 64, RING_LEAST, "wrapped"),
    ("kd", 4, 3, None, 4, 32 * MIB, "unwrapped"),
    ("ke", 5, 5, "right-asymmetric", 64, 32 * MIB, "unwrapped"),
    ("kf", 6, 4, "ddf-N-continue", 32, 32 * MIB, "unwrapped"),
    ("kg", 5, 4, "parity-first", 64, RING_LEAST, "full"),
    ("kh", 6, 6, "left-symmetric-6", 128, RING_LEAST, "full"),
]


def is_as_wanted(log, wanted):
    if wanted == "wrapped":
        return log["wrapped"]
    if wanted == "full":
        # Fuller it seldom gets: each write sets aside what would be needed to log it once more.
        return log["used_sectors"] > log["ring_sectors"] * 6 // 10
    return not log["wrapped"] and log["data_blocks"] > 0


def killed_under_load(array, wanted, work):
    rng = rng_for(array.key)
    model, version = None, 0
    log = None
    for number in range(60):
        server = Server(array.files)
        if model is None:
            model = Model(server.read_all())
        # Large writes ask for more of the log than is free.
        load = load_and_kill(server, model, rng, rng.uniform(0.1, 0.5), version=version,
                             blocks_max=1000 if wanted == "full" else 80)
        version = load.version
        log = log_of(array)
        ours = array.copy(array.key + "-copy", "a copy", os.path.join(work, f"{array.key}-copy{number}"))
        said = recover(ours)
        content = read_all(ours)
        shutil.rmtree(ours.folder)
        model.expect(content, "our recovery of a copy")
        model.settle(content)
        if is_as_wanted(log, wanted):
            print(f"{array.key}: {wanted} after {number + 1} kills, {load.acked} acknowledged: {log}; {said}")
            array.content = content
            return
    expect(False, f"the log was never {wanted}; the last: {log}")


# --- the kernel writes, and is cut off ---

# Layout, chunk, journal mode, and whether the journal says that it has a volatile cache.
CRASHED = {
    "wa": (5, 4, "right-symmetric", 64, "write-through", True),
    "wb": (6, 5, "ddf-zero-restart", 64, "write-through", False),
    "wc": (4, 4, None, 32, "write-back", True),
    "wd": (6, 5, "left-symmetric", 64, "write-back", False),
}


def filled(array):
    with Server(array.files) as server:
        handle = server.connect()
        array.content = rng_for(array.key).randbytes(handle.get_size())
        for offset in range(0, len(array.content), 4 * MIB):
            handle.pwrite(array.content[offset:offset + 4 * MIB], offset)
        handle.flush()
        handle.shutdown()


def kernel_writes(arrays, modes, uncached):
    """Assembled, compared and checked; then a load in the named mode, until the machine is cut off."""
    script = [lab.GUEST, READ_ONLY_FIRST]
    for number, array in enumerate(arrays):
        script.append(script_take(number, array, True))
    for number, array in enumerate(arrays):
        blocks = len(array.content) // 4096
        script.append(f"""
echo {modes[array.key]} >/sys/block/md{number}/md/journal_mode
echo "@{array.key} mode $(cat /sys/block/md{number}/md/journal_mode)"
for stream in 1 2 3; do
    (
        RANDOM={number * 10 + 1}$stream
        while :; do
            count=$((RANDOM % 24 + 1))
            [ $((RANDOM % 4)) = 0 ] || count=$((RANDOM % 3 + 1))
            dd if=/pattern of=/dev/md{number} bs=4096 count=$count skip=$((RANDOM % 200)) \\
                seek=$((RANDOM % ({blocks} - 24))) oflag=direct conv=notrunc 2>/dev/null
        done
    ) &
done
""")
    script += ["sleep 4", "echo PULL", "sleep 60"]
    disks = {os.path.basename(path): path for array in arrays for path in array.files}
    ran = vm.run("\n".join(script), disks=disks, files={"/pattern": rng_for("pattern").randbytes(MIB)}, timeout=TIMEOUT,
                 silence=SILENCE, crash_on="PULL", uncached=uncached)
    print(ran.output, f"guest that writes: {ran.seconds:.1f} s", sep="\n", flush=True)
    return ran.output


def kernel_crashes(made, work):
    """The arrays as the kernel left them. It may hang in write-back mode: then again, on fresh copies."""
    modes = {key: facts[4] for key, facts in CRASHED.items()}
    for attempt in range(TRIES):
        arrays = [array.copy(array.key, array.what, os.path.join(work, f"crashed{attempt}")) for array in made]
        uncached = {os.path.basename(array.journal) for array in arrays if not CRASHED[array.key][5]}
        try:
            return arrays, kernel_writes(arrays, modes, uncached)
        except vm.GuestFailed as failure:
            print(f"attempt {attempt}: {failure}", flush=True)
            if attempt + 1 == TRIES:
                raise
            shutil.rmtree(os.path.join(work, f"crashed{attempt}"))
    raise AssertionError


def crash_recovered(array, ours, mode):
    log = log_of(ours)
    before = ours.content
    print(f"{array.key}: {mode}: {log}; {recover(ours)}")
    ours.content = array.content = read_all(ours)
    expect(log["data_blocks"] > 0, "nothing was in the log")
    changed = sum(ours.content[at:at + 4 * KIB] != before[at:at + 4 * KIB] for at in range(0, len(before), 4 * KIB))
    expect(changed > 0, "the kernel wrote nothing")
    for lost in range(len(ours.members)):
        files = [path for number, path in enumerate(ours.members) if number != lost] + [ours.journal]
        with Server(files, "--readonly") as server:
            expect(server.read_all() == ours.content, f"different without member {lost}")


# --- all of it ---


def run_golden_and_killed(report, work, pool):
    """Parts 1 and 2. The guests run beside what comes next."""
    cases = golden.cases()
    arrays = []
    for number, name in enumerate(GOLDEN):
        array = golden_array(cases[name], f"g{number}", f"golden {name}, recovered by us", os.path.join(work, name))
        array.ready = report.case(f"{array.name}: our part", golden_recovered, array, cases[name])
        arrays.append(array)
    guest_golden = pool.submit(taken, [array for array in arrays if array.ready], name="golden")

    killed = []
    for key, level, count, layout, chunk, ring, wanted in KILLED:
        what = f"our server killed, raid{level} of {count}, {layout or 'raid4'}, log {wanted}"
        array = array_new(key, what, level, count, work, ring, layout, chunk)
        array.ready = report.case(f"{array.name}: our part", killed_under_load, array, wanted, work)
        killed.append(array)
    guest_killed = pool.submit(taken, [array for array in killed if array.ready], tries=TRIES, name="killed")
    return [(arrays, guest_golden, ""), (killed, guest_killed, "data-parity")]


def run_interrupted(report, work, pool):
    """Part 3; each in a guest of its own, that can be started again."""
    guests = []
    for number, name in enumerate(["raid5-wb-dirty", "raid6-wb-dirty"]):
        case = golden.cases()[name]
        array = golden_array(case, f"i{number}", f"golden {name}, our recovery killed", os.path.join(work, f"i-{name}"))
        array.ready = report.case(f"{array.name}: our part", golden_interrupted, array, case, work)
        if array.ready:
            guests.append(([array], pool.submit(taken, [array], tries=TRIES, name=array.key), None))
    return guests


def run_crashed(report, work, pool):
    """Part 4."""
    made = []
    for key, (level, count, layout, chunk, mode, cached) in CRASHED.items():
        what = f"made by us, raid{level} of {count}, the kernel crashes in {mode} mode, " \
               f"journal {'with' if cached else 'without'} a cache"
        array = array_new(key, what, level, count, work, 24 * MIB, layout, chunk)
        array.ready = report.case(f"{array.name}: our part", filled, array)
        made.append(array)
    made = [array for array in made if array.ready]
    crashed, output = kernel_crashes(made, work)
    for array in made:
        report.case(f"{array.name}: taken by the kernel", expect_taken, array, output, "")
    guests, recovered = [], []
    for array in crashed:
        mode = CRASHED[array.key][4]
        ours = array.copy("r" + array.key, f"recovered by us: {array.what}", os.path.join(work, "ours"))
        if not report.case(f"{array.name}: our recovery", crash_recovered, array, ours, mode):
            continue
        recovered.append(ours)
        word = "data-only" if mode == "write-back" else "data-parity"
        guests.append(([array], pool.submit(taken, [array], tries=TRIES, name=array.key), word))
    guests.append((recovered, pool.submit(taken, recovered, name="recovered"), ""))
    return guests


def run():
    report = lab.Report("test_journal")
    work = tempfile.mkdtemp(prefix="stripelog-kernel-")
    start = time.monotonic()
    try:
        # Two at a time: a guest keeps one processor busy.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            guests = run_golden_and_killed(report, work, pool)
            guests += run_interrupted(report, work, pool)
            guests += run_crashed(report, work, pool)
            for arrays, guest, recovers in guests:
                for array in arrays:
                    report.case(f"{array.name}: the kernel's part",
                                lambda array=array, guest=guest, recovers=recovers:
                                expect_taken(array, guest.result(), recovers))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"  {sum(len(arrays) for arrays, _guest, _word in guests)} arrays in {time.monotonic() - start:.0f} s")
    report.end()


if __name__ == "__main__":
    lab.main(run)
