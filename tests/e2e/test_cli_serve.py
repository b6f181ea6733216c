#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `serve` owes to whoever starts it, where the array itself does not matter."""

import json
import os
import re
import signal
import socket
import subprocess
import time

from harness import (MIB, STRIPELOG, WRITE_BACK, Server, create, create_cached, digests, expect, images_make, main,
                     need_program, serve_refused, stripelog, superblock_edit)


def array_new(work, *options, members=4, size=16 * MIB):
    paths = images_make(work, members, size)
    create(paths, *(options or ("--assume-clean",)))
    return paths


def start(*arguments, environment=None):
    return subprocess.Popen([STRIPELOG, "serve", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=environment)


def without_a_place_the_socket_is_named_by_the_uuid(work):
    paths = array_new(work)
    uuid = json.loads(stripelog("examine", "--json", paths[0]).stdout)["arrays"][0]["uuid"]
    environment = dict(os.environ, XDG_RUNTIME_DIR=work)
    wanted = f"/run/stripelog/{uuid}.nbd" if os.geteuid() == 0 else f"{work}/stripelog/{uuid}.nbd"
    process = start(*paths, "--run=printf '%s\\n' \"$unixsocket\"", environment=environment)
    told, errors = process.communicate(timeout=20)
    expect(process.returncode == 0, errors)
    expect(told.splitlines()[1] == wanted, told)
    expect(not os.path.exists(wanted), "the socket is left")


def the_first_line_on_stdout_is_the_ready_line_alone(work):
    paths = array_new(work)
    with Server(paths) as server:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)
        expect(server.process.stdout.read() == b"", "more than one line")


def nothing_listens_when_the_start_is_refused(work):
    paths = array_new(work)
    place, pidfile = os.path.join(work, "socket"), os.path.join(work, "pid")
    before = digests(paths)
    for arguments in (paths[:2], paths + [paths[0]], [paths[0]]):
        ended = stripelog("serve", f"--socket={place}", f"--pidfile={pidfile}", *arguments)
        expect(ended.returncode == 1 and not ended.stdout, f"{ended.returncode} {ended.stdout}")
        expect(not os.path.exists(place) and not os.path.exists(pidfile), "socket or pidfile were made")
    expect(digests(paths) == before, "something was written")


def messages_begin_with_the_program_and_end_with_the_cause(work):
    paths = array_new(work)
    superblock_edit(paths[0], {208: bytes(8)})
    for message in (serve_refused(paths[:3]), serve_refused(paths[:1]), serve_refused(["/nonexistent"])):
        lines = message.splitlines()
        expect(lines and all(line.startswith("stripelog: ") and len(line) > 12 for line in lines), message)
        expect(not lines[-1].startswith("stripelog: --"), f"the last line is no cause: {message}")


def a_place_that_cannot_be_listened_on_is_an_error_and_the_array_stays_clean(work):
    paths = array_new(work)
    before = digests(paths)
    for where in ("--socket=/proc/socket", f"--socket={work}/{'x' * 200}", "--listen=192.0.2.1:0"):
        ended = stripelog("serve", where, *paths)
        expect(ended.returncode == 1 and ended.stderr, f"{where}: {ended.returncode}")
    expect(digests(paths) == before, "something was written")


def a_directory_that_is_not_there_is_noticed_before_anything_is_written(work):
    paths = create_cached(work, 4, 16 * MIB)  # each start of it writes superblocks
    before = digests(paths)
    for option in ("socket", "control", "pidfile"):
        ended = stripelog("serve", f"--socket={work}/s", f"--{option}={work}/no/such/dir", "--run=true", *paths)
        expect(ended.returncode == 1 and "no/such/dir" in ended.stderr, f"--{option}: {ended}")
        expect(not os.path.exists(f"{work}/s"), "a socket is left")
    expect(digests(paths) == before, "something was written")


def the_pidfile_goes_when_the_server_stops(work):
    paths = array_new(work)
    pidfile = os.path.join(work, "pid")
    with Server(paths, f"--pidfile={pidfile}"):
        expect(os.path.exists(pidfile), "no pidfile")
    expect(not os.path.exists(pidfile), "it is still there")
    expect([name for name in os.listdir(work) if name.startswith("pid")] == [], "a temporary file is left")


def a_file_that_is_no_pidfile_is_not_replaced(work):
    paths = array_new(work)
    precious = images_make(work, 1, 16 * MIB, "precious")[0]
    ended = stripelog("serve", "--run=true", "--pidfile", precious, *paths)
    expect(ended.returncode == 1 and "no pidfile" in ended.stderr, f"{ended.returncode} {ended.stderr}")
    expect(os.path.getsize(precious) == 16 * MIB, "it is gone")
    with open(f"{work}/old", "w", encoding="ascii") as old:
        old.write("12345\n")
    ended = stripelog("serve", f"--pidfile={work}/old", f"--run=cat {work}/old", *paths)
    expect(ended.returncode == 0 and ended.stdout.splitlines()[1] != "12345", f"{ended.returncode} {ended.stderr}")


def what_is_no_regular_file_is_not_replaced_by_the_pidfile(work):
    paths = array_new(work)
    for name in ("fifo", "link"):
        path = os.path.join(work, name)
        if name == "fifo":
            os.mkfifo(path)
        else:
            os.symlink("elsewhere", path)
        ended = stripelog("serve", "--run=true", f"--pidfile={path}", *paths)
        expect(ended.returncode == 1 and "no pidfile" in ended.stderr, f"{ended.returncode} {ended.stderr}")
        expect(os.path.lexists(path) and not os.path.isfile(path), f"{name} is gone")


def a_start_beside_a_running_server_takes_nothing_from_it(work):
    first = array_new(work)
    other = images_make(work, 3, 16 * MIB, "other")
    create(other)
    place, pidfile = os.path.join(work, "a.sock"), os.path.join(work, "pid")
    before = digests(other)
    with Server(first, f"--pidfile={pidfile}", f"--socket={place}") as server:
        for arguments in ((f"--pidfile={pidfile}", f"--socket={work}/b.sock"), (f"--socket={place}",)):
            ended = stripelog("serve", *arguments, *other)
            expect(ended.returncode == 1 and not ended.stdout, f"{ended.returncode} {ended.stderr}")
            expect(digests(other) == before, "members were written before the place was looked at")
        with open(pidfile, encoding="ascii") as text:
            expect(int(text.read()) == server.process.pid, "another's pidfile")


def options_that_exclude_each_other_are_refused(work):
    paths = array_new(work)
    for arguments in (("--socket=x", "--listen=0"), ("--force=",), ("--force=dirty-degraded,",),
                      ("--force=no-such-danger",), ("--memory=63M",), ("--memory=256",), ("--listen=65536",),
                      ("--listen=",), ("--readonly=yes",), ("--metadata=1.2",)):
        ended = stripelog("serve", *arguments, *paths)
        expect(ended.returncode == 2, f"{arguments}: exit {ended.returncode} {ended.stderr}")
    for option in ("--pidfile", "--socket", "--listen", "--memory", "--run"):
        ended = stripelog("serve", *paths, option)
        expect(ended.returncode == 2, f"{option}: exit {ended.returncode} {ended.stderr}")


def an_abstract_notify_socket_works(work):
    paths = array_new(work)
    name = f"stripelog-test-{os.getpid()}"
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind("\0" + name)
    manager.settimeout(10)
    process = start(f"--socket={work}/s", *paths, environment=dict(os.environ, NOTIFY_SOCKET="@" + name))
    try:
        expect(manager.recv(4096) == b"READY=1", "no READY=1")
        expect(process.stdout.readline().startswith("stripelog: ready"), "not ready")
        process.send_signal(signal.SIGTERM)
        expect(manager.recv(4096) == b"STOPPING=1", "no STOPPING=1")
        expect(process.wait(20) == 0, "exit status")
    finally:
        process.kill()
        process.communicate()
        manager.close()


def a_signal_during_run_ends_the_command_too(work):
    paths = array_new(work)
    process = start(f"--socket={work}/s", "--run=echo $$; exec sleep 1000", *paths)
    try:
        expect(process.stdout.readline().startswith("stripelog: ready"), "not ready")
        command = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        status = process.wait(20)
        expect(status == 128 + signal.SIGTERM, f"exit {status}")
        try:
            os.kill(command, 0)
        except ProcessLookupError:
            pass
        else:
            expect(False, "the command runs on")
    finally:
        process.kill()
        process.communicate()


def a_command_that_ignores_the_signal_is_killed(work):
    paths = array_new(work)
    process = start(f"--socket={work}/s", "--run=trap '' TERM; echo on; while :; do sleep 1; done", *paths)
    try:
        expect(process.stdout.readline().startswith("stripelog: ready"), "not ready")
        process.stdout.readline()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        expect(process.wait(20) == 128 + signal.SIGKILL, f"exit {process.returncode}")
        expect(4 < time.monotonic() - began < 15, "not after 5 s")
    finally:
        process.kill()
        process.communicate()


def the_command_sees_uri_and_socket_and_ordinary_signals(work):
    need_program("sh")
    paths = array_new(work)
    ended = stripelog("serve", f"--socket={work}/s", "--run=echo \"$uri|$unixsocket|$NOTIFY_SOCKET\"; "
                      "grep SigBlk /proc/self/status", *paths)
    expect(ended.returncode == 0, ended.stderr)
    lines = ended.stdout.splitlines()
    expect(lines[1] == f"nbd+unix:///?socket={work}/s|{work}/s|", lines)
    expect(int(lines[2].split()[1], 16) & (1 << 14 | 1 << 1) == 0, f"signals are blocked: {lines[2]}")
    ended = stripelog("serve", "--listen=0", "--run=echo \"$uri|$unixsocket\"", *paths)
    expect(re.fullmatch(r"nbd://127\.0\.0\.1:\d+/?\|", ended.stdout.splitlines()[1]), ended.stdout)
    ended = stripelog("serve", f"--socket={work}/s", "--run=kill -9 $$", *paths)
    expect(ended.returncode == 137, f"exit {ended.returncode}")
    ended = stripelog("serve", f"--socket={work}/s", "--run=/no/such/program", *paths)
    expect(ended.returncode == 127, f"exit {ended.returncode}")


def events_are_json_lines_when_asked_for(work):
    paths = array_new(work, "--force", size=48 * MIB)
    process = start(f"--socket={work}/s", "--json", *paths)
    try:
        expect(process.stdout.readline().startswith("stripelog: ready"), "not ready")
        names = []
        while "resync-done" not in names:
            event = json.loads(process.stderr.readline())
            names.append(event["event"])
            if event["event"] == "resync-progress":
                expect(event["total_bytes"] > 0 and event["done_bytes"] <= event["total_bytes"], event)
        expect(names[0] == "resync-started", names)
        process.send_signal(signal.SIGTERM)
        expect(process.wait(20) == 0, "exit status")
        for line in process.stderr:
            json.loads(line)
    finally:
        process.kill()
        process.communicate()


def events_are_told_of_devices_with_any_name(work):
    folder = os.fsencode(work) + b"/\xff"
    os.mkdir(folder)
    paths = create_cached(os.fsdecode(folder), 4, 16 * MIB)
    ended = subprocess.run([STRIPELOG, "serve", "--json", f"--socket={work}/s", "--run=true", *paths],
                           stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
    told = [json.loads(line) for line in ended.stderr.splitlines()]
    expect([event for event in told if event["event"] == "recovery-done" and "\\xff" in event["text"]], told)
    for command in ("examine", "journal"):
        ended = stripelog(command, "--json", *paths)
        expect(ended.returncode == 0 and f"{work}/\\\\xff/" in ended.stdout, f"{command}: {ended}")


def what_is_refused_is_not_said_to_be_dropped(work):
    paths = create_cached(work, 4, 16 * MIB)
    ended = stripelog("serve", WRITE_BACK, "--force=drop-journal", "--run=true", *paths)
    expect(ended.returncode == 1 and "wants a journal" in ended.stderr, ended)
    expect("is lost" not in ended.stderr, ended.stderr)


def a_degraded_start_says_so_once(work):
    paths = array_new(work)
    ended = stripelog("serve", f"--socket={work}/s", "--run=true", *paths[:1], *paths[2:])
    expect(ended.returncode == 0, ended.stderr)
    told = [line for line in ended.stderr.splitlines() if "degraded" in line]
    expect(len(told) == 1 and "member 1 of 4" in told[0], ended.stderr)


def the_least_memory_is_enough(work):
    import nbd  # pylint: disable=import-outside-toplevel
    paths = array_new(work)
    with Server(paths, memory="--memory=64M") as server:
        handle = server.connect()
        size = min(handle.get_block_size(nbd.SIZE_MAXIMUM), 16 * MIB)
        data = os.urandom(size)
        handle.pwrite(data, 4096 + 1)
        expect(bytes(handle.pread(size, 4096 + 1)) == data, "not what was written")
        handle.shutdown()


if __name__ == "__main__":
    main(without_a_place_the_socket_is_named_by_the_uuid, the_first_line_on_stdout_is_the_ready_line_alone,
         nothing_listens_when_the_start_is_refused, messages_begin_with_the_program_and_end_with_the_cause,
         a_place_that_cannot_be_listened_on_is_an_error_and_the_array_stays_clean,
         a_directory_that_is_not_there_is_noticed_before_anything_is_written,
         the_pidfile_goes_when_the_server_stops,
         a_file_that_is_no_pidfile_is_not_replaced, what_is_no_regular_file_is_not_replaced_by_the_pidfile,
         a_start_beside_a_running_server_takes_nothing_from_it, options_that_exclude_each_other_are_refused,
         an_abstract_notify_socket_works, a_signal_during_run_ends_the_command_too,
         a_command_that_ignores_the_signal_is_killed, the_command_sees_uri_and_socket_and_ordinary_signals,
         events_are_json_lines_when_asked_for, events_are_told_of_devices_with_any_name,
         what_is_refused_is_not_said_to_be_dropped, a_degraded_start_says_so_once, the_least_memory_is_enough)
