#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Journals: what `journal` and `recover` show and do, and what is refused, with not one byte written."""

import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys

from harness import (KIB, MIB, RESYNC_DONE, STRIPELOG, TOP, Server, Skip, crc32c, create, digests, expect,
                     expect_content, images_make, main, need_program, refused, resync_wait, rng_for, serve_refused,
                     stripelog, superblock_edit, superblock_field, unchanged, writes_random)

sys.path.insert(0, os.path.join(TOP, "tests", "golden"))
import golden  # pylint: disable=wrong-import-position

BLOCK = 4096
FEATURE_JOURNAL = 0x200
FIELDS = {"feature_map": (8, "<I"), "set_uuid": (16, "16s"), "data_offset": (128, "<Q"), "data_size": (136, "<Q"),
          "tail": (152, "<Q"), "dev_number": (160, "<I"), "events": (200, "<Q"), "resync_offset": (208, "<Q")}


def field(path, name):
    return superblock_field(path, *FIELDS[name])


# --- the journal on disk ---


class Ring:
    """The ring of a journal image, for looking and for damage."""

    def __init__(self, path):
        self.path = path
        self.start = field(path, "data_offset") * 512
        self.size = field(path, "data_size") // 8 * BLOCK
        self.tail = field(path, "tail") * 512
        self.seed = crc32c(0xffffffff, field(path, "set_uuid"))

    def read(self, position, length=BLOCK):
        with open(self.path, "rb") as image:
            image.seek(self.start + position)
            return bytearray(image.read(length))

    def write(self, position, data):
        with open(self.path, "r+b") as image:
            image.seek(self.start + position)
            image.write(data)

    def flip(self, position, offset=100):
        block = self.read(position)
        block[offset] ^= 0x40
        self.write(position, block)

    def meta_edit(self, position, edits):
        """Overwrite fields {offset: bytes} of a meta block and mend its checksum."""
        block = self.read(position)
        for offset, value in edits.items():
            block[offset:offset + len(value)] = value
        block[4:8] = bytes(4)
        block[4:8] = struct.pack("<I", crc32c(self.seed, block))
        self.write(position, block)


def journaled_new(work, level=5, members=4, size=8 * MIB, journal_size=8 * MIB, prefix="m", **options):
    """(members, journal) of a new array."""
    paths = images_make(work, members, size, prefix)
    journal = images_make(work, 1, journal_size, prefix + "-journal")[0]
    create(paths, "--assume-clean", f"--write-journal={journal}", level=level, **options)
    return paths, journal


def journaled_dirty(work, seed=1, writes=60, **options):
    """An array whose server was killed under load: (members, journal, content)."""
    paths, journal = journaled_new(work, **options)
    server = Server(paths + [journal])
    handle = server.connect()
    content = bytearray(handle.get_size())
    writes_random(handle, content, rng_for("journal", seed), writes)
    server.kill()
    server.discard()
    return paths, journal, content


def journal_json(*arguments, status=0):
    shown = stripelog("journal", "--json", *arguments)
    expect(shown.returncode == status, f"exit {shown.returncode}, not {status}: {shown.stderr}")
    return json.loads(shown.stdout)


def last_line(text):
    return text.strip().splitlines()[-1]


def expect_words(text, *words):
    for word in words:
        expect(word in text, f"\"{word}\" is not in: {text}")


def refused_everywhere(devices, *words):
    """serve and recover, in every way that does not force, refuse and say all of the words."""
    with unchanged(devices):
        for message in (serve_refused(devices), serve_refused(devices, "--readonly"),
                        refused(devices, "recover", *devices), refused(devices, "recover", "--dry-run", *devices)):
            expect_words(message, *words)
            expect(len(last_line(message).split(": ", 1)[-1]) > 20, f"the last line names no cause: {message}")


# --- create ---


def create_refuses_what_cannot_be_a_journal(work):
    paths = images_make(work, 4, 8 * MIB)
    small = os.path.join(work, "small")
    for size in (0, 4 * KIB, 64 * KIB, MIB, 4 * MIB, 5 * MIB - BLOCK):
        with open(small, "wb") as image:
            image.truncate(size)
        message = refused(paths + [small], "create", "--level=5", "--chunk=64K", f"--write-journal={small}", *paths)
        expect_words(message, "small")
    with open(small, "wb") as image:
        image.truncate(5 * MIB)
    made = stripelog("create", "--level=5", "--chunk=64K", "--json", f"--write-journal={small}", *paths)
    expect(made.returncode == 0, f"exactly 4 MiB of ring: {made.stderr}")
    expect(Ring(small).size == 4 * MIB, f"a ring of {Ring(small).size}")
    fresh = images_make(work, 4, 8 * MIB, "n")
    message = refused(fresh + [small], "create", "--level=5", f"--write-journal={small}", *fresh)
    expect_words(message, "--force", "already holds")
    refused(fresh, "create", "--level=5", f"--write-journal={fresh[0]}", *fresh)
    refused(fresh, "create", "--level=5", f"--write-journal={work}/absent", *fresh)
    refused(fresh, "create", "--level=5", "--write-journal=missing", *fresh)


def create_refuses_a_journal_for_more_than_203_members(work):
    paths = images_make(work, 204, 4 * MIB)
    journal = images_make(work, 1, 8 * MIB, "j")[0]
    message = refused(paths[:1] + [journal], "create", "--level=5", f"--write-journal={journal}", *paths, status=2)
    expect_words(message, "203", "journal")
    create(paths[:203], f"--write-journal={journal}")


def a_new_journal_is_one_empty_entry(work):
    paths, journal = journaled_new(work, level=6)
    for path in paths + [journal]:
        expect(field(path, "feature_map") & FEATURE_JOURNAL, f"{path}: no journal feature")
    expect(field(journal, "tail") == 0 and field(journal, "dev_number") == 4, "the journal's superblock")
    shown = journal_json(journal)
    expect(len(shown["entries"]) == 1 and shown["entries"][0]["payloads"] == [], shown["entries"])
    expect(shown["end"]["reason"] == "no-entry" and shown["recovery"]["clean"], shown)
    expect(shown["summary"]["entries_empty"] == 1, shown["summary"])


def journal_modes_are_spelt_out(work):
    paths, journal = journaled_new(work)
    with unchanged(paths + [journal]):
        serve_refused(paths + [journal], "--journal-mode=sideways", status=2)
        serve_refused(paths + [journal], "--kernel-recoverable=maybe", status=2)
        serve_refused(paths + [journal], "--readonly", "--journal-mode=write-back", status=2)
    with Server(paths + [journal], "--journal-mode=write-through"):
        pass


def write_back_wants_a_journal(work):
    paths, journal = journaled_new(work)
    with unchanged(paths + [journal]):
        message = serve_refused(paths + [journal], "--journal-mode=write-back", "--force=drop-journal")
        expect_words(last_line(message), "write-back", "journal")
    bare = images_make(work, 4, 8 * MIB, prefix="bare")
    create(bare, "--assume-clean")
    with unchanged(bare):
        message = serve_refused(bare, "--journal-mode=write-back")
        expect_words(last_line(message), "write-back", "journal")


# --- a journal that is not there ---


def an_array_without_its_journal_is_refused(work):
    paths, _, content = journaled_dirty(work)
    with unchanged(paths):
        for message in (serve_refused(paths), refused(paths, "recover", *paths)):
            expect_words(message, "--readonly", "--force=drop-journal")
            expect_words(last_line(message), "journal is missing")
        with Server(paths, "--readonly") as server:
            expect(len(server.read_all()) == len(content), "the size")
            expect_words(server.errors(), "the journal is missing")


def a_dropped_journal_costs_a_resync(work):
    paths, journal, content = journaled_dirty(work, size=24 * MIB)
    # The members alone have what is finished; recovery of a copy has it all.
    with unchanged([journal]):
        with Server(paths, "--force=drop-journal") as server:
            expect_words(server.errors(), "the journal is dropped")
            dropped = [field(path, "resync_offset") for path in paths]
            got = server.read_all()
            resync_wait(paths[0])
    expect(all(offset != RESYNC_DONE for offset in dropped), f"resync_offset right after the start: {dropped}")
    # Each aligned sector is old or new; here everything acknowledged was on the members already.
    expect_content(got, content, "after drop-journal")
    for path in paths:
        expect(not field(path, "feature_map") & FEATURE_JOURNAL, f"{path} still wants a journal")
    # Nobody takes the old journal for the array's again.
    with Server(paths + [journal]) as server:
        expect_words(server.errors(), "left out")
    expect(stripelog("recover", *paths).returncode == 0, "an array without a journal now")


def a_journal_can_be_dropped_while_it_is_there(work):
    paths, journal = journaled_new(work)
    with Server(paths + [journal], "--force=drop-journal") as server:
        expect_words(server.errors(), "dropped")
    for path in paths:
        expect(not field(path, "feature_map") & FEATURE_JOURNAL, f"{path} still wants a journal")


def dropping_the_journal_of_a_degraded_array_needs_more_force(work):
    paths, journal, _ = journaled_dirty(work)
    some = paths[1:]
    with unchanged(some + [journal]):
        message = serve_refused(some, "--force=drop-journal")
        expect_words(message, "dirty-degraded")
        serve_refused(some + [journal], "--force=drop-journal")
    with Server(some, "--force=drop-journal,dirty-degraded"):
        pass


def a_journal_of_another_array_is_refused(work):
    paths, journal = journaled_new(work)
    others, foreign = journaled_new(work, prefix="n")
    devices = paths + [foreign]
    refused_everywhere(devices, "several arrays", "m-journal0" if foreign == journal else os.path.basename(foreign))
    message = refused(devices, "journal", foreign, paths[0])
    expect_words(last_line(message), "another array")
    del others


def a_stale_journal_is_refused(work):
    paths, journal, _ = journaled_dirty(work)
    with open(journal, "rb") as image:
        old = image.read()
    expect(stripelog("recover", *paths, journal).returncode == 0, "recover")
    with open(journal, "wb") as image:
        image.write(old)
    devices = paths + [journal]
    with unchanged(devices):
        for message in (serve_refused(devices), refused(devices, "recover", *devices)):
            expect_words(message, "stale", "events", "--force=drop-journal")
        with Server(devices, "--readonly") as server:
            expect_words(server.errors(), "stale")
        shown = stripelog("journal", "--summary", *devices)
        expect_words(shown.stdout, "the array would not use it", "events")


def a_journal_that_was_struck_off_is_not_used(work):
    paths, journal = journaled_new(work)
    number = field(journal, "dev_number")
    for path in paths:
        superblock_edit(path, {256 + 2 * number: struct.pack("<H", 0xfffe),
                               200: struct.pack("<Q", field(path, "events") + 1)})
    devices = paths + [journal]
    with unchanged(devices):
        message = serve_refused(devices)
        expect_words(last_line(message), journal, "failed")
        expect_words(message, "drop-journal")


def two_journals_are_refused(work):
    paths, journal = journaled_new(work)
    copy = os.path.join(work, "copy")
    with open(journal, "rb") as source, open(copy, "wb") as target:
        target.write(source.read())
    devices = paths + [journal, copy]
    refused_everywhere(devices, "both are the journal", "leave out the copy")
    expect_words(refused(devices, "journal", journal, copy), "one journal at a time")


def a_journal_with_a_broken_superblock_counts_as_missing(work):
    paths, journal = journaled_new(work)
    devices = paths + [journal]
    good = superblock_field(journal, 0, "4096s")
    for edits, mend, words in (({0: b"\0\0\0\0"}, True, ("superblock",)), ({216: b"\1\2\3\4"}, False, ("checksum",)),
                               ({136: struct.pack("<Q", 1 << 50)}, True, ("data_size",)),
                               ({128: struct.pack("<Q", 1 << 60)}, True, ("data_offset",))):
        superblock_edit(journal, edits, good_checksum=mend)
        with unchanged(devices):
            message = serve_refused(devices)
            expect_words(last_line(message), "journal is missing", journal, *words)
            expect_words(message, "drop-journal")
            expect_words(refused(devices, "journal", journal), *words)
        superblock_edit(journal, {0: good}, good_checksum=False)
    with Server(devices):
        pass


def a_journal_in_use_is_refused(work):
    paths, journal = journaled_new(work)
    others, _ = journaled_new(work, prefix="n")
    with Server(paths + [journal]):
        for arguments in (("recover", *others, journal), ("journal", journal),
                          ("create", "--force", "--level=5", f"--write-journal={journal}", *others)):
            message = stripelog(*arguments)
            expect(message.returncode == 1, f"{arguments}: {message.returncode}")
            expect_words(last_line(message.stderr), "in use")
        expect(stripelog("examine", *paths, journal).returncode == 0, "examine beside a server")


# --- a log that is not valid ---


def a_tail_that_is_nowhere_is_refused(work):
    paths, journal, _ = journaled_dirty(work)
    devices = paths + [journal]
    ring = Ring(journal)
    for tail in (1, 7, ring.size // 512, ring.size // 512 + 8, 1 << 40, 1 << 63, (1 << 64) - 8, (1 << 64) - 1):
        superblock_edit(journal, {152: struct.pack("<Q", tail)})
        refused_everywhere(devices, "tail", str(tail), "--force=new-journal")
        with unchanged(devices):
            shown = stripelog("journal", "--json", journal)
        expect(shown.returncode == 1, shown.stderr)
        expect(json.loads(shown.stdout)["survey"]["runs"], "where the entries are is not shown")


def a_log_without_an_entry_at_its_tail_is_refused(work):
    paths, journal, content = journaled_dirty(work)
    devices = paths + [journal]
    ring = Ring(journal)
    newest = int(journal_json("--summary", journal)["summary"]["seq_next"]) - 1
    ring.flip(ring.tail)
    refused_everywhere(devices, "no journal entry at the tail", "entries of this array stand elsewhere",
                       f"number {newest}", "--force=new-journal")
    with unchanged(devices):
        shown = journal_json(journal, status=1)
        expect(shown["entries"] == [] and not shown["recovery"]["possible"], shown)
        runs = shown["survey"]["runs"]
        expect(runs and int(runs[-1]["seq_last"]) <= newest and
               any(int(run["seq_last"]) == newest for run in runs), runs)
        human = stripelog("journal", journal)
        expect(human.returncode == 1 and "meta blocks of this array" in human.stdout, human.stdout)
        expect_words(human.stderr, "--force=new-journal")
        serve_refused(devices[1:], "--force=new-journal")
    with Server(devices, "--force=new-journal") as server:
        expect_words(server.errors(), "new log")
        expect(field(paths[0], "feature_map") & FEATURE_JOURNAL, "the journal is gone")
        expect_content(server.read_all(), content, "what the members held")
        handle = server.connect()
        handle.pwrite(b"new" * 4096, 4096)
        handle.shutdown()
        resync_wait(paths[0])
    expect(journal_json("--summary", *devices)["recovery"]["clean"], "after a stop in order")
    with Server(devices):
        pass


def an_empty_ring_is_refused(work):
    paths, journal = journaled_new(work)
    ring = Ring(journal)
    ring.write(0, bytes(ring.size))
    refused_everywhere(paths + [journal], "no journal entry at the tail", "no entry of this array stands anywhere",
                       "--force=new-journal")


def an_entry_at_the_tail_that_is_not_whole_is_refused(work):
    paths, journal, _ = journaled_dirty(work)
    ring = Ring(journal)
    shown = journal_json(journal)
    first = next(entry for entry in shown["entries"] if entry["blocks"] > 0)
    superblock_edit(journal, {152: struct.pack("<Q", first["position_bytes"] // 512)})
    ring.flip((first["position_bytes"] + BLOCK) % ring.size)
    refused_everywhere(paths + [journal], "not whole", "block 0")


def an_entry_that_makes_no_sense_is_refused(work):
    paths, journal, _ = journaled_dirty(work)
    devices = paths + [journal]
    ring = Ring(journal)
    entries = [entry for entry in journal_json(journal)["entries"] if entry["blocks"] > 0]
    victim = entries[len(entries) // 2]
    position = victim["position_bytes"]
    good = ring.read(position)
    for edits in ({12: struct.pack("<I", 31)}, {12: struct.pack("<I", 4097)}, {12: struct.pack("<I", 0xffffffff)},
                  {32: struct.pack("<H", 7)}, {34: struct.pack("<H", 1)}, {36: struct.pack("<I", 0)},
                  {36: struct.pack("<I", 0xfffffff8)}, {40: struct.pack("<Q", 3)},
                  {40: struct.pack("<Q", (1 << 64) - 8)}, {12: struct.pack("<I", 40)}):
        ring.meta_edit(position, edits)
        refused_everywhere(devices, "makes no sense", str(position))
        with unchanged(devices):
            shown = journal_json(journal, status=1)
        expect(shown["entries"] and int(shown["entries"][-1]["seq"]) == int(victim["seq"]) - 1,
               "the entries before it are not shown")
        ring.write(position, good)
    expect(stripelog("recover", *devices).returncode == 0, "without the damage")


# --- what `journal` shows ---


def the_golden_journals_are_shown_as_they_are(work):
    need_program("xz")
    for name in golden.names() if hasattr(golden, "names") else golden_names():
        place = os.path.join(work, name)
        os.mkdir(place)
        subprocess.run(["tar", "-C", place, "-xSJf", os.path.join(TOP, "tests/golden/images", f"{name}.tar.xz")],
                       check=True)
        with open(os.path.join(TOP, "tests/golden/images", f"{name}.json"), encoding="utf-8") as facts:
            log = json.load(facts)["journal_log"]
        paths = sorted(os.path.join(place, file) for file in os.listdir(place))
        for path in paths:
            os.chmod(path, 0o444)
        with unchanged(paths):
            alone = journal_json(os.path.join(place, "journal.img"))
            together = journal_json(*paths)
            dry = stripelog("recover", "--dry-run", "--json", *paths)
        shown = alone["summary"]
        expect(shown["entries"] == log["meta_blocks"] == len(alone["entries"]), f"{name}: {shown}")
        expect(shown["data_blocks"] == log["data_blocks"] and shown["parity_blocks"] == log["parity_blocks"],
               f"{name}: {shown}")
        expect(alone["end"]["position_bytes"] == log["end_sector"] * 512, f"{name}: {alone['end']}")
        blocks = [block for entry in alone["entries"] for payload in entry["payloads"]
                  for block in payload.get("blocks", [])]
        expect(len(blocks) == log["data_blocks"] + log["parity_blocks"], f"{name}: {len(blocks)} blocks")
        expect(all(block["good"] for block in blocks) and all(entry["valid"] for entry in alone["entries"]), name)
        expect(alone["stripes"] == together["stripes"], f"{name}: the members make a difference")
        expect(dry.returncode == 0, f"{name}: {dry.stderr}")
        expect(json.loads(dry.stdout)["stripes"] == alone["stripes"], f"{name}: recover would do something else")
        named = {block["device"] for entry in together["entries"] for payload in entry["payloads"]
                 for block in payload.get("blocks", []) if "device" in block}
        expect(named <= set(paths), f"{name}: {named}")


def golden_names():
    names = []
    for file in sorted(os.listdir(os.path.join(TOP, "tests/golden/images"))):
        if file.endswith(".json") and file != "layouts.json":
            names.append(file[:-5])
    return names


def the_end_of_a_log_is_explained(work):
    _, journal, _ = journaled_dirty(work, journal_size=40 * MIB)  # so large that the tail does not move
    ring = Ring(journal)
    entries = journal_json(journal)["entries"]
    index = next(i for i in range(2, len(entries) - 2) if entries[i]["blocks"] > 1)
    victim = entries[index]
    position = victim["position_bytes"]
    data = (position + 2 * BLOCK) % ring.size

    ring.flip(data)
    with unchanged([journal]):
        shown = journal_json(journal)
        human = stripelog("journal", journal).stdout
    end = shown["end"]
    expect(end["reason"] == "torn-entry" and end["bad_block"] == 1, end)
    expect(end["position_bytes"] == position and end["seq_found"] == victim["seq"], end)
    behind = [entry for entry in shown["entries"] if not entry["valid"]]
    expect(len(behind) == 1 + end["entries_behind"] and end["entries_behind"] > 0, end)
    expect([block["good"] for payload in behind[0]["payloads"] for block in payload["blocks"]].index(False) == 1,
           behind[0])
    expect(len(shown["entries"]) - len(behind) == index == shown["summary"]["entries"], shown["summary"])
    expect_words(human, "BAD CHECKSUM", "is torn", "its block 1", "not part of the log")
    ring.flip(data)

    ring.flip(position)
    expect(journal_json(journal)["end"]["reason"] == "torn-meta-block", "a torn meta block")
    ring.flip(position)

    good = ring.read(position)
    ring.meta_edit(position, {16: struct.pack("<Q", int(victim["seq"]) - 50)})
    end = journal_json(journal)["end"]
    expect(end["reason"] == "old-entry" and int(end["seq_found"]) == int(victim["seq"]) - 50, end)
    ring.write(position, bytes(BLOCK))
    expect(journal_json(journal)["end"]["reason"] == "no-entry", "nothing there")
    ring.write(position, good)
    expect(len(journal_json(journal)["entries"]) == len(entries), "mended")


def what_is_no_journal_is_refused(work):
    paths, journal = journaled_new(work)
    empty = images_make(work, 1, 8 * MIB, "e")[0]
    everything = paths + [journal, empty]
    expect_words(last_line(refused(everything, "journal", paths[0])), "not a journal")
    expect_words(last_line(refused(everything, "journal", *paths)), "none of them is a journal")
    expect_words(last_line(refused(everything, "journal", empty)), "superblock")
    refused(everything, "journal", os.path.join(work, "absent"))
    refused(everything, "journal", "--no-such-option", journal, status=2)
    refused(everything, "journal", status=2)
    # It is shown beside what cannot be used, and the status says so.
    shown = stripelog("journal", journal, empty)
    expect(shown.returncode == 1 and "the log ends" in shown.stdout and empty in shown.stderr, shown.stderr)


def any_damage_is_shown_or_refused(work):
    """Random bytes in the ring, and random fields of the superblock: never a crash, never silence."""
    paths, journal, _ = journaled_dirty(work, journal_size=5 * MIB)
    with open(journal, "rb") as image:
        good = image.read()
    rng = rng_for("damage")
    ring = Ring(journal)
    for _ in range(60):
        with open(journal, "wb") as image:
            image.write(good)
        if rng.random() < 0.3:
            superblock_edit(journal, {rng.choice((8, 72, 76, 80, 88, 92, 128, 136, 152, 160)): rng.randbytes(4)})
        else:
            for _ in range(rng.randint(1, 20)):
                position = (ring.tail + BLOCK * rng.randint(0, 60)) % ring.size
                if rng.random() < 0.5 and ring.read(position, 4) == struct.pack("<I", 0x6433c509):
                    ring.meta_edit(position, {rng.choice((8, 12, 16, 24, 32, 36, 40, 48)): rng.randbytes(2)})
                else:
                    ring.flip(position, rng.randint(0, BLOCK - 1))
        with unchanged(paths + [journal]):
            for arguments in (("journal", journal), ("journal", "--json", "--survey", *paths, journal),
                              ("recover", "--dry-run", *paths, journal), ("examine", "--json", *paths, journal)):
                ended = stripelog(*arguments)
                expect(ended.returncode in (0, 1), f"{arguments[:2]}: {ended.returncode}\n{ended.stderr}")
                expect(ended.returncode == 0 or last_line(ended.stderr), f"{arguments[:2]}: no message")
                if "--json" in arguments and ended.stdout:
                    json.loads(ended.stdout)


# --- recover ---


def recover_with_nothing_to_do_is_fine(work):
    paths, journal = journaled_new(work)
    for _ in range(2):
        done = stripelog("recover", *paths, journal)
        expect(done.returncode == 0 and done.stdout.strip(), done.stderr)
    plain = images_make(work, 3, 8 * MIB, "p")
    create(plain, "--assume-clean")
    done = stripelog("recover", *plain)
    expect(done.returncode == 0 and "clean" in done.stdout, done.stdout + done.stderr)


def recover_brings_a_dirty_array_to_rest(work):
    for level in (4, 5, 6):
        place = os.path.join(work, str(level))
        os.mkdir(place)
        paths, journal, content = journaled_dirty(place, level=level, seed=level)
        devices = paths + [journal]
        with unchanged(devices):
            dry = stripelog("recover", "--dry-run", "--json", *devices)
        told = json.loads(dry.stdout)
        expect(dry.returncode == 0 and told["dry_run"] and told["stripes"], dry.stdout + dry.stderr)
        expect(len(told["stripes"]) == told["data_parity_stripes"], told["data_parity_stripes"])
        done = stripelog("recover", "--json", *reversed(devices))
        expect(done.returncode == 0, done.stderr)
        did = json.loads(done.stdout)
        expect(did["data_parity_stripes"] == told["data_parity_stripes"] and not did["dry_run"], did)
        expect(journal_json("--summary", *devices)["recovery"]["clean"], "something is left")
        for left_out in range(len(paths)):
            some = paths[:left_out] + paths[left_out + 1:]
            with Server(some + [journal], "--readonly") as server:
                expect_content(server.read_all(), content, f"RAID-{level} without member {left_out}")


def the_array_is_copied_as_recovery_would_leave_it(work):
    paths, journal, content = journaled_dirty(work)
    devices = paths + [journal]
    target = os.path.join(work, "copy")
    for path in devices:
        os.chmod(path, 0o444)
    with unchanged(devices):
        done = stripelog("recover", f"--to={target}", *devices)
        expect(done.returncode == 0, done.stderr)
        with open(target, "rb") as copy:
            expect_content(copy.read(), content, "the copy")
        message = refused(devices + [target], "recover", f"--to={target}", *devices)
        expect_words(last_line(message), target, "exists")
        refused(devices, "recover", f"--to={work}/no/such/directory", *devices)
        refused(devices, "recover", f"--to={target}2", "--dry-run", *devices, status=2)
        expect(not os.path.exists(target + "2"), "a copy where none was to be made")
        os.remove(target)
        done = stripelog("recover", f"--to={target}", *devices[1:])
        expect(done.returncode == 0, done.stderr)
        with open(target, "rb") as copy:
            expect_content(copy.read(), content, "the copy without a member")


def half_a_copy_is_removed(work):
    paths, journal, _ = journaled_dirty(work)
    target = os.path.join(work, "copy")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))

    with unchanged(paths + [journal]):
        ended = subprocess.run([STRIPELOG, "recover", f"--to={target}", *paths, journal], capture_output=True,
                               text=True, preexec_fn=limit, restore_signals=False, timeout=60, check=False)
    expect(ended.returncode == 1, f"{ended.returncode}: {ended.stderr}")
    expect_words(last_line(ended.stderr), target, "large")
    expect(not os.path.exists(target), "half a copy is left")


def recover_refuses_a_wrong_command_line(work):
    paths, journal = journaled_new(work)
    devices = paths + [journal]
    for arguments in ((), ("--no-such-option", *devices), ("--force=nonsense", *devices), ("--memory=1M", *devices),
                      ("--memory=much", *devices), ("--to", ), ("--force=new-journal,,", *devices)):
        refused(devices, "recover", *arguments, status=2)


if __name__ == "__main__":
    main(create_refuses_what_cannot_be_a_journal, create_refuses_a_journal_for_more_than_203_members,
         a_new_journal_is_one_empty_entry, journal_modes_are_spelt_out, write_back_wants_a_journal,
         an_array_without_its_journal_is_refused,
         a_dropped_journal_costs_a_resync, a_journal_can_be_dropped_while_it_is_there,
         dropping_the_journal_of_a_degraded_array_needs_more_force, a_journal_of_another_array_is_refused,
         a_stale_journal_is_refused, a_journal_that_was_struck_off_is_not_used, two_journals_are_refused,
         a_journal_with_a_broken_superblock_counts_as_missing, a_journal_in_use_is_refused,
         a_tail_that_is_nowhere_is_refused, a_log_without_an_entry_at_its_tail_is_refused, an_empty_ring_is_refused,
         an_entry_at_the_tail_that_is_not_whole_is_refused, an_entry_that_makes_no_sense_is_refused,
         the_golden_journals_are_shown_as_they_are, the_end_of_a_log_is_explained, what_is_no_journal_is_refused,
         any_damage_is_shown_or_refused, recover_with_nothing_to_do_is_fine, recover_brings_a_dirty_array_to_rest,
         the_array_is_copied_as_recovery_would_leave_it, half_a_copy_is_removed,
         recover_refuses_a_wrong_command_line)
