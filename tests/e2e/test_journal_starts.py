#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Journals at the start: logs that leave little room, and starts that give up what a log held."""

import json
import os
import signal
import struct
import subprocess
import time

from harness import (KIB, MIB, RESYNC_DONE, STRIPELOG, Server, crc32c, create, expect, images_make, main, refused,
                     resync_offset, stripelog, unchanged)
from test_journal import BLOCK, Ring, field, journaled_dirty, journaled_new

CHUNK = 64 * KIB


# --- logs as a kernel in write-back mode leaves them ---


def data_only_fill(ring, free, stripes_per_entry):
    """
    Entries from the tail on, one DATA block of a stripe of its own each, until `free` blocks are left.
    For a RAID-5 of three members. {array offset: content}
    """
    blocks = ring.size // BLOCK
    sequence = struct.unpack("<Q", ring.read(ring.tail)[16:24])[0]
    at, used, content = ring.tail // BLOCK, 0, {}
    while used + 1 + stripes_per_entry + free <= blocks:
        meta, data = bytearray(BLOCK), []
        for i in range(stripes_per_entry):
            stripe = len(content)
            offset = stripe // (CHUNK // BLOCK) * 2 * CHUNK + stripe % (CHUNK // BLOCK) * BLOCK
            block = struct.pack("<Q", 0xabc0000 + stripe) * (BLOCK // 8)
            struct.pack_into("<HHIQI", meta, 32 + 20 * i, 0, 0, 8, offset // 512, crc32c(ring.seed, block))
            content[offset] = block
            data.append(block)
        struct.pack_into("<IIB3xIQQ", meta, 0, 0x6433c509, 0, 1, 32 + 20 * stripes_per_entry, sequence, at * 8)
        struct.pack_into("<I", meta, 4, crc32c(ring.seed, meta))
        for block in [meta, *data]:
            ring.write(at * BLOCK, block)
            at = (at + 1) % blocks
        used, sequence = used + 1 + stripes_per_entry, sequence + 1
    return content


def expect_blocks(devices, content):
    with Server(devices) as server:
        handle = server.connect()
        for offset, block in content.items():
            expect(handle.pread(BLOCK, offset) == block, f"the block at {offset} is not what the log held")
        handle.shutdown()


def full_log_of_data_only_stripes_makes_room_for_itself(work):
    """
    With hardly a block free the log goes on, and the tail moves again and again while stripes are
    written out. Where the tail stood at first their parity soon stands: nobody may look for entries there.
    """
    for free, stripes_per_entry in ((24, 3), (4, 1)):
        members, journal = journaled_new(work, members=3, size=32 * MIB, journal_size=6 * MIB,
                                         prefix=f"m{free}-{stripes_per_entry}-")
        content = data_only_fill(Ring(journal), free, stripes_per_entry)
        recovered = stripelog("recover", *members, journal)
        expect(recovered.returncode == 0, f"recover: {recovered.returncode} {recovered.stderr}")
        expect_blocks(members + [journal], content)
        os.unlink(journal)


def a_start_ends_by_a_signal(work):
    """
    A recovery can take hours, and whoever wants it to end shall not have to kill it. Here it waits to
    tell what it recovered, into a pipe that is full.
    """
    members, journal, _ = journaled_dirty(work)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(KIB))
    except BlockingIOError:
        pass
    os.set_blocking(writer, True)
    process = subprocess.Popen([STRIPELOG, "serve", f"--socket={work}/s", *members, journal], stderr=writer,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        # The log has begun anew when the journal's superblock counts two events more.
        events = field(journal, "events")
        while field(journal, "events") < events + 2:
            expect(time.monotonic() < deadline, "no recovery")
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        expect(process.wait(20) == -signal.SIGTERM, f"it ended with {process.returncode}")
        expect(process.stdout.read() == b"", "it was ready")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(reader)
        os.close(writer)
    recovered = stripelog("recover", *members, journal)
    expect(recovered.returncode == 0, f"recover: {recovered.returncode} {recovered.stderr}")


# --- what recover promises ---


def recover_resyncs_an_array_with_a_journal_too(work):
    """Exit status 0 says that the array is clean: also one that was never served since it was made."""
    members, journal = images_make(work, 4, 8 * MIB), images_make(work, 1, 8 * MIB, "journal")[0]
    create(members, f"--write-journal={journal}", level=6)
    expect(resync_offset(members[0]) == 0, "a new RAID-6 has no parity yet")
    planned = stripelog("recover", "--dry-run", "--json", *members, journal)
    expect(planned.returncode == 0 and json.loads(planned.stdout)["resync_needed"], f"dry-run: {planned.stdout}")
    recovered = stripelog("recover", *members, journal)
    expect(recovered.returncode == 0, f"recover: {recovered.returncode} {recovered.stderr}")
    expect(resync_offset(members[0]) == RESYNC_DONE, "recover left parity in doubt")
    with unchanged(members + [journal]):
        planned = stripelog("recover", "--dry-run", "--json", *members, journal)
        expect(not json.loads(planned.stdout)["resync_needed"], f"dry-run: {planned.stdout}")


def a_dry_run_without_the_journal_is_refused_as_recover_is(work):
    members, journal = journaled_new(work)
    for arguments in (("recover", "--dry-run", *members), ("recover", *members)):
        message = refused(members, *arguments)
        expect("drop-journal" in message, f"it says not what can be done: {message}")
    forced = stripelog("recover", "--dry-run", "--json", "--force=drop-journal", *members)
    expect(forced.returncode == 0 and json.loads(forced.stdout)["resync_needed"], f"{forced.stdout}{forced.stderr}")
    expect(os.path.exists(journal), "the journal")


if __name__ == "__main__":
    main(
        a_start_ends_by_a_signal,
        recover_resyncs_an_array_with_a_journal_too,
        a_dry_run_without_the_journal_is_refused_as_recover_is,
        full_log_of_data_only_stripes_makes_room_for_itself,
    )
