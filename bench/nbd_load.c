/*
 * nbd_load: loads an NBD server with as little work of its own as possible.
 *
 *   nbd_load --socket PATH [--op read|write|randread|randwrite] [--block 4K] [--depth 32]
 *            [--connections 1] [--seconds 5 | --requests N] [--span SIZE] [--seed 1]
 *            [--server-pid PID] [--structured]
 *
 * It sends all requests that may go in one write and takes as many answers as there are in one
 * read, since a client that spends a system call on every request measures itself. Prints one line
 * of JSON: requests, rates, how long they took, its own CPU, and with --server-pid the server's CPU
 * in between. --span: only the first so many bytes of the export.
 *
 * How long a request took is from when it was ready to be sent to the call that received its
 * answer, in steps of less than 2 %.
 */
#include "nbd/protocol.h"
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define INPUT_BYTES     (1u << 20)
#define CONNECTIONS_MAX 64u

/* Of durations, in ns: 64 steps to each power of two. */
#define HISTOGRAM_STEPS (64u * 64u)

struct load {
    const char *path;
    bool write, random, structured;
    uint32_t block_bytes;
    unsigned depth, connections;
    double seconds;
    uint64_t requests_max;
    uint64_t span_bytes; /* 0: all */
    uint64_t seed;
    long server_pid;
};

struct connection {
    int fd;
    unsigned may_send; /* requests that are not under way */
    uint32_t *idle;    /* their numbers, may_send of them */
    uint64_t *sent_ns; /* of each number */
    uint64_t position; /* of sequential loads */
    uint8_t *output;   /* depth requests, with their payloads */
    size_t output_at, output_end;
    uint8_t *input;
    size_t input_end;
    uint32_t skip; /* data of a reply that is still to come */
};

struct state {
    const struct load *load;
    uint64_t blocks;
    uint64_t random;
    uint64_t sent, done;
    uint64_t histogram[HISTOGRAM_STEPS];
    struct connection connections[CONNECTIONS_MAX];
};

static _Noreturn void
fail(const char *what)
{
    (void)fprintf(stderr, "nbd_load: %s\n", what);
    exit(1);
}

static _Noreturn void
fail_errno(const char *what)
{
    (void)fprintf(stderr, "nbd_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double
now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t
now_ns(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- Durations ------------------------------------------------------------------------------ */

static unsigned
histogram_step(uint64_t ns)
{
    const unsigned power = ns < 64 ? 0 : 63u - (unsigned)__builtin_clzll(ns);

    return ns < 64 ? (unsigned)ns : (power - 5) * 64 + (unsigned)(ns >> (power - 6)) - 64;
}

/* The shortest duration of a step, in us. */
static double
histogram_us(unsigned step)
{
    return (double)(step < 64 ? step : (uint64_t)(64 + step % 64) << (step / 64 - 1)) / 1000;
}

/* So many of a thousand took no longer (but for a step's width). */
static double
histogram_quantile(const struct state *s, unsigned permille)
{
    const uint64_t rank = (s->done * permille + 999) / 1000;
    uint64_t passed = 0;
    unsigned step = 0;

    for (; step < HISTOGRAM_STEPS - 1; step++) {
        passed += s->histogram[step];
        if (passed >= rank)
            break;
    }
    return histogram_us(step);
}

/* --- CPU ------------------------------------------------------------------------------------ */

static double
cpu_self(void)
{
    struct rusage usage;

    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* User and system time of a process with all its threads, also those that ended. */
static double
cpu_of(long pid)
{
    char path[64], text[1024];
    unsigned long user, system;
    const char *after;
    FILE *file;

    if (pid == 0)
        return 0;
    (void)snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    file = fopen(path, "re");
    if (!file || !fgets(text, sizeof text, file))
        fail("cannot read the server's times");
    (void)fclose(file);
    after = strrchr(text, ')'); /* the name may contain anything */
    if (!after || sscanf(after + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                         &system) != 2)
        fail("cannot parse the server's times");
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* --- Connecting ----------------------------------------------------------------------------- */

static void
read_all(int fd, uint8_t *at, size_t length)
{
    while (length) {
        const ssize_t got = read(fd, at, length);

        if (got <= 0)
            fail("the server ended the handshake");
        at += got;
        length -= (size_t)got;
    }
}

static void
write_all(int fd, const uint8_t *at, size_t length)
{
    while (length) {
        const ssize_t sent = write(fd, at, length);

        if (sent <= 0)
            fail_errno("write");
        at += sent;
        length -= (size_t)sent;
    }
}

static void
option_write(int fd, uint32_t option, const uint8_t *data, uint32_t length)
{
    uint8_t header[NBD_OPTION_HEADER_BYTES];

    store_be64(header, NBD_OPTION_MAGIC);
    store_be32(header + 8, option);
    store_be32(header + 12, length);
    write_all(fd, header, sizeof header);
    write_all(fd, data, length);
}

/* Answers of one option, to its acknowledgement; the export's size if one says so. */
static uint64_t
option_finish(int fd)
{
    uint8_t header[NBD_OPTION_REPLY_HEADER_BYTES], data[8192];
    uint64_t size = 0;

    for (;;) {
        uint32_t type, length;

        read_all(fd, header, sizeof header);
        type = load_be32(header + 12);
        length = load_be32(header + 16);
        if (NBD_REP_IS_ERROR(type) || length > sizeof data)
            fail("the server refused an option");
        read_all(fd, data, length);
        if (type == NBD_REP_ACK)
            return size;
        if (type == NBD_REP_INFO && length >= 12 && load_be16(data) == NBD_INFO_EXPORT)
            size = load_be64(data + 2);
    }
}

static uint64_t
connection_open(struct connection *c, const struct load *load)
{
    static const uint8_t go[6] = {0};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const size_t each = NBD_REQUEST_BYTES + (load->write ? load->block_bytes : 0);
    uint8_t greeting[NBD_GREETING_BYTES], flags[4];
    uint64_t size;

    if (strlen(load->path) >= sizeof address.sun_path)
        fail("the socket's path is too long");
    (void)strcpy(address.sun_path, load->path);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail_errno("connect");
    read_all(c->fd, greeting, sizeof greeting);
    store_be32(flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    write_all(c->fd, flags, sizeof flags);
    if (load->structured) {
        option_write(c->fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        (void)option_finish(c->fd);
    }
    option_write(c->fd, NBD_OPT_GO, go, sizeof go);
    size = option_finish(c->fd);
    c->may_send = load->depth;
    c->output = calloc(load->depth, each);
    c->input = malloc(INPUT_BYTES);
    c->idle = calloc(load->depth, sizeof *c->idle);
    c->sent_ns = calloc(load->depth, sizeof *c->sent_ns);
    if (!c->output || !c->input || !c->idle || !c->sent_ns)
        fail("no memory");
    for (unsigned i = 0; i < load->depth; i++)
        c->idle[i] = i;
    return size;
}

/* --- Load ----------------------------------------------------------------------------------- */

static uint64_t
next_offset(struct state *s, struct connection *c)
{
    uint64_t block;

    if (s->load->random) {
        s->random = s->random * 6364136223846793005u + 1442695040888963407u;
        block = (s->random >> 33) % s->blocks;
    } else {
        block = c->position;
        c->position = (c->position + 1) % s->blocks;
    }
    return block * s->load->block_bytes;
}

/* As many requests as may go, in one write. */
static void
connection_send(struct state *s, struct connection *c, bool more)
{
    const struct load *const load = s->load;
    ssize_t sent;

    if (c->output_at == c->output_end) {
        const uint64_t ready = now_ns();

        c->output_at = c->output_end = 0;
        for (; more && c->may_send && s->sent < load->requests_max; s->sent++) {
            uint8_t *const at = c->output + c->output_end;
            const uint32_t number = c->idle[--c->may_send];

            store_be32(at, NBD_REQUEST_MAGIC);
            store_be16(at + 4, 0);
            store_be16(at + 6, load->write ? NBD_CMD_WRITE : NBD_CMD_READ);
            store_be64(at + 8, number);
            store_be64(at + 16, next_offset(s, c));
            store_be32(at + 24, load->block_bytes);
            c->output_end += NBD_REQUEST_BYTES + (load->write ? load->block_bytes : 0);
            c->sent_ns[number] = ready;
        }
    }
    if (c->output_at == c->output_end)
        return;
    sent = send(c->fd, c->output + c->output_at, c->output_end - c->output_at,
                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN)
        fail_errno("send");
    c->output_at += sent > 0 ? (size_t)sent : 0;
}

/* An answer has come to the request with this number. */
static void
request_done(struct state *s, struct connection *c, uint64_t number, uint64_t at_ns)
{
    if (number >= s->load->depth || c->may_send == s->load->depth)
        fail("an answer to nothing that was asked");
    s->histogram[histogram_step(at_ns - c->sent_ns[number])]++;
    s->done++;
    c->idle[c->may_send++] = (uint32_t)number;
}

/* Takes what there is, and counts the answers in it. flags: MSG_DONTWAIT, or 0 to wait for it. */
static void
connection_receive(struct state *s, struct connection *c, int flags)
{
    const struct load *const load = s->load;
    const uint32_t data_bytes = load->write ? 0 : load->block_bytes;
    const ssize_t got = recv(c->fd, c->input + c->input_end, INPUT_BYTES - c->input_end, flags);
    const uint64_t came = now_ns();
    size_t at = 0;

    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        fail("the server closed the connection");
    c->input_end += (size_t)got;
    for (;;) {
        const size_t skipped = min_u64(c->skip, c->input_end - at);
        const size_t left = c->input_end - at - skipped;
        const uint8_t *reply;
        uint32_t magic;

        at += skipped;
        c->skip -= (uint32_t)skipped;
        if (left < NBD_SIMPLE_REPLY_BYTES || c->skip)
            break;
        reply = c->input + at;
        magic = load_be32(reply);
        if (magic == NBD_SIMPLE_REPLY_MAGIC) {
            if (load_be32(reply + 4) != 0)
                fail("a request failed");
            at += NBD_SIMPLE_REPLY_BYTES;
            c->skip = data_bytes;
        } else if (magic == NBD_CHUNK_MAGIC) {
            if (left < NBD_CHUNK_HEADER_BYTES)
                break;
            if (load_be16(reply + 6) == NBD_CHUNK_ERROR || !(load_be16(reply + 4) & NBD_CHUNK_DONE))
                fail("a request failed, or came in pieces");
            at += NBD_CHUNK_HEADER_BYTES;
            c->skip = load_be32(reply + 16);
        } else {
            fail("not a reply");
        }
        request_done(s, c, load_be64(reply + 8), came);
    }
    memmove(c->input, c->input + at, c->input_end - at);
    c->input_end -= at;
}

static void
load_run(struct state *s)
{
    const unsigned count = s->load->connections;
    const double until = now() + s->load->seconds;
    struct pollfd polls[CONNECTIONS_MAX];
    bool more = true;

    for (unsigned turn = 0; more || s->done < s->sent; turn++) {
        if (turn % 16 == 0 && now() >= until)
            more = false;
        if (s->sent >= s->load->requests_max)
            more = false;
        for (unsigned i = 0; i < count; i++) {
            struct connection *const c = &s->connections[i];

            connection_send(s, c, more);
            polls[i].fd = c->fd;
            polls[i].events = c->output_at < c->output_end ? POLLIN | POLLOUT : POLLIN;
        }
        if (s->done == s->sent)
            continue;
        /* Alone, and with nothing left to send: no need to ask first. */
        if (count == 1 && polls[0].events == POLLIN) {
            connection_receive(s, &s->connections[0], 0);
            continue;
        }
        if (poll(polls, count, 10000) <= 0)
            fail("no answer for ten seconds");
        for (unsigned i = 0; i < count; i++)
            if (polls[i].revents & ~POLLOUT)
                connection_receive(s, &s->connections[i], MSG_DONTWAIT);
    }
}

/* --- The program ---------------------------------------------------------------------------- */

static uint64_t
number_parse(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 10);

    if (*end == 'K')
        value <<= 10;
    else if (*end == 'M')
        value <<= 20;
    else if (*end != '\0')
        fail("not a number");
    if (value == 0)
        fail("zero makes no sense here");
    return value;
}

static void
operation_parse(struct load *load, const char *text)
{
    load->random = strncmp(text, "rand", 4) == 0;
    text += load->random ? 4 : 0;
    load->write = strcmp(text, "write") == 0;
    if (!load->write && strcmp(text, "read") != 0)
        fail("--op is read, write, randread or randwrite");
}

static void
options_parse(struct load *load, int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'},      {"op", required_argument, NULL, 'o'},
        {"block", required_argument, NULL, 'b'},       {"depth", required_argument, NULL, 'd'},
        {"connections", required_argument, NULL, 'c'}, {"seconds", required_argument, NULL, 't'},
        {"requests", required_argument, NULL, 'n'},    {"server-pid", required_argument, NULL, 'p'},
        {"span", required_argument, NULL, 'a'},        {"seed", required_argument, NULL, 'e'},
        {"structured", no_argument, NULL, 'r'},        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            load->path = optarg;
            break;
        case 'o':
            operation_parse(load, optarg);
            break;
        case 'b':
            load->block_bytes = (uint32_t)min_u64(number_parse(optarg), NBD_BLOCK_MAXIMUM);
            break;
        case 'd':
            load->depth = (unsigned)min_u64(number_parse(optarg), 4096);
            break;
        case 'c':
            load->connections = (unsigned)min_u64(number_parse(optarg), CONNECTIONS_MAX);
            break;
        case 't':
            load->seconds = (double)number_parse(optarg);
            break;
        case 'n':
            load->requests_max = number_parse(optarg);
            load->seconds = 1e9;
            break;
        case 'a':
            load->span_bytes = number_parse(optarg);
            break;
        case 'e':
            load->seed = number_parse(optarg);
            break;
        case 'p':
            load->server_pid = (long)number_parse(optarg);
            break;
        case 'r':
            load->structured = true;
            break;
        default:
            exit(2);
        }
    }
    if (!load->path || optind != argc)
        fail("--socket PATH is needed, and nothing but options");
}

int
main(int argc, char **argv)
{
    struct load load = {.block_bytes = 4096,
                        .depth = 32,
                        .connections = 1,
                        .seconds = 5,
                        .requests_max = UINT64_MAX,
                        .seed = 1,
                        .random = true};
    static struct state s;
    double begun, elapsed, self, server;

    options_parse(&load, argc, argv);
    s.load = &load;
    s.random = load.seed;
    for (unsigned i = 0; i < load.connections; i++) {
        const uint64_t size = connection_open(&s.connections[i], &load);

        s.blocks = (load.span_bytes ? min_u64(load.span_bytes, size) : size) / load.block_bytes;
        if (s.blocks == 0)
            fail("the export is smaller than a block");
        s.connections[i].position = s.blocks / load.connections * i;
    }
    begun = now();
    self = cpu_self();
    server = cpu_of(load.server_pid);
    load_run(&s);
    elapsed = now() - begun;
    self = cpu_self() - self;
    server = cpu_of(load.server_pid) - server;

    (void)printf("{\"op\": \"%s%s\", \"block_bytes\": %" PRIu32
                 ", \"depth\": %u, \"connections\": %u, \"requests\": %" PRIu64
                 ", \"seconds\": %.3f, \"requests_per_s\": %.0f, \"bytes_per_s\": %.0f, "
                 "\"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, "
                 "\"client_cpu_us_per_request\": %.3f",
                 load.random ? "rand" : "", load.write ? "write" : "read", load.block_bytes,
                 load.depth, load.connections, s.done, elapsed, (double)s.done / elapsed,
                 (double)s.done * load.block_bytes / elapsed, histogram_quantile(&s, 500),
                 histogram_quantile(&s, 990), histogram_quantile(&s, 999),
                 self * 1e6 / (double)s.done);
    if (load.server_pid)
        (void)printf(", \"server_cpu_us_per_request\": %.3f", server * 1e6 / (double)s.done);
    (void)printf("}\n");
    for (unsigned i = 0; i < load.connections; i++) {
        (void)close(s.connections[i].fd);
        free(s.connections[i].output);
        free(s.connections[i].input);
        free(s.connections[i].idle);
        free(s.connections[i].sent_ns);
    }
    return 0;
}
