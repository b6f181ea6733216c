/*
 * signature.c: asks libblkid, which knows what is out there.
 */
#include "cli/signature.h"

#include <blkid.h>

static const char *
probe_value(blkid_probe probe, const char *name)
{
    const char *value;

    return blkid_probe_lookup_value(probe, name, &value, NULL) == 0 ? value : NULL;
}

/* The words for what was found last; false if it is nothing that anybody would miss. */
static bool
describe(blkid_probe probe, char text[SIGNATURE_TEXT_BYTES])
{
    const char *type = probe_value(probe, "TYPE");
    const char *usage = probe_value(probe, "USAGE");
    const char *table = probe_value(probe, "PTTYPE");
    const char *label = probe_value(probe, "LABEL");
    const char *kind = "signature";

    if (type && usage && strcmp(usage, "filesystem") == 0)
        kind = "file system";
    else if (type && usage && strcmp(usage, "raid") == 0)
        kind = "member of an array";
    if (type)
        (void)snprintf(text, SIGNATURE_TEXT_BYTES, "%s (%s%s%s)", kind, type,
                       label && *label ? ", " : "", label && *label ? label : "");
    else if (table)
        (void)snprintf(text, SIGNATURE_TEXT_BYTES, "partition table (%s)", table);
    else
        return false;
    return true;
}

int
signature_find(const char *path, char text[SIGNATURE_TEXT_BYTES], struct error *error)
{
    blkid_probe probe;
    int r;

    errno = 0;
    probe = blkid_new_probe_from_filename(path);
    if (!probe)
        return error_set(error, errno ? -errno : -EIO, "%s: cannot be looked at: %s", path,
                         strerror(errno ? errno : EIO));
    r = -ENOMEM;
    if (blkid_probe_enable_superblocks(probe, 1) == 0 &&
        blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE |
                                                     BLKID_SUBLKS_LABEL) == 0 &&
        blkid_probe_enable_partitions(probe, 1) == 0) {
        /* The first that is found is enough; several at once are still something. */
        while ((r = blkid_do_probe(probe)) == 0)
            if (describe(probe, text)) {
                blkid_free_probe(probe);
                return 1;
            }
    }
    blkid_free_probe(probe);
    if (r == 1)
        return 0;
    return error_set(error, -EIO, "%s: cannot be searched for what it holds", path);
}
