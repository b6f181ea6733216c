/*
 * Every layout as the kernel wrote it, with nothing but geometry and parity.
 *
 * tests/golden/images/layouts.tar.xz holds the members of 21 arrays, whose
 * blocks of 4096 bytes are full of their own numbers. Each array is looked at
 * complete, and with every member (RAID-6: every two) taken away and
 * reconstructed. The archive is read as a stream, an array at a time, so that
 * its 700 MB never need to be anywhere.
 *
 *      test_golden_layouts ARCHIVE
 */
#include "geometry/geometry.h"
#include "parity/parity.h"

#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define MEMBER_FILE_BYTES (8 * MIB)
#define MEMBERS_TOP       8u
#define ARRAYS_EXPECTED   21u

struct image {
    char array[64]; /* "raid6-left-symmetric" */
    int level;
    unsigned layout;
    uint64_t data_offset;
    uint64_t size_bytes;
    uint64_t chunk_bytes;
    unsigned members;
    uint8_t *member[MEMBERS_TOP];
    uint8_t *scratch[2];
};

static FILE *
tar_open(const char *options, const char *archive)
{
    char command[4200];
    const int length = snprintf(command, sizeof command, "tar %s '%s'", options, archive);
    assert_true(length > 0 && (size_t)length < sizeof command);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    return pipe;
}

/* "raid6-left-symmetric.d0.img" -> the array's name. */
static void
array_name(const char *file, char *name, size_t size)
{
    const char *point = strstr(file, ".d");
    assert_non_null(point);
    const size_t length = (size_t)(point - file);
    assert_true(length < size);
    memcpy(name, file, length);
    name[length] = '\0';
}

/* Read the next array: its first file's name is in `next`, as the name after its last will be. */
static bool
image_read(struct image *image, FILE *list, FILE *content, char *next, size_t next_size)
{
    if (next[0] == '\0')
        return false;
    array_name(next, image->array, sizeof image->array);
    image->members = 0;
    for (;;) {
        char name[sizeof image->array] = "";
        if (next[0] != '\0')
            array_name(next, name, sizeof name);
        if (strcmp(name, image->array) != 0)
            break;
        assert_true(image->members < MEMBERS_TOP);
        uint8_t *member = image->member[image->members++];
        assert_int_equal(fread(member, 1, MEMBER_FILE_BYTES, content), MEMBER_FILE_BYTES);
        if (fgets(next, (int)next_size, list) == NULL)
            next[0] = '\0';
    }

    /* Level and layout by name; a superblock 1.2 says where the data is. */
    image->level = image->array[4] - '0';
    image->layout = 0;
    if (image->level != 4)
        assert_int_equal(geometry_layout_parse(image->level, image->array + 6, &image->layout), 0);
    for (unsigned m = 0; m < image->members; m++) {
        const uint8_t *superblock = image->member[m] + 4096;
        assert_int_equal(load_le32(superblock), 0xa92b4efc);
        assert_int_equal(load_le32(superblock + 72), image->level);
        assert_int_equal(load_le32(superblock + 76), image->layout);
        assert_int_equal(load_le32(superblock + 92), image->members);
        image->size_bytes = load_le64(superblock + 80) * SECTOR_BYTES;
        image->chunk_bytes = (uint64_t)load_le32(superblock + 88) * SECTOR_BYTES;
        image->data_offset = load_le64(superblock + 128) * SECTOR_BYTES;
        assert_true(image->data_offset + image->size_bytes <= MEMBER_FILE_BYTES);
    }
    return true;
}

static void
check_content(const struct image *image, const struct geometry *geometry)
{
    for (uint64_t block = 0; block < geometry->array_bytes / BLOCK_BYTES; block++) {
        struct place place;
        geometry_map(geometry, block * BLOCK_BYTES, &place);
        const uint8_t *at = image->member[place.member] + image->data_offset + place.member_offset;
        for (unsigned word = 0; word < BLOCK_BYTES / 8; word++) {
            if (load_le64(at + word * 8) != block)
                fail_msg("%s: block %llu is not on member %u at %llu", image->array,
                         (unsigned long long)block, place.member,
                         (unsigned long long)place.member_offset);
        }
    }
}

/* One row of the array as parity sees it: a chunk of each member. */
struct row_view {
    struct row row;
    unsigned slot_of[MEMBERS_TOP]; /* member -> what parity_recover calls it */
    uint8_t *chunk_of[MEMBERS_TOP];
    void *data[MEMBERS_TOP];
    uint8_t exponents[MEMBERS_TOP];
    struct parity_stripe stripe;
};

static void
row_view_init(struct row_view *view, const struct image *image, const struct geometry *geometry,
              uint64_t number)
{
    geometry_row(geometry, number, &view->row);
    for (unsigned m = 0; m < geometry->members; m++) {
        view->chunk_of[m] = image->member[m] + image->data_offset + number * geometry->chunk_bytes;
        const unsigned d = geometry_data_index(geometry, &view->row, m);
        if (d == NO_MEMBER) {
            view->slot_of[m] = m == view->row.p ? PARITY_LOST_P : PARITY_LOST_Q;
            continue;
        }
        view->slot_of[m] = d;
        view->data[d] = view->chunk_of[m];
        view->exponents[d] = (uint8_t)geometry_q_exponent(geometry, &view->row, m);
    }
    view->stripe = (struct parity_stripe){
        .data_count = geometry->data_members,
        .data = view->data,
        .exponents = view->exponents,
        .p = view->chunk_of[view->row.p],
        .q = geometry->parities == 2 ? view->chunk_of[view->row.q] : NULL,
        .bytes = geometry->chunk_bytes,
    };
}

/* Take members away, bring their chunks back into scratch memory, and compare. */
static void
check_reconstruction(const struct image *image, struct row_view *view, unsigned count,
                     const unsigned members[])
{
    const struct parity_stripe whole = view->stripe;
    unsigned lost[2];
    for (unsigned i = 0; i < count; i++) {
        lost[i] = view->slot_of[members[i]];
        memset(image->scratch[i], 0xee, whole.bytes);
        if (lost[i] == PARITY_LOST_P)
            view->stripe.p = image->scratch[i];
        else if (lost[i] == PARITY_LOST_Q)
            view->stripe.q = image->scratch[i];
        else
            view->data[lost[i]] = image->scratch[i];
    }
    parity_recover(&view->stripe, count, lost);
    for (unsigned i = 0; i < count; i++) {
        if (memcmp(image->scratch[i], view->chunk_of[members[i]], whole.bytes) != 0)
            fail_msg("%s: row %llu: member %u does not come back", image->array,
                     (unsigned long long)view->row.number, members[i]);
        if (lost[i] < whole.data_count)
            view->data[lost[i]] = view->chunk_of[members[i]];
    }
    view->stripe = whole;
}

static void
check_rows(const struct image *image, const struct geometry *geometry)
{
    for (uint64_t number = 0; number < geometry->rows; number++) {
        struct row_view view;
        row_view_init(&view, image, geometry, number);
        assert_int_equal(parity_check(&view.stripe), 0);
        for (unsigned x = 0; x < geometry->members; x++) {
            check_reconstruction(image, &view, 1, (const unsigned[]){x});
            for (unsigned y = x + 1; y < geometry->members && geometry->parities == 2; y++)
                check_reconstruction(image, &view, 2, (const unsigned[]){x, y});
        }
    }
}

static void
arrays_the_kernel_wrote_are_read_complete_and_with_any_members_missing(void **state)
{
    const char *archive = *state;
    struct image image;
    for (unsigned m = 0; m < MEMBERS_TOP; m++) {
        image.member[m] = aligned_alloc(4096, MEMBER_FILE_BYTES);
        assert_non_null(image.member[m]);
    }
    for (unsigned i = 0; i < 2; i++) {
        image.scratch[i] = aligned_alloc(4096, MIB);
        assert_non_null(image.scratch[i]);
    }

    FILE *list = tar_open("-tJf", archive);
    FILE *content = tar_open("-xJOf", archive);
    char next[128] = "";
    assert_non_null(fgets(next, sizeof next, list));
    unsigned arrays = 0;
    while (image_read(&image, list, content, next, sizeof next)) {
        const struct geometry_config config = {
            .level = image.level,
            .layout = image.layout,
            .members = image.members,
            .chunk_bytes = image.chunk_bytes,
            .size_bytes = image.size_bytes,
        };
        struct geometry geometry;
        assert_int_equal(geometry_init(&geometry, &config), 0);
        assert_true(geometry.chunk_bytes <= MIB);
        check_content(&image, &geometry);
        check_rows(&image, &geometry);
        arrays++;
    }
    assert_int_equal(arrays, ARRAYS_EXPECTED);
    assert_int_equal(fgetc(content), EOF);
    assert_int_equal(pclose(content), 0);
    assert_int_equal(pclose(list), 0);

    for (unsigned m = 0; m < MEMBERS_TOP; m++)
        free(image.member[m]);
    for (unsigned i = 0; i < 2; i++)
        free(image.scratch[i]);
}

int
main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: test_golden_layouts ARCHIVE\n");
        return 2;
    }
    if (system("tar --version >/dev/null 2>&1 && xz --version >/dev/null 2>&1") != 0) {
        printf("1..0 # SKIP tar or xz is not installed\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(
            arrays_the_kernel_wrote_are_read_complete_and_with_any_members_missing, argv[1]),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
