/*
 * service.h: what a service owes to whoever started it: a pidfile, word that it is ready, an end
 * when asked for, and the command that it was started for.
 */
#ifndef STRIPELOG_SERVICE_H
#define STRIPELOG_SERVICE_H

#include "base/base.h"
#include "base/error.h"

#include <sys/types.h>

/* Our number, at once or not at all: who reads the file never finds half of it. */
/* Whether pidfile_write could take this path: -EEXIST, it is something else than a pidfile; -EBUSY,
 * that of a server that runs. */
int pidfile_check(const char *path, struct error *error) must_check;
int pidfile_write(const char *path, struct error *error) must_check;
/* Only if it is still ours. */
void pidfile_remove(const char *path);

/* "READY=1" and the like to the service manager that $NOTIFY_SOCKET names, if there is one. */
void notify_send(const char *state);

/* Where sockets are unless said otherwise: /run/stripelog, without root $XDG_RUNTIME_DIR/stripelog.
 * -ENOENT: the latter is not set. */
int default_directory(char *path, size_t bytes, struct error *error) must_check;
/* UUID.KIND there ("nbd", "ctl"), of the array with this uuid (as text). Makes the directory. */
int default_socket(const char *uuid, const char *kind, char *path, size_t bytes,
                   struct error *error) must_check;

/* Blocks SIGTERM and SIGINT, and returns a descriptor that is readable when one came. Before any
 * thread is made. */
int signals_open(struct error *error) must_check;
/* For the calling thread: until the second they end the process, as they do by themselves. */
void signals_end_us(void);
void signals_hold(void);
/* Takes one; 0 if there is none. */
int signals_take(int fd);

/*
 * Starts "sh -c COMMAND" with $uri and $unixsocket (path may be NULL) in its environment, and
 * signals as they were before signals_open. *pid_fd is readable when it has ended.
 */
int command_start(const char *command, const char *uri, const char *unixsocket, pid_t *pid,
                  int *pid_fd, struct error *error) must_check;
/* Its exit status when it has ended; 128 + signal where one ended it. */
int command_status(pid_t pid);

#endif
