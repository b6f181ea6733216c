/*
 * protocol.c: see protocol.h.
 */
#include "control/protocol.h"
#include <stdlib.h>

/* --- Modes ----------------------------------------------------------------------------------- */

const char *
control_mode_name(enum journal_mode mode)
{
    return mode == JOURNAL_WRITE_BACK ? "write-back" : "write-through";
}

int
control_mode_parse(const char *name, enum journal_mode *mode)
{
    static const enum journal_mode modes[] = {JOURNAL_WRITE_THROUGH, JOURNAL_WRITE_BACK};

    for (size_t i = 0; i < ARRAY_LEN(modes); i++)
        if (strcmp(name, control_mode_name(modes[i])) == 0) {
            *mode = modes[i];
            return 0;
        }
    return -EINVAL;
}

/* --- Requests -------------------------------------------------------------------------------- */

/* Whether arrays and objects nest deeper than the parser may follow them. Up to where it would stop
 * for an error, strings begin and end here as they do there. */
static bool
nests_too_deep(const char *line, size_t length)
{
    unsigned depth = 0;
    bool string = false, escaped = false;

    for (size_t i = 0; i < length; i++) {
        const char c = line[i];

        if (string) {
            string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if (c == '"') {
            string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > CONTROL_DEPTH_MAX)
                return true;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return false;
}

static int
parse_mode(const json_t *value, struct control_request *request, struct error *error)
{
    const char *name = json_string_value(value);

    if (request->command != CONTROL_JOURNAL_MODE)
        return error_set(error, -EINVAL, "\"mode\" belongs to journal-mode alone");
    if (!name || control_mode_parse(name, &request->mode) < 0)
        return error_set(error, -EINVAL,
                         "\"mode\" is neither \"write-through\" nor \"write-back\"");
    request->has_mode = true;
    return 0;
}

static int
parse_command(const json_t *object, struct control_request *request, struct error *error)
{
    static const struct {
        const char *name;
        enum control_command command;
    } commands[] = {
        {"status", CONTROL_STATUS}, {"journal-mode", CONTROL_JOURNAL_MODE}, {"stop", CONTROL_STOP}};
    const char *name = json_string_value(json_object_get(object, "command"));

    if (!name)
        return error_set(error, -EINVAL, "there is no \"command\" that is a string");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strcmp(name, commands[i].name) == 0) {
            request->command = commands[i].command;
            return 0;
        }
    return error_set(error, -EINVAL, "the commands are status, journal-mode and stop");
}

static int
parse_object(json_t *object, struct control_request *request, struct error *error)
{
    const char *key;
    json_t *value;
    int result = parse_command(object, request, error);

    json_object_foreach(object, key, value)
    {
        if (result < 0)
            break;
        if (strcmp(key, "mode") == 0)
            result = parse_mode(value, request, error);
        else if (strcmp(key, "command") != 0)
            result = error_set(error, -EINVAL, "the members are \"command\" and \"mode\"");
    }
    return result;
}

int
control_request_parse(const char *line, size_t length, struct control_request *request,
                      struct error *error)
{
    json_error_t where;
    json_t *object;
    int result;

    *request = (struct control_request){0};
    if (length >= CONTROL_LINE_BYTES_MAX)
        return error_set(error, -EBADMSG, "a line has at most %u bytes", CONTROL_LINE_BYTES_MAX);
    if (nests_too_deep(line, length))
        return error_set(error, -EBADMSG, "a request nests at most %u deep", CONTROL_DEPTH_MAX);
    object = json_loadb(line, length, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(object))
        result = error_set(error, -EBADMSG, "the line is no JSON object");
    else
        result = parse_object(object, request, error);
    json_decref(object);
    return result;
}

/* --- Replies --------------------------------------------------------------------------------- */

json_t *
control_text(const char *text)
{
    static const char digits[] = "0123456789abcdef";
    json_t *json = json_string(text);
    char *escaped, *at;

    if (json)
        return json;
    escaped = at = malloc(4 * strlen(text) + 1);
    if (!escaped)
        return NULL;
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;

        if (c < 0x80) {
            *at++ = *text;
        } else {
            *at++ = '\\';
            *at++ = 'x';
            *at++ = digits[c >> 4];
            *at++ = digits[c & 15];
        }
    }
    *at = '\0';
    json = json_string(escaped);
    free(escaped);
    return json;
}

json_t *
control_reply_ok(void)
{
    return json_pack("{s:b}", "ok", 1);
}

json_t *
control_reply_error(const struct error *error)
{
    /* Which has two names. */
    const char *code = error->code == -ENOTSUP ? "ENOTSUP" : strerrorname_np(-error->code);
    const char *text = error->text[0] ? error->text : strerror(-error->code);

    return json_pack("{s:b, s:s, s:o}", "ok", 0, "code", code ? code : "EIO", "error",
                     control_text(text));
}
