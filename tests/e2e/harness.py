# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of the whole program share: arrays on image files, a running server, reporting.

The program under test is $STRIPELOG, or build/plain/stripelog. A test is a
list of functions; each is one case, named for the behaviour it protects. A case
fails by any exception; `Skip` skips it.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STRIPELOG = os.path.abspath(os.environ.get("STRIPELOG") or os.path.join(TOP, "build", "plain", "stripelog"))
KIB = 1024
MIB = 1024 * KIB
RESYNC_DONE = 2**64 - 1

# mdadm's names; the number is md's own.
LAYOUTS_5 = {"left-asymmetric": 0, "right-asymmetric": 1, "left-symmetric": 2, "right-symmetric": 3,
             "parity-first": 4, "parity-last": 5}
LAYOUTS_6 = dict(LAYOUTS_5, **{
    "ddf-zero-restart": 8, "ddf-N-restart": 9, "ddf-N-continue": 10,
    "left-asymmetric-6": 16, "right-asymmetric-6": 17, "left-symmetric-6": 18, "right-symmetric-6": 19,
    "parity-first-6": 20})


class Skip(Exception):
    """This case cannot run here; the text says why."""


class Failed(Exception):
    """The program did not do as promised."""


def expect(condition, text):
    if not condition:
        raise Failed(text)


def need_program(name):
    if not shutil.which(name):
        raise Skip(f"{name} is not installed")


# --- reporting ---


def main(*cases):
    """Run the cases whose names the command line gives, or all; reports in TAP."""
    wanted = sys.argv[1:]
    chosen = [case for case in cases if not wanted or case.__name__ in wanted]
    if not os.access(STRIPELOG, os.X_OK):
        print(f"no program {STRIPELOG}")
        sys.exit(1)
    print(f"1..{len(chosen)}", flush=True)
    failed = 0
    for number, case in enumerate(chosen, 1):
        start = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="stripelog-test-") as work:
                case(work)
        except Skip as reason:
            print(f"ok {number} - {case.__name__} # SKIP {reason}", flush=True)
        except Exception:  # pylint: disable=broad-except
            failed += 1
            for line in traceback.format_exc().splitlines():
                print("# " + line)
            print(f"not ok {number} - {case.__name__}", flush=True)
        else:
            print(f"# {time.monotonic() - start:.1f} s")
            print(f"ok {number} - {case.__name__}", flush=True)
    sys.exit(1 if failed else 0)


# --- images ---


def images_make(work, count, size, prefix="m", garbage=None):
    """`count` image files; full of random bytes if `garbage` is a random.Random."""
    paths = [os.path.join(work, f"{prefix}{i}") for i in range(count)]
    for path in paths:
        with open(path, "wb") as image:
            if garbage:
                image.write(garbage.randbytes(size))
            image.truncate(size)
    return paths


def digest(path):
    with open(path, "rb", buffering=0) as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def digests(paths):
    return [digest(path) for path in paths]


def superblock_offset(path, metadata="1.2"):
    sectors = os.path.getsize(path) // 512
    return {"1.0": ((sectors - 16) & ~7) * 512, "1.1": 0, "1.2": 4096}[metadata]


def crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC32C = crc32c_table()


def crc32c(seed, data):
    """Continues from the seed, no final inversion."""
    for byte in data:
        seed = CRC32C[(seed ^ byte) & 255] ^ seed >> 8
    return seed


def superblock_field(path, offset, form, metadata="1.2"):
    """One field as it stands on disk, by its offset in the superblock."""
    with open(path, "rb") as image:
        image.seek(superblock_offset(path, metadata) + offset)
        return struct.unpack(form, image.read(struct.calcsize(form)))[0]


def superblock_edit(path, edits, metadata="1.2", good_checksum=True):
    """Overwrite fields {offset: bytes} and mend the checksum, unless it shall be wrong."""
    place = superblock_offset(path, metadata)
    with open(path, "r+b") as image:
        image.seek(place)
        block = bytearray(image.read(4096))
        for offset, value in edits.items():
            block[offset:offset + len(value)] = value
        if good_checksum:
            length = 256 + 2 * struct.unpack_from("<I", block, 220)[0]
            block[216:220] = bytes(4)
            covered = bytes(block[:min(length, 4096)])
            total = sum(struct.unpack(f"<{len(covered) // 4}I", covered[:len(covered) // 4 * 4]))
            if len(covered) % 4:
                total += struct.unpack("<H", covered[-2:])[0]
            block[216:220] = struct.pack("<I", ((total & 0xffffffff) + (total >> 32)) & 0xffffffff)
        image.seek(place)
        image.write(block)


def resync_offset(path, metadata="1.2"):
    return superblock_field(path, 208, "<Q", metadata)


# --- the program ---


def stripelog(*arguments, timeout=60):
    """Run it to its end; the completed process, with its output as text."""
    return subprocess.run([STRIPELOG, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
                          encoding="utf-8", errors="backslashreplace", timeout=timeout, check=False)


def create(members, *options, level=5, chunk=64, layout=None, metadata="1.2"):
    arguments = ["create", f"--level={level}", f"--chunk={chunk}K", f"--metadata={metadata}", *options]
    if layout and level != 4:
        arguments.append(f"--layout={layout}")
    made = stripelog(*arguments, *members)
    expect(made.returncode == 0, f"create {' '.join(arguments)}: {made.returncode}\n{made.stderr}")
    return made


def create_cached(work, count, size, *options, log_bytes=4 * MIB, **geometry):
    """An array with a journal, to be served in write-back: its devices, the journal last."""
    members = images_make(work, count, size)
    journal = images_make(work, 1, MIB + log_bytes, "journal")
    create(members, f"--write-journal={journal[0]}", "--assume-clean", *options, **geometry)
    return members + journal


# The least, for most of it is touched at the start, and there are hundreds of starts.
MEMORY = "--memory=64M"
WRITE_BACK = "--journal-mode=write-back"


class Server:
    """A running `stripelog serve`; leaving the block stops it in order and expects exit status 0.

    `memory` is an option, or None for what the program takes by itself.
    """

    def __init__(self, members, *options, socket=None, timeout=30, wait=True, memory=MEMORY):
        self.work = tempfile.mkdtemp(prefix="stripelog-serve-")
        self.socket = socket or os.path.join(self.work, "nbd.sock")
        self.control = os.path.join(self.work, "ctl.sock")
        self.errors_path = os.path.join(self.work, "stderr")
        where = [] if any(o.startswith("--listen") for o in options) else [f"--socket={self.socket}"]
        # Not in the default directory, where a server that is killed would leave it.
        where += [] if any(o.startswith("--control") for o in options) else [f"--control={self.control}"]
        where += [memory] if memory else []
        with open(self.errors_path, "wb") as errors:
            self.process = subprocess.Popen([STRIPELOG, "serve", *where, *options, *members],
                                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        self.uri = None
        if wait:
            self.ready_wait(timeout)

    def ready_wait(self, timeout=30):
        watchdog = threading.Timer(timeout, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline().decode()
        watchdog.cancel()
        if not line.startswith("stripelog: ready "):
            self.process.kill()
            self.process.wait()
            told = self.errors()
            self.discard()
            raise Failed(f"serve was not ready: {line!r}, exit {self.process.returncode}\n{told}")
        self.uri = line.split()[2]

    def errors(self):
        with open(self.errors_path, encoding="utf-8", errors="replace") as text:
            return text.read()

    def connect(self):
        # Here, so that tests which need no libnbd run without it.
        import nbd  # pylint: disable=import-outside-toplevel
        handle = nbd.NBD()
        handle.add_meta_context("base:allocation")
        handle.connect_uri(self.uri)
        return handle

    def read_all(self):
        return nbd_read_all(self.connect())

    def stop(self, timeout=60):
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed(f"serve did not stop within {timeout} s\n{self.errors()}") from None
        return status

    def kill(self):
        self.process.kill()
        self.process.wait()

    def discard(self):
        self.process.stdout.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def memory_peak(self):
        """VmHWM in bytes."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * KIB
        raise Failed("no VmHWM")

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _trace):
        status = self.stop()
        told = self.errors()
        self.discard()
        if kind is None:
            expect(status == 0, f"serve ended with {status}\n{told}")
        elif told:
            print("# the server's messages:", *told.splitlines(), sep="\n#   ")


def journal_mode(server, mode):
    """Switch it through the control socket; the completed command."""
    return stripelog("journal-mode", server.control, mode)


def resync_wait(member, metadata="1.2", timeout=120):
    """Until the superblock says that parity is right and the array is clean."""
    deadline = time.monotonic() + timeout
    while resync_offset(member, metadata) != RESYNC_DONE:
        expect(time.monotonic() < deadline, f"no end of the resync; resync_offset {resync_offset(member, metadata)}")
        time.sleep(0.02)


def serve_refused(members, *options, status=1):
    """`serve` must end with `status` and a message, without ever being ready. The message."""
    work = tempfile.mkdtemp(prefix="stripelog-serve-")
    try:
        ended = stripelog("serve", f"--socket={work}/s", *options, *members, timeout=30)
    except subprocess.TimeoutExpired:
        raise Failed("serve went on although it should have refused") from None
    finally:
        shutil.rmtree(work)
    expect(ended.returncode == status, f"exit {ended.returncode}, not {status}: {ended.stdout}{ended.stderr}")
    expect("ready" not in ended.stdout, "it said it was ready")
    expect(ended.stderr.strip() and ended.stderr.strip().splitlines()[-1].strip(), "no message")
    return ended.stderr


@contextlib.contextmanager
def unchanged(paths):
    """Inside, nothing may be written to these files, not even what they hold already."""
    time.sleep(0.02)  # then a write has a later time, however coarse the file system's clock
    before = [os.stat(path).st_mtime_ns for path in paths]
    yield
    for path, old in zip(paths, before):
        expect(os.stat(path).st_mtime_ns == old, f"{os.path.basename(path)} was written to")


def refused(paths, *arguments, status=1):
    """The command must fail with `status` and say why, and leave `paths` alone. Its message."""
    with unchanged(paths):
        ended = stripelog(*arguments)
        expect(ended.returncode == status, f"{arguments}: exit {ended.returncode}, not {status}\n{ended.stderr}")
        lines = ended.stderr.strip().splitlines()
        expect(lines and lines[-1].strip(), f"{arguments}: no message")
    return ended.stderr


# --- NBD ---


def nbd_read_all(handle):
    size = handle.get_size()
    pieces = []
    # As much at once as with the least memory.
    for offset in range(0, size, 8 * MIB):
        pieces.append(bytes(handle.pread(min(8 * MIB, size - offset), offset)))
    handle.shutdown()
    return b"".join(pieces)


def first_difference(got, wanted):
    if len(got) != len(wanted):
        return f"{len(got)} bytes, not {len(wanted)}"
    for start in range(0, len(got), 4096):
        if got[start:start + 4096] != wanted[start:start + 4096]:
            end = start
            while end < len(got) and got[end:end + 4096] != wanted[end:end + 4096]:
                end += 4096
            return f"different from byte {start} to {end}"
    return "equal"


def expect_content(got, wanted, what):
    if got != wanted:
        raise Failed(f"{what}: {first_difference(got, bytes(wanted))}")


def writes_random(handle, model, rng, count, size_max=256 * KIB, unit=512, first=0, end=None):
    """Random writes to the array and to `model`; awaits every one."""
    end = len(model) if end is None else end
    for _ in range(count):
        length = unit * rng.randint(1, max(1, min(size_max, end - first) // unit))
        if rng.random() < 0.5:
            length = unit * rng.randint(1, max(1, 16 * KIB // unit))
        length = min(length, end - first)
        offset = first + unit * rng.randint(0, (end - first - length) // unit)
        data = rng.randbytes(length)
        handle.pwrite(data, offset)
        model[offset:offset + length] = data


def rng_for(*words):
    """The same numbers for the same words, on any machine."""
    return random.Random(repr(words))
