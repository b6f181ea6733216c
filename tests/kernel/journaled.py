# SPDX-License-Identifier: LGPL-2.1-or-later
"""Arrays with a journal, and how the kernel takes them.

The kernel's recovery of data-only stripes waits for ever now and then, and nearly
always where there are more than 256, if the array is assembled to be written to
at once. Assembled read-only, and then made writable, it was never seen to wait
(docs/testing.md); so that is how it is done here. A guest that hangs all the same
is started again. It never writes to the images then.
"""

import hashlib
import json
import os
import shutil
import sys

import lab
import vm
from harness import KIB, MIB, TOP, Server, create, expect, images_make, stripelog

sys.path.insert(0, os.path.join(TOP, "tests", "golden"))

import golden  # noqa: E402  pylint: disable=wrong-import-position,unused-import

MEMBER_BYTES = 8 * MIB
RING_LEAST = 4 * MIB
# A guest of the kernel's that waits for ever is silent; how long a busy one takes is up to the machine.
TRIES = 5
TIMEOUT = 600
SILENCE = 60
READ_ONLY_FIRST = "echo 1 >/sys/module/md_mod/parameters/start_ro"


class Array:
    """One array: its images, named as its disks in the guest, and the content that is to be in it."""

    def __init__(self, key, what, level, folder, members=(), journal=None):
        self.key, self.what, self.level, self.folder = key, what, level, folder
        self.members, self.journal = list(members), journal
        self.content = b""
        self.sha256 = None  # of the content, where that is too large to be kept
        self.ready = False

    @property
    def name(self):
        return f"{self.what} ({self.key})"

    @property
    def files(self):
        return self.members + [self.journal]

    def copy(self, key, what, folder):
        """The same array on copies of its images."""
        os.makedirs(folder, exist_ok=True)
        paths = []
        for number, path in enumerate(self.files):
            paths.append(os.path.join(folder, f"{key}-{number}"))
            shutil.copy(path, paths[-1])
        made = Array(key, what, self.level, folder, paths[:-1], paths[-1])
        made.content = self.content
        return made

    def devices(self):
        return " ".join(f"/dev/{os.path.basename(path)}" for path in self.files)


def array_new(key, what, level, count, folder, ring_bytes, layout, chunk):
    members = images_make(folder, count, MEMBER_BYTES, key + "-")
    journal = os.path.join(folder, f"{key}-{count}")
    with open(journal, "wb") as image:
        image.truncate(MIB + ring_bytes)  # data begins after a megabyte, with such chunks
    create(members, "--assume-clean", f"--write-journal={journal}", level=level, layout=layout, chunk=chunk)
    return Array(key, what, level, folder, members, journal)


def recover(array):
    ended = stripelog("recover", *array.files)
    expect(ended.returncode == 0, f"recover: {ended.returncode}\n{ended.stderr}")
    return ended.stdout.strip()


def read_all(array):
    with Server(array.files, "--readonly") as server:
        return server.read_all()


def log_of(array):
    """What `examine` says of the log, and how many of its sectors are in use."""
    said = json.loads(stripelog("examine", "--json", *array.files).stdout)
    log = next(device["journal"] for device in said["devices"] if device.get("role") == "journal")
    log["used_sectors"] = (log["end_sectors"] - log["tail_sectors"]) % log["ring_sectors"]
    log["wrapped"] = log["end_sectors"] < log["tail_sectors"]
    return log


def golden_array(case, key, what, folder):
    os.makedirs(folder)
    paths = case.unpack(folder)
    array = Array(key, what, case.level, folder)
    for number, name in enumerate([name for name in case.members if name] + [case.journal]):
        path = os.path.join(folder, f"{key}-{number}")
        os.rename(paths[name], path)
        array.members.append(path)
    array.journal = array.members.pop()
    return array


# --- the kernel takes them ---


def script_take(number, array, check):
    device, key = f"md{number}", array.key
    script = f"""
echo "@{key} examine $(mdadm --examine {array.devices()} 2>&1 | grep -c 'Checksum : .* correct')"
echo "@{key} journals $(mdadm --examine {array.devices()} 2>&1 | grep -c 'Device Role : Journal')"
mdadm --assemble /dev/{device} --run {array.devices()} 2>&1
echo "@{key} assemble $?"
mdadm --readwrite /dev/{device} 2>&1
echo "@{key} recovering $(dmesg | grep 'md/raid:{device}: recovering' | sed 's/.*recovering //')"
hash {device} {key}
"""
    return script + (f"check {device} {key}\n" if check else "")


def taken(arrays, tries=1, name="", memory_mib=vm.MEMORY_MIB):
    """In a guest that changes nothing: assembled, hashed, checked. What it printed."""
    script = [lab.GUEST, READ_ONLY_FIRST]
    for number, array in enumerate(arrays):
        script.append(script_take(number, array, "degraded" not in array.what))
    disks = {os.path.basename(path): path for array in arrays for path in array.files}
    ran = vm.run("\n".join(script), disks=disks, timeout=TIMEOUT, silence=SILENCE, snapshot=True, tries=tries,
                 memory_mib=memory_mib)
    print(ran.output, f"guest {name}: {ran.seconds:.1f} s", sep="\n", flush=True)
    return ran.output


def expect_taken(array, output, recovers=None):
    """recovers: which of "N data-only stripes and M data-parity stripes" must not be 0, or "both"; "" for nothing at all."""
    said = lab.facts(output, array.key)
    good = {"examine": str(len(array.files)), "journals": "1", "assemble": "0",
            "sha256": array.sha256 or hashlib.sha256(array.content).hexdigest()}
    if "mismatch" in said:
        good["mismatch"] = "0"
    wrong = [f"{word}: {said.get(word)}, not {text}" for word, text in good.items() if said.get(word) != text]
    counts = said.get("recovering", "")
    numbers = [int(word) for word in counts.split() if word.isdigit()] or [0, 0]
    if recovers == "" and any(numbers):
        wrong.append(f"it found something to recover: {counts}")
    if recovers in ("data-parity", "both") and not numbers[1]:
        wrong.append(f"it recovered nothing: {counts!r}")
    if recovers in ("data-only", "both") and not numbers[0]:
        wrong.append(f"it recovered no data-only stripes: {counts!r}")
    expect(not wrong, "in the kernel: " + "; ".join(wrong))
