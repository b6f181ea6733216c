#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""run.py: measure stripelog beside its peers, and print ratios.

Nothing here is an absolute number: every figure is the ratio of two medians, of ours and of a peer
that ran alternately in the same minutes on the same kind of members. README.md says what each row
means and how to read it.
"""
import argparse
import contextlib
import json
import mmap
import os
import platform
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

KIB, MIB = 1 << 10, 1 << 20
MEMBERS = 4
CHUNK = 512 * KIB
ROW = (MEMBERS - 1) * CHUNK  # a full-stripe write is a whole row
QUIET = 0.15  # CPUs that others may take before a run counts as disturbed
MEMORY = 256 * MIB  # --memory where it is not given
MEMORY_MARGIN = 32 * MIB  # what a server may use beyond --memory
JOURNAL = 1024 * MIB
STRIPES_AN_ENTRY = 8
# Of the write-back cache:
BURST = 32000  # blocks: half of what is cached with that journal before it is written out
SMALL_JOURNAL = 64 * MIB  # A single block takes three of the log: itself, and what it will need to
SMALL_CACHE = SMALL_JOURNAL // 3  # be written out. So this much fits of writes at random,
WORKING_SETS = (2, 8)  # and this many times as much is written to.
SLOW = {"1 ms": ["--delay-us=1000"], "seeks": ["--seek-us=5000", "--rate=200M"]}


# --- servers ---------------------------------------------------------------------------------------


class Server:
    """A server process that listens on a Unix socket of its own."""

    def __init__(self, bench, name, argv):
        self.name = name
        self.socket = os.path.join(bench.work, name + ".sock")
        self.log = os.path.join(bench.work, name + ".log")
        argv = [self.socket if a == "@" else a.replace("=@", "=" + self.socket) for a in argv]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_ready()

    def wait_ready(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.socket)
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"{self.name} did not start:\n{self.messages()}")

    def messages(self):
        with open(self.log) as log:
            return log.read().strip()

    def peak_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * KIB
        raise RuntimeError(f"{self.name}: no VmHWM")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        with contextlib.suppress(OSError):
            os.unlink(self.socket)  # nbdkit leaves its own behind

    def kill(self):
        """Ends it as it is: nobody needs what it still would write."""
        self.process.kill()
        self.process.wait()


# --- members ---------------------------------------------------------------------------------------


class Members:
    """Devices of one kind."""

    def __init__(self, kind, directory, sizes, loops):
        self.kind, self.directory = kind, directory
        self.loops, self.files = [], []
        self.note = ""
        os.makedirs(directory, exist_ok=True)
        try:
            self.files = [self.make_file(f"{kind}{i}", size) for i, size in enumerate(sizes)]
            self.devices = list(self.files)
            if loops:
                self.attach()
        except BaseException:
            self.remove()
            raise
        self.array, self.raw = self.devices[:MEMBERS], self.devices[MEMBERS]
        self.journal, self.plain = self.devices[MEMBERS], self.devices[MEMBERS + 1:]
        self.journals = self.devices[MEMBERS:]

    @classmethod
    def with_raw(cls, kind, directory, size, loops):
        """Four members of an array and a fifth device, which is served raw. It is as large as the
        array: what fits a CPU's cache must fit for both."""
        return cls(kind, directory, [size] * MEMBERS + [size * (MEMBERS - 1)], loops)

    @classmethod
    def with_journal(cls, kind, directory, size, loops):
        """Four members of an array, its journal, and four members of an array without one."""
        os.makedirs(directory, exist_ok=True)
        journal = JOURNAL
        while journal > 64 * MIB and \
                2 * MEMBERS * size + journal > 0.8 * shutil.disk_usage(directory).free:
            journal //= 2
        return cls(kind, directory, [size] * MEMBERS + [journal] + [size] * MEMBERS, loops)

    @classmethod
    def with_cache(cls, kind, directory, size, loops):
        """Four members of an array, and two journals for it."""
        return cls(kind, directory, [size] * MEMBERS + [JOURNAL, SMALL_JOURNAL], loops)

    def make_file(self, name, size):
        """Written in full, so that no run pays for allocation or the first touch of a page."""
        path = os.path.join(self.directory, name)
        piece = os.urandom(MIB)
        with open(path, "wb") as file:
            for _ in range(size // MIB):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return path

    def attach(self):
        for path in self.files:
            made = subprocess.run(["losetup", "--direct-io=on", "--show", "-f", path], text=True,
                                  capture_output=True)
            if made.returncode != 0:
                self.detach()
                self.devices = list(self.files)
                self.note = "losetup does not work here, so plain files: " + made.stderr.strip()
                return
            self.loops.append(made.stdout.strip())
        self.devices = list(self.loops)

    def detach(self):
        for loop in self.loops:
            subprocess.run(["losetup", "-d", loop], check=False)
        self.loops = []

    def remove(self):
        self.detach()
        for name in os.listdir(self.directory):
            os.unlink(os.path.join(self.directory, name))
        os.rmdir(self.directory)

    def describe(self):
        file_system = subprocess.run(["stat", "-f", "-c", "%T", self.directory], text=True,
                                     capture_output=True).stdout.strip()
        return f"{'loop devices over files' if self.loops else 'files'} on {file_system}"


def warm(path):
    """Puts all of it into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass


def settle(path):
    """Leaves nothing of a buffered peer behind: no dirty page, no cached page."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def superblock_of(path):
    """data_offset and used size in bytes, chunk in bytes, of a member with metadata 1.2."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        try:
            os.preadv(fd, [page], 4096)
        finally:
            os.close(fd)
        magic, = struct.unpack_from("<I", page, 0)
        size, = struct.unpack_from("<Q", page, 80)
        chunk, = struct.unpack_from("<I", page, 88)
        data_offset, = struct.unpack_from("<Q", page, 128)
    if magic != 0xA92B4EFC:
        raise RuntimeError(f"{path}: no superblock after create")
    return data_offset * 512, size * 512, chunk * 512


def ring_of(path):
    """Offset and length in bytes of a journal's ring."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        try:
            os.preadv(fd, [page], 4096)
        finally:
            os.close(fd)
        data_offset, data_size = struct.unpack_from("<QQ", page, 128)
    return data_offset * 512, data_size // 8 * 4096


def bytes_written(device):
    """What a block device was given to write since it is there."""
    with open(f"/sys/block/{os.path.basename(device)}/stat") as stat:
        return int(stat.read().split()[6]) * 512


# --- others on the machine -------------------------------------------------------------------------


def process_ticks(pid):
    """The parent, and the CPU time used, of a process with all its threads."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[1]), int(fields[11]) + int(fields[12])


class Others:
    """How much of the CPUs went to what is neither of ours nor the kernel working for us."""

    def __init__(self, bench):
        self.bench = bench

    def used_s(self):
        """CPU time used by others since the machine started, and some constant."""
        with open("/proc/stat") as stat:
            user, nice, system, _idle, _wait, irq, soft, stolen = map(int, stat.readline().split()[1:9])
        ticks = user + nice + system + irq + soft + stolen
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                parent, used = process_ticks(pid)
                if parent == 2:  # a thread of the kernel
                    ticks -= used
        for server in self.bench.servers:
            ticks -= process_ticks(server.process.pid)[1]
        mine = os.times()
        return ticks / os.sysconf("SC_CLK_TCK") - sum(mine[:4])

    def during(self, run, *args):
        """What run(*args) returns, and how many CPUs others took meanwhile."""
        used, begun = self.used_s(), time.monotonic()
        result = run(*args)
        return result, max(0.0, (self.used_s() - used) / (time.monotonic() - begun))


# --- the bench -------------------------------------------------------------------------------------


class Bench:
    def __init__(self, options):
        self.options = options
        alone = {"front-door", "raw-file"}  # no array needed
        if not options.only or not alone.issuperset(options.only):
            self.stripelog = self.program("stripelog")
        self.load_program = self.program("bench/nbd_load")
        self.front_door_program = self.program("bench/front_door")
        self.bare_program = self.program("bench/bare_rmw")
        self.copy_program = self.program("bench/bare_copy")
        self.fill_program = self.program("bench/journal_fill")
        self.append_program = self.program("bench/bare_append")
        self.slow_program = self.program("bench/slow_array")
        self.nbdkit = shutil.which("nbdkit")
        self.others = Others(self)
        self.servers = []
        self.rows, self.skipped = [], []
        self.stack = contextlib.ExitStack()

    def program(self, name):
        path = os.path.join(self.options.build, name)
        if not os.access(path, os.X_OK):
            sys.exit(f"run.py: {path} is not built (meson option bench)")
        return path

    def __enter__(self):
        self.work = tempfile.mkdtemp(prefix="stripelog-bench-")
        self.stack.callback(shutil.rmtree, self.work, ignore_errors=True)
        return self

    def __exit__(self, *exception):
        return self.stack.__exit__(*exception)

    # servers

    @contextlib.contextmanager
    def serving(self, name, *argv):
        server = Server(self, name, [str(a) for a in argv])
        self.servers.append(server)
        try:
            yield server
        finally:
            self.servers.remove(server)
            server.stop()

    def front_door(self, *argv):
        return self.serving("front_door", self.front_door_program, "--socket", "@", *argv)

    def nbdkit_of(self, *argv):
        return self.serving("nbdkit", self.nbdkit, "-f", "-U", "@", *argv)

    def create(self, devices, *argv):
        subprocess.run([self.stripelog, "create", "--level=5", f"--chunk={CHUNK // KIB}K",
                        "--assume-clean", "--force", *argv, *devices],
                       check=True, stdout=subprocess.DEVNULL)

    def array(self, members, *argv):
        self.create(members.array)
        return self.serving("array", self.stripelog, "serve", "--socket=@", *argv, *members.array)

    def plain_array(self, members):
        self.create(members.plain)
        return self.serving("plain", self.stripelog, "serve", "--socket=@", *members.plain)

    def journaled_array(self, members):
        self.create(members.array, f"--write-journal={members.journal}")
        return self.serving("journaled", self.stripelog, "serve", "--socket=@", *members.array,
                            members.journal)

    @contextlib.contextmanager
    def cached_array(self, members, mode, journal=None, slow=None):
        """A fresh array, with nothing in its journal, and what is in it in the end is dropped."""
        journal = journal or members.journal
        self.create(members.array, f"--write-journal={journal}")
        if slow:
            serving = self.serving(mode, self.slow_program, "--socket", "@", "--mode", mode, *slow,
                                   "--journal", journal, *members.array)
        else:
            serving = self.serving(mode, self.stripelog, "serve", "--socket=@",
                                   f"--control={self.work}/control.sock", f"--journal-mode={mode}",
                                   "--kernel-recoverable=no", *members.array, journal)
        with serving as server:
            yield server
            server.kill()

    # one measurement

    def load(self, server, op, block=4 * KIB, depth=32, connections=1, seconds=None, requests=None,
             span=None, seed=1):
        argv = [self.load_program, "--socket", server.socket, "--op", op, "--block",
                f"{block // KIB}K", "--depth", str(depth), "--connections", str(connections),
                "--server-pid", str(server.process.pid), "--seed", str(seed)]
        if span:
            argv += ["--span", str(span)]
        if requests:
            argv += ["--requests", str(requests)]
        else:
            argv += ["--seconds", str(seconds or self.options.seconds)]
        done = subprocess.run(argv, text=True, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(f"{server.name}, {op}: {done.stderr.strip()}\n{server.messages()}")
        return json.loads(done.stdout)

    def bare(self, members):
        data_offset, size, chunk = superblock_of(members.array[0])
        done = subprocess.run([self.bare_program, f"--data-offset={data_offset}",
                               f"--member-size={size}", f"--chunk={chunk}", "--depth=32",
                               f"--seconds={self.options.seconds}", *members.array],
                              text=True, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return json.loads(done.stdout)

    def bare_copy(self, members, *argv):
        offset, length = ring_of(members.journal)
        member_offset = superblock_of(members.array[0])[0]
        done = subprocess.run([self.copy_program, f"--offset={offset}", f"--length={length}",
                               f"--member-offset={member_offset}", *argv, members.journal,
                               *members.array], text=True, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        result = json.loads(done.stdout)
        result["cpu_us_per_request"] = result["cpu_s"] * 1e6 / (result["bytes"] / MIB)
        return result

    def bare_append(self, journal, requests):
        offset, length = ring_of(journal)
        done = subprocess.run([self.append_program, f"--offset={offset}", f"--length={length}",
                               f"--requests={requests}", "--depth=32", journal],
                              text=True, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return json.loads(done.stdout)

    def recover(self, members, load):
        """Fills the journal, and times the recovery from the program's start to its end."""
        done = subprocess.run([self.fill_program, f"--load={load}", members.journal], text=True,
                              capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        filled = json.loads(done.stdout)["bytes"]
        with tempfile.TemporaryFile() as output:
            began = time.monotonic()
            process = subprocess.Popen([self.stripelog, "recover", *members.array, members.journal],
                                       stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            said = output.read().decode()
        if process.returncode != 0:
            raise RuntimeError(f"recover: {said}")
        return {"bytes": filled, "seconds": seconds, "bytes_per_s": filled / seconds,
                "cpu_us_per_request": (usage.ru_utime + usage.ru_stime) * 1e6 / (filled / MIB),
                "peak_bytes": usage.ru_maxrss * KIB}

    def alternate(self, ours, peer):
        """Runs both in turns, the first of a pair being the second of the next."""
        results = ([], [])
        for i in range(self.options.runs):
            for which in (0, 1) if i % 2 == 0 else (1, 0):
                results[which].append(self.undisturbed((ours, peer)[which]))
        return results

    def undisturbed(self, run):
        """A run during which others left the CPUs alone; the least disturbed when patience ends.

        What others took is measured, not guessed from the result, so choosing does not colour it.
        """
        deadline = time.monotonic() + self.options.patience
        best = None
        while True:
            while time.monotonic() < deadline and self.others.during(time.sleep, 0.2)[1] > QUIET:
                pass
            result, taken = self.others.during(run)
            result["others_cpus"] = taken
            if best is None or taken < best["others_cpus"]:
                best = result
            if best["others_cpus"] <= QUIET or time.monotonic() >= deadline:
                return best

    # what is said of it

    def row(self, name, members, what, pairs, target, key="requests_per_s", factor=1.0):
        """One figure. target: ('>=' or '<=', limit) of ratio = factor x ours / peer, by medians;
        None: it is only shown."""
        single = [factor * a[key] / b[key] for a, b in zip(*pairs)]
        quiet = [[r for r in side if r["others_cpus"] <= QUIET] for side in pairs]
        counted = quiet if min(map(len, quiet)) >= min(3, self.options.runs) else pairs

        def median(side, *keys):
            return statistics.median(next(r[key] for key in keys if key in r) for r in side)

        ours, peer = (median(side, key) for side in counted)
        ratio = factor * ours / peer
        cpu = [median(side, "server_cpu_us_per_request", "cpu_us_per_request") for side in counted]
        self.rows.append({
            "name": name, "members": members, "what": what, "key": key,
            "ours": ours, "peer": peer, "ratio": ratio, "disturbed": counted is not quiet,
            "ratio_low": min(single), "ratio_high": max(single), "target": target,
            "ours_cpu_us": cpu[0], "peer_cpu_us": cpu[1], "runs": pairs,
            "meets": meets(ratio, target)})
        self.print_row(self.rows[-1])

    def single_row(self, name, members, what, ours, peer, target, key):
        """A figure that is no median: a count, or a peak."""
        ratio = ours / peer
        self.rows.append({
            "name": name, "members": members.kind, "what": what, "key": key, "ours": ours,
            "peer": peer, "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio,
            "target": target, "ours_cpu_us": None, "peer_cpu_us": None,
            "meets": meets(ratio, target)})
        self.print_row(self.rows[-1])

    def print_row(self, row):
        if row is None:
            print(f"\n{'':9} {'what':44} {'members':7} {'ours':>10} {'peer':>10} {'ratio':>7}  "
                  f"{'spread':13} {'target':7} {'CPU us ours':>11} {'peer':>7}")
            return
        mark = {True: "meets", False: "below", None: "shown"}[row["meets"]]
        target = "{} {:<4g}".format(*row["target"]) if row["target"] else " " * 7
        if row.get("disturbed"):
            mark += " ~"
        number = quantity(row["ours"], row["key"]), quantity(row["peer"], row["key"])
        print(f"{mark:9} {row['what']:44} {row['members']:7} {number[0]:>10} {number[1]:>10} "
              f"{row['ratio']:7.2f}  {row['ratio_low']:5.2f} - {row['ratio_high']:<5.2f} "
              f"{target} {decimal(row['ours_cpu_us']):>11} "
              f"{decimal(row['peer_cpu_us']):>7}", flush=True)

    # the rows

    def measure_front_door(self, _members):
        if not self.nbdkit:
            self.skipped.append("front door: no nbdkit")
            return
        with self.front_door("--size", "1G") as ours, self.nbdkit_of("null", "size=1G") as peer:
            for op, connections in (("randread", 1), ("randread", 4), ("randwrite", 1)):
                def run(server):
                    return self.load(server, op, connections=connections)
                self.load(ours, op, requests=5000)
                self.load(peer, op, requests=5000)
                pairs = self.alternate(lambda: run(ours), lambda: run(peer))
                what = f"null, {op} 4K QD32" + (f" x {connections}" if connections > 1 else "")
                self.row("front-door", "-", what, pairs, (">=", 5))
                self.row("front-door", "-", what + ", CPU", pairs, ("<=", 0.25),
                         "server_cpu_us_per_request")

    def measure_raw_file(self, members):
        if not self.nbdkit:
            self.skipped.append("raw file: no nbdkit")
            return
        with self.front_door("--file", members.raw) as ours, \
                self.nbdkit_of("file", members.raw) as peer:
            def run_peer(op, cached):
                if cached:
                    warm(members.raw)
                result = self.load(peer, op)
                settle(members.raw)
                return result
            for op, cached, what in (("randread", True, "randread 4K QD32, peer cached"),
                                     ("randread", False, "randread 4K QD32, nothing cached"),
                                     ("randwrite", False, "randwrite 4K QD32")):
                self.load(ours, op, requests=5000)
                settle(members.raw)
                pairs = self.alternate(lambda: self.load(ours, op), lambda: run_peer(op, cached))
                self.row("raw-file", members.kind, f"one file, {what}, CPU", pairs, ("<=", 0.5),
                         "server_cpu_us_per_request")

    def measure_reads(self, members):
        with self.array(members) as ours, self.front_door("--file", members.raw) as peer:
            for what, op, block, depth in (("4K random QD32", "randread", 4 * KIB, 32),
                                           ("1M sequential QD8", "read", MIB, 8)):
                pairs = self.alternate(lambda: self.load(ours, op, block, depth),
                                       lambda: self.load(peer, op, block, depth))
                self.row("reads", members.kind, f"array / raw, read {what}", pairs, (">=", 0.8),
                         "requests_per_s" if block == 4 * KIB else "bytes_per_s")

    def measure_full_stripes(self, members):
        with self.array(members) as ours, self.front_door("--file", members.raw) as peer:
            pairs = self.alternate(lambda: self.load(ours, "write", ROW, 8),
                                   lambda: self.load(peer, "write", ROW, 8))
            self.row("full-stripes", members.kind, "array / raw, full stripes, device bytes", pairs,
                     (">=", 0.6), "bytes_per_s", factor=MEMBERS / (MEMBERS - 1))

    def measure_small_writes(self, members):
        with self.array(members) as ours:
            def bare():
                time.sleep(0.5)  # the array marks itself clean, and then leaves its members alone
                return self.bare(members)
            pairs = self.alternate(lambda: self.load(ours, "randwrite"), bare)
            for side in pairs:
                for result in side:
                    result["us_per_request"] = 1e6 / result["requests_per_s"]
            self.row("small-writes", members.kind, "array / bare, write 4K random QD32, time", pairs,
                     ("<=", 1.5), "us_per_request")

    def measure_memory(self, members):
        for memory in (64 * MIB, 256 * MIB):
            with self.array(members, f"--memory={memory // MIB}M") as server:
                for op, block, depth, connections in (
                        ("randwrite", 4 * KIB, 128, 4), ("randread", 4 * KIB, 32, 32),
                        ("write", ROW, 16, 4), ("randwrite", 20 * KIB, 64, 8),
                        ("read", min(32 * MIB, memory // 4), 16, 8), ("randwrite", 8 * MIB, 4, 4)):
                    self.load(server, op, block, depth, connections, seconds=1)
                peak = server.peak_bytes()
            self.single_row("memory", members, f"VmHWM beyond --memory={memory // MIB}M / 32M",
                            peak - memory, MEMORY_MARGIN, ("<=", 1), "bytes")

    def measure_journal(self, members):
        with self.journaled_array(members) as ours, self.plain_array(members) as peer:
            for what, op, block, depth, target in (
                    ("4K random QD32", "randwrite", 4 * KIB, 32, 0.6),
                    ("1M sequential QD8", "write", MIB, 8, 0.45)):
                pairs = self.alternate(lambda: self.load(ours, op, block, depth),
                                       lambda: self.load(peer, op, block, depth))
                self.row("journal", members.kind, f"journal / none, write {what}", pairs,
                         (">=", target), "requests_per_s" if block == 4 * KIB else "bytes_per_s")
        self.measure_group_commit(members)

    def measure_group_commit(self, members):
        """Less is logged than makes a checkpoint, so the whole log can be looked at afterwards."""
        with self.journaled_array(members) as server:
            before = bytes_written(members.journal) if members.loops else None
            self.load(server, "randwrite",
                      requests=ring_of(members.journal)[1] // (16 * 4 * KIB))
            after = bytes_written(members.journal) if members.loops else None
            server.process.kill()  # a stop would empty the log
        shown = subprocess.run([self.stripelog, "journal", "--json", "--summary", members.journal],
                               check=True, text=True, stdout=subprocess.PIPE)
        log = json.loads(shown.stdout)["summary"]
        entries = log["entries"] - log["entries_empty"]
        self.single_row("journal", members, "stripes an entry / 8, write 4K random QD32",
                        log["parity_stripes"] / entries, STRIPES_AN_ENTRY, (">=", 1), "count")
        if before is not None:
            logged = (log["data_blocks"] + log["parity_blocks"]) * 4 * KIB
            self.single_row("journal", members, "bytes to the journal / logged, the same",
                            after - before, logged, ("<=", 1.2), "bytes")

    def measure_recovery(self, members):
        self.create(members.array, f"--write-journal={members.journal}")
        peak = 0
        for load, what in (("sequential", "in sequence"), ("random", "stripes at random"),
                           ("small", "4K at random")):
            pairs = self.alternate(lambda: self.recover(members, load),
                                   lambda: self.bare_copy(members))
            self.row("recovery", members.kind, f"recover / bare read + write, {what}", pairs,
                     (">=", 0.7), "bytes_per_s")
            peak = max(peak, *(r["peak_bytes"] for r in pairs[0]))
        self.single_row("recovery", members, "peak of recover / --memory + 32M", peak,
                        MEMORY + MEMORY_MARGIN, ("<=", 1), "bytes")

    def measure_cache(self, members):
        self.measure_bursts(members)
        self.measure_sustained(members)
        self.measure_cached_sequence(members)
        if members.kind == "ram":
            self.measure_latency(members)
            for kind, slow in SLOW.items():
                self.measure_slow(members, kind, slow)

    def burst(self, members, mode, slow=None, depth=32):
        with self.cached_array(members, mode, slow=slow) as server:
            return self.load(server, "randwrite", depth=depth, requests=BURST)

    def measure_bursts(self, members):
        pairs = self.alternate(lambda: self.burst(members, "write-back"),
                               lambda: self.bare_append(members.journal, BURST))
        self.row("cache", members.kind, "burst of 4K random QD32 / bare append", pairs,
                 (">=", 0.6))
        pairs = self.alternate(lambda: self.burst(members, "write-back"),
                               lambda: self.burst(members, "write-through"))
        self.row("cache", members.kind, "burst of 4K random QD32 / write-through", pairs, None)

    def sustained(self, members, mode, times, slow=None, depth=32):
        """From when the cache is full on."""
        with self.cached_array(members, mode, members.journals[1], slow) as server:
            span = times * SMALL_CACHE
            if mode == "write-back":
                self.load(server, "randwrite", requests=SMALL_CACHE // (4 * KIB), span=span,
                          seed=2)
            else:
                self.load(server, "randwrite", seconds=1, span=span, seed=2)
            return self.load(server, "randwrite", span=span, depth=depth)

    def measure_sustained(self, members, kind=None, slow=None, target=1.3):
        for times in WORKING_SETS:
            pairs = self.alternate(lambda: self.sustained(members, "write-back", times, slow),
                                   lambda: self.sustained(members, "write-through", times, slow))
            self.row("cache", kind or members.kind,
                     f"sustained 4K, {times} caches / write-through", pairs, (">=", target))

    def measure_cached_sequence(self, members):
        def run(mode):
            with self.cached_array(members, mode) as server:
                return self.load(server, "write", MIB, 8)
        pairs = self.alternate(lambda: run("write-back"), lambda: run("write-through"))
        self.row("cache", members.kind, "1M sequential QD8 / write-through", pairs, (">=", 0.9),
                 "bytes_per_s")

    def measure_latency(self, members):
        pairs = self.alternate(
            lambda: self.sustained(members, "write-back", WORKING_SETS[0], depth=1),
            lambda: self.burst(members, "write-back", depth=1))
        self.row("cache", members.kind, "p99 of 4K random QD1, reclaim / none", pairs, ("<=", 5),
                 "p99_us")

    def measure_slow(self, members, kind, slow):
        if kind == "seeks":
            self.measure_sustained(members, kind, slow, target=3)
            return
        pairs = self.alternate(lambda: self.burst(members, "write-back", slow),
                               lambda: self.burst(members, "write-through", slow))
        self.row("cache", kind, "burst of 4K random QD32 / write-through", pairs, (">=", 4))

    def run(self, facts):
        measures = {"front-door": self.measure_front_door, "raw-file": self.measure_raw_file,
                    "reads": self.measure_reads, "full-stripes": self.measure_full_stripes,
                    "small-writes": self.measure_small_writes, "memory": self.measure_memory}
        journaled = {"journal": self.measure_journal, "recovery": self.measure_recovery}
        cached = {"cache": self.measure_cache}
        only = self.options.only or [*measures, *journaled, *cached]
        self.measure(measures, only, Members.with_raw, self.options.size_mib * MIB, facts)
        # What a journal holds must fit on its members.
        self.measure(journaled, only, Members.with_journal,
                     max(self.options.size_mib * MIB, JOURNAL // 2), facts)
        self.measure(cached, only, Members.with_cache, self.options.size_mib * MIB, facts)

    def measure(self, measures, only, make, size, facts):
        """Parts that need the same members."""
        wanted = [name for name in measures if name in only]
        if not wanted:
            return
        with contextlib.ExitStack() as stack:
            kinds = {}
            for kind in self.options.members if wanted != ["front-door"] else []:
                directory = self.options.ram_dir if kind == "ram" else self.options.disk_dir
                kinds[kind] = make(kind, os.path.join(directory, f"stripelog-bench-{os.getpid()}"),
                                   size, loops=kind == "ram")
                stack.callback(kinds[kind].remove)
            facts["members"] = {kind: members.describe() for kind, members in kinds.items()}
            for members in kinds.values():
                print(f"members {members.kind!r}: {members.describe()}"
                      + (f" ({members.note})" if members.note else ""), flush=True)
            self.print_row(None)
            for name in wanted:
                for members in [None] if name == "front-door" else kinds.values():
                    measures[name](members)


def meets(ratio, target):
    if target is None:
        return None
    return ratio >= target[1] if target[0] == ">=" else ratio <= target[1]


def decimal(value):
    return "" if value is None else f"{value:.2f}"


def quantity(value, key):
    if key in ("bytes", "bytes_per_s"):
        return f"{value / MIB:.0f} MiB" + ("/s" if key == "bytes_per_s" else "")
    if key == "count":
        return f"{value:.1f}"
    return f"{value / 1000:.1f} k/s" if key == "requests_per_s" else f"{value:.2f} us"


# --- results ---------------------------------------------------------------------------------------

PLOT = """
set terminal {terminal}
set output '{output}'
set title 'stripelog beside its peers: green meets the target, red falls short' offset -14
set logscale x 2
set xrange [*<0.5:4<*]
set yrange [{last}:-0.6]
set arrow 1 from 1,-0.6 to 1,{last} nohead lw 2 lc rgb '#444444'
set xlabel 'times the target (1 = just met)'
set grid x
set lmargin 48
unset key
plot '{data}' using (sqrt($1)):0:(($1 > 1 ? 1 : $1)):(($1 > 1 ? $1 : 1)):($0-0.35):($0+0.35):($1 >= 1 ? 0x2e8b57 : 0xc0392b):ytic(2) with boxxyerror fs solid lc rgb variable
"""


def plot(rows, out):
    """bench.svg and bench.png: one bar a row, its length being how often the target is met."""
    rows = [row for row in rows if row["target"]]
    if not shutil.which("gnuplot") or not rows:
        return "no plot: gnuplot is not here"
    data = os.path.join(out, "bench.dat")
    with open(data, "w") as file:
        for row in rows:
            times = row["ratio"] / row["target"][1]
            times = times if row["target"][0] == ">=" else 1 / max(times, 1e-3)
            members = "" if row["members"] == "-" else f" ({row['members']})"
            label = f"{row['what']}{members}".replace('"', "'")
            file.write(f'{times:.4f} "{label}"\n')
    for terminal, suffix in (("svg size 1000,700 noenhanced", "svg"),
                             ("png size 1000,700 noenhanced", "png")):
        script = PLOT.format(terminal=terminal, output=os.path.join(out, "bench." + suffix),
                             data=data, last=len(rows) - 0.4)
        done = subprocess.run(["gnuplot"], input=script, text=True, capture_output=True)
        if done.returncode != 0:
            return "no plot: " + done.stderr.strip()
    return os.path.join(out, "bench.svg") + " and .png"


def machine():
    def first_line(*argv):
        with contextlib.suppress(OSError):
            done = subprocess.run(argv, text=True, capture_output=True)
            return done.stdout.strip().split("\n")[0]
        return None
    model = None
    with open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
                break
    here = os.path.dirname(os.path.abspath(__file__))
    return {"cpus": os.cpu_count(), "cpu": model, "kernel": platform.release(),
            "nbdkit": first_line("nbdkit", "--version"),
            "commit": first_line("git", "-C", here, "describe", "--always", "--dirty")}


def options_parse():
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description="Measure stripelog beside its peers.")
    parser.add_argument("--quick", action="store_true", help="3 runs of 1 s, small members")
    parser.add_argument("--only", action="append", metavar="NAME",
                        choices=["front-door", "raw-file", "reads", "full-stripes", "small-writes",
                                 "memory", "journal", "recovery", "cache"], help="this part alone; may be repeated")
    parser.add_argument("--members", action="append", choices=["ram", "disk"],
                        help="this kind of members alone")
    parser.add_argument("--runs", type=int, help="of each side (5)")
    parser.add_argument("--seconds", type=int, help="of each run (3)")
    parser.add_argument("--size-mib", type=int, help="of each member (512)")
    parser.add_argument("--patience", type=float, default=20, metavar="S",
                        help="how long a run may wait, and be repeated, for a quiet machine (20)")
    parser.add_argument("--build", default=os.environ.get("BUILD", os.path.join(top, "build/bench")),
                        help="build directory, made with -Dbench=true ($BUILD)")
    parser.add_argument("--out", help="where results go (the build directory)")
    parser.add_argument("--ram-dir", default="/dev/shm")
    parser.add_argument("--disk-dir", help="where the members on disk go (the build directory)")
    options = parser.parse_args()
    options.runs = options.runs or (3 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 3)
    options.size_mib = options.size_mib or (192 if options.quick else 512)
    options.members = options.members or ["ram", "disk"]
    options.out = options.out or options.build
    options.disk_dir = options.disk_dir or options.build
    return options


def report(bench, facts):
    options = bench.options
    facts["load_after"] = os.getloadavg()[0]
    os.makedirs(options.out, exist_ok=True)
    results = os.path.join(options.out, "results.json")
    with open(results, "w") as file:
        json.dump({"machine": facts, "runs": options.runs, "seconds": options.seconds,
                   "rows": bench.rows, "skipped": bench.skipped}, file, indent=1)
    if any(row.get("disturbed") for row in bench.rows):
        print(f"~ disturbed: others took more than {QUIET:.0%} of a CPU during most runs")
    for what in bench.skipped:
        print(f"skipped   {what}")
    met = [row["meets"] for row in bench.rows if row["target"]]
    print(f"\n{sum(met)} of {len(met)} targets met; {len(bench.skipped)} parts skipped")
    print(f"{results}; {plot(bench.rows, options.out)}")


def main():
    options = options_parse()
    # Ends like an exception, so that servers stop and members go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    facts = machine()
    facts["load_before"] = os.getloadavg()[0]
    print(f"{facts['cpus']} CPUs, {facts['cpu']}, Linux {facts['kernel']}, {facts['nbdkit']}, "
          f"{facts['commit']}")
    print(f"{options.runs} runs of {options.seconds} s each side, in turns; "
          f"load before {facts['load_before']:.1f}")
    bench = Bench(options)
    try:
        with bench:
            bench.run(facts)
    finally:  # what was measured before an interruption is worth keeping
        report(bench, facts)


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"run.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
