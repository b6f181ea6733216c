#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The NBD clients people use, against arrays of each level, complete and degraded."""

import json
import os
import subprocess

from harness import (MIB, WRITE_BACK, Server, create, create_cached, digest, expect, expect_content, images_make, main,
                     need_program, rng_for, stripelog, writes_random)


def run(*command, timeout=120, stdin=None):
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
                           input=stdin)
    expect(ended.returncode == 0, f"{' '.join(command)}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def array_new(work, level=5, members=4, size=16 * MIB, chunk=64):
    paths = images_make(work, members, size)
    create(paths, "--assume-clean", "--name=clients", level=level, chunk=chunk)
    return paths


def image_new(work, size, name="image"):
    path = os.path.join(work, name)
    with open(path, "wb") as image:
        image.write(rng_for(name).randbytes(size))
    return path


# --no-content: for that nbdinfo runs file(1), and says what is no text where there is none.


def nbdinfo_sees_the_export(work):
    need_program("nbdinfo")
    with Server(array_new(work), memory=None) as server:
        said = json.loads(run("nbdinfo", "--json", "--no-content", server.uri))["exports"]
        expect(len(said) == 1, f"{len(said)} exports")
        export = said[0]
        for key in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"):
            expect(export[key] is True, f"{key} is {export[key]}")
        expect(export["is_read_only"] is False, "read-only")
        expect(export["block_size_preferred"] == 4096, "preferred block size")
        expect(export["block_size_minimum"] == 1, "minimum block size")
        expect(export["block_size_maximum"] == 32 * MIB, "maximum block size")
        expect("base:allocation" in export.get("contexts", []), "no base:allocation")
        listed = json.loads(run("nbdinfo", "--list", "--json", "--no-content", server.uri))["exports"]
        expect([e["export-name"] for e in listed] == [""], f"listed: {listed}")
        run("nbdinfo", "--map", server.uri)


def nbdinfo_finds_the_export_by_the_arrays_name(work):
    need_program("nbdinfo")
    paths = array_new(work)
    with Server(paths) as server:
        named = server.uri.replace("nbd+unix:///", "nbd+unix:///clients", 1)
        run("nbdinfo", "--no-content", named)
        other = subprocess.run(["nbdinfo", server.uri.replace("nbd+unix:///", "nbd+unix:///nobody", 1)],
                               capture_output=True, check=False)
        expect(other.returncode != 0, "an export that does not exist was found")


def nbdcopy_there_and_back_at_every_level(work):
    need_program("nbdcopy")
    for level, members in ((4, 3), (5, 3), (5, 5), (6, 4), (6, 6)):
        place = os.path.join(work, f"{level}-{members}")
        os.mkdir(place)
        paths = array_new(place, level, members)
        with Server(paths) as server:
            size = int(run("nbdinfo", "--size", server.uri))
            image = image_new(place, size)
            run("nbdcopy", "--flush", image, server.uri)
            back = os.path.join(place, "back")
            run("nbdcopy", "--connections=4", server.uri, back)
            expect(digest(back) == digest(image), f"raid{level}: another content")
        lost = 2 if level == 6 else 1
        with Server(paths[lost:]) as server:
            run("nbdcopy", server.uri, back)
            expect(digest(back) == digest(image), f"raid{level}: another content without {lost}")


def nbdcopy_there_and_back_through_the_cache(work):
    need_program("nbdcopy")
    paths = create_cached(work, 5, 16 * MIB, level=6)
    back = os.path.join(work, "back")
    with Server(paths, WRITE_BACK) as server:
        image = image_new(work, int(run("nbdinfo", "--size", server.uri)))
        run("nbdcopy", "--flush", "--request-size=4096", "--requests=32", image, server.uri)
        run("nbdcopy", "--connections=4", server.uri, back)
        expect(digest(back) == digest(image), "another content")
    with Server(paths[2:], WRITE_BACK) as server:
        run("nbdcopy", server.uri, back)
        expect(digest(back) == digest(image), "another content without two members")


def nbdsh_small_unaligned_requests(work):
    small_unaligned_requests(array_new(work))


def nbdsh_small_unaligned_requests_to_the_cache(work):
    small_unaligned_requests(create_cached(work, 4, 16 * MIB), WRITE_BACK)


def small_unaligned_requests(paths, *options):
    rng = rng_for("nbdsh")
    with Server(paths, *options) as server:
        handle = server.connect()
        model = bytearray(handle.get_size())
        writes_random(handle, model, rng, 300, size_max=40000, unit=1)
        for _ in range(300):
            length = rng.randint(1, 70000)
            offset = rng.randint(0, len(model) - length)
            expect_content(bytes(handle.pread(length, offset)), model[offset:offset + length], f"read at {offset}")
        handle.flush()
        handle.shutdown()
        expect_content(server.read_all(), model, "the whole array")


def nbdsh_zeroes_trim_and_flush(work):
    zeroes_trim_and_flush(array_new(work))


def nbdsh_zeroes_trim_and_flush_with_a_cache(work):
    zeroes_trim_and_flush(create_cached(work, 4, 16 * MIB), WRITE_BACK)


def zeroes_trim_and_flush(paths, *options):
    import nbd  # pylint: disable=import-outside-toplevel
    rng = rng_for("zeroes")
    with Server(paths, *options) as server:
        handle = server.connect()
        model = bytearray(rng.randbytes(handle.get_size()))
        for offset in range(0, len(model), 4 * MIB):
            handle.pwrite(model[offset:offset + 4 * MIB], offset)
        for turn in range(120):
            length = rng.choice([1, 511, 4096, 10000, 65536, 200000, 1000000])
            offset = rng.randint(0, len(model) - length)
            flags = rng.choice([0, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE])
            handle.zero(length, offset, flags)
            model[offset:offset + length] = bytes(length)
            if turn % 3 == 0:
                data = rng.randbytes(rng.randint(1, 100000))
                offset = rng.randint(0, len(model) - len(data))
                handle.pwrite(data, offset, nbd.CMD_FLAG_FUA)
                model[offset:offset + len(data)] = data
            if turn % 10 == 0:
                handle.flush()
        expect_content(server.read_all(), model, "after writing zeroes")
        # A trimmed range may read as it was or as zeros; what is around it may not change.
        length, offset = 3 * MIB + 12345, 5 * MIB + 777
        handle.trim(length, offset)
        got = server.read_all()
        expect_content(got[:offset], model[:offset], "before the trimmed range")
        expect_content(got[offset + length:], model[offset + length:], "behind the trimmed range")
        for start in range(offset, offset + length, 512):
            end = min(start + 512 - start % 512, offset + length)
            expect(got[start:end] in (bytes(model[start:end]), bytes(end - start)), f"sector at {start}")
        handle.shutdown()
        model = got
    # Parity stayed true: the same without each member.
    for lost in range(4):
        with Server([path for i, path in enumerate(paths) if i != lost], "--readonly") as server:
            expect_content(server.read_all(), model, f"without member {lost}")


def fast_zero_is_fast_or_refused(work):
    import nbd  # pylint: disable=import-outside-toplevel
    with Server(array_new(work)) as server:
        handle = server.connect()
        if not handle.can_fast_zero():
            return
        handle.pwrite(b"x" * MIB, 0)
        try:
            handle.zero(MIB, 0, nbd.CMD_FLAG_FAST_ZERO)
            expect(not any(handle.pread(MIB, 0)), "not zero")
        except nbd.Error as refusal:
            expect(refusal.errnum == 95, f"errno {refusal.errnum}, not ENOTSUP")
            expect(bytes(handle.pread(MIB, 0)) == b"x" * MIB, "refused, and changed all the same")
        handle.shutdown()


def many_connections_see_each_others_writes(work):
    rng = rng_for("connections")
    with Server(array_new(work, 6, 5)) as server:
        handles = [server.connect() for _ in range(16)]
        model = bytearray(handles[0].get_size())
        for turn in range(200):
            data = rng.randbytes(rng.randint(1, 50000))
            offset = rng.randint(0, len(model) - len(data))
            handles[turn % 16].pwrite(data, offset)
            model[offset:offset + len(data)] = data
            got = bytes(handles[(turn * 7 + 3) % 16].pread(len(data), offset))
            expect_content(got, data, f"turn {turn} through another connection")
        handles[3].flush()
        for handle in handles[1:]:
            handle.shutdown()
        expect_content(server.read_all(), model, "the whole array")
        handles[0].shutdown()


def qemu_img_converts_and_compares(work):
    need_program("qemu-img")
    with Server(array_new(work, 6, 6)) as server:
        size = server.connect().get_size()
        image = image_new(work, size)
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, server.uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.uri)
        back = os.path.join(work, "back.qcow2")
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, back)
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", back, server.uri)


def qemu_img_bench_reads_and_writes(work):
    need_program("qemu-img")
    with Server(array_new(work)) as server:
        run("qemu-img", "bench", "-f", "raw", "-c", "5000", "-d", "32", "-s", "4096", "-S", "12288", server.uri)
        run("qemu-img", "bench", "-f", "raw", "-w", "-c", "3000", "-d", "32", "-s", "4096", "-S", "20480",
            "--flush-interval=64", server.uri)
        run("qemu-img", "bench", "-f", "raw", "-w", "-c", "60", "-d", "8", "-s", "1048576", server.uri)


def qemu_io_patterns_with_fua_discard_and_zeroes(work):
    need_program("qemu-io")

    def qemu_io(server, *commands):
        arguments = [word for command in commands for word in ("-c", command)]
        said = run("qemu-io", "-f", "raw", "-t", "none", "-d", "unmap", *arguments, server.uri)
        expect("erification failed" not in said and "rror" not in said, said)

    paths = array_new(work, 5, 4)
    with Server(paths) as server:
        qemu_io(server, "write -f -P 0x11 0 1M", "write -P 0x22 1M 3M", "read -P 0x11 0 1M", "read -P 0x22 1M 3M")
        qemu_io(server, "write -z 64k 100k", "write -z -f 3M 64k", "write -zu 2M 512k", "flush",
                "read -P 0 64k 100k", "read -P 0 3M 64k", "read -P 0 2M 512k", "read -P 0x11 0 64k",
                "read -P 0x22 2560k 512k")
        qemu_io(server, "discard 1M 512k", "read -P 0x22 1536k 512k", "read -P 0x11 164k 860k")
        qemu_io(server, "aio_write -P 0x33 8M 256k", "aio_write -P 0x34 8448k 256k", "aio_flush",
                "read -P 0x33 8M 256k", "read -P 0x34 8448k 256k")
        qemu_io(server, "write -f -P 0x44 10000k 512", "write -P 0x45 10000k 512", "read -P 0x45 10000k 512")
    with Server(paths[:3]) as server:
        qemu_io(server, "read -P 0x11 0 64k", "read -P 0 64k 100k", "read -P 0x33 8M 256k", "read -P 0x34 8448k 256k",
                "write -f -P 0x55 0 1M", "write -z 3M 128k", "read -P 0x55 0 1M", "read -P 0 3M 128k")


def examine_agrees_after_all_that(work):
    paths = array_new(work)
    with Server(paths) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 100000, 12345)
        handle.shutdown()
    said = stripelog("examine", "--json", *paths)
    expect(said.returncode == 0, said.stderr)
    json.loads(said.stdout)


if __name__ == "__main__":
    main(nbdinfo_sees_the_export, nbdinfo_finds_the_export_by_the_arrays_name, nbdcopy_there_and_back_at_every_level,
         nbdcopy_there_and_back_through_the_cache, nbdsh_small_unaligned_requests,
         nbdsh_small_unaligned_requests_to_the_cache, nbdsh_zeroes_trim_and_flush,
         nbdsh_zeroes_trim_and_flush_with_a_cache, fast_zero_is_fast_or_refused,
         many_connections_see_each_others_writes, qemu_img_converts_and_compares, qemu_img_bench_reads_and_writes,
         qemu_io_patterns_with_fua_discard_and_zeroes, examine_agrees_after_all_that)
