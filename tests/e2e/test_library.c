/*
 * The public library on real files: what its header promises, through its header alone.
 * Usage: test_library PATH_OF_STRIPELOG (which makes the arrays).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "stripelog.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MEMBERS      4
#define MEMBER_BYTES (8 << 20)
#define THREADS      4
#define SLICE_BYTES  (1 << 20)
#define ODD_BYTES    70001

static const char *program;

struct fixture {
    char folder[64];
    char paths[MEMBERS + 1][96]; /* the last is the journal, where there is one */
    const char *devices[MEMBERS + 1];
};

static int
make_array(void **state, const char *options)
{
    struct fixture *f = calloc(1, sizeof *f);
    char command[1024];

    assert_non_null(f);
    strcpy(f->folder, "/tmp/stripelog-library.XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    for (unsigned i = 0; i < MEMBERS + 1; ++i) {
        int fd;

        snprintf(f->paths[i], sizeof f->paths[i], "%s/d%u.img", f->folder, i);
        f->devices[i] = f->paths[i];
        fd = open(f->paths[i], O_CREAT | O_RDWR, 0600);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, MEMBER_BYTES), 0);
        close(fd);
    }
    snprintf(command, sizeof command,
             "cd '%s' && '%s' create --level=5 --chunk=64K --assume-clean %s d0.img d1.img d2.img "
             "d3.img >/dev/null",
             f->folder, program, options);
    assert_int_equal(system(command), 0);
    *state = f;
    return 0;
}

static int
setup(void **state)
{
    return make_array(state, "");
}

static int
setup_journaled(void **state)
{
    return make_array(state, "--write-journal=d4.img");
}

static int
teardown(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < MEMBERS + 1; ++i)
        unlink(f->paths[i]);
    rmdir(f->folder);
    free(f);
    return 0;
}

static void
open_array(const char *const *devices, unsigned count, const struct stripelog_options *options,
           struct stripelog **array)
{
    char why[STRIPELOG_ERROR_BYTES] = "";

    if (stripelog_open(devices, count, options, array, why) < 0)
        fail_msg("open: %s", why);
}

static uint8_t
pattern(uint64_t offset, unsigned generation)
{
    return (uint8_t)(offset * 31 + offset / 4096 * 7 + generation);
}

static void
fill(uint8_t *buffer, uint64_t offset, size_t length, unsigned generation)
{
    for (size_t i = 0; i < length; ++i)
        buffer[i] = pattern(offset + i, generation);
}

static void
expect(struct stripelog *array, uint64_t offset, size_t length, unsigned generation)
{
    uint8_t *buffer = malloc(length);

    assert_non_null(buffer);
    assert_int_equal(stripelog_read(array, buffer, length, offset), 0);
    for (size_t i = 0; i < length; ++i)
        if (buffer[i] != pattern(offset + i, generation))
            fail_msg("byte %llu is not what was written", (unsigned long long)(offset + i));
    free(buffer);
}

static void
what_was_written_is_read_back_also_without_a_member(void **state)
{
    const struct fixture *f = *state;
    static uint8_t buffer[ODD_BYTES];
    struct stripelog *array;

    open_array(f->devices, MEMBERS, NULL, &array);
    fill(buffer, 12345, sizeof buffer, 1);
    assert_int_equal(stripelog_write(array, buffer, sizeof buffer, 12345, 0), 0);
    expect(array, 12345, sizeof buffer, 1);
    assert_int_equal(stripelog_flush(array), 0);
    assert_int_equal(stripelog_close(array), 0);

    for (unsigned missing = 0; missing < MEMBERS; ++missing) {
        const struct stripelog_options options = {.readonly = 1};
        const char *left[MEMBERS - 1];

        for (unsigned i = 0, at = 0; i < MEMBERS; ++i)
            if (i != missing)
                left[at++] = f->devices[i];
        open_array(left, MEMBERS - 1, &options, &array);
        expect(array, 12345, sizeof buffer, 1);
        assert_int_equal(stripelog_write(array, buffer, 1, 0, 0), -EROFS);
        assert_int_equal(stripelog_close(array), 0);
    }
}

struct writer {
    struct stripelog *array;
    unsigned number;
    int result;
};

static void *
writer_main(void *arg)
{
    struct writer *writer = arg;
    const uint64_t begin = writer->number * (uint64_t)SLICE_BYTES;
    static __thread uint8_t buffer[ODD_BYTES];

    for (uint64_t at = begin; at < begin + SLICE_BYTES && writer->result == 0; at += ODD_BYTES) {
        const size_t length =
            at + ODD_BYTES > begin + SLICE_BYTES ? begin + SLICE_BYTES - at : ODD_BYTES;

        fill(buffer, at, length, writer->number);
        writer->result =
            stripelog_write(writer->array, buffer, length, at, at % 2 ? STRIPELOG_DURABLE : 0);
    }
    return NULL;
}

static void
many_threads_use_one_handle(void **state)
{
    const struct fixture *f = *state;
    struct writer writers[THREADS];
    pthread_t threads[THREADS];
    struct stripelog *array;

    open_array(f->devices, MEMBERS, NULL, &array);
    for (unsigned i = 0; i < THREADS; ++i) {
        writers[i] = (struct writer){.array = array, .number = i};
        assert_int_equal(pthread_create(&threads[i], NULL, writer_main, &writers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; ++i) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(writers[i].result, 0);
    }
    for (unsigned i = 0; i < THREADS; ++i)
        expect(array, i * (uint64_t)SLICE_BYTES, SLICE_BYTES, i);
    assert_int_equal(stripelog_close(array), 0);
}

static void
zeroed_and_trimmed_ranges_are_in_range_and_zero(void **state)
{
    const struct fixture *f = *state;
    static uint8_t buffer[ODD_BYTES], zeros[ODD_BYTES];
    struct stripelog *array;
    uint64_t size;

    open_array(f->devices, MEMBERS, NULL, &array);
    size = stripelog_size(array);
    assert_true(size > (MEMBERS - 2) * (uint64_t)MEMBER_BYTES);
    fill(buffer, size - sizeof buffer, sizeof buffer, 9);
    assert_int_equal(stripelog_write(array, buffer, sizeof buffer, size - sizeof buffer, 0), 0);
    assert_int_equal(
        stripelog_zero(array, sizeof buffer, size - sizeof buffer, STRIPELOG_MAY_PUNCH), 0);
    assert_int_equal(stripelog_read(array, buffer, sizeof buffer, size - sizeof buffer), 0);
    assert_memory_equal(buffer, zeros, sizeof buffer);
    assert_int_equal(stripelog_trim(array, size, 0), 0);
    assert_int_equal(stripelog_read(array, buffer, 1, size), -EINVAL);
    assert_int_equal(stripelog_write(array, buffer, 2, size - 1, 0), -EINVAL);
    assert_int_equal(stripelog_write(array, buffer, 0, size, 0), 0);
    assert_int_equal(stripelog_close(array), 0);
}

static void
refusal_says_why_and_leaves_nothing_behind(void **state)
{
    const struct fixture *f = *state;
    const char *twice[] = {f->devices[0], f->devices[1], f->devices[1]};
    const char *absent[] = {"/nonexistent/member"};
    char why[STRIPELOG_ERROR_BYTES];
    struct stripelog *array;

    assert_int_equal(stripelog_open(f->devices, 0, NULL, &array, why), -EINVAL);
    assert_int_equal(stripelog_open(absent, 1, NULL, &array, why), -ENOENT);
    assert_non_null(strstr(why, absent[0]));
    assert_int_equal(stripelog_open(f->devices, 2, NULL, &array, why), -ENOTCONN);
    assert_true(stripelog_open(twice, 3, &(struct stripelog_options){.readonly = 1}, &array, why) <
                0);
    assert_true(why[0] != '\0');
    open_array(f->devices, MEMBERS, NULL, &array);
    assert_int_equal(stripelog_close(array), 0);
}

/* A process that writes and is gone, as in a crash. */
static void
write_and_die(const struct fixture *f, unsigned generation)
{
    static uint8_t buffer[ODD_BYTES];
    const pid_t child = fork();
    struct stripelog *array;
    int status;

    assert_true(child >= 0);
    if (child == 0) {
        fill(buffer, 12345, sizeof buffer, generation);
        if (stripelog_open(f->devices, MEMBERS + 1, NULL, &array, NULL) < 0 ||
            stripelog_write(array, buffer, sizeof buffer, 12345, 0) < 0)
            _exit(1);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void
write_that_returned_outlives_a_crash_with_a_journal(void **state)
{
    const struct fixture *f = *state;
    const struct stripelog_options readonly = {.readonly = 1},
                                   drop = {.force = STRIPELOG_FORCE_DROP_JOURNAL};
    const char *left[MEMBERS] = {f->devices[1], f->devices[2], f->devices[3], f->devices[4]};
    struct stripelog *array;
    char why[STRIPELOG_ERROR_BYTES];

    write_and_die(f, 1);
    open_array(left, MEMBERS, &readonly, &array); /* with a member left out, and nothing written */
    expect(array, 12345, ODD_BYTES, 1);
    assert_int_equal(stripelog_close(array), 0);
    open_array(f->devices, MEMBERS + 1, NULL, &array);
    expect(array, 12345, ODD_BYTES, 1);
    assert_int_equal(stripelog_close(array), 0);

    write_and_die(f, 2);
    assert_int_equal(stripelog_open(f->devices, MEMBERS, NULL, &array, why), -ENODEV);
    assert_non_null(strstr(why, "journal"));
    open_array(f->devices, MEMBERS, &drop, &array);
    assert_int_equal(stripelog_close(array), 0);
    open_array(f->devices, MEMBERS, NULL, &array); /* it is one without a journal now */
    assert_int_equal(stripelog_close(array), 0);
}

static void
count_events(void *owner, const char *text)
{
    if (strstr(text, "write-") != NULL)
        ++*(unsigned *)owner;
}

/* With the least memory, and with what it takes by default. */
static void
write_back_is_asked_for_and_switched(void **state)
{
    const struct fixture *f = *state;
    const char *left[MEMBERS] = {f->devices[1], f->devices[2], f->devices[3], f->devices[4]};
    static uint8_t buffer[ODD_BYTES];
    struct stripelog *array;

    for (unsigned run = 0; run < 2; ++run) {
        unsigned told = 0;
        const struct stripelog_options write_back = {.write_back = 1,
                                                     .memory_bytes = run == 0 ? 1 : 0,
                                                     .event = count_events,
                                                     .owner = &told};
        const struct stripelog_options readonly = {.readonly = 1};

        open_array(f->devices, MEMBERS + 1, &write_back, &array);
        for (unsigned i = 0; i < 6; ++i) {
            const uint64_t offset = i * (uint64_t)SLICE_BYTES + 777;

            fill(buffer, offset, sizeof buffer, run * 10 + i);
            assert_int_equal(stripelog_write(array, buffer, sizeof buffer, offset, 0), 0);
            expect(array, offset, sizeof buffer, run * 10 + i);
            assert_int_equal(stripelog_set_write_back(array, i % 2), 0);
            assert_int_equal(stripelog_flush(array), 0);
        }
        assert_int_equal(told, 6);
        assert_int_equal(stripelog_close(array), 0);
        open_array(left, MEMBERS, &readonly, &array); /* all of it is in parity, too */
        for (unsigned i = 0; i < 6; ++i)
            expect(array, i * (uint64_t)SLICE_BYTES + 777, sizeof buffer, run * 10 + i);
        assert_int_equal(stripelog_set_write_back(array, 1), -EROFS);
        assert_int_equal(stripelog_close(array), 0);
    }
    /* Degraded. */
    open_array(left, MEMBERS, &(struct stripelog_options){.write_back = 1}, &array);
    assert_int_equal(stripelog_set_write_back(array, 1), -EUCLEAN);
    assert_int_equal(stripelog_set_write_back(array, 0), 0);
    assert_int_equal(stripelog_close(array), 0);
}

static void
write_back_wants_a_journal(void **state)
{
    const struct fixture *f = *state;
    struct stripelog *array;
    char why[STRIPELOG_ERROR_BYTES] = "";

    assert_int_equal(stripelog_open(f->devices, MEMBERS,
                                    &(struct stripelog_options){.write_back = 1}, &array, why),
                     -ENOTSUP);
    assert_non_null(strstr(why, "journal"));
    open_array(f->devices, MEMBERS, NULL, &array);
    assert_int_equal(stripelog_set_write_back(array, 1), -ENOTSUP);
    assert_int_equal(stripelog_set_write_back(array, 0), -ENOTSUP);
    assert_int_equal(stripelog_close(array), 0);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(write_back_is_asked_for_and_switched, setup_journaled,
                                        teardown),
        cmocka_unit_test_setup_teardown(write_back_wants_a_journal, setup, teardown),
        cmocka_unit_test_setup_teardown(write_that_returned_outlives_a_crash_with_a_journal,
                                        setup_journaled, teardown),
        cmocka_unit_test_setup_teardown(what_was_written_is_read_back_also_without_a_member, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(many_threads_use_one_handle, setup, teardown),
        cmocka_unit_test_setup_teardown(zeroed_and_trimmed_ranges_are_in_range_and_zero, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(refusal_says_why_and_leaves_nothing_behind, setup,
                                        teardown),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: test_library PATH_OF_STRIPELOG\n");
        return 2;
    }
    program = realpath(argv[1], NULL); /* the arrays are made in folders of their own */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
