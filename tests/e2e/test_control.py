#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket: who may ask, what a running array says of itself, and what it does when told to."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time

from harness import (MIB, RESYNC_DONE, STRIPELOG, Failed, Server, create, expect, expect_content, images_make, main,
                     resync_offset, rng_for, serve_refused, stripelog, superblock_edit, superblock_field, unchanged,
                     writes_random)

if os.geteuid() != 0:
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="stripelog-run-"))
DEFAULT_DIRECTORY = ("/run" if os.geteuid() == 0 else os.environ["XDG_RUNTIME_DIR"]) + "/stripelog"


# --- a client of its own ---


class Client:
    """Speaks the protocol itself, well or badly."""

    def __init__(self, path, timeout=20):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.rest = b""

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        """The next reply; None at the end."""
        while b"\n" not in self.rest:
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return None
            self.rest += piece
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def ask(self, command, **more):
        self.send(json.dumps({"command": command, **more}).encode() + b"\n")
        return self.line()

    def status(self):
        reply = self.ask("status")
        expect(reply and reply["ok"], f"status: {reply}")
        return reply["status"]

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def array_new(work, *options, members=4, size=16 * MIB, journal=None, prefix="m", **more):
    """The devices; the last is the journal, where there is one."""
    paths = images_make(work, members, size, prefix=prefix)
    options = ["--assume-clean", *options]
    if journal:
        paths += images_make(work, 1, journal, prefix=prefix + "journal")
        options.append(f"--write-journal={paths[-1]}")
    create(paths[:members], *options, **more)
    return paths


def examined(path):
    return json.loads(stripelog("examine", "--json", path).stdout)["arrays"][0]


def status_of(server, *options, exit_status=0):
    asked = stripelog("status", "--json", *options, server.control)
    expect(asked.returncode == exit_status, f"status: {asked.returncode}, not {exit_status}\n{asked.stderr}")
    return json.loads(asked.stdout)


def wait_for(condition, what, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        expect(time.monotonic() < deadline, f"{what}: not within {timeout} s")
        time.sleep(0.01)


# --- the socket ---


def it_has_mode_0600_and_goes_with_the_server(work):
    with Server(array_new(work)) as server:
        mode = os.stat(server.control).st_mode
        expect(stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600, f"mode {mode:o}")
        expect(server.stop() == 0 and not os.path.exists(server.control), "the socket is left")


def by_default_it_stands_beside_the_nbd_socket(work):
    paths = array_new(work)
    place = f"{DEFAULT_DIRECTORY}/{examined(paths[0])['uuid']}.ctl"
    for where in (f"--socket={work}/s", "--listen=0"):
        asked = stripelog("serve", where, f"--run='{STRIPELOG}' status {place} && test ! -e {work}/s.ctl", *paths)
        expect(asked.returncode == 0, asked.stderr)
        expect(not os.path.exists(place), "the socket is left")


def without_a_default_place_the_array_is_served_all_the_same(work):
    paths = array_new(work)
    place = f"{DEFAULT_DIRECTORY}/{examined(paths[0])['uuid']}.ctl"
    first = subprocess.Popen([STRIPELOG, "serve", f"--socket={work}/s", "--readonly", *paths], text=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        expect(first.stdout.readline().startswith("stripelog: ready"), "not ready")
        second = stripelog("serve", f"--socket={work}/s2", "--readonly", "--run=true", *paths)
        expect(second.returncode == 0, second.stderr)
        expect(len(second.stderr.splitlines()) == 1 and place in second.stderr and "--control" in second.stderr,
               second.stderr)
        with Client(place) as client:
            expect(client.status()["pid"] == first.pid, "the first has lost its socket")
    finally:
        first.terminate()
        first.communicate(timeout=20)
    expect(first.returncode == 0 and not os.path.exists(place), "the first's end")


def a_stale_socket_is_replaced_and_a_live_one_refused(work):
    paths, others = array_new(work), array_new(work, prefix="o")
    place = os.path.join(work, "ctl")
    with Server(paths, f"--control={place}") as server:
        server.kill()
        expect(os.path.exists(place), "this was to be a stale one")
        server.discard()
        with Server(others, f"--control={place}") as other:
            with unchanged(paths):
                told = serve_refused(paths, f"--control={place}")
            expect("another server" in told.splitlines()[-1], told)
            expect(stripelog("status", place).returncode == 0, "the other has lost its socket")
            other.stop()
        server.process = other.process
        server.errors_path = os.devnull


def a_place_that_cannot_be_had_is_refused(work):
    paths = array_new(work)
    ordinary = os.path.join(work, "file")
    with open(ordinary, "w", encoding="ascii") as file:
        file.write("precious")
    with unchanged(paths + [ordinary]):
        serve_refused(paths, f"--control={ordinary}")
        serve_refused(paths, f"--control={work}/none/ctl")
        serve_refused(paths, "--control=")
        serve_refused(paths, f"--control={work}/{'x' * 200}")
        both = stripelog("serve", f"--socket={work}/s", f"--control={work}/s", *paths)
        expect(both.returncode == 2, both.stderr)


# --- bad clients ---


def garbage_costs_a_client_its_connection_only(work):
    with Server(array_new(work)) as server, Client(server.control) as good:
        for garbage in (b"\n\n\0\n", b"GET / HTTP/1.1\r\n\r\n", b"[" * 4000 + b"\n", b"{\"a\":" * 800 + b"\n", b"x" * 100000,
                        b"\xff\xfe\n", b"\x16\x03\x01\n", b"null\n", b"{\"command\":\"status\"} x\n", os.urandom(5000) + b"\n"):
            with Client(server.control) as bad:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    bad.send(garbage)
                reply = bad.line()
                expect(reply is not None and reply["ok"] is False and reply["error"], f"{garbage[:20]}: {reply}")
                expect(bad.line() is None, f"{garbage[:20]}: the connection goes on")
        expect(good.status()["state"] == "clean", "another client suffers")


def requests_that_make_no_sense_get_an_error_and_the_connection_lives(work):
    with Server(array_new(work)) as server, Client(server.control) as client:
        for request in ({}, {"command": "format"}, {"command": None}, {"command": "status", "mode": "write-back"},
                        {"command": "stop", "now": True}, {"command": "journal-mode", "mode": "sideways"}):
            client.send(json.dumps(request).encode() + b"\n")
            reply = client.line()
            expect(reply["ok"] is False and reply["code"] == "EINVAL" and reply["error"], f"{request}: {reply}")
        expect(client.status()["state"] == "clean", "the connection")


def lines_may_come_in_pieces_or_many_at_once(work):
    with Server(array_new(work, journal=8 * MIB)) as server, Client(server.control) as client:
        for byte in b'{"command":"status"}\r\n':
            client.send(bytes([byte]))
            time.sleep(0.001)
        expect(client.line()["ok"], "a byte at a time")
        client.send(b'{"command":"status"}\n{"command":"nothing"}\n\n{"command":"journal-mode"}\n' * 40 + b'{"command":"st')
        for _ in range(40):
            expect(client.line()["status"]["state"] == "clean", "order")
            expect(client.line()["code"] == "EINVAL", "order")
            expect("mode" in client.line(), "order")
        client.send(b'atus"}\n')
        expect(client.line()["ok"], "the rest of the line")
        client.send(b'{"command":"stop"}')  # never a line
        client.socket.shutdown(socket.SHUT_WR)
        expect(client.line() is None, "half a line was obeyed")
        expect(stripelog("status", server.control).returncode == 0, "half a line stopped the server")


def clients_that_do_not_read_or_write_leave_others_alone(work):
    with Server(array_new(work)) as server:
        peak = server.memory_peak()
        crowd = []
        for i in range(100):  # more than it serves at a time; the ones that came first have to go
            crowd.append(Client(server.control))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError, TimeoutError):
                if i % 3 == 1:
                    crowd[-1].send(b'{"command":')
                if i % 3 == 2:  # asks on and on, and never reads
                    crowd[-1].socket.setblocking(False)
                    for _ in range(1000):
                        crowd[-1].send(b'{"command":"status"}\n' * 100)
        with Client(server.control) as late:
            expect(late.status()["state"] == "clean", "one who comes late")
        if not sanitized(server):  # keeps what was freed for a while
            expect(server.memory_peak() < peak + 8 * MIB, f"memory: {peak} to {server.memory_peak()}")
        handle = server.connect()
        handle.pwrite(b"x" * 4096, 0)
        handle.shutdown()
        begin = time.monotonic()
        stopped = stripelog("stop", server.control)
        expect(stopped.returncode == 0 and server.process.wait(20) == 0, stopped.stderr)
        expect(time.monotonic() - begin < 5, "such clients keep the server from stopping")
        for client in crowd:
            client.close()


def sanitized(server):
    with open(f"/proc/{server.process.pid}/maps", encoding="ascii") as maps:
        return "libasan" in maps.read()


def status_while_the_array_works_is_answered_at_once(work):
    with Server(array_new(work, size=64 * MIB)) as server, Client(server.control) as client:
        handle = server.connect()
        model = bytearray(handle.get_size())
        done = threading.Event()

        def load():
            writes_random(handle, model, rng_for("status"), 400)
            done.set()

        thread = threading.Thread(target=load)
        thread.start()
        asked = 0
        while not done.is_set():
            expect(client.status()["degraded"] == 0, "degraded")
            asked += 1
        thread.join()
        expect(asked > 20, f"{asked} answers only")
        expect_content(server.read_all(), model, "after that")


# --- what it says ---


def status_is_true_of_what_was_created(work):
    for level, members, layout in ((4, 3, None), (5, 5, "right-asymmetric"), (6, 6, "left-symmetric")):
        place = os.path.join(work, str(level))
        os.mkdir(place)
        paths = array_new(place, f"--name=array of {level}", members=members, level=level, chunk=16, layout=layout,
                          journal=8 * MIB if level != 4 else None)
        array = examined(paths[0])
        with Server(paths) as server:
            status = status_of(server)
            handle = server.connect()
            expect(status["size_bytes"] == handle.get_size(), "size")
            handle.shutdown()
            expect(status["name"] == f"array of {level}" and status["uuid"] == array["uuid"], "name and uuid")
            expect((status["level"], status["raid_devices"]) == (level, members), "level and members")
            expect(status["layout"] == layout and status["chunk_bytes"] == 16384, "layout and chunk")
            expect([(m["member"], m["device"], m["state"]) for m in status["members"]]
                   == [(i, path, "in-sync") for i, path in enumerate(paths[:members])], f"{status['members']}")
            expect(status["state"] == "clean" and not status["readonly"] and status["degraded"] == 0, "state")
            expect(status["uris"] == [server.uri] and status["pid"] == server.process.pid, "where")
            expect(status["left_out"] == [], "left out")
            if level == 4:
                expect(status["journal"] is None, "a journal")
            else:
                journal = status["journal"]
                expect(journal["device"] == paths[-1] and journal["state"] == "in-use", f"{journal}")
                expect(journal["mode"] == journal["mode_wanted"] == "write-through", f"{journal}")
                expect(journal["mode_reason"] is None and not journal["draining"], f"{journal}")
            shown = stripelog("status", server.control).stdout
            for word in (status["name"], status["uuid"], f"RAID-{level}", *paths, server.uri):
                expect(word in shown, f"{word} is not in\n{shown}")


def status_follows_what_is_done(work):
    paths = array_new(work, journal=8 * MIB)
    with Server(paths) as server, Client(server.control) as client:
        handle = server.connect()
        before = client.status()["journal"]
        handle.pwrite(b"x" * 40960, 0)
        after = client.status()["journal"]
        expect(after["entries"] > before["entries"] and after["logged_bytes"] >= before["logged_bytes"] + 40960, f"{after}")
        expect(after["used_bytes"] > before["used_bytes"] and after["ring_bytes"] == before["ring_bytes"], f"{after}")
        expect(after["written_bytes"] > after["logged_bytes"], f"{after}")
        handle.shutdown()
    plain = array_new(work, prefix="p")
    with Server(plain) as server, Client(server.control) as client:
        handle = server.connect()
        updates = client.status()["superblock_updates"]
        handle.pwrite(b"x" * 4096, 0)
        status = client.status()
        expect(status["state"] == "active" and status["superblock_updates"] == updates + 1, f"{status}")
        wait_for(lambda: client.status()["state"] == "clean", "clean when idle")
        handle.shutdown()
    with Server(plain, "--readonly") as server:
        status = status_of(server)
        expect(status["state"] == "readonly" and status["readonly"], f"{status}")


def status_follows_a_resync(work):
    paths = images_make(work, 4, 64 * MIB, garbage=rng_for("control resync"))
    create(paths)
    with Server(paths) as server, Client(server.control) as client:
        seen = [client.status()["resync"]]
        while seen[-1]["running"]:
            seen.append(client.status()["resync"])
        expect(seen[-1]["done_bytes"] == seen[-1]["total_bytes"], f"{seen[-1]}")
        done = [resync["done_bytes"] for resync in seen]
        expect(done == sorted(done) and done[0] < done[-1], "not forward")


def missing_and_stale_members_are_told(work):
    paths = array_new(work, members=6, level=6)
    with Server(paths[:5]) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 4096, 0)
        handle.shutdown()
        status = status_of(server, "--test", exit_status=1)
        expect(status["degraded"] == 1 and status["members"][5] == {"member": 5, "device": None, "state": "missing"},
               f"{status['members']}")
    with Server(paths) as server:
        status = status_of(server, "--test", exit_status=1)
        expect(status["left_out"] == [{"device": paths[5], "state": "stale"}], f"{status['left_out']}")


FRAGILE = 64 * MIB


def fragile_new(work, fragile, **more):
    """The data of these devices lies beyond 64 MiB, where a process can be forbidden to write."""
    paths = array_new(work, **more)
    for path in (paths[i] for i in fragile):
        sectors = superblock_field(path, 136, "<Q")
        os.truncate(path, FRAGILE + sectors * 512)
        # An array of zeros is the same wherever it lies; a log is not.
        with open(path, "r+b") as image:
            image.seek(superblock_field(path, 128, "<Q") * 512)
            log = image.read(4096)
            image.seek(FRAGILE)
            image.write(log)
        superblock_edit(path, {128: struct.pack("<Q", FRAGILE // 512)})
    return paths


class FragileServer(Server):
    """Its fragile devices fail when they are written to after break_fragile."""

    def __init__(self, *arguments):
        ours = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.popen = subprocess.Popen
        subprocess.Popen = lambda *a, **k: self.popen(*a, restore_signals=False, **k)
        try:
            super().__init__(*arguments)
        finally:
            subprocess.Popen = self.popen
            signal.signal(signal.SIGXFSZ, ours)

    def break_fragile(self):
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (FRAGILE, FRAGILE))


def a_member_that_fails_is_told(work):
    paths = fragile_new(work, [2])
    with FragileServer(paths) as server, Client(server.control) as client:
        handle = server.connect()
        expect(stripelog("status", "--test", server.control).returncode == 0, "fine")
        server.break_fragile()
        handle.pwrite(b"x" * MIB, 0)
        handle.shutdown()
        status = client.status()
        expect(status["degraded"] == 1 and status["members_failed"] == 1, f"{status}")
        expect(status["members"][2] == {"member": 2, "device": paths[2], "state": "failed"}, f"{status['members']}")
        tested = stripelog("status", "--test", server.control)
        expect(tested.returncode == 1 and "degraded" in tested.stdout, tested.stdout)


def a_failed_array_is_told_and_its_stop_is_an_error(work):
    paths = fragile_new(work, [1, 2])
    server = FragileServer(paths)
    try:
        handle = server.connect()
        server.break_fragile()
        with contextlib.suppress(Exception):  # the write cannot succeed
            handle.pwrite(b"x" * MIB, 0)
        status = status_of(server, "--test", exit_status=2)
        expect(status["state"] == "failed" and status["degraded"] == 2, f"{status}")
        stopped = stripelog("stop", server.control)
        expect(stopped.returncode == 1 and stopped.stderr.strip(), f"{stopped.returncode} {stopped.stderr}")
        expect(server.process.wait(20) == 1, "the server's status")
    finally:
        server.kill()
        server.discard()


def what_cannot_be_asked_is_4_with_test(work):
    paths = array_new(work)
    nobody = os.path.join(work, "nobody")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(nobody)
    dead.close()
    for arguments in ((f"{work}/none",), (nobody,), ("no such array",), (paths[0],), (), (nobody, nobody), ("--foo", nobody)):
        asked = stripelog("status", "--test", *arguments)
        expect(asked.returncode == 4 and asked.stderr.strip() and not asked.stdout, f"{arguments}: {asked}")
        asked = stripelog("status", *arguments)
        expect(asked.returncode == (2 if len(arguments) != 1 else 1), f"{arguments}: {asked}")
        for command in ("stop", "journal-mode"):
            asked = stripelog(command, *arguments)
            expect(asked.returncode in (1, 2) and asked.stderr.strip() and not asked.stdout, f"{arguments}: {asked}")
    with Server(paths) as server:
        asked = stripelog("status", "--test", server.socket)  # speaks NBD
        expect(asked.returncode == 4 and asked.stderr.strip(), f"{asked}")
        with open("/dev/full", "wb") as full:
            asked = subprocess.run([STRIPELOG, "status", "--test", server.control], stdout=full, stderr=subprocess.PIPE,
                                   timeout=20, check=False)
        expect(asked.returncode == 4 and asked.stderr, f"{asked}")


def arrays_are_found_by_uuid_and_name(work):
    os.makedirs(DEFAULT_DIRECTORY, exist_ok=True)
    unique = os.urandom(4).hex()
    uuids = [unique + "0" * 24, unique + "1" * 24]
    names = [f"x{unique}", f"x{unique}-2"]
    with contextlib.ExitStack() as stack:
        for i, (uuid, name) in enumerate(zip(uuids, names)):
            paths = array_new(work, f"--uuid={uuid}", f"--name={name}", prefix=f"a{i}")
            place = f"{DEFAULT_DIRECTORY}/{uuid[:8]}:{uuid[8:16]}:{uuid[16:24]}:{uuid[24:]}.ctl"
            stack.enter_context(Server(paths, f"--control={place}"))

        def found(array):
            asked = stripelog("status", "--json", array)
            return json.loads(asked.stdout)["name"] if asked.returncode == 0 else asked.stderr

        for i in range(2):
            uuid = uuids[i]
            for array in (uuid, uuid.upper(), f"{uuid[:8]}:{uuid[8:16]}:{uuid[16:24]}:{uuid[24:]}", uuid[:9],
                          f"{uuid[:8]}-{uuid[8:12]}", names[i]):
                expect(found(array) == names[i], f"{array}: {found(array)}")
        expect(found(f"x{unique}-") == names[1], "the beginning of a name")
        for array in (unique, unique[:7], f"x{unique[:7]}"):
            told = found(array)
            expect(all(name in told for name in names), f"{array} is ambiguous: {told}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                expect(stripelog("stop", array).returncode == 1, "an ambiguous stop")
        expect("no server" in found(f"{unique}2"), found(f"{unique}2"))
        expect("no server" in found(""), "an empty name")


# --- what it does ---


def stop_ends_it_clean_and_its_devices_are_free(work):
    paths = array_new(work)
    model = None
    for by_name in (False, True):
        with Server(paths, f"--pidfile={work}/pid") as server:
            handle = server.connect()
            model = model or bytearray(handle.get_size())
            writes_random(handle, model, rng_for("stop", by_name), 20)
            stopped = stripelog("stop", server.control)
            expect(stopped.returncode == 0 and not stopped.stderr, stopped.stderr)
            for path in paths:
                with open(path, "r+b") as image:
                    fcntl.lockf(image, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where it is still claimed
            for left in (server.control, server.socket, f"{work}/pid"):
                expect(not os.path.exists(left), f"{left} is left")
            expect(server.process.wait(5) == 0, "exit status")
        expect(all(resync_offset(path) == RESYNC_DONE for path in paths), "not clean")
    with Server(paths, "--readonly") as server:
        expect_content(server.read_all(), model, "after the stop")


def many_may_ask_for_the_stop(work):
    with Server(array_new(work)) as server:
        clients = [Client(server.control) for _ in range(10)]
        for client in clients:
            with contextlib.suppress(BrokenPipeError):  # it may be done before the last has asked
                client.send(b'{"command":"stop"}\n')
        replies = [client.line() for client in clients]
        expect(replies[0] == {"ok": True}, f"{replies}")
        expect(all(reply is None or reply["ok"] or reply["code"] == "ESHUTDOWN" for reply in replies), f"{replies}")
        expect(all(client.line() is None for client in clients), "something follows")
        expect(server.process.wait(5) == 0, "exit status")


def who_asked_for_the_stop_need_not_wait(work):
    with Server(array_new(work)) as server:
        client = Client(server.control)
        client.send(b'{"command":"stop"}\n')
        client.close()
        expect(server.process.wait(20) == 0, "exit status")


def stop_ends_the_command_of_run_too(work):
    paths = array_new(work)
    began = time.monotonic()
    ended = stripelog("serve", f"--socket={work}/s", f"--control={work}/ctl",
                      f"--run='{STRIPELOG}' stop {work}/ctl; sleep 1000", *paths)
    expect(ended.returncode in (143, 128 + 15), f"{ended.returncode} {ended.stderr}")
    expect(time.monotonic() - began < 20, "it took long")


def a_mode_without_a_journal_is_refused(work):
    with Server(array_new(work)) as server:
        for mode in ("write-back", "write-through"):
            refused = stripelog("journal-mode", server.control, mode)
            expect(refused.returncode == 1 and "journal" in refused.stderr.splitlines()[-1], f"{mode}: {refused}")
        expect(stripelog("journal-mode", server.control, "sideways").returncode == 2, "sideways")


def the_mode_of_a_journal_is_told(work):
    with Server(array_new(work, journal=8 * MIB)) as server:
        asked = stripelog("journal-mode", server.control)
        expect((asked.returncode, asked.stdout, asked.stderr) == (0, "write-through\n", ""), f"{asked}")
        asked = json.loads(stripelog("journal-mode", "--json", server.control).stdout)
        expect(asked == {"mode": "write-through", "mode_wanted": "write-through", "mode_reason": None,
                         "draining": False}, f"{asked}")


# --- write-back ---


def journal_of(server):
    return status_of(server)["journal"]


def switch(server, mode):
    switched = stripelog("journal-mode", server.control, mode)
    expect(switched.returncode == 0 and not switched.stderr, f"{mode}: {switched}")


def a_quiet_array_is_written_out(work):
    with Server(array_new(work, size=32 * MIB, journal=64 * MIB), "--journal-mode=write-back",
                "--write-out=idle=1,batch=4") as server:
        handle = server.connect()
        for block in range(0, 1000, 10):
            handle.pwrite(b"q" * 4096, block * 4096)
        expect(journal_of(server)["cache"]["cached_bytes"] == 100 * 4096, "written out too early, or never cached")
        wait_for(lambda: journal_of(server)["cache"]["cached_bytes"] == 0, "a quiet array is not written out")
        expect(journal_of(server)["mode"] == "write-back", "write-back has ended")
        handle.shutdown()


def the_cache_fills_and_drains(work):
    paths = array_new(work, size=32 * MIB, journal=64 * MIB)
    with Server(paths, "--journal-mode=write-back") as server:
        before = journal_of(server)
        expect(before["mode"] == before["mode_wanted"] == "write-back" and before["mode_reason"] is None, f"{before}")
        expect(before["cache"]["cached_bytes"] == 0 and before["cache"]["cached_max_bytes"] > 0, f"{before['cache']}")
        handle = server.connect()
        model = bytearray(handle.get_size())
        rng = rng_for("fills")
        for block in rng.sample(range(len(model) // 4096), 500):
            model[block * 4096:block * 4096 + 4096] = rng.randbytes(4096)
            handle.pwrite(model[block * 4096:block * 4096 + 4096], block * 4096)
        cache = journal_of(server)["cache"]
        expect(cache["cached_bytes"] == cache["in_memory_bytes"] == 500 * 4096, f"{cache}")
        expect(cache["blocks_cached"] == 500 and cache["blocks_overwritten"] == 0, f"{cache}")
        handle.pwrite(model[block * 4096:block * 4096 + 4096], block * 4096)
        expect(bytes(handle.pread(4096, block * 4096)) == model[block * 4096:block * 4096 + 4096], "a cached block")
        cache = journal_of(server)["cache"]
        expect(cache["cached_bytes"] == 500 * 4096 and cache["blocks_overwritten"] == 1, f"{cache}")
        expect(cache["blocks_read_from_memory"] >= 1, f"{cache}")
        begin = time.monotonic()
        switch(server, "write-through")
        expect(time.monotonic() - begin < 10, f"{time.monotonic() - begin:.1f} s for 2 MB")
        after = journal_of(server)
        expect(after["mode"] == after["mode_wanted"] == "write-through" and not after["draining"], f"{after}")
        expect(after["cache"]["cached_bytes"] == 0 and after["cache"]["blocks_written_out"] >= 500, f"{after['cache']}")
        handle.pwrite(bytes(4096), 0)
        model[:4096] = bytes(4096)
        expect(journal_of(server)["cache"]["cached_bytes"] == 0, "write-through caches")
        switch(server, "write-back")
        handle.pwrite(b"y" * 4096, 0)
        model[:4096] = b"y" * 4096
        expect(journal_of(server)["cache"]["cached_bytes"] == 4096, "write-back does not cache")
        handle.shutdown()
    for lost in range(4):  # the stop has written everything out
        rest = [path for i, path in enumerate(paths) if i != lost]
        with Server(rest, "--readonly") as server:
            expect_content(server.read_all(), model, f"without {lost}")


class Writer(threading.Thread):
    """Writes, and reads back, until told to stop; knows what the array has to hold."""

    def __init__(self, server, seed, first, end, model):
        super().__init__()
        self.handle, self.rng, self.first, self.end, self.model = server.connect(), rng_for(seed), first, end, model
        self.stopping, self.failure, self.requests, self.longest = threading.Event(), None, 0, 0

    def run(self):
        try:
            while not self.stopping.is_set():
                self.once()
        except Exception as failure:  # pylint: disable=broad-except
            self.failure = failure

    def once(self):
        begin = time.monotonic()
        length = 512 * self.rng.choice([1, 3, 8, 8, 8, 8, 16, 64, 300])
        offset = self.first + 512 * self.rng.randrange((self.end - self.first - length) // 512)
        if self.rng.random() < 0.2:
            got = bytes(self.handle.pread(length, offset))
            if got != self.model[offset:offset + length]:
                raise Failed(f"{length} bytes at {offset} are not what was written")
        else:
            data = self.rng.randbytes(length)
            self.handle.pwrite(data, offset)
            self.model[offset:offset + length] = data
        self.requests += 1
        self.longest = max(self.longest, time.monotonic() - begin)

    def stop(self):
        self.stopping.set()
        self.join()
        if self.failure:
            raise self.failure
        self.handle.shutdown()


def modes_change_under_load_and_nothing_is_lost(work):
    for level, members in ((5, 4), (6, 5)):
        place = os.path.join(work, str(level))
        os.mkdir(place)
        paths = array_new(place, level=level, members=members, size=24 * MIB, journal=32 * MIB)
        with Server(paths) as server:
            size = status_of(server)["size_bytes"]
            model = bytearray(size)
            writers = [Writer(server, f"{level} {i}", size // 3 * i, size // 3 * (i + 1), model) for i in range(3)]
            for writer in writers:
                writer.start()
            for turn in range(8):
                time.sleep(0.1)
                mode = ("write-back", "write-through")[turn % 2]
                switch(server, mode)
                expect(journal_of(server)["mode"] == mode, f"not in {mode}")
            for writer in writers:
                writer.stop()
                expect(writer.requests > 20, f"{writer.requests} requests only")
            expect_content(server.read_all(), model, "after the switches")
        for lost in range(members):
            with Server([path for i, path in enumerate(paths) if i != lost], "--readonly") as server:
                expect_content(server.read_all(), model, f"level {level} without {lost}")


def a_stop_while_it_drains_loses_nothing(work):
    paths = array_new(work, size=32 * MIB, journal=64 * MIB)
    with Server(paths, "--journal-mode=write-back", "--kernel-recoverable=no") as server:
        handle = server.connect()
        model = bytearray(handle.get_size())
        rng = rng_for("drain")
        cookies = []
        import nbd  # pylint: disable=import-outside-toplevel
        for block in rng.sample(range(len(model) // 4096), 4000):
            data = rng.randbytes(4096)
            model[block * 4096:block * 4096 + 4096] = data
            cookies.append(handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), block * 4096))
        while any(not handle.aio_command_completed(cookie) for cookie in cookies[-1:]):
            handle.poll(-1)
        handle.flush()
        cached = journal_of(server)["cache"]["cached_bytes"]
        expect(cached > 4 * MIB, f"only {cached} bytes are cached")
        with Client(server.control) as one, Client(server.control) as two, Client(server.control) as three:
            one.send(b'{"command":"journal-mode","mode":"write-through"}\n')
            three.send(b'{"command":"journal-mode","mode":"write-back"}\n')
            wait_for(lambda: two.status()["journal"]["mode"] == "write-through", "the switch")
            journal = two.status()["journal"]
            expect(journal["draining"] == (journal["cache"]["cached_bytes"] > 0), f"{journal}")
            reply = two.ask("stop")
            expect(reply == {"ok": True}, f"{reply}")
            expect(one.line()["ok"] is True, "the drain")
            reply = three.line()
            expect(reply["ok"] or reply["code"] in ("ESHUTDOWN", "EIO"), f"{reply}")
        expect(server.process.wait(20) == 0, "exit status")
        expect(status_is_drained(paths[-1]), "the journal is not clean")
    with Server(paths[1:4] + paths[4:], "--readonly") as server:
        expect_content(server.read_all(), model, "after that")


def status_is_drained(journal):
    return json.loads(stripelog("journal", "--json", journal).stdout)["recovery"]["clean"]


def a_degraded_array_is_served_in_write_through(work):
    paths = array_new(work, members=5, level=6, journal=16 * MIB)
    with Server(paths[1:], "--journal-mode=write-back") as server:
        expect("write-through" in server.errors(), server.errors())
        journal = journal_of_tested(server)
        expect(journal["mode"] == "write-through" and journal["mode_wanted"] == "write-back", f"{journal}")
        expect("degraded" in journal["mode_reason"] and not journal["draining"], f"{journal}")
        asked = stripelog("journal-mode", server.control)
        expect(asked.stdout == "write-through\n" and "write-back is wanted, but the array is degraded" in asked.stderr,
               f"{asked}")
        with Client(server.control) as client:
            reply = client.ask("journal-mode", mode="write-back")
            expect(reply["ok"] is False and reply["code"] == "EUCLEAN", f"{reply}")
        switch(server, "write-through")
        expect(journal_of_tested(server)["mode_reason"] is None, "wanted")


def journal_of_tested(server):
    return status_of(server, "--test", exit_status=1)["journal"]


def cached(server, rng, size):
    """A client, and what the array holds, when some of that is cached."""
    handle = server.connect()
    model = bytearray(handle.get_size())
    for at in range(0, size, 7 * 4096):
        model[at:at + 4096] = rng.randbytes(4096)
        handle.pwrite(model[at:at + 4096], at)
    expect(journal_of(server)["cache"]["cached_bytes"] == -(-size // (7 * 4096)) * 4096, "not all is cached")
    return handle, model


def the_first_failed_member_ends_write_back(work):
    paths = fragile_new(work, [3], size=24 * MIB, journal=24 * MIB)
    with FragileServer(paths, "--journal-mode=write-back") as server, Client(server.control) as client:
        handle, model = cached(server, rng_for("first failed"), 12 * MIB)
        server.break_fragile()
        reply = client.ask("journal-mode", mode="write-through")  # writes out, and so finds the member broken
        expect(reply["ok"], f"{reply}")
        status = status_of(server, "--test", exit_status=1)
        expect(status["members"][3]["state"] == "failed" and status["degraded"] == 1, f"{status}")
        expect(status["journal"]["mode"] == "write-through", f"{status['journal']}")
        expect(status["journal"]["cache"]["cached_bytes"] == status["journal"]["cache"]["blocks_lost"] == 0, f"{status}")
        reply = client.ask("journal-mode", mode="write-back")
        expect(reply["ok"] is False and reply["code"] == "EUCLEAN" and "whole" in reply["error"], f"{reply}")
        writes_random(handle, model, rng_for("degraded"), 20)
        expect_content(server.read_all(), model, "degraded")
        handle.shutdown()
    with Server(paths[:3] + paths[4:], "--readonly") as server:
        expect_content(server.read_all(), model, "afterwards")


def a_failed_journal_is_told_and_what_was_cached_is_not_lost(work):
    paths = fragile_new(work, [4], size=24 * MIB, journal=24 * MIB)
    server = FragileServer(paths, "--journal-mode=write-back")
    try:
        handle, model = cached(server, rng_for("journal failed"), 12 * MIB)
        server.break_fragile()
        with contextlib.suppress(Exception):  # it cannot be logged
            handle.pwrite(bytes(model[:4096]), 0)
        wait_for(lambda: status_of(server)["journal"]["cache"]["cached_bytes"] == 0, "what is cached is written out")
        status = status_of(server, "--test", exit_status=1)
        journal = status["journal"]
        expect(journal["state"] == "failed" and journal["mode"] == "write-through", f"{journal}")
        expect("journal has failed" in journal["mode_reason"] and journal["cache"]["blocks_lost"] == 0, f"{journal}")
        expect(status["degraded"] == 0 and status["state"] != "failed", f"{status}")
        refused = stripelog("journal-mode", server.control, "write-back")
        expect(refused.returncode == 1 and "journal" in refused.stderr, f"{refused}")
        expect_content(server.read_all(), model, "with the journal gone")
        handle.shutdown()
        stopped = stripelog("stop", server.control)
        expect(stopped.returncode == 1 and stopped.stderr.strip(), f"{stopped}")
        server.process.wait(20)
    finally:
        server.kill()
        server.discard()
    # Without a journal that they expect, members are believed only by force; parity is right all the same.
    for lost in range(4):
        with Server([path for i, path in enumerate(paths[:4]) if i != lost], "--readonly",
                    "--force=drop-journal,dirty-degraded") as server:
            expect_content(server.read_all(), model, f"without {lost}")


def a_journal_too_small_for_a_cache_is_used_in_write_through(work):
    # Rings that write-through can use begin at 4 blocks more than there are members, far below what create makes.
    work = os.fsdecode(os.fsencode(work) + b"/\xff")  # the reason names the device, whatever its name
    os.mkdir(work)
    paths = array_new(work, journal=8 * MIB)
    superblock_edit(paths[-1], {136: struct.pack("<Q", 40 * 8)})
    with Server(paths, "--journal-mode=write-back") as server:
        handle = server.connect()
        model = bytearray(handle.get_size())
        writes_random(handle, model, rng_for("small"), 30)
        journal = journal_of(server)
        expect(journal["ring_bytes"] == 40 * 4096, f"{journal}")
        expect(journal["mode"] == "write-through" and journal["mode_wanted"] == "write-back", f"{journal}")
        expect("too small" in journal["mode_reason"] and journal["cache"] is None, f"{journal}")
        expect("write-through instead of write-back" in server.errors(), server.errors())
        told = stripelog("journal-mode", server.control)
        expect(told.returncode == 0 and "too small" in told.stderr, f"{told}")
        refused = stripelog("journal-mode", server.control, "write-back")
        expect(refused.returncode == 1 and "too small" in refused.stderr, f"{refused}")
        expect_content(server.read_all(), model, "written through")
        handle.shutdown()


if __name__ == "__main__":
    main(it_has_mode_0600_and_goes_with_the_server,
         by_default_it_stands_beside_the_nbd_socket, without_a_default_place_the_array_is_served_all_the_same,
         a_stale_socket_is_replaced_and_a_live_one_refused, a_place_that_cannot_be_had_is_refused,
         garbage_costs_a_client_its_connection_only, requests_that_make_no_sense_get_an_error_and_the_connection_lives,
         lines_may_come_in_pieces_or_many_at_once, clients_that_do_not_read_or_write_leave_others_alone,
         status_while_the_array_works_is_answered_at_once, status_is_true_of_what_was_created,
         status_follows_what_is_done, status_follows_a_resync, missing_and_stale_members_are_told,
         a_member_that_fails_is_told, a_failed_array_is_told_and_its_stop_is_an_error,
         what_cannot_be_asked_is_4_with_test, arrays_are_found_by_uuid_and_name,
         stop_ends_it_clean_and_its_devices_are_free, many_may_ask_for_the_stop, who_asked_for_the_stop_need_not_wait,
         stop_ends_the_command_of_run_too, a_mode_without_a_journal_is_refused, the_mode_of_a_journal_is_told,
         a_quiet_array_is_written_out, the_cache_fills_and_drains, modes_change_under_load_and_nothing_is_lost,
         a_stop_while_it_drains_loses_nothing,
         a_degraded_array_is_served_in_write_through, the_first_failed_member_ends_write_back,
         a_failed_journal_is_told_and_what_was_cached_is_not_lost,
         a_journal_too_small_for_a_cache_is_used_in_write_through)
