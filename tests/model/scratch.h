/* scratch.h: a directory that a test fills and removes. */
#ifndef AFD_TESTS_MODEL_SCRATCH_H
#define AFD_TESTS_MODEL_SCRATCH_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline void scratch_dir(char out[64])
{
    strcpy(out, "/tmp/afd-test-XXXXXX");
    if (!mkdtemp(out)) abort();
}

/* Flat: the directory and the files in it. */
static inline void scratch_remove(const char *dir)
{
    char path[512];
    DIR *d = opendir(dir);
    if (!d) abort();
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (e->d_type == DT_REG) unlink(path);
    }
    closedir(d);
    rmdir(dir);
}

static inline void scratch_write(const char *dir, const char *name, const void *data, size_t bytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f)) abort();
}

/* malloc'ed, with a 0 after it. */
static inline char *scratch_read(const char *dir, const char *name, size_t *bytes_out)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) abort();
    long bytes = ftell(f);
    char *data = malloc((size_t)bytes + 1);
    rewind(f);
    if (!data || fread(data, 1, (size_t)bytes, f) != (size_t)bytes || fclose(f)) abort();
    data[bytes] = 0;
    *bytes_out = (size_t)bytes;
    return data;
}

#endif
