#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""PostgreSQL on ext4 on a write-back array whose server is killed in the middle of pgbench, again and again.

The way down: pgbench and the writers of a ledger, PostgreSQL, ext4, a loop
device, nbdfuse, the server, image files. The journal is small, so that the log
wraps around and is reclaimed while the database writes.

Each writer inserts 1, 2, 3... each in a transaction of its own, and counts one
only when COMMIT has returned. After a kill

 - the array is taken up again: in one round by `recover`, in the next by the
   server itself, in write-back mode, with what was cached cached again;
 - it must read the same without one of its members, another one each time;
 - the kernel mounts the file system, after which e2fsck must find nothing;
 - PostgreSQL starts, with checksums on all its pages;
 - every transaction whose COMMIT returned is there, and at most the one more
   that each client was waiting for; pgbench's sums agree.

    test_postgres.py [KILLS [SEED]]
"""

import contextlib
import ctypes
import glob
import os
import pwd
import random
import signal
import subprocess
import sys
import threading
import time

from harness import MIB, Failed, Server, Skip, create, expect, images_make, main, nbd_read_all, stripelog
from mounted import LoopDevice, mount, need_mounts, run

KILLS = 2
SEED = 1
MEMBER_BYTES = 96 * MIB
JOURNAL_BYTES = 16 * MIB
USER = "postgres"
WRITERS = 2
CLIENTS = 4
SETTINGS = {"listen_addresses": "''", "shared_buffers": "8MB", "max_wal_size": "16MB", "min_wal_size": "4MB",
            "checkpoint_timeout": "30s", "checkpoint_completion_target": "0.2", "autovacuum_naptime": "5s",
            "wal_init_zero": "off", "restart_after_crash": "off", "logging_collector": "off"}


def need_postgres():
    """The directory of its programs."""
    there = glob.glob("/usr/lib/postgresql/*/bin/postgres")
    if not there:
        raise Skip("PostgreSQL is not installed")
    newest = os.path.dirname(max(there, key=lambda path: int(path.split("/")[4])))
    for program in ("initdb", "pgbench", "psql", "pg_isready"):
        if not os.access(os.path.join(newest, program), os.X_OK):
            raise Skip(f"{newest}/{program} is not installed")
    try:
        pwd.getpwnam(USER)
        ctypes.CDLL("libpq.so.5")
    except (KeyError, OSError) as missing:
        raise Skip(f"PostgreSQL is not all there: {missing}") from None
    return newest


# --- the database ---


class Database:
    """PostgreSQL's programs, run as its own user; the data lies on the array, sockets and messages beside it."""

    def __init__(self, programs, work, mountpoint):
        self.programs = programs
        self.data = os.path.join(mountpoint, "data")
        self.beside = os.path.join(work, "postgres")
        os.mkdir(self.beside, 0o700)
        owner = pwd.getpwnam(USER)
        self.owner = (owner.pw_uid, owner.pw_gid)
        os.chown(self.beside, *self.owner)
        self.messages = os.path.join(self.beside, "messages")
        self.process = None

    def popen(self, program, *arguments, **options):
        return subprocess.Popen([os.path.join(self.programs, program), *arguments], user=self.owner[0],
                                group=self.owner[1], extra_groups=[], cwd=self.beside, stdin=subprocess.DEVNULL,
                                env={"PATH": os.environ["PATH"], "HOME": self.beside, "LC_ALL": "C.UTF-8",
                                     "PGHOST": self.beside, "PGUSER": USER, "PGDATABASE": "postgres"}, **options)

    def run(self, program, *arguments, timeout=120):
        started = self.popen(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = started.communicate(timeout=timeout)
        expect(started.returncode == 0, f"{program} {arguments}: {started.returncode}\n{out}{err}{self.told()}")
        return out

    def told(self):
        try:
            with open(self.messages, encoding="utf-8", errors="replace") as text:
                return "PostgreSQL said:\n" + text.read()[-3000:]
        except FileNotFoundError:
            return ""

    def make(self):
        os.mkdir(self.data, 0o700)
        os.chown(self.data, *self.owner)
        self.run("initdb", "--pgdata", self.data, "--data-checksums", "--auth=trust", "--wal-segsize=1",
                 "--encoding=UTF8", "--no-instructions")
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf-8") as settings:
            settings.write(f"unix_socket_directories = '{self.beside}'\n")
            settings.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
            settings.flush()
            os.fsync(settings.fileno())
        self.start()
        self.run("pgbench", "--initialize", "--quiet", "--scale=1")
        self.ask("CREATE TABLE ledger (writer int, number bigint, text text, PRIMARY KEY (writer, number))")

    def start(self):
        with open(self.messages, "wb") as messages:
            self.process = self.popen("postgres", "-D", self.data, stdout=messages, stderr=messages)
        deadline = time.monotonic() + 60
        while self.popen("pg_isready", "--quiet").wait():
            expect(self.process.poll() is None, "PostgreSQL does not start\n" + self.told())
            expect(time.monotonic() < deadline, "PostgreSQL is not ready\n" + self.told())
            time.sleep(0.1)

    def end(self, sign, timeout=60):
        if not self.process:
            return None
        if self.process.poll() is None:
            self.process.send_signal(sign)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed("PostgreSQL does not end\n" + self.told()) from None
        finally:
            self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nobody of it goes on, whatever happened: the file system is unmounted next."""
        self.end(signal.SIGQUIT)

    def ask(self, question):
        return self.run("psql", "--no-psqlrc", "-At", "-c", question).strip()

    def ask_number(self, question):
        return int(self.ask(question))


class Writer(threading.Thread):
    """Inserts one number after the other through libpq, until the database is gone."""

    def __init__(self, database, number):
        super().__init__(daemon=True)
        self.number = number
        self.committed = self.first = database.ask_number(
            f"SELECT coalesce(max(number), 0) FROM ledger WHERE writer = {number}")
        self.pq = ctypes.CDLL("libpq.so.5")
        for name, result in (("PQconnectdb", ctypes.c_void_p), ("PQexec", ctypes.c_void_p),
                             ("PQresultStatus", ctypes.c_int), ("PQcmdStatus", ctypes.c_char_p)):
            getattr(self.pq, name).restype = result
        for name in ("PQclear", "PQresultStatus", "PQcmdStatus", "PQfinish", "PQstatus"):
            getattr(self.pq, name).argtypes = [ctypes.c_void_p]
        self.pq.PQexec.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self.connection = self.pq.PQconnectdb(
            f"host={database.beside} user={USER} dbname=postgres options='-c client_min_messages=error'".encode())
        expect(self.pq.PQstatus(self.connection) == 0, "no connection to PostgreSQL")

    def does(self, command, tag):
        """Whether it was done, as the answer says: a COMMIT of what has failed is answered ROLLBACK."""
        answer = self.pq.PQexec(self.connection, command.encode())
        done = self.pq.PQresultStatus(answer) == 1 and self.pq.PQcmdStatus(answer) == tag
        self.pq.PQclear(answer)
        return done

    def run(self):
        while True:
            following = self.committed + 1
            text = f"{self.number}:{following} " * 40
            if not (self.does("BEGIN", b"BEGIN")
                    and self.does(f"INSERT INTO ledger VALUES ({self.number}, {following}, '{text}')", b"INSERT 0 1")
                    and self.does("COMMIT", b"COMMIT")):
                break
            self.committed = following
        self.pq.PQfinish(self.connection)


class Ledger:
    """What must be in the database."""

    def __init__(self, database):
        self.database = database
        self.history = 0  # rows of pgbench's that are known to be there
        self.numbers = [0] * WRITERS
        self.acknowledged = 0

    def load(self, kill_after, kill):
        """pgbench and the writers at work until `kill` ends it all."""
        database = self.database
        writers = [Writer(database, number) for number in range(WRITERS)]
        bench = database.popen("pgbench", "--no-vacuum", f"--client={CLIENTS}", "--jobs=2", "--time=300", "--log",
                               "--log-prefix=transactions", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for writer in writers:
            writer.start()
        time.sleep(kill_after)
        expect(bench.poll() is None, "pgbench ended by itself" + database.told())
        expect(all(writer.is_alive() for writer in writers), "a writer ended by itself\n" + database.told())
        kill()
        try:
            bench.communicate(timeout=60)
            for writer in writers:
                writer.join(60)
        except subprocess.TimeoutExpired:
            bench.kill()
            raise Failed("pgbench does not end") from None
        expect(not any(writer.is_alive() for writer in writers), "a writer does not end")
        # One line a transaction that was answered.
        answered = 0
        for path in glob.glob(os.path.join(database.beside, "transactions.*")):
            with open(path, "rb") as log:
                answered += log.read().count(b"\n")
            os.unlink(path)
        self.history += answered
        self.numbers = [writer.committed for writer in writers]
        total = answered + sum(writer.committed - writer.first for writer in writers)
        self.acknowledged += total
        expect(answered > 0 and all(writer.committed > writer.first for writer in writers), "nothing was committed")
        return total

    def check(self):
        ask = self.database.ask
        for writer, committed in enumerate(self.numbers):
            count, last, wrong = (int(word) for word in ask(
                "SELECT count(*), max(number), count(*) FILTER (WHERE text <> repeat(writer || ':' || number || ' ',"
                f" 40)) FROM ledger WHERE writer = {writer}").split("|"))
            expect(wrong == 0, f"writer {writer}: {wrong} rows hold another text")
            expect(count == last, f"writer {writer}: {last - count} rows of {last} are missing")
            expect(committed <= last <= committed + 1,
                   f"writer {writer}: COMMIT has returned {committed} times, and the last row is {last}")
        rows = self.database.ask_number("SELECT count(*) FROM pgbench_history")
        expect(self.history <= rows <= self.history + CLIENTS,
               f"pgbench was answered {self.history} transactions, and there are {rows}")
        self.history = rows
        sums = ask("SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),"
                   " (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)")
        expect(len(set(sums.split("|"))) == 1, f"pgbench's sums do not agree: {sums}")
        # By the index as by the table.
        expect(ask("SET enable_seqscan = off; SELECT count(*) FROM pgbench_accounts WHERE aid > 0").endswith("100000"),
               "accounts are missing")


# --- the rounds ---


class Array:
    def __init__(self, work):
        self.members = images_make(work, 4, MEMBER_BYTES)
        self.journal = images_make(work, 1, JOURNAL_BYTES, "journal")[0]
        create(self.members, f"--write-journal={self.journal}", "--assume-clean", level=5, chunk=64)

    def devices(self, without=None):
        return [path for role, path in enumerate(self.members) if role != without] + [self.journal]

    def serve(self):
        return Server(self.devices(), "--journal-mode=write-back", timeout=60)

    def content(self, without=None):
        with Server(self.devices(without), "--readonly", timeout=60) as server:
            return nbd_read_all(server.connect())


@contextlib.contextmanager
def mounted(server, work, mountpoint):
    with LoopDevice(server, work) as device:
        mount(device, mountpoint)
        try:
            yield device
        finally:
            # Whoever has just been killed may not have ended yet.
            deadline = time.monotonic() + 20
            while subprocess.run(["umount", mountpoint], capture_output=True, check=False).returncode:
                expect(time.monotonic() < deadline, "umount: the file system is busy")
                time.sleep(0.2)


def fsck(server, work, mountpoint):
    """The kernel replays the file system's journal; after that not a thing may be wrong."""
    with mounted(server, work, mountpoint):
        pass
    with LoopDevice(server, work) as device:
        run("e2fsck", "-fn", device)


def committed_transactions_survive_sigkill_of_the_server(work):
    need_mounts()
    programs = need_postgres()
    rng = random.Random(SEED)
    os.chmod(work, 0o755)  # for PostgreSQL's user
    mountpoint = os.path.join(work, "mnt")
    os.mkdir(mountpoint)
    array = Array(work)
    database = Database(programs, work, mountpoint)
    ledger = Ledger(database)
    server = array.serve()
    try:
        with LoopDevice(server, work) as device:
            run("mkfs.ext4", "-q", device)
        with mounted(server, work, mountpoint), database:
            database.make()
            kill_in_mid_run(database, ledger, server, rng)
        for kill in range(1, KILLS + 1):
            server.discard()
            without = (SEED + kill) % len(array.members)
            expect(array.content() == array.content(without), f"another content without member {without}")
            if kill % 2:
                ended = stripelog("recover", *array.devices())
                expect(ended.returncode == 0, f"recover: {ended.returncode}\n{ended.stderr}")
                print("# " + "; ".join(ended.stdout.splitlines()))
            server = array.serve()
            fsck(server, work, mountpoint)
            with mounted(server, work, mountpoint), database:
                database.start()
                ledger.check()
                if kill < KILLS:
                    kill_in_mid_run(database, ledger, server, rng)
                else:
                    expect(database.end(signal.SIGINT) == 0, "PostgreSQL did not stop in order\n" + database.told())
        with LoopDevice(server, work) as device:
            run("e2fsck", "-fn", device)
        expect(server.stop() == 0, server.errors())
    finally:
        server.kill()
        server.discard()
    print(f"# {KILLS} kills, {ledger.acknowledged} transactions acknowledged, all there")


def kill_in_mid_run(database, ledger, server, rng):
    seconds = rng.uniform(2.5, 5.0)
    total = ledger.load(seconds, server.kill)
    print(f"# killed after {seconds:.1f} s and {total} transactions", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        KILLS = int(sys.argv.pop(1))
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        SEED = int(sys.argv.pop(1))
    main(committed_transactions_survive_sigkill_of_the_server)
