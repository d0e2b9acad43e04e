/* search.c: what replay.c is for clang's libFuzzer, which brings main and the search: the good input goes
 * into the first folder of the command line, so that no search begins with nothing. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

static void write_good(const char *dir)
{
    char path[PATH_MAX];
    size_t bytes;
    uint8_t *good = afd_fuzz_good_input(&bytes);
    snprintf(path, sizeof path, "%s/good", dir);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(good, 1, bytes, f) != bytes || fclose(f)) {
        fprintf(stderr, "%s: cannot be written\n", path);
        exit(1);
    }
    free(good);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct stat info;
    for (int i = 1; i < *argc; i++) {
        const char *argument = (*argv)[i];
        if (*argument == '-' || stat(argument, &info) || !S_ISDIR(info.st_mode)) continue;
        write_good(argument);
        break;
    }
    return 0;
}
