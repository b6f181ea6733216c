#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file system on the array through nbdfuse and a loop device: mkfs, real files, fsck, and again degraded."""

import filecmp
import os

from harness import MIB, WRITE_BACK, Server, create, create_cached, expect, images_make, main
from mounted import LoopDevice, mount, need_mounts, run

ENOUGH_BYTES = 60 * MIB


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
    paths = images_make(work, 4, 64 * MIB)
    create(paths, "--assume-clean", level=5, chunk=64)
    complete_and_degraded(work, paths)


def ext4_with_real_files_is_clean_in_the_write_back_cache(work):
    complete_and_degraded(work, create_cached(work, 4, 64 * MIB, level=5, chunk=64), WRITE_BACK)


def complete_and_degraded(work, paths, *options):
    need_mounts()
    mountpoint = os.path.join(work, "mnt")
    os.mkdir(mountpoint)
    with Server(paths, *options) as server, LoopDevice(server, work) as loop:
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
    with Server(paths[1:], *options) as server, LoopDevice(server, work) as loop:
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


if __name__ == "__main__":
    main(ext4_with_real_files_is_clean_complete_and_degraded, ext4_with_real_files_is_clean_in_the_write_back_cache)
