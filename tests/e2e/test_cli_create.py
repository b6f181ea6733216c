#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `create` writes, and what it leaves alone, on image files."""

import json
import os
import re
import subprocess

from harness import (KIB, LAYOUTS_5, LAYOUTS_6, MIB, RESYNC_DONE, create, digests, expect, images_make, main,
                     need_program, resync_offset, rng_for, stripelog, superblock_field, superblock_offset)


def mdadm_examine(path):
    """mdadm's view: its lines as a dictionary."""
    shown = subprocess.run(["mdadm", "--examine", path], capture_output=True, text=True, check=False)
    expect(shown.returncode == 0, f"mdadm: {shown.stderr}")
    return dict(line.strip().split(" : ", 1) for line in shown.stdout.splitlines() if " : " in line)


def examine_json(*paths):
    shown = stripelog("examine", "--json", *paths)
    expect(shown.returncode == 0, shown.stderr)
    return json.loads(shown.stdout)


def mdadm_reads_what_create_writes(work):
    need_program("mdadm")
    number = 0
    kinds = [(4, None), *((5, name) for name in LAYOUTS_5), *((6, name) for name in LAYOUTS_6)]
    for level, layout in kinds:
        for metadata in ("1.0", "1.1", "1.2"):
            chunk = (4, 64, 512, 1024)[number % 4]
            members = 4 + number % 3
            number += 1
            paths = images_make(work, members, 24 * MIB)
            create(paths, "--name=box:x", "--force", level=level, chunk=chunk, layout=layout, metadata=metadata)
            ours = examine_json(*paths)["devices"]
            for role, path in enumerate(paths):
                said = mdadm_examine(path)
                expect(said["Raid Level"] == f"raid{level}", said)
                expect(said["Raid Devices"] == str(members), said)
                expect(said["Chunk Size"] == f"{chunk}K", said)
                expect(layout is None or said["Layout"] == layout, said)
                expect(said["Version"] == metadata, said)
                expect(said["Name"].split()[0] == "box:x", said)
                expect(said["Device Role"] == f"Active device {role}", said)
                expect(said["Array State"].startswith("A" * members), said)
                expect("correct" in said["Checksum"], said)
                expect(said["State"] == "active", said)
                expect(said["Array UUID"] == ours[role]["uuid"], said)
                expect(said["Device UUID"] == ours[role]["device_uuid"], said)
                expect(said["Events"] == "0", said)
                expect(said["Array Size"].startswith(f"{ours[role]['array_size_bytes'] // KIB} KiB"), said)


def an_empty_bad_block_log_is_written(work):
    for metadata in ("1.0", "1.1", "1.2"):
        paths = images_make(work, 4, 24 * MIB, garbage=rng_for("bad blocks", metadata))
        create(paths, "--force", metadata=metadata)
        for path in paths:
            place = superblock_offset(path, metadata) + 512 * superblock_field(path, 188, "<i", metadata)
            with open(path, "rb") as image:
                image.seek(place)
                expect(image.read(4096) == b"\xff" * 4096, f"{metadata}: no empty log at {place}")


def nothing_but_metadata_is_touched(work):
    for metadata in ("1.0", "1.1", "1.2"):
        paths = images_make(work, 4, 24 * MIB, garbage=rng_for("untouched", metadata))
        before = [open(path, "rb").read() for path in paths]
        create(paths, "--force", "--assume-clean", metadata=metadata)
        for path, was in zip(paths, before):
            place = superblock_offset(path, metadata)
            logs = place + 512 * superblock_field(path, 188, "<i", metadata)
            with open(path, "rb") as image:
                now = image.read()
            expect(len(now) == len(was), "another size")
            for block in range(0, len(now), 4096):
                if block not in (place, logs):
                    expect(now[block:block + 4096] == was[block:block + 4096], f"{metadata}: byte {block} has changed")


def old_superblocks_at_the_other_places_go(work):
    need_program("mdadm")
    paths = images_make(work, 4, 24 * MIB)
    for old in ("1.0", "1.1", "1.2"):
        for new in ("1.0", "1.1", "1.2"):
            create(paths, "--force", metadata=old)
            create(paths, "--force", f"--name={old}-{new}".replace(".", "_"), metadata=new)
            shown = examine_json(*paths)["devices"]
            expect(all(device["metadata"] == new for device in shown), f"{new} over {old}")
            for place in {"1.0", "1.1", "1.2"} - {new}:
                for path in paths:
                    with open(path, "rb") as image:
                        image.seek(superblock_offset(path, place))
                        expect(image.read(4) != b"\xfc\x4e\x2b\xa9", f"{place} is left beside {new}")
            expect(mdadm_examine(paths[0])["Version"] == new, f"mdadm sees another than {new}")


def members_are_in_sync_only_when_parity_is_known(work):
    for level, options, missing, wanted in ((4, (), 0, 0), (5, (), 0, 0), (6, (), 0, 0),
                                            (5, ("--assume-clean",), 0, RESYNC_DONE), (5, (), 1, RESYNC_DONE),
                                            (4, (), 1, RESYNC_DONE), (6, ("--assume-clean",), 2, RESYNC_DONE)):
        paths = images_make(work, 5, 24 * MIB)
        create(paths[:5 - missing] + ["missing"] * missing, "--force", *options, level=level)
        for path in paths[:5 - missing]:
            expect(resync_offset(path) == wanted, f"raid{level} {options} {missing} missing")


def missing_may_stand_anywhere(work):
    for place in range(4):
        paths = images_make(work, 4, 24 * MIB)
        create(paths[:place] + ["missing"] + paths[place + 1:], "--force")
        given = [path for i, path in enumerate(paths) if i != place]
        shown = examine_json(*given)
        roles = [device["role_number"] for device in shown["devices"]]
        expect(roles == [i for i in range(4) if i != place], roles)
        verdict = shown["arrays"][0]
        expect(verdict["would_start"] == "yes" and verdict["degraded"] == 1 and not verdict["dirty"], verdict)
        expect(not os.path.exists("missing"), "a file named missing was made")


def json_says_what_was_made(work):
    paths = images_make(work, 5, 24 * MIB)
    made = stripelog("create", "--json", "--level=6", "--chunk=64", "--name=photos", *paths)
    expect(made.returncode == 0, made.stderr)
    said = json.loads(made.stdout)
    expect(said["name"] == "photos" and said["level"] == 6 and said["layout"] == "left-symmetric", said)
    expect(said["chunk_bytes"] == 64 * KIB and said["size_bytes"] == 3 * said["member_size_bytes"], said)
    expect(said["devices"] == paths and said["resync_needed"] and not said["degraded"], said)
    expect(re.fullmatch(r"([0-9a-f]{8}:){3}[0-9a-f]{8}", said["uuid"]), said)


def the_uuid_can_be_given_in_either_form(work):
    for text in ("01234567-89ab-cdef-0123-456789abcdef", "01234567:89ABCDEF:01234567:89abcdef",
                 "0123456789abcdef0123456789abcdef"):
        paths = images_make(work, 3, 24 * MIB)
        create(paths, "--force", f"--uuid={text}")
        shown = examine_json(*paths)["arrays"][0]
        expect(shown["uuid"] == "01234567:89abcdef:01234567:89abcdef", shown)
        expect(shown["name"] == "01234567", shown)
    for text in ("", "0123", "01234567-89ab-cdef-0123-456789abcdeg", "0123456789abcdef0123456789abcdef0", "x" * 32):
        refused = stripelog("create", "--force", "--level=5", f"--uuid={text}", *paths)
        expect(refused.returncode == 2, f"{text!r}: exit {refused.returncode}")


def two_creates_give_two_arrays(work):
    paths = images_make(work, 6, 24 * MIB)
    create(paths[:3])
    create(paths[3:])
    shown = examine_json(*paths)
    expect(len(shown["arrays"]) == 2, shown["arrays"])
    expect(len({device["device_uuid"] for device in shown["devices"]}) == 6, "device UUIDs are not unique")


def raid_devices_must_agree(work):
    paths = images_make(work, 4, 24 * MIB)
    before = digests(paths)
    for count in ("3", "5", "0", "-1", "x", "4.0", "4K", "99999999999999999999"):
        refused = stripelog("create", "--level=5", f"--raid-devices={count}", *paths)
        expect(refused.returncode == 2, f"{count}: exit {refused.returncode}")
    expect(digests(paths) == before, "something was written")
    create(paths, "--raid-devices=4")


def many_members(work):
    paths = images_make(work, 130, 8 * MIB)
    create(paths, level=6)
    shown = examine_json(*paths)["arrays"][0]
    expect(shown["would_start"] == "yes" and shown["members"] == 130, shown)


def output_to_a_full_device_is_an_error(work):
    paths = images_make(work, 3, 24 * MIB)
    with open("/dev/full", "w", encoding="ascii") as full:
        made = subprocess.run([os.environ.get("STRIPELOG", "build/plain/stripelog"), "create", "--level=5", *paths],
                              stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    expect(made.returncode == 1 and "standard output" in made.stderr, f"{made.returncode} {made.stderr}")


if __name__ == "__main__":
    main(mdadm_reads_what_create_writes, an_empty_bad_block_log_is_written, nothing_but_metadata_is_touched,
         old_superblocks_at_the_other_places_go, members_are_in_sync_only_when_parity_is_known,
         missing_may_stand_anywhere, json_says_what_was_made, the_uuid_can_be_given_in_either_form,
         two_creates_give_two_arrays, raid_devices_must_agree, many_members, output_to_a_full_device_is_an_error)
