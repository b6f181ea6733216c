/*
 * cmd_create.c: make a new array.
 *
 * Everything that can be wrong is looked for before anything is written anywhere, with all devices
 * claimed: options, sizes, what the devices hold now. Then, on all devices:
 *
 *   1. an empty bad block log, and old superblocks at the other places gone; on the journal the
 *      log's first entry                                                    | flush
 *   2. the superblocks, each with FUA
 *
 * The flush stands between them so that there never is a superblock with somebody else's bad
 * blocks, or with an older one beside it that may be believed instead.
 */
#include "array/create.h"
#include "cli/cli.h"
#include "cli/signature.h"
#include "cli/size.h"
#include "control/protocol.h"
#include "format/bad_blocks.h"
#include "geometry/geometry.h"
#include "recovery/recovery.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>
#include <uuid.h>

#define COMMAND "create"

static const char help[] =
    "Usage: stripelog create --level=LEVEL [OPTION ...] MEMBER|missing ...\n"
    "\n"
    "Makes a RAID-4/5/6 array of files or block devices. The n-th argument takes the\n"
    "n-th place in the array; \"missing\" leaves it empty. Sizes: K, M, G, T.\n"
    "\n"
    "Options:\n"
    "  --level=LEVEL         4, 5 or 6 (required)\n"
    "  --raid-devices=COUNT  number of members; must agree with the arguments\n"
    "  --chunk=SIZE          a power of two from 4K; a bare number is KiB (512K)\n"
    "  --layout=NAME         where parity lies, by mdadm's names (left-symmetric)\n"
    "  --metadata=VERSION    place of the superblock: 1.0, 1.1 or 1.2 (1.2)\n"
    "  --name=NAME           of the array (the first 8 digits of its UUID)\n"
    "  --uuid=UUID           of the array (random)\n"
    "  --size=SIZE           to use of each member; a bare number is KiB (all)\n"
    "  --write-journal=DEV   a journal, which closes the write hole; 4 MiB at least\n"
    "  --assume-clean        parity is right already: no resync\n"
    "  --force               overwrite devices that hold something else\n"
    "  --json                print what was made as JSON\n"
    "  --help                print this and exit\n"
    "  --version             print the version and exit\n";

struct create {
    struct create_options options;
    bool force, json;
    uint64_t raid_devices; /* 0: not given */
    const char *layout, *journal;

    unsigned count;     /* of members */
    unsigned total;     /* with the journal, which stands behind them */
    const char **paths; /* borrowed names, NULL where missing */
    struct create_device *members;
    struct device **devices;
    struct superblock *superblocks;

    struct loop *loop;
    unsigned superblocks_written;
    int result;
    struct error error;
};

/* ---- Options ---- */

static int
parse_level(const char *text, int *level)
{
    static const char *const names[] = {"4", "5", "6", "raid4", "raid5", "raid6"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(text, names[i]) == 0) {
            *level = 4 + (int)(i % 3);
            return CLI_OK;
        }
    return usage_failed(COMMAND, "--level=%s: only 4, 5 and 6 are supported", text);
}

static int
parse_metadata(const char *text, uint32_t *minor)
{
    if (strlen(text) != 3 || strncmp(text, "1.", 2) != 0 || text[2] < '0' || text[2] > '2')
        return usage_failed(COMMAND, "--metadata=%s: only 1.0, 1.1 and 1.2 are supported", text);
    *minor = (uint32_t)(text[2] - '0');
    return CLI_OK;
}

/* As it is printed by others (8-4-4-4-12) or by md (four groups of 8). */
static int
parse_uuid(const char *text, uint8_t uuid[SUPERBLOCK_UUID_BYTES])
{
    unsigned digits = 0;

    for (const char *at = text; *at; at++) {
        const char c = *at;
        unsigned value;

        if (c == '-' || c == ':' || c == '.')
            continue;
        if (c >= '0' && c <= '9')
            value = (unsigned)(c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            value = (unsigned)((c | 0x20) - 'a') + 10;
        else
            break;
        if (digits == 2 * SUPERBLOCK_UUID_BYTES)
            break;
        uuid[digits / 2] = (uint8_t)(digits % 2 ? uuid[digits / 2] | value : value << 4);
        digits++;
        if (at[1] == '\0' && digits == 2 * SUPERBLOCK_UUID_BYTES)
            return CLI_OK;
    }
    return usage_failed(COMMAND, "--uuid=%s: not 32 hexadecimal digits", text);
}

enum create_option {
    OPTION_LEVEL = 256,
    OPTION_RAID_DEVICES,
    OPTION_CHUNK,
    OPTION_LAYOUT,
    OPTION_METADATA,
    OPTION_NAME,
    OPTION_UUID,
    OPTION_SIZE,
    OPTION_WRITE_JOURNAL,
    OPTION_ASSUME_CLEAN,
    OPTION_FORCE,
    OPTION_JSON,
};

static const struct option long_options[] = {
    {"level", required_argument, NULL, OPTION_LEVEL},
    {"raid-devices", required_argument, NULL, OPTION_RAID_DEVICES},
    {"chunk", required_argument, NULL, OPTION_CHUNK},
    {"layout", required_argument, NULL, OPTION_LAYOUT},
    {"metadata", required_argument, NULL, OPTION_METADATA},
    {"name", required_argument, NULL, OPTION_NAME},
    {"uuid", required_argument, NULL, OPTION_UUID},
    {"size", required_argument, NULL, OPTION_SIZE},
    {"write-journal", required_argument, NULL, OPTION_WRITE_JOURNAL},
    {"assume-clean", no_argument, NULL, OPTION_ASSUME_CLEAN},
    {"force", no_argument, NULL, OPTION_FORCE},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'v'},
    {NULL, 0, NULL, 0},
};

/* An exit status, or -1 to go on. */
static int
parse_option(struct create *create, int option, char **argv)
{
    struct create_options *o = &create->options;
    struct error error = {0};
    int status = CLI_OK;
    int r = 0;

    switch (option) {
    case OPTION_LEVEL:
        status = parse_level(optarg, &o->level);
        break;
    case OPTION_RAID_DEVICES:
        r = count_parse(optarg, UINT32_MAX, &create->raid_devices, &error);
        if (r == 0 && create->raid_devices == 0)
            r = error_set(&error, -EINVAL, "\"%s\" is not a number of members", optarg);
        break;
    case OPTION_CHUNK:
        r = size_parse(optarg, SIZE_BARE_KIB, &o->chunk_bytes, &error);
        break;
    case OPTION_LAYOUT:
        create->layout = optarg;
        break;
    case OPTION_METADATA:
        status = parse_metadata(optarg, &o->minor);
        break;
    case OPTION_NAME:
        o->name = optarg;
        break;
    case OPTION_UUID:
        status = parse_uuid(optarg, o->set_uuid);
        break;
    case OPTION_SIZE:
        r = size_parse(optarg, SIZE_BARE_KIB, &o->size_bytes, &error);
        if (r == 0 && o->size_bytes == 0)
            r = error_set(&error, -EINVAL, "\"%s\": nothing to use", optarg);
        break;
    case OPTION_WRITE_JOURNAL:
        create->journal = optarg;
        o->write_journal = true;
        break;
    case OPTION_ASSUME_CLEAN:
        o->assume_clean = true;
        break;
    case OPTION_FORCE:
        create->force = true;
        break;
    case OPTION_JSON:
        create->json = true;
        break;
    default:
        return option_common(COMMAND, help, option, argv);
    }
    if (r < 0)
        status = usage_failed(COMMAND, "%s: %s", argv[optind - 1], error.text);
    return status == CLI_OK ? -1 : status;
}

/* What stands behind the options, and what they say together. */
static int
check_arguments(struct create *create)
{
    struct create_options *o = &create->options;
    struct error error = {0};

    if (o->level == 0)
        return usage_failed(COMMAND, "--level is missing");
    if (create->layout && o->level == 4)
        return usage_failed(COMMAND, "--layout=%s: RAID-4 has one layout only", create->layout);
    if (o->level != 4)
        o->layout = GEOMETRY_LAYOUT_DEFAULT;
    if (create->layout && geometry_layout_parse(o->level, create->layout, &o->layout) < 0)
        return usage_failed(COMMAND, "--layout=%s: RAID-%d has no such layout", create->layout,
                            o->level);
    if (create->count == 0)
        return usage_failed(COMMAND, "no members are given");
    if (create->raid_devices != 0 && create->raid_devices != create->count)
        return usage_failed(COMMAND,
                            "--raid-devices=%" PRIu64 ", but %u member%s given (\"missing\" is one "
                            "too)",
                            create->raid_devices, create->count,
                            create->count == 1 ? " is" : "s are");
    if (create_check(o, create->members, create->count, &error) < 0)
        return usage_failed(COMMAND, "%s", error.text);
    return -1;
}

/* ---- Looking ---- */

static int
check_devices(struct create *create)
{
    struct error *error = &create->error;

    for (unsigned i = 0; i < create->total; i++) {
        struct device *device = create->devices[i];
        char holds[SIGNATURE_TEXT_BYTES];
        int r;

        if (!device)
            continue;
        for (unsigned j = 0; j < i; j++)
            if (create->devices[j] && memcmp(device->identity, create->devices[j]->identity,
                                             sizeof device->identity) == 0)
                return error_set(error, -EINVAL, "%s and %s are the same device", create->paths[j],
                                 create->paths[i]);
        create->members[i].size_bytes = device->size_bytes;
        if (create->force)
            continue;
        r = signature_find(create->paths[i], holds, error);
        if (r < 0)
            return r;
        if (r > 0)
            return error_set(error, -EEXIST,
                             "--force overwrites what is there\n"
                             "%s already holds a %s",
                             create->paths[i], holds);
    }
    return create_plan(&create->options, create->members, create->count, create->superblocks,
                       error);
}

/* ---- Writing ---- */

static task_fn int
zero_block(struct device *device, uint8_t *block, uint64_t offset_bytes)
{
    memset(block, 0, SUPERBLOCK_BYTES);
    return device_write(device, block, offset_bytes, SUPERBLOCK_BYTES, false);
}

/* Superblocks that an earlier life left at the places that this array does not use. */
static task_fn int
clear_other_places(struct device *device, const struct superblock *sb, uint8_t *block)
{
    struct superblock *found = malloc(sizeof *found);
    uint64_t offset_bytes;
    int r = 0;

    if (!found)
        return -ENOMEM;
    for (uint32_t minor = 0; minor < SUPERBLOCK_MINORS && r == 0; minor++) {
        if (minor == sb->minor || superblock_offset(minor, device->size_bytes, &offset_bytes) < 0)
            continue;
        r = device_read(device, block, offset_bytes, SUPERBLOCK_BYTES);
        if (r == 0 && superblock_decode(block, minor, device->size_bytes, found, NULL) != -ENOENT)
            r = zero_block(device, block, offset_bytes);
    }
    if (r == 0 && superblock_offset_090(device->size_bytes, &offset_bytes) == 0 &&
        offset_bytes != superblock_offset_bytes(sb)) {
        r = device_read(device, block, offset_bytes, SUPERBLOCK_BYTES);
        if (r == 0 && superblock_probe_090(block, NULL) == -ENOTSUP)
            r = zero_block(device, block, offset_bytes);
    }
    free(found);
    return r;
}

static task_fn int
prepare_device(struct device *device, const struct superblock *sb, uint8_t *block)
{
    int r;

    r = clear_other_places(device, sb, block);
    if (r < 0)
        return r;
    memset(block, 0xff, BAD_BLOCKS_LOG_BYTES_MAX);
    r = device_write(device, block, superblock_bad_blocks_offset_bytes(sb),
                     (uint64_t)sb->bad_block_log_sectors * SECTOR_BYTES, false);
    if (r < 0)
        return r;
    return device_flush(device);
}

static task_fn int
write_superblock(struct device *device, const struct superblock *sb, uint8_t *block)
{
    const size_t used = superblock_encode(sb, block);

    assert(used <= SUPERBLOCK_BYTES);
    return device_write(device, block, superblock_offset_bytes(sb), SUPERBLOCK_BYTES, true);
}

static task_fn void
write_all(void *arg)
{
    struct create *create = arg;
    uint8_t *block = aligned_alloc(BLOCK_BYTES, SUPERBLOCK_BYTES);
    int r = block ? 0 : -ENOMEM;

    for (unsigned i = 0; i < create->total && r == 0; i++) {
        if (!create->devices[i])
            continue;
        r = prepare_device(create->devices[i], &create->superblocks[i], block);
        if (r == 0 && i == create->count) {
            r = recovery_new_log(create->devices[i], &create->superblocks[i], &create->error);
            if (r < 0)
                break;
        }
        if (r < 0)
            (void)error_set(&create->error, r, "%s: cannot be prepared: %s", create->paths[i],
                            strerror(-r)); /* r says so */
    }
    for (unsigned i = 0; i < create->total && r == 0; i++) {
        if (!create->devices[i])
            continue;
        r = write_superblock(create->devices[i], &create->superblocks[i], block);
        if (r < 0)
            (void)error_set(&create->error, r,
                            "%u of %u superblocks are written, and the array is not usable\n"
                            "%s: cannot write the superblock: %s",
                            create->superblocks_written, create->total, create->paths[i],
                            strerror(-r)); /* r says so */
        else
            create->superblocks_written++;
    }
    if (!block)
        (void)error_set(&create->error, r, "out of memory"); /* r says so */
    free(block);
    create->result = r;
}

/* ---- Telling ---- */

static int
print_result(const struct create *create)
{
    const struct superblock *sb = NULL;
    char uuid[SUPERBLOCK_UUID_TEXT_BYTES], name[SUPERBLOCK_NAME_TEXT_BYTES];
    char array_size[SIZE_TEXT_BYTES], member_size[SIZE_TEXT_BYTES], chunk[SIZE_TEXT_BYTES];
    char journal_size[SIZE_TEXT_BYTES];
    const char *layout;
    bool degraded = false;

    for (unsigned i = 0; i < create->count; i++) {
        if (create->devices[i])
            sb = sb ? sb : &create->superblocks[i];
        else
            degraded = true;
    }
    assert(sb);
    layout = geometry_layout_name(sb->level, sb->layout);
    if (create->json) {
        json_t *devices = json_array();
        json_t *json;

        for (unsigned i = 0; i < create->count; i++)
            json_array_append_new(devices,
                                  create->paths[i] ? control_text(create->paths[i]) : json_null());
        json =
            json_pack("{s:o, s:o, s:i, s:s?, s:I, s:I, s:I, s:b, s:b, s:o, s:o}", "uuid",
                      json_uuid(sb->set_uuid), "name", json_name(sb), "level", (int)sb->level,
                      "layout", layout, "chunk_bytes", (json_int_t)superblock_chunk_bytes(sb),
                      "size_bytes", (json_int_t)superblock_array_bytes(sb), "member_size_bytes",
                      (json_int_t)superblock_component_bytes(sb), "resync_needed",
                      (int)!superblock_is_clean(sb), "degraded", (int)degraded, "devices", devices,
                      "journal", create->journal ? control_text(create->journal) : json_null());
        if (json_print(json) < 0)
            return CLI_FAILED;
        return finish_output(COMMAND, CLI_OK);
    }
    superblock_uuid_text(sb->set_uuid, uuid);
    superblock_name_text(sb, name);
    size_text(superblock_array_bytes(sb), array_size);
    size_text(superblock_component_bytes(sb), member_size);
    size_text(superblock_chunk_bytes(sb), chunk);
    if (create->journal)
        size_text(superblock_journal_ring_bytes(&create->superblocks[create->count]), journal_size);
    (void)printf("RAID-%d \"%s\", UUID %s\n", sb->level, name, uuid);
    (void)printf("%s: %u members of %s, chunk %s%s%s%s\n", array_size, create->count, member_size,
                 chunk, layout ? ", " : "", layout ? layout : "", degraded ? ", degraded" : "");
    if (create->journal)
        (void)printf("journal %s, a log of %s\n", create->journal, journal_size);
    if (!superblock_is_clean(sb))
        (void)printf("parity is made when it is first served\n");
    return finish_output(COMMAND, CLI_OK);
}

/* ---- The command ---- */

static int
create_run(struct create *create)
{
    const struct file_options file_options = {.claim = true, .claim_wait_ns = CLI_CLAIM_WAIT_NS};
    int status = CLI_FAILED;
    int r;

    r = loop_create(&(struct loop_config){.tasks = 16}, &create->loop, &create->error);
    if (r < 0)
        return command_failed(COMMAND, &create->error);
    r = devices_open(create->loop, create->paths, create->total, &file_options, create->devices,
                     &create->error);
    if (r == 0) {
        r = check_devices(create);
        if (r == 0) {
            loop_run_task(create->loop, write_all, create);
            r = create->result;
        }
        status = r == 0 ? print_result(create) : CLI_FAILED;
        devices_close(create->loop, create->devices, create->total);
    }
    loop_destroy(create->loop);
    return r < 0 ? command_failed(COMMAND, &create->error) : status;
}

int
cmd_create(int argc, char **argv)
{
    struct create create = {
        .options = {.minor = SUPERBLOCK_MINOR_DEFAULT, .chunk_bytes = CREATE_CHUNK_BYTES_DEFAULT}};
    int option, status;

    uuid_generate_random(create.options.set_uuid);
    create.options.now = superblock_time((uint64_t)time(NULL), 0);
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        status = parse_option(&create, option, argv);
        if (status >= 0)
            return status;
    }
    create.count = (unsigned)(argc - optind);
    create.total = create.count + create.options.write_journal;
    create.paths = calloc(create.count + 1, sizeof *create.paths);
    create.members = calloc(create.count + 1, sizeof *create.members);
    create.devices = calloc(create.count + 1, sizeof(struct device *));
    create.superblocks = calloc(create.count + 1, sizeof *create.superblocks);
    if (!create.paths || !create.members || !create.devices || !create.superblocks) {
        (void)error_set(&create.error, -ENOMEM, "out of memory"); /* told below */
        status = command_failed(COMMAND, &create.error);
        goto out;
    }
    for (unsigned i = 0; i < create.count; i++)
        if (strcmp(argv[optind + (int)i], "missing") != 0) {
            create.paths[i] = argv[optind + (int)i];
            create.members[i].name = create.paths[i];
            uuid_generate_random(create.members[i].uuid);
        }
    if (create.journal) {
        create.paths[create.count] = create.members[create.count].name = create.journal;
        uuid_generate_random(create.members[create.count].uuid);
    }
    status = check_arguments(&create);
    if (status < 0)
        status = create_run(&create);
out:
    free(create.superblocks);
    free(create.devices);
    free(create.members);
    free(create.paths);
    return status;
}
