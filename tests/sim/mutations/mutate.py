#!/usr/bin/python3
"""Breaks a rule of the engine on purpose, and expects the simulator to notice.

    mutate.py NAME SOURCE-ROOT BUILD-ROOT COMPILER [LIBRARY...]
    mutate.py --list

A mutation replaces exact pieces of source text in copies of a few files. The copies are compiled
and linked in front of the libraries of the build, so that they take the place of the originals.
The test passes when the simulator fails with a message of the right kind within the given number
of histories, or one test of test_sim_states.c does where a mutation names that instead of a mode.
A piece of text that is not found exactly once is an error: the engine has changed,
and the mutation has to be brought up to date.
"""

import os
import re
import subprocess
import sys
import tempfile

WRONG_DATA = r"FAIL: (wrong data|after a crash .* has )"
WRONG_PARITY = r"FAIL: .*parity .*(not agree|does not)|FAIL: .* does not agree"
EITHER = f"({WRONG_DATA}|{WRONG_PARITY})"
STATE = "state "  # in front of the test's name
FAILED_TEST = r"test_sim_states\.c:\d+: error|holds 0x"

# name: (the rule it breaks, mode, histories, expected message, {file: [(old, new), ...]})
MUTATIONS = {
    "parity_not_updated_on_partial_write": (
        "E5: a write is answered when data and parity are on the members",
        "healthy", 200, EITHER,
        {"stripe/run.c": [
            ("parity_stripes = run->plan.by_data | run->plan.by_delta;",
             "parity_stripes = run->plan.by_data;"),
            ("    compute_parity(run, run->plan.by_delta, true);\n", ""),
        ]}),
    "reconstructing_read_takes_no_lock": (
        "E1: at most one worker has a group",
        "degraded", 2000, WRONG_DATA,
        {"stripe/engine.c": [
            ("group_get(engine, member_offset / engine->group_bytes);",
             "group_get(engine, member_offset / engine->group_bytes |\n"
             "    (piece->kind == PIECE_READ ? UINT64_C(1) << 40 : 0));"),
        ], "stripe/run.c": [
            ("run->base = run->group->index * engine->group_bytes;",
             "run->base = (run->group->index & 0xffffffffff) * engine->group_bytes;"),
        ]}),
    "delta_on_parity_not_in_sync": (
        "E2: a delta is used only where parity is known good",
        "storm", 8000, EITHER,
        {"stripe/plan.c": [
            ("delta_open = (plan->parity_known & bit) != 0;", "delta_open = true;"),
        ]}),
    "superblock_clean_before_flush": (
        "R3, B1: clean is written only after all members were flushed",
        "crash", 2000, EITHER,
        {"array/superblocks.c": [
            ("        engine_flush_members(array->engine); /* B1 */\n", ""),
        ]}),
    "q_exponents_in_row_order": (
        "Q is made with the exponents that the layout gives",
        "degraded", 300, EITHER,
        {"stripe/plan.c": [
            ("unsigned exponent = geometry_q_exponent(geometry, &row, member);",
             "unsigned exponent = d;"),
        ]}),
    "fua_completes_before_flush": (
        "a write with FUA is durable when it is answered",
        "crash", 1000, WRONG_DATA,
        {"stripe/run.c": [
            ("io->fua = op == IO_WRITE && run->fua;", "io->fua = false;"),
        ]}),
    "flush_joins_one_that_began_earlier": (
        "a flush covers every write that had returned when it was called",
        "crash", 4000, WRONG_DATA,
        {"stripe/engine.c": [
            ("wanted = engine->flushes_begun + 1;",
             "wanted = engine->flush_running ? engine->flushes_begun : engine->flushes_begun + 1;"),
        ]}),
    "failure_not_recorded_before_answer": (
        "R2: a write that a failing member missed is answered when the superblocks say so",
        "member_loss", 4000, EITHER,
        {"stripe/run.c": [
            ("    engine->config.failures_recorded(engine->config.owner);\n", ""),
        ]}),
    "write_before_active_is_durable": (
        "R1: no data goes out before the superblocks say active",
        "crash", 2000, EITHER,
        {"array/array.c": [
            ("            result = superblocks_update(array, 0);\n", "            result = 0;\n"),
        ]}),
    "checkpoint_ahead_of_resync": (
        "Y1: the checkpoint never passes a stripe whose parity was not made good",
        "crash", 2000, WRONG_PARITY,
        {"stripe/run.c": [
            ("        run->write[m] &= run->writable[m];\n    write_blocks(run);\n",
             "        run->write[m] &= run->writable[m];\n"),
        ]}),
    "stale_bitmap_is_believed": (
        "a bitmap that is stale says nothing: every region is in doubt",
        "crash", 4000, EITHER,
        {"array/probe.c": [
            ("    if (r < 0 || bitmap_is_stale(&header, sb))\n", "    if (r < 0)\n"),
        ]}),
    "block_written_in_batch_is_mended": (
        "E4: what is written back is what the block holds, not what it held before",
        "errors", 8000, EITHER,
        {"stripe/run.c": [
            ("        run->errors[m] &= ~run->write[m]; /* the write mends it: with what is new */\n",
             ""),
        ]}),
    "stale_read_of_failed_member": (
        "D3: what was read of a member that failed meanwhile is read again",
        STATE + "flush_that_drops_the_cache_costs_one_member_and_no_data", 1, FAILED_TEST,
        {"stripe/run.c": [
            ("if (run->plan.want[m] != 0 && run->engine->members[m].state == MEMBER_MISSING)",
             "if (false)"),
        ], "stripe/request.c": [
            ("if (result < 0 || engine_missing(engine) > missing)", "if (result < 0)"),
        ]}),
    "struck_off_written_as_spare": (
        "devices struck off are never written as spares",
        STATE + "struck_off_device_is_not_written", 1, FAILED_TEST,
        {"array/superblocks.c": [
            ("return array->fates[candidate] == FATE_SPARE;",
             "return array->fates[candidate] == FATE_SPARE ||\n"
             "           array->fates[candidate] == FATE_STALE;"),
        ]}),
    "uneven_superblocks_not_levelled": (
        "B2: superblocks that are one apart are levelled before the next update",
        STATE + "superblocks_one_apart_never_get_two_apart", 1, FAILED_TEST,
        {"array/superblocks.c": [("if (array->uneven) {", "if (false) {")]}),
    "logged_block_written_in_doubt": (
        "nothing is acknowledged that could not be read again",
        STATE + "unsynced_array_acknowledges_nothing_that_nobody_could_read", 1, FAILED_TEST,
        {"stripe/run.c": [
            ("((run->plan.parity_known & bit) == 0 && data_lost_in_doubt(run, bit)))", "false)"),
        ]}),
    "stale_bitmap_believed": (
        "a bitmap that superblocks were updated without says nothing",
        STATE + "bitmap_limits_the_resync", 1, FAILED_TEST,
        {"format/bitmap.c": [(" || header->events < sb->events;", ";")]}),
}


def mutated(text, replacements, path):
    for old, new in replacements:
        count = text.count(old)
        if count != 1:
            sys.exit(f"{path}: found {count} times, wanted once:\n{old}")
        text = text.replace(old, new)
    return text


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(MUTATIONS))
        return 0
    name, source, build, compiler, *libraries = sys.argv[1:]
    rule, mode, histories, expected, files = MUTATIONS[name]
    print(f"{name}: breaks '{rule}'")
    with tempfile.TemporaryDirectory(prefix="stripelog-mutation-") as place:
        in_state = mode.startswith(STATE)
        main_file = "test_sim_states.c" if in_state else "sim.c"
        sources = [f"{source}/tests/sim/{main_file}"]
        for path, replacements in files.items():
            with open(f"{source}/src/{path}", encoding="utf-8") as original:
                text = mutated(original.read(), replacements, path)
            copy = os.path.join(place, os.path.basename(path))
            with open(copy, "w", encoding="utf-8") as target:
                target.write(text)
            sources.append(copy)
        program = os.path.join(place, "sim")
        includes = [f"-I{source}/include", f"-I{source}/src", f"-I{source}/tests/sim"]
        subprocess.run(
            [*compiler.split(), "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-w", *includes, "-o", program,
             *sources, "-Wl,--start-group", *libraries, "-Wl,--end-group"]
            + ["-lcmocka"] * in_state, check=True, cwd=build)
        command = [program, mode.removeprefix(STATE)]
        if not in_state:
            command = [program, "--mode", mode, "--histories", str(histories)]
        run = subprocess.run(command, capture_output=True, text=True, check=False,
                             env={**os.environ, "CMOCKA_TEST_ABORT": "1"})
    output = run.stdout + run.stderr
    print("\n".join(output.splitlines()[-6:]))
    if run.returncode == 0:
        print(f"NOT CAUGHT by {' '.join(command[1:])}")
        return 1
    if not re.search(expected, output):
        print(f"caught, but not by what was expected: {expected}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
