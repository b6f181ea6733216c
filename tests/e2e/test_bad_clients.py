#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that are wrong, rude or gone: the connection alone suffers.

Each case runs against a server of its own. While the bad client is there, and
after it, a good one on another connection reads and writes as ever, and at the
end the array holds what the good one wrote and nothing else.
"""

import contextlib
import os
import random
import resource
import socket
import struct
import time

from harness import MIB, Failed, Server, create, expect, expect_content, images_make, main, rng_for

OPT_MAGIC = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_GO, OPT_STRUCTURED = 1, 2, 3, 5, 7, 8
READ, WRITE, DISC, FLUSH = 0, 1, 2, 3
EINVAL, ENOSPC = 22, 28
MEMORY = 64 * MIB


class Raw:
    """An NBD client that says what it is told to say."""

    def __init__(self, server, hello=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(server.socket)
        if hello:
            expect(self.receive(16) == b"NBDMAGICIHAVEOPT", "greeting")
            self.receive(2)
            self.send(struct.pack(">I", 3))

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, count):
        got = b""
        while len(got) < count:
            piece = self.socket.recv(count - len(got))
            if not piece:
                raise EOFError(f"closed after {len(got)} of {count} bytes")
            got += piece
        return got

    def option(self, option, data=b"", length=None, magic=OPT_MAGIC):
        self.send(struct.pack(">QII", magic, option, len(data) if length is None else length) + data)

    def option_replies(self):
        """(type, data) until one that is final: anything but SERVER and INFO."""
        replies = []
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self.receive(20))
            expect(magic == REPLY_MAGIC, f"reply magic {magic:x}")
            replies.append((kind, self.receive(length)))
            if kind not in (2, 3):
                return replies

    def go(self, name=b""):
        self.option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        replies = self.option_replies()
        expect(replies[-1][0] == 1, f"GO was answered {replies[-1]}")
        return self

    def request(self, kind, offset=0, length=0, data=b"", handle=1, flags=0, magic=REQUEST_MAGIC):
        self.send(struct.pack(">IHHQQI", magic, flags, kind, handle, offset, length) + data)

    def reply(self):
        """(errno, handle) of a simple reply."""
        magic, error, handle = struct.unpack(">IIQ", self.receive(16))
        expect(magic == 0x67446698, f"reply magic {magic:x}")
        return error, handle

    def closed(self, what, timeout=20):
        """The server must hang up."""
        self.socket.settimeout(timeout)
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            raise Failed(f"still connected after {what}") from None

    def close(self):
        self.socket.close()


@contextlib.contextmanager
def served(work, *options):
    """(server, good): a server on a small RAID-5, and a function that has a good client write and read."""
    paths = images_make(work, 4, 24 * MIB)
    create(paths, "--assume-clean", level=5, chunk=64)
    rng = rng_for("good client")
    with Server(paths, *options, memory=f"--memory={MEMORY // MIB}M") as server:
        handle = server.connect()
        model = bytearray(handle.get_size())

        def good(count=20):
            for _ in range(count):
                data = rng.randbytes(rng.randint(1, 100000))
                offset = rng.randint(0, len(model) - len(data))
                handle.pwrite(data, offset)
                model[offset:offset + len(data)] = data
                expect_content(bytes(handle.pread(len(data), offset)), data, f"good client's read at {offset}")
            handle.flush()

        good()
        yield server, good
        good()
        expect_content(server.read_all(), model, "the array")
        handle.shutdown()
        peak = server.memory_peak()
        if "sanitize" not in os.environ.get("STRIPELOG", ""):
            expect(peak <= MEMORY + 32 * MIB, f"memory grew to {peak // MIB} MiB")


def garbage_instead_of_a_handshake(work):
    rng = random.Random(1)
    with served(work) as (server, good):
        for turn in range(60):
            raw = Raw(server, hello=turn % 2 == 0)
            with contextlib.suppress(OSError):
                raw.send(rng.randbytes(rng.choice([1, 3, 4, 16, 20, 100, 5000, 100000])))
            if turn % 10 == 0:
                good(2)
            raw.close()


def bad_option_magic_closes(work):
    with served(work) as (server, good):
        raw = Raw(server)
        raw.option(OPT_GO, b"\0\0\0\0\0\0", magic=0x1234567812345678)
        good()
        raw.closed("a bad option magic")


def oversized_options_are_refused_or_close(work):
    with served(work) as (server, good):
        for option in (OPT_EXPORT_NAME, OPT_LIST, OPT_GO, OPT_STRUCTURED, 4711):
            raw = Raw(server)
            with contextlib.suppress(OSError):
                raw.option(option, b"x" * 10000, length=0xFFFFFFFF)
            good(2)
            raw.close()
        # A length that lies about what is in it.
        raw = Raw(server)
        raw.option(OPT_GO, struct.pack(">I", 0xFFFFFFF0) + b"\0\0")
        try:
            expect(raw.option_replies()[-1][0] & 0x80000000, "a lying name length was taken")
        except EOFError:
            pass
        raw.close()


def unknown_options_get_an_error_and_the_connection_lives(work):
    with served(work) as (server, good):
        raw = Raw(server)
        for option, data in ((4711, b""), (4711, b"x" * 300), (OPT_STARTTLS, b"")):
            raw.option(option, data)
            expect(raw.option_replies()[-1][0] & 0x80000000, f"option {option} was not refused")
        raw.go()
        raw.request(READ, 0, 512)
        expect(raw.reply()[0] == 0, "read")
        raw.receive(512)
        good()
        raw.close()
        raw = Raw(server)
        raw.option(OPT_ABORT)
        raw.closed("ABORT")


def bad_request_magic_closes(work):
    with served(work) as (server, good):
        raw = Raw(server).go()
        raw.request(READ, 0, 512, magic=0x11223344)
        good()
        raw.closed("a bad request magic")


def unknown_commands_get_einval(work):
    with served(work) as (server, good):
        raw = Raw(server).go()
        for kind in (100, 0xFFFF):
            raw.request(kind, handle=77)
            expect(raw.reply() == (EINVAL, 77), "unknown command")
        raw.request(READ, 0, 512)
        expect(raw.reply()[0] == 0, "read after that")
        raw.receive(512)
        good()
        raw.close()


def out_of_range_requests_get_errors(work):
    with served(work) as (server, good):
        size = server.connect().get_size()
        raw = Raw(server).go()
        for offset, length in ((size, 512), (size - 1, 2), (size - 512, 1024), (2**64 - 512, 512), (2**64 - 1, 1),
                               (2**63, 4096)):
            raw.request(READ, offset, length, handle=5)
            expect(raw.reply() == (EINVAL, 5), f"read at {offset}")
            raw.request(WRITE, offset, length, b"x" * length, handle=6)
            error, handle = raw.reply()
            expect(error in (EINVAL, ENOSPC) and handle == 6, f"write at {offset}: {error}")
        raw.request(READ, size - 512, 512)
        expect(raw.reply()[0] == 0, "read of the last sector")
        raw.receive(512)
        good()
        raw.close()


def oversized_requests_do_not_harm(work):
    with served(work) as (server, good):
        for kind in (READ, WRITE):
            for length in (32 * MIB + 1, 0x7FFFFFFF, 0xFFFFFFFF):
                raw = Raw(server).go()
                raw.request(kind, 0, length, b"", handle=9)
                good(2)
                raw.socket.settimeout(20)
                # An error or a hang-up. For a write it may wait for the payload, to skip it.
                with contextlib.suppress(EOFError, ConnectionError):
                    if kind == READ:
                        expect(raw.reply()[0] != 0, "an oversized read was served")
                raw.close()


def cut_in_mid_request_applies_nothing(work):
    with served(work) as (server, good):
        rng = random.Random(2)
        for _ in range(40):
            raw = Raw(server).go()
            length = rng.choice([512, 4096, 65536, MIB, 8 * MIB])
            cut = rng.randrange(length)
            raw.request(WRITE, rng.randrange(0, 4 * MIB, 512), length, b"\xEE" * cut)
            raw.close()
        # In the header too.
        for cut in range(1, 28):
            raw = Raw(server).go()
            raw.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 1, 0, 512)[:cut])
            raw.close()
        good()


def stalled_payloads_leave_others_alone(work):
    with served(work) as (server, good):
        stalled = []
        for _ in range(3):
            raw = Raw(server).go()
            raw.request(WRITE, 0, MIB, b"\xEE" * 1000)
            stalled.append(raw)
        start = time.monotonic()
        good()
        expect(time.monotonic() - start < 20, "the good client had to wait")
        for raw in stalled:
            raw.close()


def stalled_peers_that_hold_all_memory_are_closed(work):
    with served(work) as (server, good):
        stalled = []
        for _ in range(3):
            raw = Raw(server).go()
            raw.request(WRITE, 0, 32 * MIB, b"\xEE" * 1000)
            stalled.append(raw)
        time.sleep(1)
        start = time.monotonic()
        good(3)
        # Each of them may hold memory for 30 s, one after the other at worst.
        expect(time.monotonic() - start < 150, "the good client waited for too long")
        for raw in stalled:
            raw.close()


def replies_that_nobody_reads_leave_others_alone(work):
    with served(work) as (server, good):
        deaf = []
        for _ in range(4):
            raw = Raw(server).go()
            raw.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(400):
                    raw.request(READ, 0, MIB)
            deaf.append(raw)
        time.sleep(0.5)
        good()
        for raw in deaf:
            raw.close()


def a_thousand_connections(work):
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, max(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    with served(work) as (server, good):
        open_ones = []
        for turn in range(1000):
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.connect(server.socket)
            open_ones.append(connection)
            if turn % 250 == 249:
                good(2)
        good()
        for connection in open_ones:
            connection.close()
        # There is room again for new ones.
        deadline = time.monotonic() + 20
        while True:
            try:
                server.connect().shutdown()
                break
            except Exception:  # pylint: disable=broad-except
                expect(time.monotonic() < deadline, "no new connection after the thousand had gone")
                time.sleep(0.2)


def connections_come_and_go(work):
    with served(work) as (server, good):
        for turn in range(500):
            raw = Raw(server, hello=False)
            if turn % 3 == 0:
                raw.receive(16)
            raw.close()
        good()


def sigterm_does_not_wait_for_stalled_clients(work):
    paths = images_make(work, 4, 24 * MIB)
    create(paths, "--assume-clean", level=5, chunk=64)
    with Server(paths) as server:
        handle = server.connect()
        handle.pwrite(b"y" * 4096, 0)
        stalled = [Raw(server).go(), Raw(server)]
        stalled[0].request(WRITE, 0, MIB, b"\xEE" * 1000)
        start = time.monotonic()
        expect(server.stop() == 0, "exit status")
        expect(time.monotonic() - start < 15, "the stop took too long")
    with Server(paths, "--readonly") as server:
        expect(server.read_all()[:4096] == b"y" * 4096, "the acknowledged write")


if __name__ == "__main__":
    main(garbage_instead_of_a_handshake, bad_option_magic_closes, oversized_options_are_refused_or_close,
         unknown_options_get_an_error_and_the_connection_lives, bad_request_magic_closes, unknown_commands_get_einval,
         out_of_range_requests_get_errors, oversized_requests_do_not_harm, cut_in_mid_request_applies_nothing,
         stalled_payloads_leave_others_alone, stalled_peers_that_hold_all_memory_are_closed,
         replies_that_nobody_reads_leave_others_alone, a_thousand_connections, connections_come_and_go,
         sigterm_does_not_wait_for_stalled_clients)
