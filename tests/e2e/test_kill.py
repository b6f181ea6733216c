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

    test_kill.py [ROUNDS [SEED]]

What a failure leaves is named in its message: the images as the kill left them.
"""

import itertools
import os
import random
import shutil
import sys
import tempfile
import time

from harness import (MIB, Failed, Server, Skip, create, expect, images_make, main, nbd_read_all, resync_wait, rng_for,
                     stripelog, superblock_field)
from load import BLOCK, Model, Piece, described, load_and_kill, whole

MEMBER_BYTES = 5 * MIB
JOURNAL_BYTES = 5 * MIB  # with the superblock's megabyte off: 4 MiB of log, the least there is
MEMORY = "--memory=64M"
SAMPLE = 15


class Array:
    """Its images and what it must hold; `lost` members are missing all the time."""

    def __init__(self, work, name, level, count, lost=(), chunk=64, layout=None, metadata="1.2", resync=False):
        self.name, self.level, self.count, self.lost, self.resync = name, level, count, lost, resync
        self.parities = 2 if level == 6 else 1
        self.rng = rng_for(name)
        folder = os.path.join(work, name)
        os.mkdir(folder)
        self.members = images_make(folder, count, MEMBER_BYTES, "m", self.rng if resync else None)
        self.journal = images_make(folder, 1, JOURNAL_BYTES, "journal")[0]
        create(self.members, f"--write-journal={self.journal}", *([] if resync else ["--assume-clean"]),
               *(["--force"] if resync else []), level=level, chunk=chunk, layout=layout, metadata=metadata)
        self.data_offset = 512 * superblock_field(self.members[0], 128, "<Q", metadata)
        self.data_bytes = 512 * superblock_field(self.members[0], 80, "<Q", metadata)
        self.metadata = metadata
        # Zeros, or what happens to be there.
        with Server(self.given(), "--readonly", MEMORY) as server:
            self.model = Model(server.read_all())
        self.version = 0
        self.totals = {"rounds": 0, "acknowledged": 0, "killed recoveries": 0, "left out": 0}

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
        for path in self.files():
            shutil.copy(path, folder)

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

    def crash(self, rng):
        seconds = rng.choice([0.05, 0.2, 0.4, 0.7]) * rng.uniform(0.8, 1.2)
        load = load_and_kill(Server(self.given(), MEMORY), self.model, rng, seconds, version=self.version)
        self.version = load.version
        self.totals["acknowledged"] += load.acked

    def judge(self, work, rng, kept, thorough):
        shown = self.shown((), kept)
        self.model.expect(shown, "as the kill left it")
        without = self.losses(rng)
        self.same(self.shown(without, kept), shown, f"as the kill left it, without members {without}")

        # A copy, recovered without some.
        without = self.losses(rng)
        folder = os.path.join(work, "copy")
        self.copy(folder)
        ended = stripelog("recover", MEMORY, *self.given(without, folder))
        expect(ended.returncode == 0, f"recover: {ended.returncode}\n{ended.stderr}")
        self.same(self.shown(without, folder), shown, f"recovered without members {without}")
        shutil.rmtree(folder)

        # The array itself.
        while rng.random() < 0.4:
            server = Server(self.given(), MEMORY, wait=False)
            time.sleep(rng.uniform(0.0, 0.15))
            server.kill()
            server.discard()
            self.totals["killed recoveries"] += 1
        with Server(self.given(), MEMORY) as server:
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
        self.model.settle(shown)

    def shown(self, without, folder):
        with Server(self.given(without, folder), "--readonly", MEMORY) as server:
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


ROUNDS = SAMPLE
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


def no_acknowledged_write_is_lost_to_sigkill(work):
    try:
        import nbd  # pylint: disable=import-outside-toplevel,unused-import
    except ImportError:
        raise Skip("python3-libnbd is not installed") from None
    start = time.monotonic()
    everything = arrays(work)
    for number in range(ROUNDS):
        # The complete ones twice as often.
        order = [0, 1, 2, 3, 0, 1, 4, 5, 6]
        everything[order[number % len(order)]].round(work, SEED, thorough=ROUNDS > SAMPLE)
    for array in everything:
        print(f"# {array.name}: " + ", ".join(f"{count} {what}" for what, count in array.totals.items()))
    print(f"# {ROUNDS} rounds in {time.monotonic() - start:.0f} s")
    expect(ROUNDS < SAMPLE or any(array.totals["killed recoveries"] for array in everything), "no recovery was killed")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        ROUNDS = int(sys.argv.pop(1))
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        SEED = int(sys.argv.pop(1))
    main(the_judge_refuses_what_may_not_be, no_acknowledged_write_is_lost_to_sigkill)
