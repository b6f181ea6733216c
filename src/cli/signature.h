/*
 * signature.h: what else a device holds, so that nobody overwrites it by mistake.
 */
#ifndef STRIPELOG_SIGNATURE_H
#define STRIPELOG_SIGNATURE_H

#include "base/base.h"
#include "base/error.h"

#define SIGNATURE_TEXT_BYTES 128u

/*
 * Looks for file systems, arrays, volumes and partition tables. 0: there is nothing; 1: there is,
 * and text says what ("ext4 file system"); or a negative errno. Blocks.
 */
int signature_find(const char *path, char text[SIGNATURE_TEXT_BYTES],
                   struct error *error) must_check;

#endif
