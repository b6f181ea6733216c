/*
 * control_client.h: asking the server of a running array, over its control socket.
 *
 * Blocking, without a loop.
 */
#ifndef STRIPELOG_CLI_CONTROL_CLIENT_H
#define STRIPELOG_CLI_CONTROL_CLIENT_H

#include "base/base.h"
#include "base/error.h"
#include "cli/progress.h"

#include <jansson.h>

/* How long a server may take for what it does at once. */
#define CONTROL_ANSWER_MS 10000

/*
 * Connects to the server of the array that is named by its control socket's path, or, among those
 * in the default directory, by its uuid, its name, or how one of them begins. The descriptor, or:
 * -ENOENT, no such array is served; -EEXIST, several are.
 */
int control_connect(const char *array, struct error *error) must_check;

/*
 * Sends a request (whose reference it gives up) and waits for its reply, at most timeout_ms; < 0:
 * for ever. *reply is owned by the caller. The error is the server's where it refused.
 */
int control_ask(int fd, json_t *request, int timeout_ms, json_t **reply,
                struct error *error) must_check;

/* The same, for ever, with a request for which what is cached is written out: tells how far that
 * is. */
int control_ask_patiently(int fd, json_t *request, struct progress *progress, json_t **reply,
                          struct error *error) must_check;

/* control_connect and control_ask; the connection is closed. */
int control_ask_array(const char *array, json_t *request, int timeout_ms, json_t **reply,
                      struct error *error) must_check;

/* Until the server has closed the connection, at most timeout_ms. */
void control_wait_closed(int fd, int timeout_ms);

#endif
