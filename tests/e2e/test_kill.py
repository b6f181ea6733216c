#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGKILL of a journaled array's server under load, again and again.

A client with several connections keeps requests under way, of all kinds and
sizes, some overlapping, and remembers for each 4 KiB block what may stand there:
what the last acknowledged write left, or a write that was sent later. At some
moment the server is killed. Then

 - what is on the disks, complete and with a member left out, is read with
   --readonly: every block must be one of those, whole;
 - a copy is recovered with a member left out; the array itself is recovered by
   the next server, now and then killed in the middle of that too: each must read
   the same;
 - parity must agree with data, wherever no resync is pending.

The log is as small as `create` allows, so that it wraps around in most rounds.

Then the same with a write-back cache. SIGKILL takes nothing from the files, so
everything that was acknowledged must be there, not only what FLUSH or FUA made
durable; a failure says which of the two was lost. Here the kill comes while
reclaim runs, for the log is always full; now and then while the mode is being
switched, or while the server stops; the server that takes the array up again
does so in either mode, and often only to be killed as well, under the next load.
With more rounds than the check has, one array's log holds more than memory does,
so that pages are dropped.

    test_kill.py [ROUNDS [SEED]] [CASE]

What a failure leaves is named in its message: the images as the kill left them.
"""

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

from harness import (MEMORY, MIB, Failed, Server, Skip, create, expect, images_make, main, nbd_read_all, resync_wait,
                     rng_for, stripelog, superblock_field)
from load import BLOCK, Model, Piece, described, load_and_kill, switching, whole

MEMBER_BYTES = 5 * MIB
JOURNAL_BYTES = 5 * MIB  # with the superblock's megabyte off: 4 MiB of log, the least there is
SAMPLE = 15
SAMPLE_CACHED = 10


class Array:
    """Its images and what it must hold; `lost` members are missing all the time."""

    patience = 1

    def __init__(self, work, name, level, count, lost=(), chunk=64, layout=None, metadata="1.2", resync=False,
                 member_bytes=MEMBER_BYTES, journal_bytes=JOURNAL_BYTES):
        self.name, self.level, self.count, self.lost, self.resync = name, level, count, lost, resync
        self.parities = 2 if level == 6 else 1
        self.rng = rng_for(name)
        folder = os.path.join(work, name)
        os.mkdir(folder)
        self.members = images_make(folder, count, member_bytes, "m", self.rng if resync else None)
        self.journal = images_make(folder, 1, journal_bytes, "journal")[0]
        create(self.members, f"--write-journal={self.journal}", *([] if resync else ["--assume-clean"]),
               *(["--force"] if resync else []), level=level, chunk=chunk, layout=layout, metadata=metadata)
        self.data_offset = 512 * superblock_field(self.members[0], 128, "<Q", metadata)
        self.data_bytes = 512 * superblock_field(self.members[0], 80, "<Q", metadata)
        self.metadata = metadata
        # Zeros, or what happens to be there.
        with Server(self.given(), "--readonly") as server:
            self.model = Model(server.read_all())
        self.version = 0
        self.totals = dict.fromkeys(("rounds", "requests acknowledged", "blocks flushed", "killed recoveries",
                                     "left out"), 0)

    def files(self):
        return [path for role, path in enumerate(self.members) if role not in self.lost] + [self.journal]

    def given(self, without=(), folder=None):
        paths = [path for role, path in enumerate(self.members) if role not in self.lost and role not in without]
        paths.append(self.journal)
        return [os.path.join(folder, os.path.basename(path)) for path in paths] if folder else paths

    def losses(self, rng):
        """Some more members to leave out: as many as parity covers."""
        there = [role for role in range(self.count) if role not in self.lost]
        spare = self.parities - len(self.lost)
        every = [()] if self.resync else list(itertools.combinations(there, spare))
        return rng.choice(every)

    def copy(self, folder):
        os.mkdir(folder)
        subprocess.run(["cp", "--sparse=always", *self.files(), folder], check=True)

    def round(self, work, seed, thorough):
        # Two, for how many numbers the load takes is a matter of time.
        name = f"{seed} {self.name} {self.totals['rounds']}"
        load_rng, rng = random.Random(name + " load"), random.Random(name + " judge")
        self.totals["rounds"] += 1
        self.crash(load_rng)
        kept = os.path.join(work, "killed")
        self.copy(kept)
        try:
            self.judge(work, rng, kept, thorough)
        except Exception as problem:
            saved = tempfile.mkdtemp(prefix="stripelog-kill-")
            shutil.move(kept, saved)
            raise Failed(f"{self.name}, round {self.totals['rounds']}, seed {seed}: {problem}\n"
                         f"the images as the kill left them: {saved}/killed") from problem
        shutil.rmtree(kept)

    def mode(self, rng):
        """Options of a server that writes to it."""
        return []

    def crash(self, rng):
        self.load_and_kill(rng, Server(self.given(), *self.mode(rng)))

    def load_and_kill(self, rng, server, **options):
        seconds = rng.choice([0.05, 0.2, 0.4, 0.7]) * rng.uniform(0.8, 1.2) * self.patience
        load = load_and_kill(server, self.model, rng, seconds, version=self.version, **options)
        self.version = load.version
        self.totals["requests acknowledged"] += load.acked
        self.totals["blocks flushed"] += load.durable

    def judge(self, work, rng, kept, thorough):
        shown = self.shown((), kept)
        self.model.expect(shown, "as the kill left it")
        without = self.losses(rng)
        self.same(self.shown(without, kept), shown, f"as the kill left it, without members {without}")
        self.judge_copy(work, rng, shown)
        while rng.random() < 0.4:
            server = Server(self.given(), *self.mode(rng), wait=False)
            time.sleep(rng.uniform(0.0, 0.15))
            server.kill()
            server.discard()
            self.totals["killed recoveries"] += 1
        self.go_on(rng, shown, thorough)
        self.model.settle(shown)

    def judge_copy(self, work, rng, shown):
        """A copy, recovered without some members."""
        without = self.losses(rng)
        folder = os.path.join(work, "copy")
        self.copy(folder)
        ended = stripelog("recover", MEMORY, *self.given(without, folder))
        expect(ended.returncode == 0, f"recover: {ended.returncode}\n{ended.stderr}")
        self.recovered(ended.stdout)
        self.same(self.shown(without, folder), shown, f"recovered without members {without}")
        shutil.rmtree(folder)

    def recovered(self, told):
        """What `recover` said of the log."""

    def go_on(self, rng, shown, thorough):
        """The array itself is served, and stopped in order."""
        with Server(self.given(), *self.mode(rng)) as server:
            self.same(nbd_read_all(server.connect()), shown, "recovered and served")
            if self.resync and rng.random() < 0.3:
                resync_wait(self.members[0], self.metadata)
                self.resync = False
        there = [role for role in range(self.count) if role not in self.lost]
        spare = self.parities - len(self.lost)
        if not self.resync:
            every = list(itertools.combinations(there, spare))
            for without in every if thorough else [self.losses(rng)]:
                self.same(self.shown(without, None), shown, f"recovered, then without members {without}")
                self.totals["left out"] += 1
            self.expect_parity()

    def shown(self, without, folder):
        with Server(self.given(without, folder), "--readonly") as server:
            return nbd_read_all(server.connect())

    def same(self, got, wanted, what):
        if got == wanted:
            return
        block = next(b for b in range(len(wanted) // BLOCK)
                     if got[b * BLOCK:(b + 1) * BLOCK] != wanted[b * BLOCK:(b + 1) * BLOCK])
        raise Failed(f"{what}: block {block} holds {described(got[block * BLOCK:(block + 1) * BLOCK])} instead of "
                     + described(wanted[block * BLOCK:(block + 1) * BLOCK]))

    def expect_parity(self):
        """RAID-4 and 5, complete: all members together come to nothing, wherever parity lies."""
        if self.level == 6 or self.lost:
            return
        total = 0
        for path in self.members:
            with open(path, "rb") as image:
                image.seek(self.data_offset)
                total ^= int.from_bytes(image.read(self.data_bytes), "little")
        expect(total == 0, "parity does not agree with data")


class CachedArray(Array):
    """Served with a write-back cache, most of the time."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.totals |= dict.fromkeys(("data-only stripes", "switches of the mode", "stops cut off", "served without",
                                      "crashes upon a crash", "blocks without a page"), 0)

    def mode(self, rng):
        return ["--journal-mode=" + ("write-back" if rng.random() < 0.8 else "write-through")]

    def crash(self, rng):
        server = Server(self.given(), *self.mode(rng))
        kind = rng.random()
        if kind < 0.2:
            # The server says goodbye to its clients and writes out what is cached.
            self.totals["stops cut off"] += 1
            pause = rng.uniform(0.0, 0.1)

            def stop_and_kill(_load):
                server.process.terminate()
                time.sleep(pause)
                server.process.kill()

            self.load_and_kill(rng, server, kill=stop_and_kill)
        elif kind < 0.5:
            with switching(server, rng.uniform(0.0, 0.1)) as count:
                self.load_and_kill(rng, server)
            self.totals["switches of the mode"] += count[0]
        else:
            def look_and_kill(_load):
                cache = json.loads(stripelog("status", "--json", server.control).stdout)["journal"].get("cache")
                if cache:
                    self.totals["blocks without a page"] += (cache["cached_bytes"] - cache["in_memory_bytes"]) // BLOCK
                server.process.kill()

            self.load_and_kill(rng, server, kill=look_and_kill)

    def recovered(self, told):
        found = re.search(r"(\d+) data-only", told)
        self.totals["data-only stripes"] += int(found.group(1)) if found else 0

    def judge_copy(self, work, rng, shown):
        super().judge_copy(work, rng, shown)
        if rng.random() < 0.3:
            # Another one, served without some: what was cached is written out first, or as soon as may be.
            without = self.losses(rng)
            folder = os.path.join(work, "copy")
            self.copy(folder)
            with Server(self.given(without, folder), *self.mode(rng)) as server:
                self.same(nbd_read_all(server.connect()), shown, f"served without members {without}")
            self.same(self.shown(without, folder), shown, f"served and stopped without members {without}")
            shutil.rmtree(folder)
            self.totals["served without"] += 1

    def go_on(self, rng, shown, thorough):
        if rng.random() < 0.4:
            self.totals["crashes upon a crash"] += 1  # the next load finds the log as it is
        else:
            super().go_on(rng, shown, thorough)


class LargeArray(CachedArray):
    """More is cached than fits into memory, if the load lasts."""

    patience = 5

    def mode(self, rng):
        return ["--journal-mode=write-back", "--kernel-recoverable=no"]


def arrays(work):
    return [
        Array(work, "raid5", 5, 4),
        Array(work, "raid6", 6, 5),
        Array(work, "raid5-degraded", 5, 4, lost=(1,), layout="right-asymmetric", chunk=16),
        Array(work, "raid6-degraded", 6, 5, lost=(3,), layout="ddf-N-continue", chunk=128),
        Array(work, "raid5-resyncing", 5, 3, resync=True, metadata="1.0"),
        Array(work, "raid6-bare", 6, 4, lost=(0, 2), chunk=4, metadata="1.1"),
        Array(work, "raid4", 4, 3, chunk=16),
    ]


def arrays_cached(work):
    return [
        CachedArray(work, "write-back-raid5", 5, 4),
        CachedArray(work, "write-back-raid6", 6, 5, chunk=16),
        CachedArray(work, "write-back-raid5-larger", 5, 4, chunk=128, member_bytes=16 * MIB, journal_bytes=17 * MIB),
        CachedArray(work, "write-back-raid5-degraded", 5, 4, lost=(1,)),
        CachedArray(work, "write-back-raid5-resyncing", 5, 3, resync=True, metadata="1.0"),
        CachedArray(work, "write-back-raid4", 4, 3, chunk=4),
        LargeArray(work, "write-back-large", 5, 4, member_bytes=48 * MIB, journal_bytes=257 * MIB),
    ]


ROUNDS = None
SEED = 1


def the_judge_refuses_what_may_not_be(_work):
    """Old, torn, foreign: the rounds below prove nothing if these pass."""
    blank = bytes(BLOCK)

    def piece(version, issued, acked, start=0, length=BLOCK):
        made = Piece(whole(0, version)[start:start + length], start, issued)
        made.acked = acked
        return made

    def holds(pieces, content):
        model = Model(blank)
        for each in pieces:
            model.add(0, each)
        try:
            model.expect(content, "")
        except Failed:
            return False
        return True

    one, two, torn = whole(0, 1), whole(0, 2), whole(0, 1)[:512] + whole(0, 2)[512:]
    sequence = [piece(1, 1, 2), piece(2, 3, 4)]
    expect(holds(sequence, two) and not holds(sequence, one), "an acknowledged write was lost")
    cut_off = [piece(1, 1, 2), piece(2, 3, None)]
    expect(holds(cut_off, one) and holds(cut_off, two), "a write that was under way may be there or not")
    expect(not holds(cut_off, blank) and not holds(cut_off, torn), "the old content, or half of the new")
    together = [piece(1, 1, 3), piece(2, 2, 4)]
    expect(holds(together, one) and holds(together, two) and not holds(together, blank), "either of two together")
    expect(not holds([], one) and not holds(together, whole(1, 2)), "what nobody wrote there")
    part = [piece(1, 1, 2, 1024, 512), piece(2, 3, None, 0, 512)]
    first = blank[:1024] + one[1024:1536] + blank[1536:]
    expect(holds(part, first) and holds(part, two[:512] + first[512:]), "parts, one after the other")
    expect(not holds(part, blank) and not holds(part, two[:512] + blank[512:]), "the first part was lost")

    model = Model(blank)
    durable, acknowledged = piece(1, 1, 2), piece(2, 3, 4)
    durable.durable = True
    for each in (durable, acknowledged):
        model.add(0, each)
    expect("an acknowledged" in model.broken(0, one) and "a durable" in model.broken(0, blank)
           and "nobody" in model.broken(0, torn), "what was lost")


def need_libnbd():
    try:
        import nbd  # pylint: disable=import-outside-toplevel,unused-import
    except ImportError:
        raise Skip("python3-libnbd is not installed") from None


def no_acknowledged_write_is_lost_to_sigkill(work):
    need_libnbd()
    # The complete ones twice as often.
    everything = arrays(work)
    rounds(work, everything, [0, 1, 2, 3, 0, 1, 4, 5, 6], SAMPLE)


def rounds(work, everything, order, sample):
    start = time.monotonic()
    count = ROUNDS or sample
    for number in range(count):
        everything[order[number % len(order)]].round(work, SEED, thorough=count > sample)
    for array in everything:
        print(f"# {array.name}: " + ", ".join(f"{count} {what}" for what, count in array.totals.items()))
    print(f"# {count} rounds in {time.monotonic() - start:.0f} s")
    # What must have occurred: all of it, if there were enough rounds to wait for it. Only one array in some fourteen
    # rounds can have blocks without a page, and where the load gets far.
    for what in everything[0].totals:
        expect(count < sample or any(array.totals[what] for array in everything)
               or what == "blocks without a page" and count < 20 * sample, f"none: {what}")


def no_acknowledged_write_is_lost_from_the_cache(work):
    need_libnbd()
    rounds(work, arrays_cached(work), [0, 1, 2, 0, 1, 5, 0, 3, 1, 4, 6, 0, 5, 1], SAMPLE_CACHED)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        ROUNDS = int(sys.argv.pop(1))
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        SEED = int(sys.argv.pop(1))
    main(the_judge_refuses_what_may_not_be, no_acknowledged_write_is_lost_to_sigkill,
         no_acknowledged_write_is_lost_from_the_cache)
