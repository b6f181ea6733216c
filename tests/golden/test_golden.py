#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program on arrays that the kernel made, without writing to them.

Every array is served with --readonly from images of mode 0444 and read over NBD
by nbdcopy, complete and with every member (RAID-6: every two) left out; what
comes must be what the kernel itself read from it, bit for bit. Afterwards the
images are what they were.

A dirty journal is refused for now, in words that say what it holds.

    test_golden.py [layouts | journals] [TEST ...]
"""

import itertools
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
sys.path.insert(0, HERE)

import golden  # pylint: disable=wrong-import-position
from harness import Server, expect, main, need_program, serve_refused  # pylint: disable=wrong-import-position

CASES = golden.cases()


class Images:
    """A case's images in a directory; leaving the block, they must not have changed.

    With a mode that forbids writing, not even their times may have.
    """

    def __init__(self, case, work, mode=0o444):
        self.case = case
        self.paths = case.unpack(work)
        self.is_writable = mode & 0o222 != 0
        for path in self.paths.values():
            os.chmod(path, mode)
        self.before = self.state()

    def state(self):
        return {path: (golden.digest(path), self.is_writable or os.stat(path).st_mtime_ns)
                for path in self.paths.values()}

    def given(self, missing=(), journal=True):
        """What to call serve with: the journal first and the roles backwards, for order must not matter."""
        roles = [self.paths[name] for role, name in enumerate(self.case.members) if name and role not in missing]
        extra = [self.paths[self.case.journal]] if self.case.journal and journal else []
        return extra + roles[::-1]

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _trace):
        if kind is None:
            after = self.state()
            changed = [os.path.basename(path) for path, state in self.before.items() if after[path] != state]
            expect(not changed, f"changed although nothing may write to them: {changed}")


def opened_writable(process, paths):
    """Which of the files the process has open for writing."""
    found = []
    for number in os.listdir(f"/proc/{process.pid}/fd"):
        target = os.path.realpath(f"/proc/{process.pid}/fd/{number}")
        if target not in paths:
            continue
        with open(f"/proc/{process.pid}/fdinfo/{number}", encoding="ascii") as info:
            flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            found.append(os.path.basename(target))
    return found


def served(images, missing=(), journal=True):
    """The content as nbdcopy reads it, and what the server had to say."""
    # The least memory, which is touched at start: there are hundreds of starts here.
    with Server(images.given(missing, journal), "--readonly", "--memory=64M") as server:
        writable = opened_writable(server.process, {os.path.realpath(path) for path in images.paths.values()})
        expect(not writable, f"opened for writing with --readonly: {writable}")
        content = golden.read_source(server.uri)
        said = server.errors()
    return content, said


def expect_served(images, wanted, missing=(), journal=True):
    content, said = served(images, missing, journal)
    found = golden.difference(images.case, content, wanted)
    expect(found is None, f"{images.case.name} without members {list(missing)}: {found}")
    return said


def losses(case):
    """Every set of members that may be left out of it, of those that are there; first none."""
    present = [role for role, name in enumerate(case.members) if name]
    spare = case.parities - (len(case.members) - len(present))
    return [lost for count in range(spare + 1) for lost in itertools.combinations(present, count)]


# --- one test an array ---


def reads_as_the_kernel_did(case):
    """A test that the array is read right, whoever is missing."""

    def test(work):
        need_program("nbdcopy")
        wanted = case.content()
        with Images(case, work) as images:
            for missing in losses(case):
                said = expect_served(images, wanted, missing)
                expect(not missing or "degraded" in said, f"no warning without members {list(missing)}: {said!r}")

    test.__name__ = case.name.replace("layouts/", "layout_").replace("-", "_") + "_reads_as_the_kernel_wrote_it"
    return test


def refuses_the_dirty_journal(case):
    """A test that --readonly names what the journal holds, and touches nothing."""

    def test(work):
        with Images(case, work) as images:
            message = serve_refused(images.given(), "--readonly")
            expect("journal" in message, f"it does not name the journal: {message!r}")
            blocks = case.facts["journal_log"]["data_blocks"]
            expect(re.search(rf"\bdata\b.*\b{blocks} block", message, re.I),
                   f"it does not name the {blocks} blocks of data: {message!r}")

    test.__name__ = case.name.replace("-", "_") + "_is_refused_for_its_journal"
    return test


# --- the journal and who opens it how ---


def a_clean_array_is_shown_without_its_journal_with_a_warning(work):
    need_program("nbdcopy")
    case = CASES["raid5-clean"]
    with Images(case, work) as images:
        said = expect_served(images, case.content(), journal=False)
        expect("journal" in said, f"no warning about the journal: {said!r}")


def a_dirty_array_is_shown_as_its_members_are_without_its_journal(work):
    need_program("nbdcopy")
    case = CASES["raid5-wb-dirty"]
    with Images(case, work) as images:
        content, said = served(images, journal=False)
        expect(len(content) == case.array_bytes, f"{len(content)} bytes, not {case.array_bytes}")
        expect(content != case.content(), "this case was chosen for data that is in the journal alone")
        expect("journal" in said, f"no warning about the journal: {said!r}")


def a_journaled_array_is_not_served_for_writing(work):
    with Images(CASES["raid5-clean"], work, mode=0o644) as images:
        message = serve_refused(images.given())
        expect("readonly" in message, f"it does not say what would work: {message!r}")


def tests():
    """By part: "layouts" has no journals."""
    layouts = [reads_as_the_kernel_did(case) for case in CASES.values() if case.is_layout]
    journals = []
    for case in CASES.values():
        if case.name.endswith("-clean"):
            journals.append(reads_as_the_kernel_did(case))
        elif not case.is_layout:
            journals.append(refuses_the_dirty_journal(case))
    journals += [
        a_clean_array_is_shown_without_its_journal_with_a_warning,
        a_dirty_array_is_shown_as_its_members_are_without_its_journal,
        a_journaled_array_is_not_served_for_writing,
    ]
    return {"layouts": layouts, "journals": journals}


if __name__ == "__main__":
    parts = tests()
    if len(sys.argv) > 1 and sys.argv[1] in parts:
        main(*parts[sys.argv.pop(1)])
    main(*itertools.chain(*parts.values()))
