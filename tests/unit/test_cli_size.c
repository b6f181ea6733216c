/*
 * test_cli_size.c: which texts are sizes, and which are not.
 */
#include "cli/size.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define TIB (1024 * GIB)

static void
sizes_are_powers_of_1024(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"0K", 0},
        {"1K", KIB},
        {"1k", KIB},
        {"1KiB", KIB},
        {"1kib", KIB},
        {"1KIB", KIB},
        {"64K", 64 * KIB},
        {"007M", 7 * MIB},
        {"1m", MIB},
        {"3MiB", 3 * MIB},
        {"256M", 256 * MIB},
        {"1g", GIB},
        {"5GiB", 5 * GIB},
        {"2T", 2 * TIB},
        {"2tIb", 2 * TIB},
        {"16777215T", 16777215 * TIB},
        {"18014398509481983K", 18014398509481983 * KIB},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        for (int bare = SIZE_BARE_REFUSED; bare <= SIZE_BARE_KIB; bare++) {
            struct error error = {0};
            uint64_t bytes = 1;

            if (size_parse(cases[i].text, (enum size_bare)bare, &bytes, &error) != 0)
                fail_msg("%s: %s", cases[i].text, error.text);
            assert_int_equal(bytes, cases[i].bytes);
        }
}

static void
a_bare_number_is_kib_or_refused(void **state)
{
    struct error error = {0};
    uint64_t bytes = 1;

    assert_int_equal(size_parse("512", SIZE_BARE_KIB, &bytes, &error), 0);
    assert_int_equal(bytes, 512 * KIB);
    assert_int_equal(size_parse("0", SIZE_BARE_KIB, &bytes, &error), 0);
    assert_int_equal(bytes, 0);
    bytes = 77;
    assert_int_equal(size_parse("512", SIZE_BARE_REFUSED, &bytes, &error), -EINVAL);
    assert_int_equal(bytes, 77);
    assert_non_null(strstr(error.text, "unit"));
}

static void
what_is_not_a_size_is_refused(void **state)
{
    static const char *const texts[] = {
        "",     " ",    "K",     "KiB",   "x",      "-1K",  "+1K", " 1K", "1K ",   "1 K",
        "1.5G", "1,5G", "0x10K", "1e3K",  "1KB",    "1B",   "1b",  "1Ki", "1KiBx", "1KK",
        "1P",   "1E",   "1iB",   "1GiBs", "1K\n",   "--1K", "1K1", "1s",  "१K",    "1\xc2\xa0K",
        "max",  "all",  "1M1K",  "1/2G",  "1'000K", "1_0K", "1k-", ".5G", "5.",    "5.0K",
    };

    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        for (int bare = SIZE_BARE_REFUSED; bare <= SIZE_BARE_KIB; bare++) {
            struct error error = {0};
            uint64_t bytes = 77;

            if (size_parse(texts[i], (enum size_bare)bare, &bytes, &error) != -EINVAL)
                fail_msg("\"%s\" was taken", texts[i]);
            assert_int_equal(bytes, 77);
            assert_true(error.text[0] != '\0');
        }
}

static void
too_large_is_refused(void **state)
{
    static const char *const texts[] = {
        "18014398509481984K",    "17592186044416M",
        "17179869184G",          "16777216T",
        "99999999999999999999K", "18446744073709551616K",
        "36893488147419103233K", "340282366920938463463374607431768211457T",
    };

    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct error error = {0};
        uint64_t bytes = 77;

        if (size_parse(texts[i], SIZE_BARE_REFUSED, &bytes, &error) != -ERANGE)
            fail_msg("%s was taken", texts[i]);
        assert_int_equal(bytes, 77);
    }
    {
        struct error error = {0};
        uint64_t bytes = 77;

        assert_int_equal(size_parse("18014398509481984", SIZE_BARE_KIB, &bytes, &error), -ERANGE);
        assert_int_equal(size_parse("18014398509481983", SIZE_BARE_KIB, &bytes, &error), 0);
    }
}

static void
counts_are_whole_numbers_up_to_a_limit(void **state)
{
    static const char *const refused[] = {"", "-1", "+1", "1K", " 1", "1 ", "1.0", "0x1", "x"};
    struct error error = {0};
    uint64_t count = 77;

    assert_int_equal(count_parse("0", 10, &count, &error), 0);
    assert_int_equal(count, 0);
    assert_int_equal(count_parse("10", 10, &count, &error), 0);
    assert_int_equal(count, 10);
    assert_int_equal(count_parse("11", 10, &count, &error), -ERANGE);
    assert_int_equal(count_parse("18446744073709551617", UINT64_MAX, &count, &error), -ERANGE);
    assert_int_equal(count_parse("18446744073709551615", UINT64_MAX, &count, &error), 0);
    for (size_t i = 0; i < ARRAY_LEN(refused); i++)
        assert_int_equal(count_parse(refused[i], 10, &count, &error), -EINVAL);
}

static void
sizes_are_shown_in_the_largest_unit(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 bytes"},           {1023, "1023 bytes"},  {1024, "1 KiB"},
        {1536, "1.50 KiB"},       {1048576, "1 MiB"},    {3 * GIB / 2, "1.50 GiB"},
        {2 * TIB, "2 TiB"},       {1024 * TIB, "1 PiB"}, {UINT64_MAX, "16.00 EiB"},
        {1023 * KIB, "1023 KiB"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char text[SIZE_TEXT_BYTES];

        size_text(cases[i].bytes, text);
        assert_string_equal(text, cases[i].text);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_powers_of_1024),
        cmocka_unit_test(a_bare_number_is_kib_or_refused),
        cmocka_unit_test(what_is_not_a_size_is_refused),
        cmocka_unit_test(too_large_is_refused),
        cmocka_unit_test(counts_are_whole_numbers_up_to_a_limit),
        cmocka_unit_test(sizes_are_shown_in_the_largest_unit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
