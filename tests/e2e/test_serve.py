#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `serve` promises to whoever runs it: order at the start, sockets, signals, clean and dirty, crashes."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time

from harness import (MIB, RESYNC_DONE, STRIPELOG, Server, Skip, create, digests, expect, expect_content, images_make,
                     main, resync_offset, resync_wait, rng_for, serve_refused, stripelog, superblock_field,
                     writes_random)


def array_new(work, level=5, members=4, size=16 * MIB, options=("--assume-clean",), garbage=None):
    paths = images_make(work, members, size, garbage=garbage)
    create(paths, *options, level=level, chunk=64)
    return paths


def wait_for(condition, what, timeout=20):
    deadline = time.monotonic() + timeout
    while not condition():
        expect(time.monotonic() < deadline, what)
        time.sleep(0.02)


def the_ready_line_names_a_working_socket_of_mode_0600(work):
    paths = array_new(work)
    with Server(paths) as server:
        expect(server.uri == f"nbd+unix:///?socket={server.socket}", f"uri {server.uri}")
        expect(stat.S_IMODE(os.stat(server.socket).st_mode) == 0o600, "mode")
        server.connect().shutdown()
    expect(not os.path.exists(server.socket), "the socket is still there after the stop")


def a_stale_socket_is_replaced_and_a_live_one_refused(work):
    paths = array_new(work)
    place = os.path.join(work, "socket")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(place)
    dead.close()
    with Server(paths, socket=place) as server:
        server.connect().shutdown()
        other = os.path.join(work, "other")
        os.mkdir(other)
        ended = stripelog("serve", f"--socket={place}", *array_new(other))
        expect(ended.returncode == 1, f"a live socket was taken: {ended.returncode}")
        server.connect().shutdown()
    ordinary = os.path.join(work, "file")
    with open(ordinary, "w", encoding="ascii") as file:
        file.write("precious")
    ended = stripelog("serve", f"--socket={ordinary}", *paths)
    expect(ended.returncode == 1, "a plain file was taken for a socket")
    with open(ordinary, encoding="ascii") as file:
        expect(file.read() == "precious", "the plain file has changed")


def tcp_on_a_free_port(work):
    with Server(array_new(work), "--listen=0") as server:
        match = re.fullmatch(r"nbd://127\.0\.0\.1:(\d+)/?", server.uri)
        expect(match and int(match.group(1)) > 0, f"uri {server.uri}")
        server.connect().shutdown()
    with Server([os.path.join(work, f"m{i}") for i in range(4)], "--listen=127.0.0.1:0") as server:
        server.connect().shutdown()


def the_pidfile_is_there_before_the_ready_line(work):
    pidfile = os.path.join(work, "pid")
    with Server(array_new(work), f"--pidfile={pidfile}") as server:
        with open(pidfile, encoding="ascii") as text:
            expect(int(text.read()) == server.process.pid, "another pid")


def run_ends_with_the_command(work):
    paths = array_new(work)
    ended = stripelog("serve", "--run=nbdinfo --size \"$uri\"", *paths)
    expect(ended.returncode == 0, f"{ended.returncode}: {ended.stderr}")
    expect(any(line.isdigit() and int(line) > 0 for line in ended.stdout.split()), ended.stdout)
    ended = stripelog("serve", "--run=exit 7", *paths)
    expect(ended.returncode == 7, f"the command's status is lost: {ended.returncode}")
    expect(resync_offset(paths[0]) == RESYNC_DONE, "not stopped clean")


def readiness_is_told_to_the_service_manager(work):
    paths = array_new(work)
    place = os.path.join(work, "notify")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(place)
    manager.settimeout(10)
    os.environ["NOTIFY_SOCKET"] = place
    try:
        with Server(paths):
            expect(b"READY=1" in manager.recv(4096), "no READY=1")
    finally:
        del os.environ["NOTIFY_SOCKET"]
        manager.close()


def a_listening_socket_can_be_handed_over(work):
    paths = array_new(work)
    place = os.path.join(work, "handed")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(5)

    def child():
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.environ["LISTEN_FDS"] = "1"
        os.environ["LISTEN_PID"] = str(os.getpid())

    process = subprocess.Popen([STRIPELOG, "serve", *paths], preexec_fn=child, close_fds=False,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = process.stdout.readline()
        expect(line.startswith(b"stripelog: ready"), f"{line!r}")
        import nbd  # pylint: disable=import-outside-toplevel
        handle = nbd.NBD()
        handle.connect_unix(place)
        expect(handle.get_size() > 0, "size")
        handle.shutdown()
        process.send_signal(signal.SIGTERM)
        expect(process.wait(20) == 0, "exit status")
    finally:
        process.kill()
        process.communicate()
        listener.close()


def the_superblock_is_dirty_while_writing_and_clean_when_idle(work):
    paths = array_new(work)
    with Server(paths) as server:
        handle = server.connect()
        handle.pread(4096, 0)
        expect(all(resync_offset(path) == RESYNC_DONE for path in paths), "dirty without a write")
        events = superblock_field(paths[0], 200, "<Q")
        handle.pwrite(b"x" * 4096, 0)
        expect(all(resync_offset(path) == 0 for path in paths), "clean while writing")
        wait_for(lambda: all(resync_offset(path) == RESYNC_DONE for path in paths), "not clean when idle", 5)
        expect(len({superblock_field(path, 200, "<Q") for path in paths}) == 1, "the members' events differ")
        expect(superblock_field(paths[0], 200, "<Q") >= events, "events went back")
        handle.shutdown()


def sigterm_and_sigint_stop_clean_with_the_data(work):
    paths = array_new(work)
    for number, signal_number in enumerate((signal.SIGTERM, signal.SIGINT)):
        with Server(paths) as server:
            handle = server.connect()
            handle.pwrite(bytes([65 + number]) * 10000, 5000)
            server.process.send_signal(signal_number)
            expect(server.process.wait(20) == 0, f"signal {signal_number}: {server.process.returncode}")
        expect(all(resync_offset(path) == RESYNC_DONE for path in paths), "not clean")
        with Server(paths, "--readonly") as server:
            expect(bytes(server.connect().pread(10000, 5000)) == bytes([65 + number]) * 10000, "the write is gone")


def requests_received_before_sigterm_are_finished(work):
    import nbd  # pylint: disable=import-outside-toplevel
    paths = array_new(work)
    with Server(paths) as server:
        handle = server.connect()
        data = rng_for("sigterm").randbytes(MIB)
        cookies = [handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), i * MIB) for i in range(8)]
        while any(not handle.aio_command_completed(cookie) for cookie in cookies[:1]):
            handle.poll(-1)
        server.process.send_signal(signal.SIGTERM)
        done = 1
        try:
            for cookie in cookies[1:]:
                while not handle.aio_command_completed(cookie):
                    handle.poll(-1)
                done += 1
        except nbd.Error:
            pass
        expect(server.process.wait(20) == 0, "exit status")
    with Server(paths, "--readonly") as server:
        got = server.read_all()
        for i in range(done):
            expect(got[i * MIB:(i + 1) * MIB] == data, f"acknowledged write {i} of {done} is gone")


def a_new_array_is_resynced_while_it_is_served(work):
    for level, members in ((4, 3), (5, 4), (6, 5)):
        place = os.path.join(work, str(level))
        os.mkdir(place)
        rng = rng_for("resync", level)
        paths = array_new(place, level, members, options=(), garbage=rng)
        with Server(paths) as server:
            handle = server.connect()
            model = bytearray(server.read_all())
            writes_random(handle, model, rng, 50)
            handle.shutdown()
            resync_wait(paths[0])
            expect_content(server.read_all(), model, "after the resync")
        for lost in range(members):
            with Server([path for i, path in enumerate(paths) if i != lost], "--readonly") as server:
                expect_content(server.read_all(), model, f"raid{level} without {lost}")


def an_interrupted_resync_goes_on(work):
    rng = rng_for("interrupted")
    paths = array_new(work, 5, 4, 48 * MIB, options=(), garbage=rng)
    with Server(paths) as server:
        model = bytearray(server.read_all())
        handle = server.connect()
        writes_random(handle, model, rng, 20)
        handle.shutdown()
    # Wherever that stop came, the next starts end the work.
    for _ in range(3):
        with Server(paths) as server:
            expect_content(server.read_all(), model, "a later start")
    with Server(paths):
        resync_wait(paths[0])
    for lost in range(4):
        with Server([path for i, path in enumerate(paths) if i != lost], "--readonly") as server:
            expect_content(server.read_all(), model, f"without {lost}")


def sigkill_under_load_loses_nothing_acknowledged(work):
    import nbd  # pylint: disable=import-outside-toplevel
    for level, members in ((4, 4), (5, 4), (6, 5)):
        place = os.path.join(work, str(level))
        os.mkdir(place)
        rng = rng_for("sigkill", level)
        paths = array_new(place, level, members)
        model = None
        for turn in range(2):
            server = Server(paths)
            handle = server.connect()
            if model is None:
                model = bytearray(handle.get_size())
            # Each block is written at most once a turn: it is then as before, or as written, by 512-byte sector.
            blocks = rng.sample(range(len(model) // 4096), min(len(model) // 4096, 3000))
            sent = {}
            maybe = {}
            deadline = time.monotonic() + 0.4
            while blocks and time.monotonic() < deadline:
                block = blocks.pop()
                data = rng.randbytes(4096)
                cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), block * 4096)
                sent[cookie] = (block, data)
                while len(sent) >= 32:
                    handle.poll(1000)
                    for ready in [c for c in sent if handle.aio_command_completed(c)]:
                        done, content = sent.pop(ready)
                        model[done * 4096:done * 4096 + 4096] = content
            maybe = dict(sent.values())
            server.kill()
            server.discard()
            with Server(paths) as again:
                got = again.read_all()
                for block in range(len(model) // 4096):
                    now, was = got[block * 4096:block * 4096 + 4096], bytes(model[block * 4096:block * 4096 + 4096])
                    if now == was:
                        continue
                    expect(block in maybe, f"raid{level}, turn {turn}: block {block} changed although nobody wrote it")
                    for sector in range(0, 4096, 512):
                        piece = now[sector:sector + 512]
                        expect(piece in (was[sector:sector + 512], maybe[block][sector:sector + 512]),
                               f"raid{level}, turn {turn}: block {block} is neither old nor new")
                    model[block * 4096:block * 4096 + 4096] = now
                resync_wait(paths[0])
            for lost in range(members):
                with Server([path for i, path in enumerate(paths) if i != lost], "--readonly") as degraded:
                    expect_content(degraded.read_all(), model, f"raid{level}, turn {turn}, without {lost}")


def readonly_writes_nothing(work):
    import nbd  # pylint: disable=import-outside-toplevel
    paths = array_new(work)
    before = digests(paths)
    for path in paths:
        os.chmod(path, 0o444)
    with Server(paths, "--readonly") as server:
        handle = server.connect()
        expect(handle.is_read_only(), "not announced as read-only")
        handle.pread(MIB, 0)
        handle.set_strict_mode(0)
        try:
            handle.pwrite(b"x" * 512, 0)
        except nbd.Error as refusal:
            expect(refusal.errnum in (1, 30), f"errno {refusal.errnum}")
        else:
            expect(False, "a write was taken")
        handle.shutdown()
    expect(digests(paths) == before, "the images have changed")


def examine_works_while_the_array_is_served(work):
    paths = array_new(work)
    with Server(paths):
        ended = stripelog("examine", *paths)
        expect(ended.returncode == 0, ended.stderr)


def it_works_where_io_uring_is_forbidden(work):
    """Inside a seccomp filter that refuses io_uring, as container runtimes do."""
    if not shutil.which("systemd-run") and not hasattr(os, "posix_spawn"):
        raise Skip("no way to set a filter")
    paths = array_new(work)
    wrapper = os.path.join(work, "refuse")
    with open(wrapper, "w", encoding="ascii") as script:
        script.write(SECCOMP_WRAPPER)
    process = subprocess.Popen(["/usr/bin/python3", wrapper, STRIPELOG, "serve", f"--socket={work}/s", *paths],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = process.stdout.readline().decode()
        if not line and process.wait(20) == 77:
            raise Skip("seccomp is refused here")
        expect(line.startswith("stripelog: ready"), f"{line!r} {process.stderr.read().decode() if not line else ''}")
        import nbd  # pylint: disable=import-outside-toplevel
        handle = nbd.NBD()
        handle.connect_unix(f"{work}/s")
        model = bytearray(handle.get_size())
        writes_random(handle, model, rng_for("seccomp"), 100)
        handle.flush()
        for offset in range(0, len(model), MIB):
            expect_content(bytes(handle.pread(min(MIB, len(model) - offset), offset)), model[offset:offset + MIB],
                           f"at {offset}")
        handle.shutdown()
        process.send_signal(signal.SIGTERM)
        expect(process.wait(20) == 0, "exit status")
    finally:
        process.kill()
        process.communicate()
    expect(resync_offset(paths[0]) == RESYNC_DONE, "not clean")


# prctl(PR_SET_NO_NEW_PRIVS), then a filter: io_uring_setup (425), _enter and _register fail with EPERM.
SECCOMP_WRAPPER = r"""
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def op(code, k, jt=0, jf=0):
    return struct.pack("HBBI", code, jt, jf, k)
program = op(0x20, 0) + op(0x35, 425, 0, 2) + op(0x25, 427, 1, 0) + op(0x06, 0x00050001) + op(0x06, 0x7FFF0000)
buffer = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
filter = Filter(len(program) // 8, ctypes.addressof(buffer))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter), 0, 0):
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"""


def two_servers_share_nothing(work):
    one, two = os.path.join(work, "1"), os.path.join(work, "2")
    os.mkdir(one)
    os.mkdir(two)
    first, second = array_new(one), array_new(two, 6, 4)
    with Server(first) as a, Server(second) as b:
        left, right = a.connect(), b.connect()
        left.pwrite(b"a" * 4096, 0)
        right.pwrite(b"b" * 4096, 0)
        expect(bytes(left.pread(4096, 0)) == b"a" * 4096, "the first")
        expect(bytes(right.pread(4096, 0)) == b"b" * 4096, "the second")
        left.shutdown()
        right.shutdown()
        serve_refused(first)


if __name__ == "__main__":
    main(the_ready_line_names_a_working_socket_of_mode_0600, a_stale_socket_is_replaced_and_a_live_one_refused,
         tcp_on_a_free_port, the_pidfile_is_there_before_the_ready_line, run_ends_with_the_command,
         readiness_is_told_to_the_service_manager, a_listening_socket_can_be_handed_over,
         the_superblock_is_dirty_while_writing_and_clean_when_idle, sigterm_and_sigint_stop_clean_with_the_data,
         requests_received_before_sigterm_are_finished, a_new_array_is_resynced_while_it_is_served,
         an_interrupted_resync_goes_on, sigkill_under_load_loses_nothing_acknowledged, readonly_writes_nothing,
         examine_works_while_the_array_is_served, it_works_where_io_uring_is_forbidden,
         two_servers_share_nothing)
