#!/usr/bin/python3
"""Breaks a rule of the engine on purpose, and expects the simulator to notice.

    mutate.py NAME SOURCE-ROOT BUILD-ROOT COMPILER [LIBRARY...]
    mutate.py --list

A mutation replaces exact pieces of source text in copies of a few files. The copies are compiled
and linked in front of the libraries of the build, so that they take the place of the originals.
The test passes when the simulator fails with a message of the right kind within the given number
of histories, or one test of test_sim_states.c, test_sim_journal.c or test_sim_cache.c does where a
mutation names that instead of a mode.
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
LOST = EITHER + r"|FAIL: after a crash .* is a mixture|FAIL: L1: |FAIL: data is lost"
STATE = "state "  # in front of the test's name
STORY = "journal-story "
CACHE = "cache-story "
PROGRAMS = {
    STATE: ["test_sim_states.c"],
    STORY: ["test_sim_journal.c", "sim_story.c"],
    CACHE: ["test_sim_cache.c", "sim_story.c"],
}
FAILED_TEST = r"(test_sim_(states|journal|cache)|sim_story)\.c:\d+: error|holds 0x"

# name: (the rule it breaks, mode, histories, expected message, {file: [(old, new), ...]})
MUTATIONS = {
    "parity_not_updated_on_partial_write": (
        "E5: a write is answered when data and parity are on the members",
        "healthy", 200, EITHER,
        {"stripe/change.c": [
            ("parity_stripes = run->plan.by_data | run->plan.by_delta;",
             "parity_stripes = run->plan.by_data;"),
            ("    run_parity(run, run->plan.by_delta, true);\n", ""),
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
        {"stripe/change.c": [
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
        {"stripe/change.c": [
            ("((run->plan.parity_known & bit) == 0 && data_lost_in_doubt(run, bit)))", "false)"),
        ]}),
    "stale_bitmap_believed": (
        "a bitmap that superblocks were updated without says nothing",
        STATE + "bitmap_limits_the_resync", 1, FAILED_TEST,
        {"format/bitmap.c": [(" || header->events < sb->events;", ";")]}),
    "no_journal_flush_before_member_writes": (
        "J2: between an entry and the members stands a flush of the journal",
        "journal", 3000, LOST,
        {"journal/journal.c": [
            ("    if (journal->config.device->volatile_cache) {\n", "    if (false) {\n"),
        ]}),
    "acknowledged_out_of_order": (
        "J1: an entry that completes early waits for those before it",
        "journal", 3000, LOST + "|contract C[23]",
        {"journal/journal.c": [
            ("        result = io_wait(&entry->ios);\n",
             "        while (entry->next != NULL && entry->next->state == ENTRY_SUBMITTED)\n"
             "            entry = entry->next;\n"
             "        result = io_wait(&entry->ios);\n"),
        ]}),
    "members_not_flushed_before_the_tail_moves": (
        "J4: the members are flushed before the tail passes what is on them",
        "journal", 3000, LOST,
        {"journal/journal.c": [
            ("    result = journal->config.flush_members(journal->config.owner);\n",
             "    result = 0;\n"),
        ]}),
    "superblock_written_after_the_space_is_reused": (
        "J4: space is free when the superblock with the new tail is durable",
        "journal", 3000, LOST,
        {"journal/journal.c": [
            ("    result = journal->config.record_tail(journal->config.owner, target);\n",
             "    journal->used_blocks -= ring_blocks_between(journal, journal->tail, target);\n"
             "    journal->tail = target;\n"
             "    space_grant(journal);\n"
             "    result = journal->config.record_tail(journal->config.owner, target);\n"),
        ]}),
    "seq_not_advanced_after_recovery": (
        "V3: a new log begins beyond every number that can stand in the ring",
        STORY + "dropped_entries_never_come_back", 1, FAILED_TEST,
        {"recovery/recovery.c": [
            ("    return last + max_u64(SEQ_JUMP_MIN, recovery->ring_blocks + 1);\n",
             "    return last;\n"),
        ]}),
    "seq_at_the_end_is_not_looked_at": (
        "V3: what stands at the end of the log may have a number of its own",
        STORY + "new_log_begins_beyond_what_stands_at_its_end", 1, FAILED_TEST,
        {"recovery/recovery.c": [
            ("    if (log->end_has_seq && log->end_seq <= JOURNAL_SEQ_MAX)\n", "    if (false)\n"),
        ]}),
    "tail_put_where_no_valid_entry_stands": (
        "J4: the tail names an entry that is durable",
        "journal", 3000, LOST,
        {"journal/journal.c": [
            ("    if (first != NULL && first->state == ENTRY_COMPLETE)\n", "    if (first != NULL)\n"),
        ]}),
    "read_error_taken_for_the_end_of_the_log": (
        "K1: an error is no end",
        STORY + "unreadable_log_refuses_the_start", 1, FAILED_TEST,
        {"journal/scan.c": [
            ("    if (result == -EIO)\n        return result;\n    scan->end_has_seq",
             "    if (result == -EIO)\n        return 0;\n    scan->end_has_seq"),
            ("    result = entry_look(scanner, &entry, &bad_count, &bad_first);\n",
             "    result = entry_look(scanner, &entry, &bad_count, &bad_first);\n"
             "    if (result == -EIO)\n        return 0;\n"),
        ]}),
    "log_not_read_a_second_time": (
        "K1: the second try may work",
        "journal", 300, r"the start comes to -5",
        {"journal/scan.c": [
            ("    if (window->failed)\n        return device_read(",
             "    if (window->failed)\n        return -EIO;\n"
             "    if (window->failed)\n        return device_read("),
        ]}),
    "logged_again_over_the_old_log": (
        "V4: a log that has no room for a new beginning goes on",
        STORY + "log_without_room_goes_on_whatever_the_moment", 1, FAILED_TEST,
        {"recovery/recovery.c": [
            ("    if (recovery->counts.open_blocks > 0 &&\n        (pos == recovery",
             "    if (false &&\n        (pos == recovery"),
        ]}),
    "new_beginning_over_the_entry_at_the_tail": (
        "V2: the tail names a valid entry at any moment of a recovery",
        STORY + "full_ring_is_begun_anew_whatever_the_moment", 1, FAILED_TEST,
        {"recovery/recovery.c": [
            ("    if (pos == recovery->log.tail_bytes && recovery->log.last_bytes != pos) {",
             "    if (false) {"),
        ]}),
    "page_changed_while_it_is_logged": (
        "J7: what is being logged does not change",
        "journal", 300, LOST,
        {"stripe/change.c": [
            ("    result = journal_append_step(engine->journal, append, &step);\n",
             "    result = journal_append_step(engine->journal, append, &step);\n"
             "    if (through)\n"
             "        *(uint8_t *)(uintptr_t)step.p ^= 1;\n"),
            ("                                 through ? JOURNAL_DURABLE : JOURNAL_COMPLETE);\n",
             "                                 through ? JOURNAL_DURABLE : JOURNAL_COMPLETE);\n"
             "    for (; through && logged != 0; logged &= logged - 1) {\n"
             "        const unsigned s = (unsigned)__builtin_ctzll(logged);\n\n"
             "        *run->new_block[block_at(run, plan_shape(&run->plan, s)->p, s)] ^= 1;\n"
             "    }\n"),
            ("    if (result < 0)\n        return result;\n    run->reserved -= (int64_t)reserved;\n",
             "    uint64_t logged = stripes;\n\n"
             "    if (result < 0)\n        return result;\n    run->reserved -= (int64_t)reserved;\n"),
        ]}),
    "flush_of_the_journal_retried_into_success": (
        "J6: a flush that fails may have lost what it was for",
        STORY + "flush_of_the_journal_that_fails_is_the_end_of_it", 1, FAILED_TEST,
        {"journal/journal.c": [
            ("        result = device_flush(journal->config.device);\n",
             "        result = device_flush(journal->config.device);\n"
             "        if (result < 0)\n"
             "            result = device_flush(journal->config.device);\n"),
        ]}),
    "parity_in_another_entry_than_its_data": (
        "J3: what a stripe adds stands in one entry",
        "journal", 3000, r"FAIL: after a crash .* data without its parity",
        {"journal/journal.c": [
            ("    return blocks + min_u64(metas, stripes);\n",
             "    return min_u64(blocks + 2 * stripes, max_u64(blocks + min_u64(metas, stripes),\n"
             "                                                 journal_reserve_max(journal)));\n"),
            ("        uint32_t checksums[JOURNAL_PARITY_COUNT_MAX];\n\n",
             "        uint32_t checksums[JOURNAL_PARITY_COUNT_MAX];\n\n"
             "        if (step->data_count > 0 && append->slots > 0 && append->reserved > 0) {\n"
             "            entry_close(journal);\n"
             "            journal->used_blocks -= parities;\n"
             "            append->reserved += parities;\n"
             "            journal->reserved_blocks += parities;\n"
             "            entry = entry_for_step(journal, append, bytes, parities);\n"
             "            append->reserved -= parities;\n"
             "            journal->reserved_blocks -= parities;\n"
             "            journal->used_blocks += parities;\n"
             "        }\n"),
        ], "stripe/request.c": [
            ("    const uint64_t logged = blocks + stripes * (1 + parities);\n",
             "    const uint64_t logged = blocks + stripes * (2 + parities);\n"),
        ]}),
    "members_written_after_a_failed_journal_write": (
        "E6: nothing of a stripe goes to a member if the log fails",
        STORY + "failed_journal_is_struck_off_and_nothing_is_lost", 1, FAILED_TEST,
        {"stripe/change.c": [
            ("    if (journal != NULL && log_stripes(run, &append, parity_stripes, reserved, true) < 0) {",
             "    if (journal != NULL &&\n"
             "        log_stripes(run, &append, parity_stripes, reserved, true) < 0 &&\n"
             "        !journal_failed(journal)) {"),
        ]}),
    "punched_past_a_live_entry": (
        "E8: what the log holds would come back",
        "journal", 3000, LOST,
        {"stripe/request.c": [
            ("    if (engine->journal != NULL)\n        return false; /* E8 */\n", ""),
            ("    case PIECE_ZERO:\n", "    case PIECE_ZERO:\n    case PIECE_PUNCH:\n"),
        ]}),
    "recovery_trusts_a_length": (
        "J1 of the format: every length and place on disk is hostile until it is checked",
        STORY + "entry_that_makes_no_sense_refuses_the_start", 1,
        FAILED_TEST + "|Assertion|sanitizer|exited",
        {"format/journal_entry.c": [
            ("    return sector % BLOCK_SECTORS == 0 && sector / BLOCK_SECTORS < limit_bytes / "
             "BLOCK_BYTES;\n", "    (void)limit_bytes;\n    return sector % BLOCK_SECTORS == 0;\n"),
        ]}),
    "entries_after_a_bad_one_are_applied": (
        "the log ends at the first entry that is not whole",
        "journal_log", 300, LOST + "|does not read as it did",
        {"journal/scan.c": [
            ("        ++scanner->scan->torn_follows;\n        entry_tell(scanner, entry, false);\n",
             "        ++scanner->scan->torn_follows;\n        entry_tell(scanner, entry, true);\n"),
        ]}),
    "replay_skips_an_older_cycle": (
        "R1: complete cycles are replayed, whatever stands above them",
        "journal_log", 300, LOST,
        {"journal/records.c": [
            ("        cycles->open_count += cycles->open[m].distance == 0;\n",
             "        if (cycles->open_count == 0)\n"
             "            memset(cycles->complete, 0, sizeof cycles->complete);\n"
             "        cycles->open_count += cycles->open[m].distance == 0;\n"),
        ]}),
    "flush_records_of_the_log_are_believed": (
        "R3: a FLUSH record may be older than what it speaks of",
        "journal_log", 300, LOST,
        {"journal/records.c": [
            ("    /* R3: FLUSH means nothing. */\n",
             "    if (payload->type == JOURNAL_FLUSH)\n"
             "        for (uint32_t i = 0; i < payload->stripe_count; ++i)\n"
             "            for (size_t r = 0; r < records->count; ++r)\n"
             "                if (record_stripe(&records->all[r]) ==\n"
             "                    journal_flush_stripe(payload, i) / BLOCK_BYTES)\n"
             "                    records->all[r--] = records->all[--records->count];\n"),
        ]}),
    "old_log_not_zeroed_behind_its_end": (
        "V4: what stands behind the end could be taken for what follows",
        STORY + "log_without_room_goes_on_whatever_the_moment", 1, FAILED_TEST,
        {"recovery/recovery.c": [
            ("    while (at != recovery->log.tail_bytes && result == 0) {",
             "    while (false) {"),
        ]}),
    "delta_from_the_cached_content": (
        "E10: parity's difference is to what the member holds",
        CACHE + "delta_is_to_what_the_member_holds", 1, FAILED_TEST,
        {"stripe/parity_run.c": [
            ("            .old = run->old_block[block_at(run, m, s)],\n",
             "            .old = run->based[m] >> s & 1 ? run->cached_block[block_at(run, m, s)]\n"
             "                                          : run->old_block[block_at(run, m, s)],\n"),
        ]}),
    "reconstructed_from_a_mixture": (
        "E10: a block that cannot be read comes from what the members hold alone",
        CACHE + "reconstruction_takes_no_mixture", 1, FAILED_TEST,
        {"stripe/run.c": [
            ("        data[i] = run->old_block[block_at(run, m, s)];\n"
             "        if (run->plan.recover[m] & bit)\n",
             "        data[i] = run->old_block[block_at(run, m, s)];\n"
             "        if ((run->cached[m] & ~run->plan.recover[m] & bit) &&\n"
             "            cache_page(run->engine->write_back->cache,\n"
             "                       run->node[block_at(run, m, s)]) != NULL)\n"
             "            data[i] = cache_page(run->engine->write_back->cache,\n"
             "                                 run->node[block_at(run, m, s)]);\n"
             "        if (run->plan.recover[m] & bit)\n"),
        ]}),
    "read_past_the_cache": (
        "E11: what is cached is never read from its member",
        "cache", 50, WRONG_DATA,
        {"stripe/request.c": [
            ("    if (engine->write_back == NULL)\n        return false;\n", "    return false;\n"),
        ]}),
    "dropped_page_not_verified": (
        "C4: what is read back is what was logged, or an error",
        CACHE + "rotten_block_is_an_error", 1, FAILED_TEST,
        {"stripe/cached.c": [
            ("            if (journal_checksum(config->checksum_seed, run->cached_block[b], BLOCK_BYTES) ==\n"
             "                checksum)\n", "            if (true)\n"),
        ]}),
    "rotten_journal_goes_on": (
        "J6: where something does not read back as it was logged, a recovery may end",
        CACHE + "rotten_block_is_an_error", 1, FAILED_TEST,
        {"stripe/cached.c": [
            ("    journal_rotten(run->engine->journal, error);\n", ""),
        ]}),
    "what_is_stuck_goes_without_a_word": (
        "R6: what can be written nowhere is named",
        CACHE + "failed_journal_names_what_is_stuck", 1, FAILED_TEST,
        {"array/journaled.c": [
            ("        engine_give_up_cached(array->engine);\n", "        (void)0;\n"),
        ]}),
    "who_still_waits_is_forgotten": (
        "whoever waits for space keeps the reclaimer at it",
        CACHE + "who_waits_for_room_is_served", 1, FAILED_TEST,
        {"journal/journal.c": [
            ("            space_want(journal);\n", ""),
        ]}),
    "cached_while_a_resync_records": (
        "what is cached keeps the tail where a resync needs it to pass",
        CACHE + "resync_does_not_wait_for_what_is_cached", 1, FAILED_TEST,
        {"array/array.c": [
            ("        result = engine_drain_and_pause(array->engine);\n",
             "        result = engine_drain(array->engine);\n"),
            ("        engine_cache_again(array->engine);\n", ""),
        ]}),
    "replayed_before_it_is_durable": (
        "V2: what is replayed is in the log after a power cut, too",
        CACHE + "start_takes_nothing_for_durable", 1, FAILED_TEST,
        {"recovery/recovery.c": [
            ("    if (device->volatile_cache)\n        result = device_flush(device);\n"
             "    if (result < 0)\n", "    if (result < 0)\n"),
        ]}),
    "written_out_where_nothing_is_recorded": (
        "R6: nothing goes to the members unlogged before the superblocks say so",
        CACHE + "log_counts_where_too_much_failed_to_say_otherwise", 1, FAILED_TEST,
        {"array/journaled.c": [
            ("        superblocks_update(array, 0) < 0)\n        return;",
             "        superblocks_update(array, 0) < 0)\n        (void)0;"),
        ]}),
    "partial_block_completed_from_the_member": (
        "E11: the rest of a block that is cached is in the cache",
        "cache", 100, WRONG_DATA,
        {"stripe/change.c": [
            ("through ? run->cached[m] : run->cached[m] & run->part[m];",
             "through ? run->cached[m] : 0;"),
        ]}),
    "tail_passes_a_cached_block": (
        "J4, E12: what only the log holds bounds its tail",
        "cache", 500, LOST,
        {"journal/journal.c": [
            ("    if (journal->holder != NULL && journal->holder->oldest(journal->holder, &oldest) &&\n"
             "        ring_blocks_between",
             "    oldest = journal->tail;\n"
             "    if (false &&\n        ring_blocks_between"),
        ]}),
    "tail_passes_what_is_not_durable": (
        "J4: the journal is flushed before the tail passes what was logged anew",
        "cache", 3000, LOST,
        {"journal/journal.c": [
            ("    if (flush_until(journal, journal->complete_seq) < 0)\n        return;\n", ""),
        ]}),
    "tail_passes_what_is_being_written_out": (
        "E12: a cached block bounds the tail until its stripe is on the members",
        "cache", 2000, LOST,
        {"stripe/write_back.c": [
            ("    if (!cache_oldest(wb->cache, position))\n",
             "    if (!cache_oldest_unchosen(wb->cache, position))\n"),
        ]}),
    "page_reused_while_it_is_written": (
        "C3: a page that is being written out stays",
        "cache", 2000, EITHER + "|contract C2|FAIL: assertion",
        {"stripe/cached.c": [
            ("                cache_pin(cache, run->node[b]);\n", "                ;\n"),
            ("                cache_unpin(run->engine->write_back->cache, run->node[b]);\n",
             "                ;\n"),
        ]}),
    "reserve_ignored_by_writes": (
        "C2: a write takes nothing of what is set aside",
        "cache", 500, LOST + r"|hang: |FAIL: L2|Assertion `journal->used_blocks",
        {"journal/journal.c": [
            ("    return journal->used_blocks + journal->reserved_blocks + blocks + 1 <= "
             "journal->ring_blocks;\n",
             "    return journal->used_blocks + blocks + 1 <= journal->ring_blocks;\n"),
        ]}),
    "no_reserve_to_log_again": (
        "C2: a recovery can log again what is data-only, also a kernel's",
        "cache", 500, r"FAIL: L2",
        {"stripe/cache.c": [
            ("               : 1 + (uint64_t)(blocks > cache->config.parities ? blocks : "
             "cache->config.parities);\n", "               : 1 + (uint64_t)cache->config.parities;\n"),
        ]}),
    "reserve_not_given_back": (
        "C2: what is set aside comes back with the write-out",
        "cache", 500, r"hang: ",
        {"stripe/run.c": [
            ("    if (run->reserved > 0 && !journal_failed(run->engine->journal))\n",
             "    if (false)\n"),
        ]}),
    "space_awaited_with_the_group_locked": (
        "E9: who waits for space in the log holds no group",
        "cache", 500, r"hang: ",
        {"stripe/request.c": [
            ("    result = journal_reserve(engine->journal, reserve);\n", "    result = 0;\n"),
        ], "stripe/change.c": [
            ("        run->reserved += (int64_t)piece->reserved;\n",
             "        if (piece->reserved > 0 &&\n"
             "            journal_reserve(run->engine->journal, piece->reserved) == 0)\n"
             "            run->reserved += (int64_t)piece->reserved;\n"),
        ]}),
    "fua_answered_before_the_flush": (
        "a cached write with FUA is durable when it is answered",
        CACHE + "flush_and_fua_make_durable", 1, FAILED_TEST,
        {"stripe/request.c": [
            ("        (struct piece){.kind = PIECE_WRITE, .fua = fua, "
             ".memory = (uint8_t *)(uintptr_t)memory},\n"
             "        offset, length);\n\n    return result == 0 && fua ? log_flush(engine) : result;\n",
             "        (struct piece){.kind = PIECE_WRITE, .fua = fua, "
             ".memory = (uint8_t *)(uintptr_t)memory},\n"
             "        offset, length);\n\n    return result;\n"),
        ]}),
    "flush_forgets_the_log": (
        "FLUSH makes durable what was cached before it came",
        CACHE + "flush_and_fua_make_durable", 1, FAILED_TEST,
        {"array/array.c": [
            ("result = array->failed ? -EIO : journal_flush(array->journal);",
             "result = array->failed ? -EIO : 0;"),
        ]}),
    "degraded_array_goes_on_caching": (
        "the first degraded moment writes everything out",
        CACHE + "first_degraded_moment_writes_all_out", 1, FAILED_TEST,
        {"array/journaled.c": [
            ("    engine_write_back(array->engine, false);\n    array_tell(array, ARRAY_JOURNAL_MODE",
             "    array_tell(array, ARRAY_JOURNAL_MODE"),
        ]}),
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
        prefix = next((p for p in PROGRAMS if mode.startswith(p)), "")
        sources = [f"{source}/tests/sim/{name}" for name in PROGRAMS.get(prefix, ["sim.c"])]
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
            + ["-lcmocka"] * bool(prefix), check=True, cwd=build)
        command = [program, mode.removeprefix(prefix)]
        if not prefix:
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
