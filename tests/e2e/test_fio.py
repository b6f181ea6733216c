#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""fio's NBD engine, with verification: random mixes on 1 to 8 connections, complete and degraded."""

import os
import subprocess

from harness import (MIB, STRIPELOG, WRITE_BACK, Server, Skip, create, create_cached, expect, images_make, main,
                     need_program)


def fio(server, work, connections, *options, seconds=None):
    """One job a connection, each in its own part of the array, so that each can verify what it wrote."""
    need_program("fio")
    part = server.connect().get_size() // connections // MIB * MIB
    # In whole MiB, or the last write of one job would reach into the next one's part. loops and norandommap stay
    # away: fio can only verify blocks that it wrote once.
    command = ["fio", "--output=" + os.path.join(work, "fio.out"), "--name=job", "--ioengine=nbd",
               f"--uri={server.uri}", f"--numjobs={connections}", f"--size={part}", f"--offset_increment={part}",
               "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--group_reporting", "--randseed=7",
               "--thread", *options]
    if seconds:
        command += [f"--runtime={seconds}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=work, check=False)
    with open(os.path.join(work, "fio.out"), encoding="utf-8") as text:
        expect(ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}{text.read()[-3000:]}")


def array_new(work, level, members):
    paths = images_make(work, members, 20 * MIB)
    create(paths, "--assume-clean", level=level, chunk=32)
    return paths


def random_4k_writes_verify_on_one_connection(work):
    with Server(array_new(work, 5, 4)) as server:
        fio(server, work, 1, "--rw=randwrite", "--bs=4k", "--iodepth=32")


def random_mix_of_sizes_verifies_on_2_connections(work):
    with Server(array_new(work, 5, 5)) as server:
        fio(server, work, 2, "--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned=1", "--blockalign=512",
            "--iodepth=16")


def random_reads_and_writes_verify_on_4_connections(work):
    with Server(array_new(work, 6, 6), memory=None) as server:
        fio(server, work, 4, "--rw=randrw", "--rwmixread=40", "--bssplit=4k/50:8k/20:64k/20:128k/10", "--iodepth=16")


def flushes_between_writes_verify_on_8_connections(work):
    with Server(array_new(work, 5, 4)) as server:
        fio(server, work, 8, "--rw=randwrite", "--bs=4k", "--iodepth=8", "--fsync=16", "--size=1m")


def sequential_writes_verify_on_8_connections(work):
    with Server(array_new(work, 6, 5)) as server:
        fio(server, work, 8, "--rw=write", "--bs=256k", "--iodepth=4")


def degraded_writes_verify_and_survive(work):
    for level, members, lost in ((5, 4, 1), (6, 5, 1), (6, 6, 2)):
        place = os.path.join(work, f"{level}-{lost}")
        os.mkdir(place)
        paths = array_new(place, level, members)
        with Server(paths[lost:]) as server:
            fio(server, place, 4, "--rw=randwrite", "--bssplit=4k/70:32k/20:100k/10", "--iodepth=16")
            # Once more, only reading: parity alone holds the lost members' part.
            fio(server, place, 4, "--rw=randwrite", "--bssplit=4k/70:32k/20:100k/10", "--iodepth=16", "--verify_only=1")


def the_write_back_cache_verifies_and_survives(work):
    """A log much smaller than what is written: most of it has been written out by the time it is verified."""
    for level, members, options in ((5, 4, ("--bs=4k", "--iodepth=32")),
                                    (6, 5, ("--bssplit=4k/70:32k/20:100k/10", "--iodepth=16", "--fsync=64"))):
        place = os.path.join(work, f"{level}")
        os.mkdir(place)
        paths = create_cached(place, members, 20 * MIB, level=level, chunk=32)
        with Server(paths, WRITE_BACK) as server:
            fio(server, place, 4, "--rw=randwrite", *options)
        with Server(paths[1:], WRITE_BACK) as server:
            fio(server, place, 4, "--rw=randwrite", "--verify_only=1", *options)
        with Server(paths, WRITE_BACK) as server:
            fio(server, place, 4, "--rw=randrw", "--rwmixread=40", *options)


def memory_stays_within_the_budget_whatever_the_load(work):
    if "sanitize" in STRIPELOG:
        raise Skip("sanitizers need memory of their own")
    paths = images_make(work, 6, 48 * MIB)
    create(paths, "--assume-clean", level=6, chunk=64)
    with Server(paths, memory="--memory=64M") as server:
        fio(server, work, 8, "--rw=randrw", "--bs=4m", "--iodepth=16", "--verify=null", "--norandommap=1",
            "--loops=3")
        fio(server, work, 8, "--rw=randwrite", "--bs=4k", "--iodepth=128")
        peak = server.memory_peak()
        expect(peak <= (64 + 32) * MIB, f"VmHWM {peak // MIB} MiB")


if __name__ == "__main__":
    main(random_4k_writes_verify_on_one_connection, random_mix_of_sizes_verifies_on_2_connections,
         random_reads_and_writes_verify_on_4_connections, flushes_between_writes_verify_on_8_connections,
         sequential_writes_verify_on_8_connections, degraded_writes_verify_and_survive,
         the_write_back_cache_verifies_and_survives, memory_stays_within_the_budget_whatever_the_load)
