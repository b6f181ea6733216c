# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file system of the kernel's on a served array: nbdfuse, a loop device, ext4. Needs root."""

import os
import subprocess
import time

from harness import Skip, expect, need_program


def run(*command, statuses=(0,), timeout=120):
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    expect(ended.returncode in statuses, f"{' '.join(command)}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def need_mounts():
    for program in ("nbdfuse", "mkfs.ext4", "e2fsck", "losetup", "fusermount3"):
        need_program(program)
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK) or not os.access("/dev/loop-control", os.W_OK):
        raise Skip("needs root, /dev/fuse and loop devices")


class LoopDevice:
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
        self.path = looped.stdout.strip()

    def fuse_end(self):
        subprocess.run(["fusermount3", "-u", self.place], check=False)
        self.fuse.wait(60)

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        run("losetup", "--detach", self.path)
        self.fuse_end()


def mount(device, mountpoint):
    mounted = subprocess.run(["mount", "-t", "ext4", device, mountpoint], capture_output=True, text=True, check=False)
    if mounted.returncode and ("unknown filesystem" in mounted.stderr or "permission denied" in mounted.stderr):
        raise Skip("mount: " + mounted.stderr.strip())
    expect(mounted.returncode == 0, "mount: " + mounted.stderr)
