/*
 * The words of the control socket, also those that nobody should send.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "control/protocol.h"
#include <stdlib.h>

static int
parse(const char *line, struct control_request *request)
{
    struct error error = {0};
    const int result = control_request_parse(line, strlen(line), request, &error);

    /* An error always says why. */
    assert_int_equal(result < 0, error.text[0] != '\0');
    assert_int_equal(result, error.code);
    return result;
}

static int
result_of(const char *line)
{
    struct control_request request;

    return parse(line, &request);
}

static void
the_commands_are_understood(void **state)
{
    struct control_request request;

    assert_int_equal(parse("{\"command\":\"status\"}", &request), 0);
    assert_int_equal(request.command, CONTROL_STATUS);
    assert_int_equal(parse(" { \"command\" : \"stop\" } \r", &request), 0);
    assert_int_equal(request.command, CONTROL_STOP);
    assert_int_equal(parse("{\"command\":\"journal-mode\"}", &request), 0);
    assert_int_equal(request.command, CONTROL_JOURNAL_MODE);
    assert_false(request.has_mode);
    assert_int_equal(parse("{\"mode\":\"write-back\",\"command\":\"journal-mode\"}", &request), 0);
    assert_true(request.has_mode);
    assert_int_equal(request.mode, JOURNAL_WRITE_BACK);
    assert_int_equal(parse("{\"command\":\"journal-mode\",\"mode\":\"write-through\"}", &request),
                     0);
    assert_true(request.has_mode);
    assert_int_equal(request.mode, JOURNAL_WRITE_THROUGH);
}

static void
what_is_no_json_object_is_no_conversation(void **state)
{
    static const char *const lines[] = {
        "",
        "GET / HTTP/1.1",
        "status",
        "\"status\"",
        "[]",
        "[\"status\"]",
        "null",
        "7",
        "{",
        "}",
        "{\"command\":\"status\"",
        "{\"command\":\"status\"}}",
        "{\"command\":\"status\"} {\"command\":\"stop\"}",
        "{\"command\":\"status\",}",
        "{\"command\":\"sta\\u0000tus\"}",
        "{\"command\":\"sta\xfftus\"}",
        "{\"command\":\"status\",\"command\":\"stop\"}", /* which one would it be? */
        "{\"mode\":1e999}",
        "{'command':'status'}",
    };

    for (size_t i = 0; i < ARRAY_LEN(lines); i++)
        assert_int_equal(result_of(lines[i]), -EBADMSG);
}

static void
a_nul_does_not_end_a_line(void **state)
{
    static const char line[] = "{\"command\":\"status\"}\0{";
    struct control_request request;
    struct error error;

    assert_int_equal(control_request_parse(line, sizeof line - 1, &request, &error), -EBADMSG);
}

static void
objects_that_are_no_requests_are_refused(void **state)
{
    static const char *const lines[] = {
        "{}",
        "{\"command\":null}",
        "{\"command\":7}",
        "{\"command\":[\"status\"]}",
        "{\"command\":{\"command\":\"stop\"}}",
        "{\"command\":\"\"}",
        "{\"command\":\"Status\"}",
        "{\"command\":\"status \"}",
        "{\"command\":\"stopp\"}",
        "{\"command\":\"sto\"}",
        "{\"Command\":\"stop\"}",
        "{\"command\":\"stop\",\"when\":\"now\"}",
        "{\"command\":\"stop\",\"mode\":\"write-back\"}",
        "{\"mode\":\"write-back\",\"command\":\"status\"}",
        "{\"command\":\"journal-mode\",\"mode\":null}",
        "{\"command\":\"journal-mode\",\"mode\":1}",
        "{\"command\":\"journal-mode\",\"mode\":\"\"}",
        "{\"command\":\"journal-mode\",\"mode\":\"write-backwards\"}",
        "{\"command\":\"journal-mode\",\"mode\":{\"a\":[\"write-back\"]}}",
    };

    for (size_t i = 0; i < ARRAY_LEN(lines); i++)
        assert_int_equal(result_of(lines[i]), -EINVAL);
}

/* As deep as a line can nest; the parser alone would run out of the stack of a task. */
static void
what_nests_deep_does_not_reach_the_parser(void **state)
{
    static const char *const units[] = {"[", "{\"a\":", "[{\"a\":", "{\"\\\"\":["};
    char line[CONTROL_LINE_BYTES_MAX];

    for (size_t u = 0; u < ARRAY_LEN(units); u++) {
        struct control_request request;
        struct error error = {0};
        const size_t unit = strlen(units[u]);
        size_t length = 0;

        for (; length + unit < sizeof line; length += unit)
            memcpy(line + length, units[u], unit);
        assert_int_equal(control_request_parse(line, length, &request, &error), -EBADMSG);
        assert_non_null(strstr(error.text, "nests"));
    }
    /* What only looks like it stands in a string. */
    assert_int_equal(result_of("{\"command\":\"[[[[[[[[{{{{{{{{\"}"), -EINVAL);
    assert_int_equal(result_of("{\"command\":\"\\\"[[[[[[[[{{{{{{{{\"}"), -EINVAL);
    assert_int_equal(result_of("{\"command\":\"\\\\\",\"a\":[[[1]]]}"), -EINVAL);
    assert_int_equal(result_of("{\"command\":\"\\\\\",\"a\":[[[[1]]]]}"), -EBADMSG);
}

static void
a_line_has_a_limit(void **state)
{
    char line[CONTROL_LINE_BYTES_MAX + 1];
    struct control_request request;
    struct error error;

    memset(line, ' ', sizeof line);
    memcpy(line, "{\"command\":\"status\"}", 20);
    assert_int_equal(control_request_parse(line, CONTROL_LINE_BYTES_MAX - 1, &request, &error), 0);
    assert_int_equal(control_request_parse(line, CONTROL_LINE_BYTES_MAX, &request, &error),
                     -EBADMSG);
}

/* Every way of cutting a request short, and every byte in every place of it. */
static void
damaged_requests_are_refused_or_are_others(void **state)
{
    static const char whole[] = "{\"command\":\"journal-mode\",\"mode\":\"write-back\"}";
    char line[sizeof whole];
    unsigned accepted = 0;

    for (size_t length = 0; length < sizeof whole - 1; length++) {
        struct control_request request;
        struct error error;

        assert_int_equal(control_request_parse(whole, length, &request, &error), -EBADMSG);
    }
    for (size_t at = 0; at < sizeof whole - 1; at++)
        for (unsigned byte = 0; byte < 256; byte++) {
            struct control_request request;
            struct error error;

            memcpy(line, whole, sizeof whole);
            line[at] = (char)byte;
            if (control_request_parse(line, sizeof whole - 1, &request, &error) == 0) {
                accepted++;
                assert_int_equal(line[at], whole[at]);
            }
        }
    assert_int_equal(accepted, sizeof whole - 1);
}

static void
replies_say_what_is_wrong(void **state)
{
    struct error error = {.code = -EUCLEAN, .text = "first line\ndevice \xff\xfe is degraded"};
    json_t *reply = control_reply_error(&error);
    json_t *ok = control_reply_ok();

    assert_true(json_is_false(json_object_get(reply, "ok")));
    assert_string_equal(json_string_value(json_object_get(reply, "code")), "EUCLEAN");
    assert_string_equal(json_string_value(json_object_get(reply, "error")),
                        "first line\ndevice \\xff\\xfe is degraded");
    assert_true(json_is_true(json_object_get(ok, "ok")));
    json_decref(reply);
    json_decref(ok);
    error = (struct error){.code = -ENOTSUP};
    reply = control_reply_error(&error);
    assert_string_equal(json_string_value(json_object_get(reply, "code")), "ENOTSUP");
    assert_true(json_string_length(json_object_get(reply, "error")) > 0);
    json_decref(reply);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_commands_are_understood),
        cmocka_unit_test(what_is_no_json_object_is_no_conversation),
        cmocka_unit_test(a_nul_does_not_end_a_line),
        cmocka_unit_test(objects_that_are_no_requests_are_refused),
        cmocka_unit_test(what_nests_deep_does_not_reach_the_parser),
        cmocka_unit_test(a_line_has_a_limit),
        cmocka_unit_test(damaged_requests_are_refused_or_are_others),
        cmocka_unit_test(replies_say_what_is_wrong),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
