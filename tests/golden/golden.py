#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The arrays that the kernel made: unpack them, and what they must contain.

    golden.py list
    golden.py unpack CASE DIRECTORY
    golden.py expect CASE [FILE]
    golden.py compare CASE FILE-OR-URI

README.md beside this file describes the images. Needs tar and xz; an NBD export
is read with nbdcopy.
"""

import argparse
import functools
import hashlib
import json
import os
import struct
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
IMAGES = os.path.join(HERE, "images")
SECTOR = 512
BLOCK = 4096
PIECE = 1 << 20


class GoldenError(Exception):
    """The images are not what their JSON says, or the content is not what it must be."""


class Case:
    """One array: where its images are, and its content."""

    def __init__(self, name, archive, facts):
        self.name = name
        self.archive = os.path.join(IMAGES, archive + ".tar.xz")
        self.facts = facts
        self.level = facts["level"]
        self.array_bytes = facts["array_bytes"]
        self.members = facts["members"]  # by role; None: not in the archive
        self.journal = facts.get("journal")
        self.is_layout = archive == "layouts"
        self.sha256 = facts["sha256"] if self.is_layout else facts["kernel"]["sha256"]

    @property
    def files(self):
        """Every image that belongs to the array, data members first."""
        return [name for name in self.members if name] + ([self.journal] if self.journal else [])

    @property
    def parities(self):
        return 2 if self.level == 6 else 1

    @functools.lru_cache(maxsize=1)
    def content(self):
        """What the array must read as."""
        made = content_of_numbers(self.array_bytes) if self.is_layout else content_of_writes(self.facts)
        if hashlib.sha256(made).hexdigest() != self.sha256:
            raise GoldenError(f"{self.name}: the content that its JSON describes has another sum than the JSON says")
        return made

    def broken_promises(self, content):
        """The sectors that hold neither their last durable write nor one sent later, whatever the kernel read there.

        By the `fills` and `writes` of the JSON, for an array with a journal: {sector: seeds it may hold}.
        """
        allowed = {}
        sent = [(seed, offset, length, "durable") for seed, offset, length in self.facts["fills"]]
        sent += [write[1:] for write in self.facts["writes"] if write[0] != "flush" and write[4] != "unsent"]
        for seed, offset, length, state in sent:
            for sector in range(offset // SECTOR, (offset + length) // SECTOR):
                if state == "durable":
                    allowed[sector] = [seed]
                else:
                    allowed.setdefault(sector, [0]).append(seed)
        broken = {}
        for sector in range(self.array_bytes // SECTOR):
            seeds = allowed.get(sector, [0])
            if content[sector * SECTOR:(sector + 1) * SECTOR] not in [written(sector, seed) for seed in seeds]:
                broken[sector] = seeds
        return broken

    def unpack(self, directory):
        """The images' paths by file name; only this array's are unpacked. Their sums are verified, where there are."""
        # --occurrence lets tar stop at the last of them.
        subprocess.run(["tar", "--occurrence=1", "-C", directory, "-xSJf", self.archive, *self.files],
                       check=True)
        paths = {name: os.path.join(directory, name) for name in self.files}
        self.verify(paths)
        return paths

    def verify(self, paths):
        for name, wanted in self.facts.get("images_sha256", {}).items():
            if digest(paths[name]) != wanted:
                raise GoldenError(f"{paths[name]}: not the image that the JSON describes")


def content_of_numbers(size):
    """Each block is 512 times its number."""
    return b"".join(struct.pack("<Q", number) * (BLOCK // 8) for number in range(size // BLOCK))


def written(sector, seed):
    """What write number `seed` puts into a sector; 0: nobody wrote."""
    return struct.pack("<QQ", sector, seed) * (SECTOR // 16) if seed else bytes(SECTOR)


def content_of_writes(facts):
    """Each sector is 32 times its own number and the seed of its last write; seed 0 is zeros."""
    pieces = []
    expected_next = 0
    for first, count, seed in facts["content"]:
        if first != expected_next:
            raise GoldenError(f"{facts['name']}: the content has a hole at sector {expected_next}")
        expected_next = first + count
        pieces.extend(written(sector, seed) for sector in range(first, first + count))
    if expected_next * SECTOR != facts["array_bytes"]:
        raise GoldenError(f"{facts['name']}: the content ends at sector {expected_next}")
    return b"".join(pieces)


def cases():
    """All cases by name, in the order of their names; an array of `layouts` is layouts/NAME."""
    found = {}
    for entry in sorted(os.listdir(IMAGES)):
        if not entry.endswith(".json"):
            continue
        archive = entry[:-len(".json")]
        with open(os.path.join(IMAGES, entry), encoding="utf-8") as source:
            facts = json.load(source)
        for array in facts.get("arrays", [facts]):
            name = archive if array is facts else f"{archive}/{array['name']}"
            found[name] = Case(name, archive, array)
    return found


def digest(path):
    with open(path, "rb", buffering=0) as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def difference(case_, got, wanted):
    """Words for the first place where `got` is not `wanted`; None if nowhere."""
    if got == wanted:
        return None
    if len(got) != len(wanted):
        return f"{len(got)} bytes, not {len(wanted)}"
    unit = BLOCK if case_.is_layout else SECTOR
    wrong = [at for at in range(0, len(wanted), unit) if got[at:at + unit] != wanted[at:at + unit]]
    at = wrong[0]
    found = struct.unpack_from("<QQ", got, at)
    meant = struct.unpack_from("<QQ", wanted, at)
    if case_.is_layout:
        told = f"it holds {found[0]} instead of {meant[0]}"
    else:
        told = f"it holds sector {found[0]} seed {found[1]} instead of sector {meant[0]} seed {meant[1]}"
    return f"{len(wrong)} units of {unit} bytes differ, the first at byte {at}: {told}"


def read_source(source):
    """All of a file, or of an NBD export."""
    if "://" in source:
        return subprocess.run(["nbdcopy", "--", source, "-"], check=True, stdout=subprocess.PIPE).stdout
    with open(source, "rb") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description="the arrays that the kernel made")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="the cases")
    verb = verbs.add_parser("unpack", help="a case's images, checked against their sums")
    verb.add_argument("case")
    verb.add_argument("directory")
    verb = verbs.add_parser("expect", help="the content that a case must have")
    verb.add_argument("case")
    verb.add_argument("file", nargs="?")
    verb = verbs.add_parser("compare", help="a file or an NBD export against a case's content")
    verb.add_argument("case")
    verb.add_argument("source", metavar="FILE-OR-URI")
    arguments = parser.parse_args()

    known = cases()
    if arguments.verb == "list":
        for name, case_ in known.items():
            print(f"{name}: RAID-{case_.level}, {case_.facts['layout']}, {case_.facts.get('ended', 'clean stop')}")
        return 0
    if arguments.case not in known:
        parser.error(f"no case {arguments.case}; `list` names them")
    case_ = known[arguments.case]
    try:
        if arguments.verb == "unpack":
            os.makedirs(arguments.directory, exist_ok=True)
            for path in case_.unpack(arguments.directory).values():
                print(path)
        elif arguments.verb == "expect":
            with open(arguments.file, "wb") if arguments.file else sys.stdout.buffer as out:
                out.write(case_.content())
        else:
            found = difference(case_, read_source(arguments.source), case_.content())
            if found:
                raise GoldenError(f"{arguments.source} is not {case_.name}: {found}")
            print(f"{arguments.source}: {case_.array_bytes} bytes, as the kernel reads them")
    except (GoldenError, OSError, subprocess.CalledProcessError) as error:
        print(f"golden.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
