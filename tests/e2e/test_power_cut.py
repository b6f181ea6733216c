#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The power is cut under load, and members and journal lose what was not flushed.

What the simulator does to the engine, done to the whole program: real files,
which belong to disks that keep what is written in a volatile cache (lossy.py).
At some moment the server is killed, and a random part of each disk's cache is
lost, sector by sector. Then

 - in write-through every write that was acknowledged must be there, in
   write-back every one that FUA or a FLUSH had made durable; nothing older,
   nothing torn within a block, nothing that nobody wrote;
 - it must read the same without a member, as the cut left it and recovered;
 - a second cut, in the middle of the recovery, changes nothing.

And the load is repeated with which a kernel lost what was flushed (golden case
raid5-wb-lossy: it logs that stripes are safe on the members before they are), on
disks that lose everything that was not flushed.

In write-back the mode is switched there and back in some rounds, and some begin
with the log as the cut left it.

    test_power_cut.py [ROUNDS [SEED]]
"""

import os
import random
import shutil
import sys
import tempfile
import time

from harness import (MEMORY, MIB, TOP, WRITE_BACK, Failed, Server, Skip, create_cached, expect, main, nbd_read_all,
                     need_program, stripelog)
from load import Model, load_and_kill, switching
from lossy import PowerCut

sys.path.insert(0, os.path.join(TOP, "tests", "golden"))

import golden  # noqa: E402  pylint: disable=wrong-import-position

SAMPLE = 3
ROUNDS = None
SEED = 1


class Array:
    def __init__(self, work, name, level, count, **geometry):
        self.work = os.path.join(work, name)
        os.mkdir(self.work)
        self.name, self.count = name, count
        self.devices = create_cached(self.work, count, 5 * MIB, level=level, **geometry)
        self.model = Model(self.content())
        self.version = self.rounds = 0
        self.totals = dict.fromkeys(("requests acknowledged", "blocks flushed", "blocks in lost caches", "second cuts",
                                     "switches of the mode", "cuts upon a cut"), 0)

    def content(self, without=None, devices=None):
        devices = [path for role, path in enumerate(devices or self.devices) if role != without]
        with Server(devices, "--readonly") as server:
            return nbd_read_all(server.connect())

    def round(self, seed, mode):
        self.rounds += 1
        rng = random.Random(f"{seed} {self.name} {self.rounds}")
        with PowerCut(self.devices, self.work, rng.random()) as power:
            server = Server(power.paths, f"--journal-mode={mode}")
            pause = rng.uniform(0.02, 0.2) if mode == "write-back" and rng.random() < 0.4 else 60.0

            def cut(load):
                # Soon after a FLUSH, if there are any: what it was for is still in the caches if it did nothing.
                flushes, deadline = load.flushes, time.monotonic() + 0.3
                while load.flushes == flushes and time.monotonic() < deadline:
                    time.sleep(0)
                power.cut(server.process)

            # Where many flush, nobody notices that a FLUSH or a FUA does nothing.
            fua, flush = rng.choice([(0.0, 0.01), (0.0, 0.1), (0.02, 0.0), (0.1, 0.02)])
            with switching(server, pause) as switches:
                load = load_and_kill(server, self.model, rng, rng.uniform(0.2, 1.2), version=self.version,
                                     blocks_max=30, fua=fua, flush=flush, kill=cut)
        self.totals["switches of the mode"] += switches[0]
        self.version = load.version
        self.totals["requests acknowledged"] += load.acked
        self.totals["blocks flushed"] += load.durable
        self.totals["blocks in lost caches"] += power.lost
        kept = tempfile.mkdtemp(prefix="stripelog-cut-")
        for path in self.devices:
            shutil.copy(path, kept)
        try:
            self.judge(rng, mode, kept)
        except Exception as problem:
            raise Failed(f"{self.name}, round {self.rounds}, seed {seed}, {mode}: {problem}\n"
                         f"the images as the cut left them: {kept}") from problem
        shutil.rmtree(kept)

    def judge(self, rng, mode, kept):
        shown = self.content()
        durable = (lambda piece: piece.acked) if mode == "write-through" else (lambda piece: piece.durable)
        self.model.expect(shown, "as the cut left it", durable)
        without = rng.randrange(self.count)
        expect(self.content(without) == shown, f"another content without member {without}")
        while rng.random() < 0.5:
            with PowerCut(self.devices, self.work, rng.random()) as power:
                server = Server(power.paths, f"--journal-mode={mode}", wait=False)
                time.sleep(rng.uniform(0.0, 0.4))
                power.cut(server.process)
                server.kill()
                server.discard()
            self.totals["second cuts"] += 1
            expect(self.content() == shown, "another content after a cut in the recovery")
        if mode == "write-back" and rng.random() < 0.4:
            self.totals["cuts upon a cut"] += 1  # the next load finds the log as it is
            self.model.settle(shown)
            return
        copies = [os.path.join(kept, os.path.basename(path)) for path in self.devices]
        without = rng.randrange(self.count)
        for devices in ([path for role, path in enumerate(copies) if role != without], self.devices):
            ended = stripelog("recover", MEMORY, *devices)
            expect(ended.returncode == 0, f"recover: {ended.returncode}\n{ended.stderr}")
        expect(self.content(without, copies) == shown, f"another content, recovered without member {without}")
        expect(self.content() == shown, "another content, recovered")
        without = rng.randrange(self.count)
        expect(self.content(without) == shown, f"another content, recovered, and then without member {without}")
        self.model.settle(shown)


def need_fuse():
    need_program("nbdfuse")
    if not os.access("/dev/fuse", os.W_OK):
        raise Skip("needs /dev/fuse")
    try:
        import nbd  # pylint: disable=import-outside-toplevel,unused-import
    except ImportError:
        raise Skip("python3-libnbd is not installed") from None


def rounds(work, mode):
    need_fuse()
    start = time.monotonic()
    arrays = [Array(work, "raid5", 5, 4), Array(work, "raid6", 6, 5, chunk=16, log_bytes=20 * MIB)]
    count = ROUNDS or SAMPLE
    for number in range(count):
        arrays[number % len(arrays)].round(SEED, mode)
    for array in arrays:
        print(f"# {array.name}: " + ", ".join(f"{count} {what}" for what, count in array.totals.items()))
    print(f"# {count} rounds in {time.monotonic() - start:.0f} s")


# --- what a kernel lost ---


class Replay:
    """The writes of a golden case, sent again in their order, 8 at a time; overlapping ones never at once."""

    def __init__(self, handle, case):
        self.handle = handle
        self.writes = [list(write[:4]) + ["unsent"] for write in case.facts["writes"]]
        self.flying = {}
        self.moment = 0
        self.acked_at = {}

    def run(self, stop):
        """Sends the first `stop` of them, and returns with the last ones still under way."""
        import nbd  # pylint: disable=import-outside-toplevel
        for number, (kind, seed, offset, length, _state) in enumerate(self.writes[:stop]):
            while len(self.flying) >= 8 or self.overlaps(offset, length):
                self.handle.poll(1000)
                self.reap()
            self.moment += 1
            if kind == "flush":
                cookie = self.handle.aio_flush()
            else:
                data = b"".join(golden.written(sector, seed) for sector in range(offset // 512, (offset + length) // 512))
                cookie = self.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset,
                                                flags=nbd.CMD_FLAG_FUA if kind == "fua" else 0)
            self.writes[number][4] = "sent"
            self.flying[cookie] = (number, self.moment)

    def overlaps(self, offset, length):
        others = [self.writes[number] for number, _moment in self.flying.values()]
        return any(other[2] < offset + length and offset < other[2] + other[3] for other in others)

    def reap(self):
        for cookie in list(self.flying):
            if not self.handle.aio_command_completed(cookie):
                continue
            self.moment += 1
            number, sent = self.flying.pop(cookie)
            self.writes[number][4] = "durable" if self.writes[number][0] == "fua" else "acked"
            self.acked_at[number] = self.moment
            if self.writes[number][0] == "flush":
                for other, moment in self.acked_at.items():
                    if moment < sent:
                        self.writes[other][4] = "durable"


def replay_and_cut(work, case, stop):
    """What the load made durable must be there, whoever is missing, before and after the recovery."""
    facts = case.facts
    os.mkdir(work)
    devices = create_cached(work, len(facts["members"]), facts["member_mib"] * MIB, level=case.level,
                            chunk=facts["chunk_kib"], layout=facts["layout"], log_bytes=(facts["journal_mib"] - 1) * MIB)
    with PowerCut(devices, work, "worst") as power:
        server = Server(power.paths, WRITE_BACK)
        try:
            handle = server.connect()
            expect(handle.get_size() == case.array_bytes, f"{handle.get_size()} bytes, not {case.array_bytes}")
            replay = Replay(handle, case)
            replay.run(stop)
            power.cut(server.process)
        finally:
            server.kill()
            server.discard()
    repeated = golden.Case(case.name, case.name, dict(facts, fills=[], writes=replay.writes))
    states = [write[4] for write in replay.writes]
    print(f"# {stop} requests: {states.count('durable')} durable, {states.count('acked')} acknowledged, "
          f"{power.lost} blocks lost in caches")
    expect(states.count("durable") > stop // 2, "hardly anything was durable")
    shown = None
    for when in ("as the cut left it", "recovered"):
        for without in [None, *range(len(devices) - 1)]:
            with Server([path for role, path in enumerate(devices) if role != without], "--readonly") as server:
                content = server.read_all()
            shown = shown or content
            expect(content == shown, f"{when}: another content without member {without}")
        broken = repeated.broken_promises(shown)
        expect(not broken, f"{when}: {len(broken)} sectors have lost a durable write, the first "
                           f"{next(iter(broken.items()), None)}")
        ended = stripelog("recover", *devices)
        expect(ended.returncode == 0, f"recover: {ended.returncode}\n{ended.stderr}")


def the_load_that_lost_a_kernel_its_data_loses_nothing(work):
    need_fuse()
    case = golden.cases()["raid5-wb-lossy"]
    sent = sum(write[4] != "unsent" for write in case.facts["writes"])
    # Where the kernel's power was cut; later, when the log has been full; and at the end.
    for stop in (sent, 500, len(case.facts["writes"])):
        replay_and_cut(os.path.join(work, str(stop)), case, stop)


def in_write_through_nothing_acknowledged_is_lost(work):
    rounds(work, "write-through")


def in_write_back_nothing_flushed_is_lost(work):
    rounds(work, "write-back")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        ROUNDS = int(sys.argv.pop(1))
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        SEED = int(sys.argv.pop(1))
    main(in_write_through_nothing_acknowledged_is_lost, in_write_back_nothing_flushed_is_lost,
         the_load_that_lost_a_kernel_its_data_loses_nothing)
