#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bad input: a clear message, the right exit status, and not one byte written to any device."""

import os
import struct

from harness import (KIB, MIB, Server, create, expect, expect_content, images_make, main, refused, rng_for,
                     serve_refused, stripelog, superblock_edit, superblock_field, unchanged)


def array_new(work, level=5, members=4, size=8 * MIB, prefix="m", seed=0, options=("--assume-clean",)):
    """An array with known content: (images, content)."""
    paths = images_make(work, members, size, prefix)
    create(paths, *options, level=level, chunk=64)
    with Server(paths) as server:
        handle = server.connect()
        content = rng_for("content", seed).randbytes(handle.get_size())
        for offset in range(0, len(content), 4 * MIB):
            handle.pwrite(content[offset:offset + 4 * MIB], offset)
        handle.shutdown()
    return paths, content


# --- create ---


def create_refuses_a_wrong_command_line(work):
    paths = images_make(work, 6, 8 * MIB)
    for arguments in (
            [], ["--level=5"], ["--level=0"], ["--level=1"], ["--level=10"], ["--level=five"], ["--level="],
            ["--level=5", "--no-such-option"], ["--level=5", "--metadata=0.90"], ["--level=5", "--metadata=2"],
            ["--level=5", "--layout=nonsense"], ["--level=5", "--layout=left-symmetric-6"],
            ["--level=4", "--layout=ddf-N-continue"], ["--level=5", "--raid-devices=5"],
            ["--level=5", "--raid-devices=0"], ["--level=5", "--name=" + "x" * 32]):
        members = [] if arguments == ["--level=5"] else paths[:4]
        refused(paths, "create", *arguments, *members, status=2)
    for size in ("0", "3K", "6K", "2K", "-4K", "+4K", "1.5K", "64KK", "64Q", "64 K", "", "99999999999999999999",
                 "99999999999999T", "0x40"):
        refused(paths, "create", "--level=5", f"--chunk={size}", *paths[:4], status=2)
    for size in ("-1", "1.5M", "1MM", "", "99999999999999999999K"):
        refused(paths, "create", "--level=5", f"--size={size}", *paths[:4], status=2)


def create_takes_sizes_with_any_suffix(work):
    for number, (text, sectors) in enumerate((("64", 128), ("64k", 128), ("64KiB", 128), ("65536K", 131072),
                                              ("1M", 2048), ("1mib", 2048))):
        paths = images_make(work, 4, 512 * MIB if sectors > 4096 else 16 * MIB, f"s{number}-")
        made = stripelog("create", "--level=5", f"--chunk={text}", *paths)
        expect(made.returncode == 0, f"--chunk={text}: {made.stderr}")
        expect(superblock_field(paths[0], 88, "<I") == sectors, f"--chunk={text}")


def create_refuses_too_few_members(work):
    paths = images_make(work, 6, 8 * MIB)
    for level, members in ((5, paths[:1]), (4, paths[:1]), (6, paths[:3]), (6, paths[:2])):
        refused(paths, "create", f"--level={level}", *members, status=2)
    # More missing than parity covers.
    for level, members in ((5, [paths[0], "missing", "missing"]), (5, ["missing", "missing", "missing"]),
                           (6, [paths[0], paths[1], "missing", "missing", "missing"])):
        refused(paths, "create", "--assume-clean", f"--level={level}", *members, status=2)
    # Without parity that is known good a RAID-6 cannot begin degraded.
    ended = stripelog("create", "--level=6", *paths[:4], "missing")
    expect(ended.returncode in (1, 2), "RAID-6 with a missing member and no --assume-clean")


def create_refuses_the_same_device_twice(work):
    paths = images_make(work, 4, 8 * MIB)
    link, hard = os.path.join(work, "symlink"), os.path.join(work, "hardlink")
    os.symlink(paths[0], link)
    os.link(paths[0], hard)
    for again in (paths[0], link, hard, os.path.join(work, ".", "m0")):
        refused(paths, "create", "--level=5", *paths, again)


def create_refuses_devices_that_are_no_good(work):
    paths = images_make(work, 4, 8 * MIB)
    tiny = os.path.join(work, "tiny")
    for size in (0, 512, 8 * KIB, 64 * KIB):
        with open(tiny, "wb") as image:
            image.truncate(size)
        refused(paths + [tiny], "create", "--level=5", *paths, tiny)
    refused(paths, "create", "--level=5", *paths, os.path.join(work, "absent"))
    refused(paths, "create", "--level=5", *paths, work)
    refused(paths, "create", "--level=5", *paths, "/dev/null")
    message = refused(paths, "create", "--level=5", *paths, "nbd://localhost/")
    expect("nbd" in message.lower(), f"the message does not say why: {message}")
    refused(paths, "create", "--level=5", "--size=1G", *paths)
    refused(paths, "create", "--level=5", "--chunk=64M", *paths)


def create_refuses_devices_that_carry_something(work):
    paths, _ = array_new(work)
    message = refused(paths, "create", "--level=5", *paths)
    expect("--force" in message, f"the message does not name --force: {message}")
    fresh = images_make(work, 3, 8 * MIB, "fresh")
    refused(fresh + paths[:1], "create", "--level=5", *fresh, paths[0])
    filesystem = images_make(work, 1, 8 * MIB, "fs")[0]
    with open(filesystem, "r+b") as image:
        image.seek(1024 + 56)
        image.write(b"\x53\xef")  # ext's magic
    refused(fresh + [filesystem], "create", "--level=5", *fresh, filesystem)
    made = stripelog("create", "--level=5", "--force", *fresh, filesystem)
    expect(made.returncode == 0, f"--force: {made.stderr}")


def create_refuses_a_device_in_use(work):
    paths, _ = array_new(work)
    fresh = images_make(work, 3, 8 * MIB, "fresh")
    with Server(paths):
        with unchanged(fresh):
            ended = stripelog("create", "--level=5", "--force", *fresh, paths[0])
        expect(ended.returncode == 1, f"exit {ended.returncode}")
        expect("use" in ended.stderr, ended.stderr)


# --- serve ---


def serve_refuses_a_wrong_command_line(work):
    paths, _ = array_new(work)
    with unchanged(paths):
        for options in (["--no-such-option"], ["--memory=12Q"], ["--memory=-1M"], ["--memory=1"],
                        ["--force=everything"], ["--listen=localhost:notaport"], ["--listen=127.0.0.1:99999"]):
            ended = stripelog("serve", *options, *paths)
            expect(ended.returncode == 2, f"{options}: exit {ended.returncode}\n{ended.stderr}")
            expect(ended.stderr.strip(), f"{options}: no message")
        ended = stripelog("serve")
        expect(ended.returncode == 2, "no devices")


def serve_refuses_members_of_two_arrays(work):
    one, _ = array_new(work, prefix="one")
    two, _ = array_new(work, prefix="two", seed=1)
    with unchanged(one + two):
        serve_refused(one[:3] + two[3:])
        serve_refused(one + two)
        serve_refused(one[:2] + two[:2])


def serve_refuses_the_same_device_twice(work):
    paths, _ = array_new(work)
    link = os.path.join(work, "link")
    os.symlink(paths[1], link)
    copy = os.path.join(work, "copy")
    with open(paths[1], "rb") as source, open(copy, "wb") as target:
        target.write(source.read())
    with unchanged(paths):
        serve_refused(paths + [paths[1]])
        serve_refused(paths + [link])
        serve_refused(paths + [copy])


def serve_refuses_too_few_members(work):
    five, _ = array_new(work, prefix="five")
    six, _ = array_new(work, 6, 5, prefix="six")
    with unchanged(five + six):
        for paths in (five[:2], five[:1], six[:2], six[3:]):
            message = serve_refused(paths)
            expect("member" in message or "device" in message, message)
            serve_refused(paths, "--force")
            serve_refused(paths, "--readonly")


def serve_refuses_what_is_no_member(work):
    paths, _ = array_new(work)
    blank = images_make(work, 1, 8 * MIB, "blank")[0]
    with unchanged(paths + [blank]):
        serve_refused([blank])
        serve_refused([os.path.join(work, "absent")] + paths[1:])
        serve_refused([work])
        serve_refused(["nbd://localhost/"] + paths[1:])


def a_stale_member_is_left_out_and_reported(work):
    paths, content = array_new(work)
    stale = paths[2]
    with Server([path for path in paths if path != stale]) as server:
        handle = server.connect()
        handle.pwrite(b"new" * 100000, 0)
        handle.shutdown()
    content = b"new" * 100000 + content[300000:]
    with unchanged([stale]), Server(paths) as server:
        expect_content(server.read_all(), content, "with the stale member on the command line")
        told = server.errors()
        expect(os.path.basename(stale) in told, f"the stale member is not named: {told!r}")
    with unchanged([stale]), Server(paths, "--readonly") as server:
        expect_content(server.read_all(), content, "read-only")


def wrong_superblocks_are_as_good_as_none(work):
    """The member is left out: one is a degraded start, two are too many."""
    edits = {
        "checksum": ({192: b"\x01"}, False), "magic": ({0: b"XXXX"}, True), "major version": ({4: b"\x02"}, True),
        "unknown feature": ({8: struct.pack("<I", 0x80000000)}, True), "max_dev": ({220: b"\xff\xff\xff\x7f"}, False),
        "chunk no power of two": ({88: struct.pack("<I", 100)}, True), "chunk 0": ({88: bytes(4)}, True),
        "absurd chunk": ({88: struct.pack("<I", 0x80000000)}, True), "layout": ({76: struct.pack("<I", 99)}, True),
        "size 0": ({80: bytes(8)}, True), "size past the device": ({80: struct.pack("<Q", 1 << 40)}, True),
        "data_size past the device": ({136: struct.pack("<Q", 1 << 40)}, True),
        "data_offset past the device": ({128: struct.pack("<Q", 1 << 50)}, True),
        "data_offset wraps": ({128: struct.pack("<Q", 2**64 - 8), 136: struct.pack("<Q", 16384)}, True),
        "super_offset": ({144: struct.pack("<Q", 16)}, True), "level": ({72: struct.pack("<i", 1)}, True),
        "raid_disks 0": ({92: bytes(4)}, True), "raid_disks huge": ({92: b"\xff\xff\xff\xff"}, True),
    }
    paths, content = array_new(work)
    originals = []
    for path in paths:
        with open(path, "rb") as image:
            originals.append(image.read())
    for what, (fields, good_checksum) in edits.items():
        superblock_edit(paths[1], fields, good_checksum=good_checksum)
        with unchanged(paths):
            # Either it is left out, or the array is refused with a reason; never read wrongly, never a crash.
            try:
                server = Server(paths, "--readonly")
            except Exception as refusal:  # pylint: disable=broad-except
                expect("exit 1" in str(refusal), f"{what}: {refusal}")
            else:
                with server:
                    expect_content(server.read_all(), content, what)
            ended = stripelog("examine", *paths)
            expect(ended.returncode in (0, 1), f"{what}: examine ended with {ended.returncode}")
        superblock_edit(paths[2], fields, good_checksum=good_checksum)
        with unchanged(paths):
            serve_refused(paths)
            serve_refused(paths, "--force")
        for path, original in zip(paths, originals):
            with open(path, "wb") as image:
                image.write(original)
    with Server(paths, "--readonly") as server:
        expect_content(server.read_all(), content, "at the end")


def a_truncated_member_is_left_out(work):
    paths, content = array_new(work)
    os.truncate(paths[3], 4 * MIB)
    with unchanged(paths):
        try:
            with Server(paths, "--readonly") as server:
                expect_content(server.read_all(), content, "with a truncated member")
        except Exception as refusal:  # pylint: disable=broad-except
            expect("exit 1" in str(refusal), str(refusal))


def a_device_in_use_is_refused(work):
    paths, _ = array_new(work)
    with Server(paths):
        message = serve_refused(paths)
        expect("use" in message, message)
        serve_refused(paths[1:] + paths[:1], "--readonly")
    with Server(paths, "--readonly"), Server(paths, "--readonly"):
        serve_refused(paths)


def dirty_and_degraded_is_refused_unless_forced(work):
    paths, content = array_new(work)
    for path in paths:
        superblock_edit(path, {208: bytes(8)})
    with unchanged(paths):
        message = serve_refused(paths[1:])
        expect("--force=dirty-degraded" in message, f"the way out is not named: {message}")
        serve_refused(paths[1:], "--force=stale-member")
    with Server(paths[1:], "--force=dirty-degraded") as server:
        expect_content(server.read_all(), content, "forced")


def unsupported_features_are_named(work):
    paths, _ = array_new(work)
    for bit, word in ((0x4, "reshape"), (0x400, "PPL"), (0x100, "cluster")):
        saved = superblock_field(paths[0], 8, "<I")
        for path in paths:
            superblock_edit(path, {8: struct.pack("<I", bit)})
        with unchanged(paths):
            message = serve_refused(paths)
            expect(word.lower() in message.lower(), f"{word} is not named: {message}")
        for path in paths:
            superblock_edit(path, {8: struct.pack("<I", saved)})


def an_array_with_a_journal_is_not_written(work):
    paths, content = array_new(work)
    for path in paths:
        superblock_edit(path, {8: struct.pack("<I", 0x200)})
    with unchanged(paths):
        message = serve_refused(paths)
        expect("--readonly" in message, f"the way out is not named: {message}")
        with Server(paths, "--readonly") as server:
            expect_content(server.read_all(), content, "read-only")
            expect("journal" in server.errors(), "no warning that the journal is missing")


if __name__ == "__main__":
    main(create_refuses_a_wrong_command_line, create_takes_sizes_with_any_suffix, create_refuses_too_few_members,
         create_refuses_the_same_device_twice, create_refuses_devices_that_are_no_good,
         create_refuses_devices_that_carry_something, create_refuses_a_device_in_use,
         serve_refuses_a_wrong_command_line, serve_refuses_members_of_two_arrays, serve_refuses_the_same_device_twice,
         serve_refuses_too_few_members, serve_refuses_what_is_no_member, a_stale_member_is_left_out_and_reported,
         wrong_superblocks_are_as_good_as_none, a_truncated_member_is_left_out, a_device_in_use_is_refused,
         dirty_and_degraded_is_refused_unless_forced, unsupported_features_are_named,
         an_array_with_a_journal_is_not_written)
