#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks with a volatile cache: what nobody flushed is lost, in part, when the power is cut.

    lossy.py SEED IMAGE...

Serves each image over NBD, at the Unix socket IMAGE.sock, to one client after
the other, and keeps what is written in memory until a flush. A line on standard input cuts
the power: of everything written to a disk since its last flush a random part
reaches the image, sector by sector; nothing of it if SEED is "worst"; then it ends.
PowerCut is what a test uses:
the images as files again, through nbdfuse, because the program opens files. (nbdfuse
flushes what is closed: the power has to go before the server does.)
"""

import mmap
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from harness import Skip

BLOCK = 4096
SECTOR = 512
HAS_FLAGS, SEND_FLUSH, SEND_FUA = 1, 4, 8
READ, WRITE, DISCONNECT, FLUSH = range(4)
FUA = 1 << 16


class Disk(threading.Thread):
    """One image and its cache."""

    def __init__(self, path):
        super().__init__(daemon=True)
        with open(path, "r+b") as image:
            self.durable = mmap.mmap(image.fileno(), 0)
        self.current = bytearray(self.durable)
        self.dirty = set()
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path + ".sock")
        self.listener.listen(8)

    def run(self):
        while True:
            self.converse(self.listener.accept()[0])

    def converse(self, connection):
        stream = connection.makefile("rwb")
        # The old handshake: magic, size, flags, zeros.
        stream.write(struct.pack(">8sQQI124x", b"NBDMAGIC", 0x00420281861253, len(self.current),
                                 HAS_FLAGS | SEND_FLUSH | SEND_FUA))
        stream.flush()
        while len(header := stream.read(28)) == 28:
            _magic, command, handle, offset, length = struct.unpack(">IIQQI", header)
            answer = b""
            data = stream.read(length) if command & 0xffff == WRITE else b""
            if len(data) < length and command & 0xffff == WRITE or command & 0xffff == DISCONNECT:
                break
            with self.lock:
                if command & 0xffff == READ:
                    answer = bytes(self.current[offset:offset + length])
                elif command & 0xffff == WRITE:
                    self.current[offset:offset + length] = data
                    self.dirty.update(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
                if command & 0xffff == FLUSH or command & FUA:
                    self.keep(self.dirty)
                    self.dirty = set()
            stream.write(struct.pack(">IIQ", 0x67446698, 0, handle) + answer)
            stream.flush()
        connection.close()

    def keep(self, blocks):
        for block in blocks:
            self.durable[block * BLOCK:(block + 1) * BLOCK] = self.current[block * BLOCK:(block + 1) * BLOCK]

    def cut(self, rng):
        """How many blocks were in the cache."""
        with self.lock:
            how_many = rng.choice([0.0, 0.5, 0.5, 0.9, 1.0]) if rng else 0  # reach the disk
            for block in sorted(self.dirty) if how_many else ():
                torn = rng.random() < 0.1
                whole = rng.random() < how_many
                for start in range(block * BLOCK, (block + 1) * BLOCK, SECTOR):
                    if rng.random() < 0.5 if torn else whole:
                        self.durable[start:start + SECTOR] = self.current[start:start + SECTOR]
            self.durable.flush()
            count = len(self.dirty)
            self.dirty = set()
            self.current = bytearray(len(self.current))  # whoever reads or writes now is too late
        return count


class PowerCut:
    """The images as files, `paths`, in the order given, until the power is cut.

    seed: of what is lost then; "worst": everything that was not flushed.
    """

    works_here = False  # until it has once

    def __init__(self, images, work, seed):
        self.images, self.work = images, work
        self.paths = []
        self.fuses = []
        self.lost = 0
        self.disks = subprocess.Popen([sys.executable, os.path.abspath(__file__), str(seed), *images],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.disks.stdout.readline() != "ready\n":
            raise RuntimeError("the disks do not come up")

    def __enter__(self):
        for image in self.images:
            place = os.path.join(self.work, "fuse-" + os.path.basename(image))
            os.makedirs(place, exist_ok=True)
            path = os.path.join(place, "disk")
            # What it says when the power is cut is of no interest.
            fuse = subprocess.Popen(["nbdfuse", path, f"nbd+unix:///?socket={image}.sock"], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.fuses.append((place, fuse))
            self.paths.append(path)
        deadline = time.monotonic() + 20
        while not all(os.path.exists(path) for path in self.paths):
            ended = any(fuse.poll() is not None for _place, fuse in self.fuses)
            if ended or time.monotonic() > deadline:
                self.__exit__()
                if ended and not PowerCut.works_here:
                    raise Skip("nbdfuse cannot mount here")
                raise RuntimeError("nbdfuse does not mount")
            time.sleep(0.02)
        PowerCut.works_here = True
        return self

    def cut(self, process):
        """The power goes, and the process that used the files: nothing it does happens in between."""
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        out, _err = self.disks.communicate("cut\n", timeout=60)
        process.kill()
        self.lost = int(out)

    def __exit__(self, *_):
        if self.disks.poll() is None:
            self.disks.kill()
            self.disks.wait()
        for place, fuse in self.fuses:
            # The system closes the files of a killed process in its own time. And nbdfuse may have ended already: it
            # never mounted, or did not survive that its disk went.
            deadline = time.monotonic() + 10
            while subprocess.run(["fusermount3", "-uz" if fuse.poll() is not None else "-u", place],
                                 capture_output=True, check=False).returncode and fuse.poll() is None:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{place} is in use")
                time.sleep(0.02)
            fuse.wait(60)
        for image in self.images:
            os.unlink(image + ".sock")


def main():
    rng = None if sys.argv[1] == "worst" else random.Random(sys.argv[1])
    disks = [Disk(path) for path in sys.argv[2:]]
    for disk in disks:
        disk.start()
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(disk.cut(rng) for disk in disks), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
