/*
 * replay.c: run a fuzz target over files, without libFuzzer.
 *
 *   replay_X PATH...     every file, and every file of every directory
 *
 * So the corpus, and with it every finding that was ever put there, is an ordinary test with any
 * compiler. A run over nothing is a failure.
 */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>

static unsigned
replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data;
    struct stat st;

    if (!file || fstat(fileno(file), &st) < 0) {
        perror(path);
        exit(1);
    }
    /* Exactly its size, so that a sanitizer sees a read behind it. */
    data = malloc((size_t)st.st_size);
    if ((!data && st.st_size > 0) ||
        fread(data, 1, (size_t)st.st_size, file) != (size_t)st.st_size) {
        perror(path);
        exit(1);
    }
    fclose(file);
    printf("%s\n", path);
    fflush(stdout); /* an abort then leaves the culprit as the last line */
    (void)LLVMFuzzerTestOneInput(data, (size_t)st.st_size); /* always 0 */
    free(data);
    return 1;
}

static unsigned
replay_directory(const char *path, DIR *directory)
{
    const struct dirent *entry;
    unsigned count = 0;

    while ((entry = readdir(directory))) {
        char name[4096];

        if (entry->d_name[0] == '.')
            continue;
        if (snprintf(name, sizeof name, "%s/%s", path, entry->d_name) >= (int)sizeof name) {
            fprintf(stderr, "%s: too long a path\n", path);
            exit(1);
        }
        count += replay_file(name);
    }
    return count;
}

int
main(int argc, char **argv)
{
    unsigned count = 0;

    for (int i = 1; i < argc; i++) {
        DIR *directory = opendir(argv[i]);

        if (directory) {
            count += replay_directory(argv[i], directory);
            closedir(directory);
        } else {
            count += replay_file(argv[i]);
        }
    }
    printf("%u inputs\n", count);
    return count == 0;
}
