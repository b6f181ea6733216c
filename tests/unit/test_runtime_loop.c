/* The loop on its two real backends: each test runs on both, unless the system refuses io_uring. */
#include "runtime/backends.h"
#include "runtime/loop.h"
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define MS 1000000ull

/* --- Scenes --------------------------------------------------------------------------------- */

struct scene {
    struct loop *loop;
    char log[256];
    size_t logged;
    int pair[2];
};

static void
note(struct scene *scene, char what)
{
    assert_true(scene->logged + 1 < sizeof scene->log);
    scene->log[scene->logged++] = what;
    scene->log[scene->logged] = '\0';
}

static int
scene_begin(void **state, bool uring)
{
    const struct loop_config config = {.tasks = 64, .seed = 1};
    struct scene *const scene = calloc(1, sizeof *scene);
    const struct loop_backend *backend;
    struct error error = {0};
    void *self;
    int rc;

    if (!scene)
        return -1;
    *state = scene;
    rc = uring ? backend_uring_create(&backend, &self, &error)
               : backend_threads_create(&backend, &self, &error);
    if (rc == 0)
        rc = loop_create_on(&config, backend, self, &scene->loop, &error);
    if (rc < 0 && uring) {
        print_message("io_uring is refused here: %s\n", error.text);
        return 0; /* in_scene skips */
    }
    return rc < 0 ? rc : socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, scene->pair);
}

static int
uring_begin(void **state)
{
    return scene_begin(state, true);
}

static int
threads_begin(void **state)
{
    return scene_begin(state, false);
}

static int
scene_end(void **state)
{
    struct scene *const scene = *state;

    if (scene->loop) {
        loop_destroy(scene->loop);
        (void)close(scene->pair[0]);
        (void)close(scene->pair[1]);
    }
    free(scene);
    return 0;
}

static struct scene *
in_scene(void **state)
{
    struct scene *const scene = *state;

    if (!scene->loop)
        skip();
    return scene;
}

static void
must_start(struct loop *loop, void (*run)(void *), void *arg)
{
    assert_non_null(task_start(loop, run, arg));
}

static uint64_t
clock_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* --- Timers and sleep ----------------------------------------------------------------------- */

struct alarm {
    struct timer timer;
    struct scene *scene;
    char name;
    uint64_t fired_ns;
};

static void
alarm_fire(struct timer *timer)
{
    struct alarm *const alarm = container_of(timer, struct alarm, timer);

    note(alarm->scene, alarm->name);
    alarm->fired_ns = loop_clock_ns(alarm->scene->loop);
}

static void
sleep_60_ms(void *arg)
{
    loop_sleep(((struct scene *)arg)->loop, 60 * MS);
}

static void
timers_fire_in_order_of_time_then_of_arming(void **state)
{
    struct scene *const scene = in_scene(state);
    struct alarm a = {.timer.fire = alarm_fire, .scene = scene, .name = 'a'};
    struct alarm b = a, c = a, d = a, e = a;

    b.name = 'b';
    c.name = 'c';
    d.name = 'd';
    e.name = 'e';
    timer_arm(scene->loop, &a.timer, 30 * MS);
    timer_arm(scene->loop, &b.timer, 10 * MS);
    timer_arm(scene->loop, &c.timer, 20 * MS);
    timer_arm(scene->loop, &d.timer, 10 * MS);
    timer_arm(scene->loop, &e.timer, 5 * MS);
    timer_cancel(scene->loop, &c.timer);
    timer_cancel(scene->loop, &c.timer);       /* disarmed already: nothing */
    timer_arm(scene->loop, &e.timer, 40 * MS); /* moved behind all */
    assert_true(a.timer.armed && !c.timer.armed);
    loop_run_task(scene->loop, sleep_60_ms, scene);
    assert_string_equal(scene->log, "bdae");
    assert_false(a.timer.armed);
}

static void
sleep_is_not_short_and_not_far_too_long(void **state)
{
    struct scene *const scene = in_scene(state);
    const uint64_t before_ns = clock_ns();
    uint64_t took_ns;

    loop_run_task(scene->loop, sleep_60_ms, scene);
    took_ns = clock_ns() - before_ns;
    assert_true(took_ns >= 60 * MS);
    assert_true(took_ns < 5000 * MS); /* a loaded machine, not a forgotten timer */
}

struct rearming {
    struct timer timer;
    struct loop *loop;
    unsigned left;
};

static void
rearm(struct timer *timer)
{
    struct rearming *const rearming = container_of(timer, struct rearming, timer);

    if (--rearming->left > 0)
        timer_arm(rearming->loop, timer, 0);
}

static void
timer_that_rearms_itself_for_now_lets_the_loop_turn(void **state)
{
    struct scene *const scene = in_scene(state);
    struct rearming rearming = {.timer.fire = rearm, .loop = scene->loop, .left = 1000000000};

    timer_arm(scene->loop, &rearming.timer, 0);
    loop_run_task(scene->loop, sleep_60_ms, scene);
    assert_true(rearming.left > 0);
    timer_cancel(scene->loop, &rearming.timer);
}

static void
random_numbers_follow_the_seed(void **state)
{
    struct scene *const scene = in_scene(state);
    const uint64_t first = loop_random(scene->loop), second = loop_random(scene->loop);

    assert_true(first == 0x910a2dec89025cc1u); /* SplitMix64 from 1 */
    assert_true(second != first);
    assert_true(loop_wall_us(scene->loop) > 1600000000000000u);
}

/* --- Hooks, calls, stop --------------------------------------------------------------------- */

struct hooked {
    struct turn_hook hook;
    struct scene *scene;
    char name;
    bool start;
};

static void
say_t(void *arg)
{
    note(arg, 't');
}

static void
hook_run(struct turn_hook *hook)
{
    struct hooked *const hooked = container_of(hook, struct hooked, hook);

    note(hooked->scene, hooked->name);
    if (hooked->start)
        must_start(hooked->scene->loop, say_t, hooked->scene);
}

struct hook_story {
    struct scene *scene;
    struct hooked first, second;
};

static void
queue_hooks(void *arg)
{
    struct hook_story *const story = arg;
    struct loop *const loop = story->scene->loop;

    loop_at_turn_end(loop, &story->first.hook);
    loop_at_turn_end(loop, &story->second.hook);
    loop_at_turn_end(loop, &story->first.hook); /* queued already */
    note(story->scene, '1');
    task_yield(loop);
    note(story->scene, '2'); /* still before the hooks */
    task_yield(loop);
    note(story->scene, '3');
    loop_sleep(loop, 1);
    note(story->scene, '4');
    loop_at_turn_end(loop, &story->second.hook);
}

static void
hooks_run_once_when_nothing_else_can_and_what_they_start_runs_in_the_same_turn(void **state)
{
    struct scene *const scene = in_scene(state);
    struct hook_story story = {
        .scene = scene,
        .first = {.hook.run = hook_run, .scene = scene, .name = 'A', .start = true},
        .second = {.hook.run = hook_run, .scene = scene, .name = 'B'},
    };

    loop_run_task(scene->loop, queue_hooks, &story);
    assert_string_equal(scene->log, "123ABt4B");
}

#define CALLS   2000
#define CALLERS 3

struct counted_call {
    struct loop_call call;
    struct crowd *crowd;
    unsigned caller, number;
};

struct crowd {
    struct scene *scene;
    struct task *waiter;
    unsigned next[CALLERS], total;
    bool in_order;
    struct counted_call calls[CALLERS][CALLS];
};

static void
count_call(struct loop_call *call)
{
    struct counted_call *const counted = container_of(call, struct counted_call, call);
    struct crowd *const crowd = counted->crowd;

    if (crowd->next[counted->caller]++ != counted->number)
        crowd->in_order = false;
    if (++crowd->total == CALLERS * CALLS)
        task_wake(crowd->scene->loop, crowd->waiter);
}

static void *
call_often(void *arg)
{
    struct counted_call *const calls = arg;

    for (unsigned i = 0; i < CALLS; i++) {
        loop_call(calls->crowd->scene->loop, &calls[i].call);
        if (i % 97 == 0)
            (void)usleep(100); /* so that the loop goes to sleep in between */
    }
    return NULL;
}

static void
suspend_for_the_crowd(void *arg)
{
    struct crowd *const crowd = arg;
    pthread_t threads[CALLERS];

    crowd->waiter = task_self(crowd->scene->loop);
    for (unsigned i = 0; i < CALLERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, call_often, crowd->calls[i]), 0);
    task_suspend(crowd->scene->loop);
    for (unsigned i = 0; i < CALLERS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
}

static void
calls_from_threads_all_run_in_each_threads_order(void **state)
{
    struct scene *const scene = in_scene(state);
    struct crowd *const crowd = calloc(1, sizeof *crowd);

    assert_non_null(crowd);
    crowd->scene = scene;
    crowd->in_order = true;
    for (unsigned i = 0; i < CALLERS; i++)
        for (unsigned j = 0; j < CALLS; j++)
            crowd->calls[i][j] = (struct counted_call){
                .call.run = count_call, .crowd = crowd, .caller = i, .number = j};
    loop_run_task(scene->loop, suspend_for_the_crowd, crowd);
    assert_int_equal(crowd->total, CALLERS * CALLS);
    assert_true(crowd->in_order);
    free(crowd);
}

struct stop_call {
    struct loop_call call;
    struct scene *scene;
};

static void
stop_run(struct loop_call *call)
{
    loop_stop(container_of(call, struct stop_call, call)->scene->loop);
}

static void *
stop_later(void *arg)
{
    struct stop_call *const stop = arg;

    (void)usleep(20000);
    loop_call(stop->scene->loop, &stop->call);
    return NULL;
}

static void
recv_one(void *arg)
{
    struct scene *const scene = arg;
    char byte = 0;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct loop_io io = {.kind = LOOP_RECV, .fd = scene->pair[0], .iov = &iov, .iov_count = 1};

    if (loop_io_wait(scene->loop, &io) == 1)
        note(scene, byte);
    else
        note(scene, io.result == 0 ? '0' : '!');
}

static void
stop_leaves_the_run_and_the_next_run_goes_on(void **state)
{
    struct scene *const scene = in_scene(state);
    struct stop_call stop = {.call.run = stop_run, .scene = scene};
    pthread_t thread;

    must_start(scene->loop, recv_one, scene);
    assert_int_equal(pthread_create(&thread, NULL, stop_later, &stop), 0);
    loop_run(scene->loop); /* the task waits for ever: only the stop ends this */
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(scene->log, "");
    assert_int_equal(write(scene->pair[1], "x", 1), 1);
    loop_run(scene->loop); /* until no task is left */
    assert_string_equal(scene->log, "x");
}

/* --- Sockets -------------------------------------------------------------------------------- */

static void
pending_recv_gets_what_is_sent_later(void **state)
{
    struct scene *const scene = in_scene(state);

    for (int blocking = 0; blocking < 2; blocking++) {
        assert_int_equal(fcntl(scene->pair[0], F_SETFL, blocking ? 0 : O_NONBLOCK), 0);
        must_start(scene->loop, recv_one, scene);
        must_start(scene->loop, recv_one, scene);
        loop_run_task(scene->loop, sleep_60_ms, scene);
        assert_int_equal(scene->logged, blocking * 2);
        assert_int_equal(write(scene->pair[1], "xy", 2), 2);
        loop_run(scene->loop);
    }
    assert_string_equal(scene->log, "xyxy");
}

struct ending {
    struct scene *scene;
    int fd;
};

static void
shut_down_soon(void *arg)
{
    struct ending *const ending = arg;

    loop_sleep(ending->scene->loop, 5 * MS);
    assert_int_equal(shutdown(ending->fd, SHUT_RDWR), 0);
}

static void
shutdown_ends_a_pending_recv(void **state)
{
    struct scene *const scene = in_scene(state);
    struct ending ending = {scene, scene->pair[0]};

    must_start(scene->loop, recv_one, scene);
    must_start(scene->loop, shut_down_soon, &ending);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "0");
}

#define STREAM_BYTES (3 * MIB)

struct stream {
    struct scene *scene;
    char *sent, *received;
    bool ok;
};

static void
send_stream(void *arg)
{
    struct stream *const stream = arg;
    size_t done = 0;

    while (done < STREAM_BYTES) {
        struct iovec iov[2] = {
            {.iov_base = stream->sent + done, .iov_len = (STREAM_BYTES - done + 1) / 2},
            {.iov_len = (STREAM_BYTES - done) / 2},
        };
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
        struct loop_io io = {
            .kind = LOOP_SENDMSG, .fd = stream->scene->pair[1], .message = &message};
        int rc;

        iov[1].iov_base = stream->sent + done + iov[0].iov_len;
        rc = loop_io_wait(stream->scene->loop, &io);
        assert_true(rc > 0);
        done += (size_t)rc;
    }
    assert_int_equal(shutdown(stream->scene->pair[1], SHUT_WR), 0);
}

static void
receive_stream(void *arg)
{
    struct stream *const stream = arg;
    size_t done = 0;

    for (;;) {
        struct iovec iov = {.iov_base = stream->received + done,
                            .iov_len = min_u64(100000, STREAM_BYTES + 1 - done)};
        struct loop_io io = {
            .kind = LOOP_RECV, .fd = stream->scene->pair[0], .iov = &iov, .iov_count = 1};
        const int rc = loop_io_wait(stream->scene->loop, &io);

        assert_true(rc >= 0);
        if (rc == 0)
            break;
        done += (size_t)rc;
    }
    stream->ok = done == STREAM_BYTES;
}

static void
long_stream_arrives_whole_and_ends(void **state)
{
    struct scene *const scene = in_scene(state);
    struct stream stream = {
        .scene = scene, .sent = malloc(STREAM_BYTES), .received = malloc(STREAM_BYTES + 1)};

    assert_non_null(stream.sent);
    assert_non_null(stream.received);
    for (size_t i = 0; i < STREAM_BYTES; i++)
        stream.sent[i] = (char)(i * 7 + (i >> 11));
    must_start(scene->loop, send_stream, &stream);
    must_start(scene->loop, receive_stream, &stream);
    loop_run(scene->loop);
    assert_true(stream.ok);
    assert_memory_equal(stream.sent, stream.received, STREAM_BYTES);
    free(stream.sent);
    free(stream.received);
}

static void
send_to_nobody(void *arg)
{
    struct scene *const scene = arg;
    struct iovec iov = {.iov_base = (char[]){'x'}, .iov_len = 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    struct loop_io io = {.kind = LOOP_SENDMSG, .fd = scene->pair[0], .message = &message};

    assert_int_equal(loop_io_wait(scene->loop, &io), -EPIPE);
    note(scene, 'e');
}

static void
send_to_a_closed_peer_is_an_error_and_no_signal(void **state)
{
    struct scene *const scene = in_scene(state);

    assert_int_equal(shutdown(scene->pair[1], SHUT_RDWR), 0);
    loop_run_task(scene->loop, send_to_nobody, scene);
    assert_string_equal(scene->log, "e");
}

struct listener {
    struct scene *scene;
    int fd;
    struct sockaddr_un address;
    socklen_t address_bytes;
    int flags, fd_flags, last;
};

/* An abstract address that the kernel chooses: nothing to clean up. */
static void
listen_somewhere(struct listener *listener, int type_flags)
{
    const struct sockaddr_un any = {.sun_family = AF_UNIX};

    listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | type_flags, 0);
    assert_true(listener->fd >= 0);
    assert_int_equal(bind(listener->fd, (const struct sockaddr *)&any, sizeof any.sun_family), 0);
    listener->address_bytes = sizeof listener->address;
    assert_int_equal(
        getsockname(listener->fd, (struct sockaddr *)&listener->address, &listener->address_bytes),
        0);
    assert_int_equal(listen(listener->fd, 8), 0);
}

static void
accept_two(void *arg)
{
    struct listener *const listener = arg;

    for (;;) {
        struct loop_io io = {.kind = LOOP_ACCEPT, .fd = listener->fd};
        const int fd = loop_io_wait(listener->scene->loop, &io);

        listener->last = fd;
        if (fd < 0)
            return;
        note(listener->scene, 'a');
        listener->flags = fcntl(fd, F_GETFL);
        listener->fd_flags = fcntl(fd, F_GETFD);
        assert_int_equal(close(fd), 0);
    }
}

static void
connect_twice_and_end(void *arg)
{
    struct listener *const listener = arg;

    for (unsigned i = 0; i < 2; i++) {
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        loop_sleep(listener->scene->loop, 2 * MS);
        assert_int_equal(
            connect(fd, (const struct sockaddr *)&listener->address, listener->address_bytes), 0);
        loop_sleep(listener->scene->loop, 2 * MS);
        assert_int_equal(close(fd), 0);
    }
    assert_int_equal(shutdown(listener->fd, SHUT_RDWR), 0);
}

static void
accept_gives_nonblocking_sockets_until_the_listener_is_shut_down(void **state)
{
    struct scene *const scene = in_scene(state);

    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct listener listener = {.scene = scene};

        listen_somewhere(&listener, nonblocking ? SOCK_NONBLOCK : 0);
        must_start(scene->loop, accept_two, &listener);
        must_start(scene->loop, connect_twice_and_end, &listener);
        loop_run(scene->loop);
        assert_true((listener.flags & O_NONBLOCK) != 0);
        assert_true((listener.fd_flags & FD_CLOEXEC) != 0);
        assert_int_equal(listener.last, -EINVAL);
        assert_int_equal(close(listener.fd), 0);
    }
    assert_string_equal(scene->log, "aaaa");
}

struct polling {
    struct scene *scene;
    int fd, result;
};

static void
poll_in(void *arg)
{
    struct polling *const polling = arg;
    struct loop_io io = {.kind = LOOP_POLL_IN, .fd = polling->fd};

    polling->result = loop_io_wait(polling->scene->loop, &io);
    note(polling->scene, 'p');
}

static void
poll_tells_when_a_descriptor_is_readable(void **state)
{
    struct scene *const scene = in_scene(state);
    struct polling polling = {.scene = scene, .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    const uint64_t one = 1;

    must_start(scene->loop, poll_in, &polling);
    loop_run_task(scene->loop, sleep_60_ms, scene);
    assert_string_equal(scene->log, "");
    assert_int_equal(write(polling.fd, &one, sizeof one), sizeof one);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "p");
    assert_true((polling.result & POLLIN) != 0);
    assert_int_equal(close(polling.fd), 0);
}

/* A descriptor's number comes back for something else, as it does in a server all day. */
static void
closed_and_reused_descriptor_is_waited_for_anew(void **state)
{
    struct scene *const scene = in_scene(state);

    for (unsigned i = 0; i < 3; i++) {
        must_start(scene->loop, recv_one, scene);
        loop_run_task(scene->loop, sleep_60_ms, scene);
        assert_int_equal(write(scene->pair[1], "r", 1), 1);
        loop_run(scene->loop);
        assert_int_equal(close(scene->pair[0]), 0);
        assert_int_equal(close(scene->pair[1]), 0);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, scene->pair), 0);
    }
    assert_string_equal(scene->log, "rrr");
}

/* --- Files ---------------------------------------------------------------------------------- */

#define MANY 6000 /* more than any queue of the backends holds */

struct flood {
    struct scene *scene;
    unsigned left, wrong;
    struct task *waiter;
    struct loop_io io[MANY];
    uint64_t value[MANY];
};

static void
flood_done(struct loop_io *io)
{
    struct flood *const flood = (struct flood *)(void *)io->iov[1].iov_base;

    if (io->result != (int)sizeof(uint64_t))
        flood->wrong++;
    if (--flood->left == 0)
        task_wake(io->loop, flood->waiter);
}

struct flood_iov {
    struct iovec iov[2];
};

struct flood_story {
    struct flood flood;
    struct flood_iov iov[MANY];
    int fd;
};

static void
flood_with(struct flood_story *story, enum loop_io_kind kind)
{
    struct flood *const flood = &story->flood;

    flood->left = MANY;
    flood->waiter = task_self(flood->scene->loop);
    for (unsigned i = 0; i < MANY; i++) {
        /* The second vector is not transferred: it only leads back to the story. */
        story->iov[i].iov[0] = (struct iovec){&flood->value[i], sizeof flood->value[i]};
        story->iov[i].iov[1] = (struct iovec){flood, 0};
        flood->io[i] = (struct loop_io){
            .kind = kind,
            .fd = story->fd,
            .offset = i * sizeof(uint64_t),
            .iov = story->iov[i].iov,
            .iov_count = 1,
            .done = flood_done,
        };
        loop_io_submit(flood->scene->loop, &flood->io[i]);
    }
    task_suspend(flood->scene->loop);
}

static void
flood_both_ways(void *arg)
{
    struct flood_story *const story = arg;
    struct loop_io flush = {.kind = LOOP_FDATASYNC, .fd = story->fd};
    struct loop_io allocate = {
        .kind = LOOP_FALLOCATE, .fd = story->fd, .offset = 131072, .length = 4096};

    for (unsigned i = 0; i < MANY; i++)
        story->flood.value[i] = i * 1000003ull;
    flood_with(story, LOOP_WRITEV);
    assert_int_equal(loop_io_wait(story->flood.scene->loop, &flush), 0);
    memset(story->flood.value, 0, sizeof story->flood.value);
    flood_with(story, LOOP_READV);
    assert_int_equal(loop_io_wait(story->flood.scene->loop, &allocate), 0);
}

static void
thousands_of_file_operations_at_once_all_complete(void **state)
{
    struct scene *const scene = in_scene(state);
    struct flood_story *const story = calloc(1, sizeof *story);
    char path[] = "/tmp/stripelog-test-loop-XXXXXX";

    assert_non_null(story);
    story->flood.scene = scene;
    story->fd = mkstemp(path);
    assert_true(story->fd >= 0);
    assert_int_equal(unlink(path), 0);
    loop_run_task(scene->loop, flood_both_ways, story);
    assert_int_equal(story->flood.wrong, 0);
    for (unsigned i = 0; i < MANY; i++)
        assert_true(story->flood.value[i] == i * 1000003ull);
    assert_int_equal(lseek(story->fd, 0, SEEK_END), 131072 + 4096);
    assert_int_equal(close(story->fd), 0);
    free(story);
}

/* Eight blocks, of which the middle four are known. */
struct known {
    struct scene *scene;
    char *memory;
    int fd;
};

#define KNOWN_BLOCK  4096u
#define KNOWN_BLOCKS 8u

static char *
known_map(char *at)
{
    char *const memory = mmap(at, KNOWN_BLOCKS * KNOWN_BLOCK, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);

    assert_true(memory != MAP_FAILED);
    return memory;
}

/* Writes every run of blocks from memory, and reads it back into memory. */
static void
known_transfer_all(struct known *known, char fill)
{
    for (unsigned first = 0; first < KNOWN_BLOCKS; first++)
        for (unsigned count = 1; first + count <= KNOWN_BLOCKS; count++) {
            char *const at = known->memory + first * KNOWN_BLOCK;
            struct iovec iov = {at, count * KNOWN_BLOCK};
            struct loop_io io = {.kind = LOOP_WRITEV, .fd = known->fd, .iov = &iov, .iov_count = 1};

            memset(at, fill + (int)count, iov.iov_len);
            assert_int_equal(loop_io_wait(known->scene->loop, &io), iov.iov_len);
            memset(at, 0, iov.iov_len);
            io.kind = LOOP_READV;
            assert_int_equal(loop_io_wait(known->scene->loop, &io), iov.iov_len);
            for (size_t i = 0; i < iov.iov_len; i++)
                assert_int_equal(at[i], fill + (int)count);
        }
}

static void
known_story(void *arg)
{
    struct known *const known = arg;
    struct loop *const loop = known->scene->loop;
    char *const middle = known->memory + 2 * KNOWN_BLOCK;

    loop_memory_known(loop, middle, 4 * KNOWN_BLOCK);
    known_transfer_all(known, 1);
    loop_memory_forget(loop, middle);
    /* Other memory at the same address: what was pinned is not it. */
    assert_int_equal(munmap(known->memory, KNOWN_BLOCKS * KNOWN_BLOCK), 0);
    known_map(known->memory);
    known_transfer_all(known, 40);
    /* More than can be known: the rest works as well. */
    for (unsigned i = 0; i < 20; i++)
        loop_memory_known(loop, known->memory, KNOWN_BLOCKS * KNOWN_BLOCK);
    known_transfer_all(known, 80);
    loop_memory_forget(loop, known->memory);
}

static void
transfers_are_right_in_across_and_beside_known_memory(void **state)
{
    struct known known = {.scene = in_scene(state), .memory = known_map(NULL)};
    char path[] = "/tmp/stripelog-test-loop-XXXXXX";

    known.fd = mkstemp(path);
    assert_true(known.fd >= 0);
    assert_int_equal(unlink(path), 0);
    loop_run_task(known.scene->loop, known_story, &known);
    assert_int_equal(munmap(known.memory, KNOWN_BLOCKS * KNOWN_BLOCK), 0);
    assert_int_equal(close(known.fd), 0);
}

static void
read_of_a_bad_descriptor(void *arg)
{
    struct scene *const scene = arg;
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct loop_io read = {.kind = LOOP_READV, .fd = -1, .iov = &iov, .iov_count = 1};
    struct loop_io recv = {.kind = LOOP_RECV, .fd = -1, .iov = &iov, .iov_count = 1};

    assert_int_equal(loop_io_wait(scene->loop, &read), -EBADF);
    assert_int_equal(loop_io_wait(scene->loop, &recv), -EBADF);
    note(scene, 'b');
}

static void
bad_descriptor_is_an_error(void **state)
{
    struct scene *const scene = in_scene(state);

    loop_run_task(scene->loop, read_of_a_bad_descriptor, scene);
    assert_string_equal(scene->log, "b");
}

static void
yield_until_noted(void *arg)
{
    struct scene *const scene = arg;

    while (scene->logged == 0)
        task_yield(scene->loop);
}

/* Two tasks that yield to each other without end must not keep the rest of the world out. */
static void
busy_tasks_do_not_starve_completions_and_timers(void **state)
{
    struct scene *const scene = in_scene(state);
    struct alarm alarm = {.timer.fire = alarm_fire, .scene = scene, .name = 'a'};

    must_start(scene->loop, yield_until_noted, scene);
    must_start(scene->loop, yield_until_noted, scene);
    timer_arm(scene->loop, &alarm.timer, 2 * MS);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "a");
    scene->logged = 0;
    must_start(scene->loop, yield_until_noted, scene);
    must_start(scene->loop, yield_until_noted, scene);
    must_start(scene->loop, recv_one, scene);
    assert_int_equal(write(scene->pair[1], "x", 1), 1);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "x");
}

/* --- The choice ----------------------------------------------------------------------------- */

/* In a child: io_uring_setup is answered with the error, as a container's filter does. */
static int
refuse_io_uring(int code)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {.len = ARRAY_LEN(filter), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? -errno : 0;
}

enum choice { CHOSE_URING, CHOSE_THREADS, CHOSE_NOTHING, CANNOT_FILTER };

/* What loop_create chooses and whether that works, in a process of its own. */
static int
choice_when(int refused_with)
{
    int status;
    const pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        const struct loop_config config = {.tasks = 4};
        struct scene scene = {0};
        struct error error;
        bool uring;

        if (refused_with && refuse_io_uring(refused_with) < 0)
            _exit(CANNOT_FILTER);
        if (loop_create(&config, &scene.loop, &error) < 0)
            _exit(CHOSE_NOTHING);
        uring = strcmp(loop_backend_name(scene.loop), "io_uring") == 0;
        loop_run_task(scene.loop, read_of_a_bad_descriptor, &scene);
        loop_destroy(scene.loop);
        _exit(uring ? CHOSE_URING : CHOSE_THREADS);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void
threads_are_chosen_where_io_uring_is_refused(void **state)
{
    static const int refusals[] = {ENOSYS, EPERM, EACCES, ENOMEM};

    for (unsigned i = 0; i < ARRAY_LEN(refusals); i++) {
        const int choice = choice_when(refusals[i]);

        if (choice == CANNOT_FILTER) {
            print_message("seccomp filters are not to be had here\n");
            skip();
        }
        assert_int_equal(choice, CHOSE_THREADS);
    }
}

static void
io_uring_is_chosen_where_it_works(void **state)
{
    const struct loop_backend *backend;
    struct error error;
    void *self;

    if (backend_uring_create(&backend, &self, &error) < 0) {
        print_message("%s\n", error.text);
        skip();
    }
    backend->destroy(self);
    assert_int_equal(choice_when(0), CHOSE_URING);
}

/* clang-format off */
#define on_both(name)                                                                              \
    {#name " (io_uring)", name, uring_begin, scene_end, NULL},                                     \
    {#name " (threads)", name, threads_begin, scene_end, NULL}
/* clang-format on */

int
main(void)
{
    const struct CMUnitTest tests[] = {
        on_both(timers_fire_in_order_of_time_then_of_arming),
        on_both(sleep_is_not_short_and_not_far_too_long),
        on_both(timer_that_rearms_itself_for_now_lets_the_loop_turn),
        on_both(random_numbers_follow_the_seed),
        on_both(hooks_run_once_when_nothing_else_can_and_what_they_start_runs_in_the_same_turn),
        on_both(calls_from_threads_all_run_in_each_threads_order),
        on_both(stop_leaves_the_run_and_the_next_run_goes_on),
        on_both(pending_recv_gets_what_is_sent_later),
        on_both(shutdown_ends_a_pending_recv),
        on_both(long_stream_arrives_whole_and_ends),
        on_both(send_to_a_closed_peer_is_an_error_and_no_signal),
        on_both(accept_gives_nonblocking_sockets_until_the_listener_is_shut_down),
        on_both(poll_tells_when_a_descriptor_is_readable),
        on_both(closed_and_reused_descriptor_is_waited_for_anew),
        on_both(thousands_of_file_operations_at_once_all_complete),
        on_both(transfers_are_right_in_across_and_beside_known_memory),
        on_both(bad_descriptor_is_an_error),
        on_both(busy_tasks_do_not_starve_completions_and_timers),
        cmocka_unit_test(threads_are_chosen_where_io_uring_is_refused),
        cmocka_unit_test(io_uring_is_chosen_where_it_works),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
