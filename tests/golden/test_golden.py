#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program on arrays that the kernel made, cleanly stopped or with a journal that it left full.

Every array is served with --readonly from images of mode 0444 and read over NBD
by nbdcopy, complete and with every member (RAID-6: every two) left out; what
comes must be what the kernel itself read from it, after its own recovery, bit
for bit. Afterwards the images are what they were.

Copies of those with a journal are then recovered, by `recover` and by `serve`,
complete and with each member left out, with the same result; and read once more
with every member left out, so that each block of parity is used. Those that the
kernel left in write-back mode also go live in the cache of a server that is killed.

    test_golden.py [layouts | shown | recovered] [TEST ...]
"""

import atexit
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
sys.path.insert(0, HERE)

import golden  # pylint: disable=wrong-import-position
from harness import (MEMORY, WRITE_BACK, Server, expect, expect_content, main,  # pylint: disable=wrong-import-position
                     need_program, rng_for, serve_refused, stripelog, writes_random)

CASES = golden.cases()
LAYOUTS = [case for case in CASES.values() if case.is_layout]
JOURNALED = [case for case in CASES.values() if not case.is_layout]
# Where a member's data begins, in the arrays with a journal: what lies before is superblocks.
DATA_OFFSET = 1 << 20
MEMORY_FILES_MIN = 3 << 30


class Images:
    """A case's images in a directory; leaving the block, they must not have changed.

    With a mode that forbids writing, nothing may have been written, not even what was there.
    """

    def __init__(self, case, work, mode=0o444):
        self.case = case
        self.paths = layouts_unpacked(case) if case.is_layout else case.unpack(work)
        self.is_writable = mode & 0o222 != 0
        for path in self.paths.values():
            os.chmod(path, mode)
        self.before = self.state()

    def state(self):
        # The time of the last write is the archive's.
        return {name: golden.digest(path) if self.is_writable else os.stat(path).st_mtime_ns
                for name, path in self.paths.items()}

    def given(self, missing=(), journal=True):
        return devices(self.case, self.paths, missing, journal)

    def copy(self, work, name):
        """A copy to write to, sparse as the images are: paths by file name."""
        folder = os.path.join(work, name)
        os.mkdir(folder)
        paths = {}
        for image, path in self.paths.items():
            paths[image] = os.path.join(folder, image)
            copy_sparse(path, paths[image])
        return paths

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _trace):
        if kind is None:
            after = self.state()
            changed = [name for name, state in self.before.items() if after[name] != state]
            expect(not changed, f"changed although nothing may write to them: {changed}")


@functools.cache
def layouts_folder():
    """All arrays of `layouts`, unpacked at once: to find one, the whole archive has to be read."""
    folder = tempfile.TemporaryDirectory(prefix="stripelog-layouts-")
    atexit.register(folder.cleanup)
    subprocess.run(["tar", "-C", folder.name, "-xSJf", next(iter(LAYOUTS)).archive], check=True)
    return folder.name


def layouts_unpacked(case):
    paths = {name: os.path.join(layouts_folder(), name) for name in case.files}
    return paths


def copy_sparse(source, target):
    zeros = bytes(golden.PIECE)
    with open(source, "rb") as old, open(target, "wb") as new:
        while piece := old.read(golden.PIECE):
            if piece == zeros[:len(piece)]:
                new.seek(len(piece), os.SEEK_CUR)
            else:
                new.write(piece)
        new.truncate(old.tell())


def devices(case, paths, missing=(), journal=True):
    """What to call the program with: the journal first and the roles backwards, for order must not matter."""
    roles = [paths[name] for role, name in enumerate(case.members) if name and role not in missing]
    extra = [paths[case.journal]] if case.journal and journal else []
    return extra + roles[::-1]


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


def shown(given, *options):
    """The content as nbdcopy reads it with --readonly, and what the server had to say."""
    with Server(given, "--readonly", *options) as server:
        writable = opened_writable(server.process, {os.path.realpath(path) for path in given})
        expect(not writable, f"opened for writing with --readonly: {writable}")
        content = golden.read_source(server.uri)
        said = server.errors()
    return content, said


def expect_shown(case, wanted, given, what, *options):
    content, said = shown(given, *options)
    found = golden.difference(case, content, wanted)
    expect(found is None, f"{case.name}, {what}: {found}")
    return said


def losses(case):
    """Every set of members that may be left out of it, of those that are there; first none."""
    present = [role for role, name in enumerate(case.members) if name]
    spare = case.parities - (len(case.members) - len(present))
    return [lost for count in range(spare + 1) for lost in itertools.combinations(present, count)]


def losses_for_parity(case):
    """Sets of members without which every block of parity is needed, and says whether it is right.

    P and Q of RAID-6 stand next to each other: of the pairs of neighbours there is for each stripe one of data alone.
    """
    count = len(case.members)
    if None in case.members:
        return losses(case)[1:]
    return [tuple((role + i) % count for i in range(case.parities)) for role in range(count)]


def demanded(case, content):
    """What the array must read as, given what it does read as.

    That is what the kernel read, where the kernel kept its promises. Where it
    lost durable data, the content is judged by the manifest, and is then what
    all other views have to agree with.
    """
    if not case.facts.get("problems"):
        return case.content()
    broken = case.broken_promises(content)
    expect(not broken, f"{case.name}: {len(broken)} sectors have lost a durable write, the first "
                       f"{next(iter(broken.items()), None)}")
    return content


def test_named(function, case, name):
    function.__name__ = case.name.replace("layouts/", "layout_").replace("-", "_") + "_" + name
    return function


# --- one test an array ---


def reads_as_the_kernel_did(case):
    """A test that the array is read right, whoever is missing, and left alone."""

    def test(work):
        need_program("nbdcopy")
        with Images(case, work) as images:
            content = shown(images.given())[0]
            wanted = demanded(case, content)
            for missing in losses(case):
                what = f"without members {list(missing)}"
                said = expect_shown(case, wanted, images.given(missing), what)
                expect(not missing or "degraded" in said, f"no warning {what}: {said!r}")

    return test_named(test, case, "reads_as_the_kernel_wrote_it" if case.is_layout else "reads_as_recovered")


def leaves_the_originals_alone(case):
    """A test that --dry-run says what is to be done, --to has the content, and neither writes."""

    def test(work):
        target = os.path.join(work, "content")
        with Images(case, work) as images:
            ended = stripelog("recover", "--dry-run", "--json", *images.given())
            expect(ended.returncode == 0, ended.stderr)
            told = json.loads(ended.stdout)
            recovered = [line for line in case.facts["kernel"]["dmesg"] if "data-only stripes" in line]
            counts = [int(word) for line in recovered for word in line.split("recovering ")[1].split() if word.isdigit()]
            expect(told["data_only_stripes"] == (counts or [0])[0],
                   f"{told['data_only_stripes']} data-only stripes, the kernel found {counts}")
            expect(len(told["stripes"]) >= told["data_only_stripes"], "not every stripe is told")
            for missing in losses(case)[:2]:
                ended = stripelog("recover", f"--to={target}", *images.given(missing))
                expect(ended.returncode == 0, ended.stderr)
                content = golden.read_source(target)
                os.unlink(target)
                found = golden.difference(case, content, demanded(case, content))
                expect(found is None, f"--to without members {list(missing)}: {found}")

    return test_named(test, case, "recover_leaves_the_originals_alone")


def data_sums(paths, names):
    """Of what stands behind the superblocks."""
    sums = {}
    for name in names:
        with open(paths[name], "rb", buffering=0) as image:
            image.seek(DATA_OFFSET)
            sums[name] = hashlib.file_digest(image, "sha256").hexdigest()
    return sums


def recovered(given):
    ended = stripelog("recover", MEMORY, *given)
    expect(ended.returncode == 0, f"recover: {ended.returncode}\n{ended.stderr}")


def expect_members_shown(case, wanted, paths, missing):
    """That what was recovered is in the members: read without the journal, which may be in doubt then."""
    options = ["--force=dirty-degraded"] if missing or None in case.members else []
    expect_shown(case, wanted, devices(case, paths, missing, journal=False),
                 f"recovered without members {list(missing)}, read without the journal", *options)


def recovers_as_the_kernel_did(case):
    """A test that `recover` leaves the right content with right parity, twice the same, and `serve` the same."""

    def test(work):
        need_program("nbdcopy")
        members = [name for name in case.members if name]
        with Images(case, work) as images:
            paths = images.copy(work, "recovered")
            recovered(devices(case, paths))
            once = data_sums(paths, members)
            wanted = demanded(case, shown(devices(case, paths))[0])
            for missing in losses_for_parity(case):
                expect_shown(case, wanted, devices(case, paths, missing), f"recovered, then without {list(missing)}")
            expect_members_shown(case, wanted, paths, ())
            recovered(devices(case, paths))
            expect(data_sums(paths, members) == once, "a second recovery changed the members")

            paths = images.copy(work, "served")
            with Server(devices(case, paths)) as server:
                found = golden.difference(case, golden.read_source(server.uri), wanted)
                expect(found is None, f"served: {found}")
            expect(data_sums(paths, members) == once, "`serve` recovered the members to something else")

    return test_named(test, case, "recovers_as_the_kernel_did")


def recovers_without_each_member(case):
    """A test that a degraded recovery leaves the same content, in the members alone."""

    def test(work):
        need_program("nbdcopy")
        with Images(case, work) as images:
            wanted = demanded(case, shown(images.given())[0])
            for missing in losses_for_parity(case):
                paths = images.copy(work, "recovered")
                recovered(devices(case, paths, missing))
                expect_members_shown(case, wanted, paths, missing)
                shutil.rmtree(os.path.join(work, "recovered"))

    return test_named(test, case, "recovers_without_each_member")


def goes_live_in_the_cache(case):
    """A test that `serve` in write-back reads right; and so does what it leaves when it is killed, recovered or not."""

    def test(work):
        need_program("nbdcopy")
        with Images(case, work) as images:
            paths = images.copy(work, "cached")
            given = devices(case, paths)
            server = Server(given, WRITE_BACK)
            try:
                content = golden.read_source(server.uri)
                wanted = demanded(case, content)
                found = golden.difference(case, content, wanted)
                expect(found is None, f"served in write-back: {found}")
            finally:
                server.kill()
                server.discard()
            for missing in losses(case)[:2]:
                expect_shown(case, wanted, devices(case, paths, missing), f"killed, then without {list(missing)}")
            recovered(given)
            for missing in losses_for_parity(case):
                expect_shown(case, wanted, devices(case, paths, missing), f"recovered, then without {list(missing)}")

    return test_named(test, case, "goes_live_in_the_cache")


# --- the judge, the journal, and who opens it how ---


def the_manifests_judge_the_kernel_as_their_problems_say(_work):
    for case in JOURNALED:
        broken = case.broken_promises(case.content())
        said = [int(problem.split()[0]) for problem in case.facts["problems"]]
        expect(len(broken) == sum(said), f"{case.name}: {len(broken)} sectors, {said} were found when it was made")


def a_clean_array_is_shown_without_its_journal_with_a_warning(work):
    need_program("nbdcopy")
    case = CASES["raid5-clean"]
    with Images(case, work) as images:
        said = expect_shown(case, case.content(), images.given(journal=False), "without its journal")
        expect("journal" in said, f"no warning about the journal: {said!r}")


def a_dirty_array_is_shown_as_its_members_are_without_its_journal(work):
    need_program("nbdcopy")
    case = CASES["raid5-wb-dirty"]
    with Images(case, work) as images:
        content, said = shown(images.given(journal=False))
        expect(len(content) == case.array_bytes, f"{len(content)} bytes, not {case.array_bytes}")
        expect(content != case.content(), "this case was chosen for data that is in the journal alone")
        expect("journal" in said, f"no warning about the journal: {said!r}")


def a_journaled_array_is_not_written_without_its_journal(work):
    for name in ("raid5-clean", "raid5-wb-dirty"):
        folder = os.path.join(work, name)
        os.mkdir(folder)
        with Images(CASES[name], folder, mode=0o644) as images:
            message = serve_refused(images.given(journal=False))
            expect("journal" in message, f"it does not name the journal: {message!r}")
            expect("drop-journal" in message, f"it does not say what would work: {message!r}")


def a_recovered_array_takes_writes_through_its_journal(work):
    need_program("nbdcopy")
    for name in ("raid5-wb-wrapped", "raid6-wb-dirty"):
        case = CASES[name]
        with Images(case, work) as images:
            paths = images.copy(work, name)
            model = bytearray(case.content())
            with Server(devices(case, paths)) as server:
                handle = server.connect()
                writes_random(handle, model, rng_for(name), 200)
                handle.shutdown()
            for missing in [(), *losses_for_parity(case)]:
                expect_shown(case, bytes(model), devices(case, paths, missing), f"written, then without {missing}")


def raid6_left_dirty_in_write_back_does_without_two(work):
    """The kernel's own recovery never finishes then.

    Asked for write-back, it is served in write-through, and says so.
    """
    need_program("nbdcopy")
    case = CASES["raid6-wb-dirty"]
    wanted = case.content()
    with Images(case, work) as images:
        count = len(case.members)
        for role in range(count):
            missing = (role, (role + 2) % count)
            paths = images.copy(work, "two-missing")
            model = bytearray(wanted)
            with Server(devices(case, paths, missing), WRITE_BACK) as server:
                expect_content(golden.read_source(server.uri), wanted, f"served without members {missing}")
                told = json.loads(stripelog("status", "--json", server.control).stdout)["journal"]
                expect((told["mode"], told["mode_wanted"]) == ("write-through", "write-back"), f"status says {told}")
                handle = server.connect()
                writes_random(handle, model, rng_for(*missing), 30)
                handle.shutdown()
                expect_content(golden.read_source(server.uri), model, f"written without members {missing}")
            expect_content(shown(devices(case, paths, missing))[0], model, f"written and stopped without {missing}")
            shutil.rmtree(os.path.join(work, "two-missing"))


def tests():
    """By part: "layouts" has no journals. An array's tests stand together, for the sake of its content."""
    layouts = [reads_as_the_kernel_did(case) for case in LAYOUTS]
    views = [the_manifests_judge_the_kernel_as_their_problems_say]
    views += [test(case) for case in JOURNALED for test in (reads_as_the_kernel_did, leaves_the_originals_alone)]
    views += [
        a_clean_array_is_shown_without_its_journal_with_a_warning,
        a_dirty_array_is_shown_as_its_members_are_without_its_journal,
        a_journaled_array_is_not_written_without_its_journal,
    ]
    recoveries = []
    for case in JOURNALED:
        recoveries.append(recovers_as_the_kernel_did(case))
        if losses_for_parity(case) and not case.name.endswith("-clean"):
            recoveries.append(recovers_without_each_member(case))
        if case.name.find("-wb-") > 0:
            recoveries.append(goes_live_in_the_cache(case))
    recoveries += [a_recovered_array_takes_writes_through_its_journal, raid6_left_dirty_in_write_back_does_without_two]
    return {"layouts": layouts, "shown": views, "recovered": recoveries}


if __name__ == "__main__":
    # In memory where there is enough: what is tested is content, and hundreds of times all of it is read.
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > MEMORY_FILES_MIN:
        tempfile.tempdir = "/dev/shm"
    parts = tests()
    if len(sys.argv) > 1 and sys.argv[1] in parts:
        main(*parts[sys.argv.pop(1)])
    main(*itertools.chain(*parts.values()))
