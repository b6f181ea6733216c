#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file system on the array through nbdfuse and a loop device: mkfs, real files, fsck, and again degraded."""

import filecmp
import os
import subprocess
import time

from harness import MIB, Server, Skip, create, expect, images_make, main, need_program

ENOUGH_BYTES = 60 * MIB


def run(*command, statuses=(0,), timeout=120):
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    expect(ended.returncode in statuses, f"{' '.join(command)}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


class Mounted:
    """server -> nbdfuse -> loop device; torn down in the opposite order."""

    def __init__(self, server, work):
        self.place = os.path.join(work, "fuse")
        os.makedirs(self.place, exist_ok=True)
        self.file = os.path.join(self.place, "nbd")
        self.fuse = subprocess.Popen(["nbdfuse", self.place, server.uri], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 10
        while not os.path.exists(self.file):
            if self.fuse.poll() is not None:
                raise Skip("nbdfuse: " + self.fuse.stderr.read().decode().strip())
            expect(time.monotonic() < deadline, "nbdfuse does not mount")
            time.sleep(0.05)
        looped = subprocess.run(["losetup", "--find", "--show", self.file], capture_output=True, text=True, check=False)
        if looped.returncode:
            self.fuse_end()
            raise Skip("losetup: " + looped.stderr.strip())
        self.loop = looped.stdout.strip()

    def fuse_end(self):
        subprocess.run(["fusermount3", "-u", self.place], check=False)
        self.fuse.wait(60)

    def __enter__(self):
        return self.loop

    def __exit__(self, *_):
        run("losetup", "--detach", self.loop)
        self.fuse_end()


def real_files(target):
    """Copy what this system has under /usr, up to ENOUGH_BYTES; the list of (copy, original)."""
    copied = 0
    pairs = []
    for top in ("/usr/include", "/usr/share/doc", "/usr/lib/python3", "/usr/share"):
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if os.path.islink(path) or not os.path.isfile(path) or copied > ENOUGH_BYTES or len(pairs) > 6000:
                    continue
                place = os.path.join(target, path.lstrip("/"))
                os.makedirs(os.path.dirname(place), exist_ok=True)
                with open(path, "rb") as source, open(place, "wb") as copy:
                    content = source.read()
                    copy.write(content)
                copied += len(content)
                pairs.append((path, place))
    expect(len(pairs) > 100, "not enough files to copy")
    return pairs


def ext4_with_real_files_is_clean_complete_and_degraded(work):
    for program in ("nbdfuse", "mkfs.ext4", "e2fsck", "losetup", "fusermount3"):
        need_program(program)
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK) or not os.access("/dev/loop-control", os.W_OK):
        raise Skip("needs root, /dev/fuse and loop devices")
    paths = images_make(work, 4, 64 * MIB)
    create(paths, "--assume-clean", level=5, chunk=64)
    mountpoint = os.path.join(work, "mnt")
    os.mkdir(mountpoint)
    with Server(paths) as server, Mounted(server, work) as loop:
        run("mkfs.ext4", "-q", loop)
        mount(loop, mountpoint)
        try:
            pairs = real_files(mountpoint)
            for _, place in pairs[::7]:
                os.unlink(place)
            pairs = [pair for i, pair in enumerate(pairs) if i % 7]
        finally:
            run("umount", mountpoint)
        run("e2fsck", "-fn", loop)
    with Server(paths[1:]) as server, Mounted(server, work) as loop:
        run("e2fsck", "-fn", loop)
        mount(loop, mountpoint)
        try:
            different = [path for path, place in pairs if not filecmp.cmp(path, place, shallow=False)]
            expect(not different, f"different: {different[:5]}")
            for _, place in pairs[::5]:
                os.unlink(place)
        finally:
            run("umount", mountpoint)
        run("e2fsck", "-fn", loop)


def mount(loop, mountpoint):
    mounted = subprocess.run(["mount", "-t", "ext4", loop, mountpoint], capture_output=True, text=True, check=False)
    if mounted.returncode and ("unknown filesystem" in mounted.stderr or "permission denied" in mounted.stderr):
        raise Skip("mount: " + mounted.stderr.strip())
    expect(mounted.returncode == 0, "mount: " + mounted.stderr)


if __name__ == "__main__":
    main(ext4_with_real_files_is_clean_complete_and_degraded)
