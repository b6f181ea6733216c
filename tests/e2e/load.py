# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client that keeps requests under way until the server is gone, and knows what may stand in each block then.

Load sends over several connections: writes of whole blocks over each other in
the first half of the array, of any sectors in the second, zeros, trims, flushes.
Model remembers them, and judges what is read after the crash. A block is 4 KiB,
which a journal keeps whole.
"""

import contextlib
import itertools
import struct
import threading
import time

from harness import Failed, expect, journal_mode

BLOCK = 4096
CONNECTIONS = 3
IN_FLIGHT = 24


def whole(block, version):
    """What write number `version` puts into a block; 0 is zeros."""
    return struct.pack("<QQ", block, version) * (BLOCK // 16) if version else bytes(BLOCK)


# --- what may stand in a block ---


class Piece:
    """What one request does to one block: write `data` at `start` in it; a trim may also do nothing."""

    def __init__(self, data, start, issued):
        self.data, self.start, self.issued = data, start, issued
        self.acked = None
        self.durable = False  # acknowledged, and FUA, or before a FLUSH was sent that completed
        self.is_trim = False

    def applied(self, before):
        """The contents that may be there once it is done, one of `before` having been there."""
        after = {old[:self.start] + self.data + old[self.start + len(self.data):] for old in before}
        return before | after if self.is_trim else after


class Model:
    """For each block: what may have been there when the round began, and what was sent to it since."""

    def __init__(self, content):
        self.settled = [{content[at:at + BLOCK]} for at in range(0, len(content), BLOCK)]
        self.sent = {}

    def add(self, block, piece):
        self.sent.setdefault(block, []).append(piece)

    def allowed(self, block, counts=lambda piece: piece.acked):
        """The contents that the block may have now, if the requests that count must not be lost.

        Requests for parts of a block are sent one after the other. Whole blocks
        are also sent while others are under way: then one that was acknowledged
        rules out whatever was acknowledged before it was sent.
        """
        pieces = self.sent.get(block, [])
        if any(piece.is_trim or len(piece.data) < BLOCK for piece in pieces):
            states = self.settled[block]
            for piece in pieces:
                after = piece.applied(states)
                states = after if counts(piece) else states | after
            return states
        newest = max((piece.issued for piece in pieces if counts(piece)), default=None)
        states = set() if newest else set(self.settled[block])
        return states.union(piece.data for piece in pieces if not (newest and piece.acked and piece.acked < newest))

    def expect(self, content, what, counts=lambda piece: piece.acked):
        for block, settled in enumerate(self.settled):
            got = content[block * BLOCK:(block + 1) * BLOCK]
            if block not in self.sent and got in settled:
                continue
            if got not in self.allowed(block, counts):
                raise Failed(f"{what}: {self.broken(block, got)}: block {block} holds {described(got)}, and may hold "
                             + ", ".join(described(state) for state in self.allowed(block, counts)))

    def broken(self, block, got):
        if got in self.allowed(block, lambda piece: piece.durable):
            return "an acknowledged write is lost"
        if got in self.allowed(block, lambda piece: False):
            return "a durable write is lost"
        return "nobody wrote this"

    def settle(self, content):
        self.__init__(content)


def described(content):
    """A block's content in a few words: runs of sectors that one write made."""
    runs = []
    for at in range(0, BLOCK, 512):
        word = struct.unpack_from("<QQ", content, at)
        word = "zeros" if content[at:at + 512] == bytes(512) else f"block {word[0]} version {word[1]}"
        if not runs or runs[-1][1] != word:
            runs.append([at // 512, word])
    return "[" + "; ".join(f"from sector {start}: {word}" for start, word in runs) + "]"


# --- the load ---


def kill_later(load, seconds, kill):
    """After so long, or on a slow machine when something has been acknowledged."""
    deadline = time.monotonic() + 30
    time.sleep(seconds)
    while load.acked == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    kill(load)


def load_and_kill(server, model, rng, seconds, kill=None, **options):
    """Load on a running server, which is killed in the middle of it, by kill(load) if that is given; returns the load,
    with its counts.
    """
    try:
        load = Load(server, model, rng, **options)
        threading.Thread(target=kill_later, args=(load, seconds, kill or (lambda _load: server.process.kill())),
                         daemon=True).start()
        load.run()
    finally:
        server.kill()
        told = server.errors()
        server.discard()
    expect(load.acked > 0, f"not one request was acknowledged\n{told}")
    return load


@contextlib.contextmanager
def switching(server, pause):
    """Inside, the mode is switched there and back, as long as the server lives. How often that was begun: [count]."""
    count = [0]
    over = threading.Event()

    def switch():
        for mode in itertools.cycle(("write-through", "write-back")):
            if over.wait(pause):
                break
            count[0] += 1
            if journal_mode(server, mode).returncode:
                break

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        yield count
    finally:
        over.set()
        thread.join()


class Load:
    """Keeps requests under way on several connections until the server is gone."""

    def __init__(self, server, model, rng, version=0, blocks_max=80, fua=0.1, flush=0.02):
        # Here, so that tests which need no libnbd run without it.
        import nbd  # pylint: disable=import-outside-toplevel
        self.blocks_max = blocks_max
        self.fua, self.flush = fua, flush  # how many of the requests
        self.nbd = nbd
        self.handles = [server.connect() for _ in range(CONNECTIONS)]
        self.model, self.rng, self.version = model, rng, version
        self.count = len(model.settled)
        self.busy = set()  # blocks of the second half with a request under way
        self.moment = 0    # counts what is sent and what is acknowledged, in order
        self.flying = [{} for _ in self.handles]
        self.answered = []  # pieces that were acknowledged and are not known to be durable
        self.acked = self.sent = self.durable = self.flushes = 0

    def run(self):
        alive = set(range(len(self.handles)))
        while alive:
            idle = True
            for i in sorted(alive):
                try:
                    while len(self.flying[i]) < IN_FLIGHT // CONNECTIONS:
                        self.send(i)
                    idle = self.handles[i].poll(0) == 0 and idle
                    self.reap(i)
                except self.nbd.Error:
                    # What was answered before the end has been read, and counts.
                    self.reap(i)
                    alive.discard(i)
            if idle and alive:
                time.sleep(0.0002)

    def reap(self, i):
        handle, flying = self.handles[i], self.flying[i]
        for cookie in list(flying):
            try:
                done = handle.aio_command_completed(cookie)
            except self.nbd.Error as error:
                # A command that the server refused would be a failure of its own; the others were cut off.
                if error.errnum not in (None, 0) and error.errno not in ("ENOTCONN", "ECONNRESET", "EPIPE", "EINVAL"):
                    raise Failed(f"a request was answered with {error.errno}") from error
                continue
            if done:
                self.moment += 1
                self.acked += 1
                pieces, what = flying.pop(cookie)
                if what[0] == "flush":
                    self.flushed(sent=what[1])
                for block, piece in pieces:
                    piece.acked = self.moment
                    piece.durable = what[0] == "fua"
                    self.busy.discard(block)
                    if piece.durable:
                        self.durable += 1
                    else:
                        self.answered.append(piece)

    def flushed(self, sent):
        """A FLUSH has completed: whatever was acknowledged before it was sent is durable, on any connection."""
        waiting = []
        for piece in self.answered:
            piece.durable = piece.acked < sent
            self.durable += piece.durable
            if not piece.durable:
                waiting.append(piece)
        self.answered = waiting
        self.flushes += 1

    def send(self, i):
        handle, rng = self.handles[i], self.rng
        self.moment += 1
        self.version += 1
        self.sent += 1
        fua = self.nbd.CMD_FLAG_FUA if rng.random() < self.fua else 0
        kind = rng.random()
        if kind < self.flush:
            self.flying[i][handle.aio_flush()] = ([], ("flush", self.moment))
        elif kind < 0.6:
            # The first half: whole blocks, one or many, over each other.
            count = rng.choice([1, 1, 1, 1, 2, 3, 8] + [rng.randint(1, self.blocks_max)] * (1 + self.blocks_max // 80))
            first = rng.randrange(self.count // 2 - count)
            pieces = [(b, Piece(whole(b, self.version), 0, self.moment)) for b in range(first, first + count)]
            self.submit(i, pieces, first * BLOCK, fua)
        else:
            # The second half: any sectors, one request at a time on a block.
            count = rng.randint(1, 40)
            start = rng.randrange(self.count // 2 * BLOCK // 512, self.count * BLOCK // 512 - count)
            blocks = range(start * 512 // BLOCK, ((start + count) * 512 - 1) // BLOCK + 1)
            if self.busy.intersection(blocks):
                return
            self.busy.update(blocks)
            pieces = []
            for block in blocks:
                low = max(start * 512 - block * BLOCK, 0)
                high = min((start + count) * 512 - block * BLOCK, BLOCK)
                pieces.append((block, Piece(whole(block, self.version)[low:high], low, self.moment)))
            if kind < 0.96:
                self.submit(i, pieces, start * 512, fua)
            else:
                self.submit_clear(i, pieces, start * 512, count * 512, trim=kind > 0.98)

    def submit(self, i, pieces, offset, flags):
        data = bytearray(b"".join(piece.data for _block, piece in pieces))
        buffer = self.nbd.Buffer.from_bytearray(data)
        for block, piece in pieces:
            self.model.add(block, piece)
        self.flying[i][self.handles[i].aio_pwrite(buffer, offset, flags=flags)] = (
            pieces, ("fua" if flags else "write", buffer))

    def submit_clear(self, i, pieces, offset, length, trim):
        for block, piece in pieces:
            piece.data, piece.is_trim = bytes(len(piece.data)), trim
            self.model.add(block, piece)
        send = self.handles[i].aio_trim if trim else self.handles[i].aio_zero
        self.flying[i][send(length, offset)] = (pieces, ("write", None))
