#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `examine` shows, its verdicts, and that it only looks."""

import json
import os
import struct
import subprocess

from harness import (MIB, TOP, Server, create, expect, images_make, main, need_program, stripelog, superblock_edit,
                     superblock_field)

GOLDEN = os.path.join(TOP, "tests", "golden", "images")


def look(*paths, status=0):
    shown = stripelog("examine", "--json", *paths)
    expect(shown.returncode == status, f"exit {shown.returncode}: {shown.stderr}")
    return json.loads(shown.stdout)


def verdict(*paths, status=0):
    arrays = look(*paths, status=status)["arrays"]
    expect(len(arrays) == 1, arrays)
    return arrays[0]


def golden(work, name):
    need_program("tar")
    need_program("xz")
    subprocess.run(["tar", "-xf", os.path.join(GOLDEN, f"{name}.tar.xz"), "-C", work], check=True)
    members = sorted(file for file in os.listdir(work) if file.startswith("d") and file.endswith(".img"))
    return [os.path.join(work, file) for file in members], os.path.join(work, "journal.img")


def events_put(path, events):
    superblock_edit(path, {200: struct.pack("<Q", events)})


def the_fields_are_those_on_disk(work):
    paths = images_make(work, 4, 24 * MIB)
    create(paths, "--name=here", level=6, chunk=128, layout="right-asymmetric")
    for role, device in enumerate(look(*paths)["devices"]):
        path = paths[role]
        for key, offset, form in (("chunk_bytes", 88, "<I"), ("data_offset_sectors", 128, "<Q"),
                                  ("data_size_sectors", 136, "<Q"), ("super_offset_sectors", 144, "<Q"),
                                  ("events", 200, "<Q"), ("dev_number", 160, "<I"), ("layout_number", 76, "<I"),
                                  ("raid_disks", 92, "<I"), ("feature_map", 8, "<I"), ("created_s", 64, "<Q")):
            value = superblock_field(path, offset, form) * (512 if key == "chunk_bytes" else 1)
            expect(device[key] == value, f"{key}: {device[key]}, not {value}")
        expect(device["device"] == path and device["usable"] and device["role_number"] == role, device)
        expect(device["role"] == f"member {role}" and device["layout"] == "right-asymmetric", device)
        expect(device["device_size_bytes"] == 24 * MIB and device["name"] == "here", device)
        expect(device["resync_offset_sectors"] == 0 and not device["clean"], device)


def human_output_has_every_device_and_a_verdict(work):
    paths = images_make(work, 3, 24 * MIB)
    create(paths, "--assume-clean")
    shown = stripelog("examine", *paths)
    expect(shown.returncode == 0 and not shown.stderr, shown.stderr)
    for path in paths:
        expect(f"{path}:" in shown.stdout, shown.stdout)
    for words in ("would start        yes", "members in sync    3 of 3", "state              clean",
                  "recovery           nothing to do"):
        expect(words in shown.stdout, f"{words!r} is not in\n{shown.stdout}")


def it_only_looks(work):
    paths = images_make(work, 4, 24 * MIB)
    create(paths)
    for path in paths:
        os.chmod(path, 0o444)
        os.utime(path, (1, 1))
    look(*paths)
    stripelog("examine", *paths)
    for path in paths:
        expect(os.stat(path).st_mtime == 1, "a modification time has changed")


def a_new_array_is_dirty_and_says_what_it_takes(work):
    paths = images_make(work, 4, 24 * MIB)
    create(paths)
    said = verdict(*paths)
    expect(said["would_start"] == "yes" and said["dirty"] and said["resync_from_bytes"] == 0, said)
    expect("resync" in said["recovery"], said)


def missing_members_are_counted(work):
    paths = images_make(work, 5, 24 * MIB)
    create(paths, "--assume-clean", level=6)
    for present in range(5, 0, -1):
        said = verdict(*paths[:present])
        expect(said["degraded"] == 5 - present, said)
        expect(said["would_start"] == ("yes" if present >= 3 else "no"), said)
        expect(present >= 3 or "missing" in said["error"], said)


def dirty_and_degraded_would_not_start(work):
    paths = images_make(work, 4, 24 * MIB)
    create(paths)
    said = verdict(*paths[1:])
    expect(said["would_start"] == "no" and said["dirty"] and said["degraded"] == 1, said)
    expect("--force=dirty-degraded" in said["error"], said)


def a_stale_member_is_named(work):
    paths = images_make(work, 4, 24 * MIB)
    create(paths, "--assume-clean")
    for path in paths[:2] + paths[3:]:
        events_put(path, 10)
    said = verdict(*paths)
    fates = {device["device"]: device for device in said["devices"]}
    expect(fates[paths[2]]["fate"] == "stale" and "10" in fates[paths[2]]["reason"], said)
    expect(said["would_start"] == "yes" and said["degraded"] == 1, said)


def two_arrays_get_a_verdict_each(work):
    one, two = images_make(work, 3, 24 * MIB, "one"), images_make(work, 4, 24 * MIB, "two")
    create(one, "--name=one", "--assume-clean")
    create(two, "--name=two", "--assume-clean", level=6)
    shown = look(*one, *two)
    expect([array["name"] for array in shown["arrays"]] == ["one", "two"], shown["arrays"])
    expect([len(array["devices"]) for array in shown["arrays"]] == [3, 4], shown["arrays"])


def a_device_without_a_superblock_is_status_1_and_the_rest_is_shown(work):
    paths = images_make(work, 3, 24 * MIB)
    create(paths, "--assume-clean")
    blank = images_make(work, 1, 24 * MIB, "blank")[0]
    tiny = os.path.join(work, "tiny")
    with open(tiny, "wb") as image:
        image.truncate(512)
    empty = os.path.join(work, "empty")
    with open(empty, "wb"):
        pass
    for bad in (blank, tiny, empty, os.path.join(work, "absent"), work, "/dev/null", "nbd://localhost/"):
        shown = stripelog("examine", "--json", bad, *paths)
        expect(shown.returncode == 1, f"{bad}: exit {shown.returncode}")
        said = json.loads(shown.stdout)
        expect(not said["devices"][0]["usable"] and said["devices"][0]["error"], said["devices"][0])
        expect(said["arrays"][0]["would_start"] == "yes", said["arrays"])
        expect(bad in shown.stderr.splitlines()[-1], f"{bad} is not named: {shown.stderr}")
        human = stripelog("examine", bad, *paths)
        expect(human.returncode == 1 and "would start        yes" in human.stdout, human.stdout)


def damage_is_told_by_field(work):
    for what, edits, good_checksum, word in (
            ("checksum", {192: b"\x01"}, False, "checksum"),
            ("chunk", {88: struct.pack("<I", 100)}, True, "chunk"),
            ("size", {80: struct.pack("<Q", 1 << 50)}, True, "size"),
            ("reshape", {8: struct.pack("<I", 4)}, True, "reshape"),
            ("unknown feature", {8: struct.pack("<I", 1 << 31)}, True, "feature"),
            ("level", {72: struct.pack("<i", 1)}, True, "RAID-1"),
            ("pad", {230: b"\x01"}, True, "pad3")):
        paths = images_make(work, 3, 24 * MIB)
        create(paths, "--force", "--assume-clean")
        superblock_edit(paths[1], edits, good_checksum=good_checksum)
        said = look(*paths, status=1)
        expect(not said["devices"][1]["usable"], what)
        expect(word in said["devices"][1]["error"], f"{what}: {said['devices'][1]['error']}")
        expect(said["arrays"][0]["degraded"] == 1, what)


def what_linux_made_before_version_1_is_named(work):
    path = images_make(work, 1, 24 * MIB)[0]
    with open(path, "r+b") as image:
        image.seek(24 * MIB - 65536)
        image.write(struct.pack("<IIII", 0xa92b4efc, 0, 90, 0))
    said = look(path, status=1)
    expect("0.90" in said["devices"][0]["error"], said)


def the_same_device_twice_would_not_start(work):
    paths = images_make(work, 3, 24 * MIB)
    create(paths, "--assume-clean")
    said = verdict(*paths, paths[1])
    expect(said["would_start"] == "no" and "same device" in said["error"], said)


def a_clean_journal_is_shown_and_starts(work):
    for name in ("raid5-clean", "raid6-clean", "raid4-clean"):
        place = os.path.join(work, name)
        os.mkdir(place)
        members, journal = golden(place, name)
        shown = look(*members, journal)
        device = shown["devices"][-1]
        expect(device["role"] == "journal", device)
        log = device["journal"]
        expect(log["valid"] and log["entries"] == 1 and log["data_blocks"] == 0, log)
        expect(log["ring_sectors"] == superblock_field(journal, 136, "<Q") // 8 * 8, log)
        expect(log["tail_sectors"] == superblock_field(journal, 152, "<Q"), log)
        said = shown["arrays"][0]
        expect(said["would_start"] == "yes" and said["journal"] == "present", said)
        expect(said["recovery"] == "nothing to do", said)
        alone = verdict(*members)
        expect(alone["would_start"] == "readonly" and alone["journal"] == "missing", alone)
        expect("journal" in alone["recovery"] and "journal" in alone["error"], alone)


def a_dirty_journal_says_what_recovery_would_do(work):
    for name in ("raid5-wb-wrapped", "raid6-wt-dirty"):
        place = os.path.join(work, name)
        os.mkdir(place)
        members, journal = golden(place, name)
        with open(os.path.join(GOLDEN, f"{name}.json"), encoding="utf-8") as facts:
            blocks = json.load(facts)["journal_log"]["data_blocks"]
        shown = look(*members, journal)
        log, said = shown["devices"][-1]["journal"], shown["arrays"][0]
        expect(log["data_blocks"] == blocks, log)
        expect(said["would_start"] == "yes", said)
        stripes = (f"{log['data_parity_stripes']} data-parity stripes", f"{log['data_only_stripes']} data-only stripes")
        expect(log["data_parity_stripes"] > 0 and all(part in said["recovery"] for part in stripes), said)
        human = stripelog("examine", *members, journal)
        expect(human.returncode == 0 and all(part in human.stdout for part in stripes), human.stdout)


def a_broken_journal_is_told_and_would_not_start(work):
    members, journal = golden(work, "raid5-clean")
    tail = superblock_field(journal, 152, "<Q")
    with open(journal, "r+b") as image:
        image.seek((superblock_field(journal, 128, "<Q") + tail) * 512 + 100)
        image.write(b"\xff")
    shown = look(*members, journal)
    log, said = shown["devices"][-1]["journal"], shown["arrays"][0]
    expect(not log["valid"] and "no journal entry" in log["error"], log)
    expect(said["would_start"] == "no" and "no journal entry" in said["error"].splitlines()[-1], said)
    expect(said["recovery"].startswith("not possible"), said)
    human = stripelog("examine", *members, journal)
    expect("would start" in human.stdout and "no journal entry" in human.stdout, human.stdout)
    superblock_edit(journal, {152: struct.pack("<Q", 1 << 40)})
    shown = look(*members, journal)
    expect("tail" in shown["devices"][-1]["journal"]["error"], shown["devices"][-1]["journal"])
    expect(shown["arrays"][0]["would_start"] == "no", shown["arrays"][0])


def an_array_in_use_can_be_examined(work):
    paths = images_make(work, 4, 24 * MIB)
    create(paths, "--assume-clean")
    with Server(paths) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 4096, 0)
        said = verdict(*paths)
        expect(said["degraded"] == 0, said)
        handle.shutdown()


if __name__ == "__main__":
    main(the_fields_are_those_on_disk, human_output_has_every_device_and_a_verdict, it_only_looks,
         a_new_array_is_dirty_and_says_what_it_takes, missing_members_are_counted, dirty_and_degraded_would_not_start,
         a_stale_member_is_named, two_arrays_get_a_verdict_each,
         a_device_without_a_superblock_is_status_1_and_the_rest_is_shown, damage_is_told_by_field,
         what_linux_made_before_version_1_is_named, the_same_device_twice_would_not_start,
         a_clean_journal_is_shown_and_starts, a_dirty_journal_says_what_recovery_would_do,
         a_broken_journal_is_told_and_would_not_start,
         an_array_in_use_can_be_examined)
