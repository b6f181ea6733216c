/*
 * test_cli_start_options.c: which dangers and budgets are options, and which are not.
 */
#include "cli/start_options.h"

#include "array/assemble.h"
#include "cli/cli.h"

#include <stdio.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* ---- What it calls ---- */

static char told[600];

int
usage_failed(const char *command, const char *format, ...)
{
    va_list args;

    assert_string_equal(command, "cmd");
    va_start(args, format);
    (void)vsnprintf(told, sizeof told, format, args);
    va_end(args);
    return CLI_USAGE;
}

/* ---- --force ---- */

static const struct {
    const char *name;
    unsigned bit;
} dangers[] = {
    {"dirty-degraded", FORCE_DIRTY_DEGRADED},     {"stale-member", FORCE_STALE_MEMBER},
    {"drop-journal", FORCE_DROP_JOURNAL},         {"new-journal", FORCE_NEW_JOURNAL},
    {"truncate-journal", FORCE_TRUNCATE_JOURNAL},
};

static void
force_alone_is_dirty_degraded(void **state)
{
    unsigned force = 0;

    assert_int_equal(force_parse("cmd", NULL, &force), -1);
    assert_int_equal(force, FORCE_DIRTY_DEGRADED);
}

/* Every list of up to three, in any order, with repetitions. */
static void
dangers_are_named_one_by_one(void **state)
{
    const unsigned n = ARRAY_LEN(dangers);

    for (unsigned a = 0; a < n; a++)
        for (unsigned b = 0; b <= n; b++)
            for (unsigned c = 0; c <= n; c++) {
                const unsigned wanted =
                    dangers[a].bit | (b < n ? dangers[b].bit : 0) | (c < n ? dangers[c].bit : 0);
                unsigned force = 0;
                char text[100];

                (void)snprintf(text, sizeof text, "%s%s%s%s%s", dangers[a].name, b < n ? "," : "",
                               b < n ? dangers[b].name : "", c < n ? "," : "",
                               c < n ? dangers[c].name : "");
                assert_int_equal(force_parse("cmd", text, &force), -1);
                assert_int_equal(force, wanted);
            }
}

static void
several_options_add_up(void **state)
{
    unsigned force = 0;

    assert_int_equal(force_parse("cmd", "new-journal", &force), -1);
    assert_int_equal(force_parse("cmd", NULL, &force), -1);
    assert_int_equal(force, FORCE_NEW_JOURNAL | FORCE_DIRTY_DEGRADED);
}

/* No abbreviation: each danger is asked for in full. */
static void
what_is_no_danger_is_refused_and_all_are_told(void **state)
{
    static const char *const texts[] = {"",
                                        ",",
                                        "all",
                                        "drop",
                                        "drop-journals",
                                        "Drop-journal",
                                        " ",
                                        "drop-journal,",
                                        ",drop-journal",
                                        "new-journal,,drop-journal",
                                        "new-journal, drop-journal"};

    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        unsigned force = 0;

        told[0] = '\0';
        assert_int_equal(force_parse("cmd", texts[i], &force), CLI_USAGE);
        for (size_t d = 0; d < ARRAY_LEN(dangers); d++)
            assert_non_null(strstr(told, dangers[d].name));
    }
}

/* ---- --memory ---- */

static void
a_budget_has_a_unit_and_a_minimum(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes; /* 0: refused */
    } cases[] = {{"64M", 64 * MIB},  {"1g", GIB}, {"65536K", 64 * MIB}, {"63M", 0},  {"65535K", 0},
                 {"256", 0},         {"", 0},     {"-64M", 0},          {"64MM", 0}, {"1.5G", 0},
                 {"99999999999T", 0}};

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t bytes = 1;

        told[0] = '\0';
        assert_int_equal(memory_parse("cmd", cases[i].text, &bytes),
                         cases[i].bytes ? -1 : CLI_USAGE);
        if (cases[i].bytes)
            assert_int_equal(bytes, cases[i].bytes);
        else
            assert_non_null(strstr(told, "--memory"));
    }
}

/* ---- --write-out ---- */

static void
limits_of_write_out_are_set_by_name(void **state)
{
    struct write_back_tunables tunables = {.batch_groups = 7};

    assert_int_equal(write_out_parse("cmd", "high=95,idle=86400", &tunables), -1);
    assert_int_equal(write_out_parse("cmd", "moderate=1,tight=90,at-once=1024", &tunables), -1);
    assert_int_equal(tunables.high_percent, 95);
    assert_int_equal(tunables.moderate_percent, 1);
    assert_int_equal(tunables.tight_percent, 90);
    assert_int_equal(tunables.batch_groups, 7);
    assert_int_equal(tunables.write_outs_max, 1024);
    assert_int_equal(tunables.idle_ns, 86400 * UINT64_C(1000000000));
    assert_int_equal(write_out_parse("cmd", "batch=1,batch=1024,high=1", &tunables), -1);
    assert_int_equal(tunables.batch_groups, 1024);
    assert_int_equal(tunables.high_percent, 1);
}

static void
what_is_no_limit_of_write_out_is_refused(void **state)
{
    static const char *const texts[] = {"",
                                        ",",
                                        "high",
                                        "high=",
                                        "high=0",
                                        "high=96",
                                        "high=50%",
                                        "high=-1",
                                        "high=50,",
                                        ",high=50",
                                        "high=50,,tight=5",
                                        "high=50 ,tight=5",
                                        "High=50",
                                        "hig=50",
                                        "higher=50",
                                        "moderate=96",
                                        "tight=91",
                                        "batch=1025",
                                        "at-once=1025",
                                        "idle=86401",
                                        "idle=30s",
                                        "idle=18446744073709551616",
                                        "idle=00000000000000000000010x"};

    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct write_back_tunables tunables = {0};

        told[0] = '\0';
        assert_int_equal(write_out_parse("cmd", texts[i], &tunables), CLI_USAGE);
        assert_non_null(strstr(told, "--write-out"));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(force_alone_is_dirty_degraded),
        cmocka_unit_test(dangers_are_named_one_by_one),
        cmocka_unit_test(several_options_add_up),
        cmocka_unit_test(what_is_no_danger_is_refused_and_all_are_told),
        cmocka_unit_test(a_budget_has_a_unit_and_a_minimum),
        cmocka_unit_test(limits_of_write_out_are_set_by_name),
        cmocka_unit_test(what_is_no_limit_of_write_out_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
