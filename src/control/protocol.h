/*
 * protocol.h: the words of the control socket: bytes <-> requests and replies.
 *
 * A request is a line with a JSON object, its reply another; replies come in the order of the
 * requests.
 *
 *   {"command": "status"}                               how the array is (status.h)
 *   {"command": "journal-mode"}                         how its journal is used
 *   {"command": "journal-mode", "mode": "write-back"}   changes that; or "write-through"
 *   {"command": "stop"}                                 ends the server, as SIGTERM does
 *
 *   {"ok": true, ...}
 *   {"ok": false, "code": "EUCLEAN", "error": "..."}    the cause is the text's last line
 *
 * What a client sends is hostile until it was parsed: a line has a limit, and so has the depth of
 * what nests in it, since the parser of JSON recurses.
 */
#ifndef STRIPELOG_CONTROL_PROTOCOL_H
#define STRIPELOG_CONTROL_PROTOCOL_H

#include "array/array.h"
#include "base/base.h"
#include "base/error.h"
#include <jansson.h>

#define CONTROL_LINE_BYTES_MAX 4096u /* of a request, its newline included */
#define CONTROL_DEPTH_MAX      4u

enum control_command { CONTROL_STATUS, CONTROL_JOURNAL_MODE, CONTROL_STOP };

struct control_request {
    enum control_command command;
    bool has_mode; /* of CONTROL_JOURNAL_MODE */
    enum journal_mode mode;
};

/*
 * A line, without its newline. -EBADMSG: it is no JSON object, so that nobody can say what the
 * client is; -EINVAL: it is, but no request. *error says why.
 */
int control_request_parse(const char *line, size_t length, struct control_request *request,
                          struct error *error) must_check;

const char *control_mode_name(enum journal_mode mode);
/* -EINVAL: there is no such mode. */
int control_mode_parse(const char *name, enum journal_mode *mode) must_check;

/* Replies; NULL: no memory. */
json_t *control_reply_ok(void);
json_t *control_reply_error(const struct error *error);

/* Any text as JSON: what is no UTF-8 becomes \xNN. NULL: no memory. */
json_t *control_text(const char *text);

#endif
