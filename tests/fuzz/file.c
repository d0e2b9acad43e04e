#include "tests/fuzz/file.h"

#include <assert.h>
#include <jansson.h>
#include <limits.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --wrap of the linker: calls of the code under test come here first. */
void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
char *__real_strdup(const char *text);
void __real_free(void *memory);

static size_t held, peak;

static void *took(void *memory)
{
    held += malloc_usable_size(memory);
    if (held > peak) peak = held;
    return memory;
}

void *__wrap_malloc(size_t bytes)
{
    return took(__real_malloc(bytes));
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return took(__real_calloc(count, bytes));
}

void *__wrap_realloc(void *old, size_t bytes)
{
    size_t before = malloc_usable_size(old);
    void *memory = __real_realloc(old, bytes);
    if (memory || !bytes) held -= before;
    return took(memory);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return took(__real_aligned_alloc(alignment, bytes));
}

char *__wrap_strdup(const char *text)
{
    return took(__real_strdup(text));
}

void __wrap_free(void *memory)
{
    held -= malloc_usable_size(memory);
    __real_free(memory);
}

static char dir[PATH_MAX], path[PATH_MAX + 32];
static int was_taken;
static double worst; /* bytes a byte of the file, beyond the fixed ones */
static size_t largest;

static void clean(void)
{
    unlink(path);
    rmdir(dir);
    printf("%s: at most %zu bytes of memory; beyond %zu, %.1f a byte of the file, and %zu are allowed\n",
           afd_fuzz_form.name, largest, afd_fuzz_form.fixed, worst, afd_fuzz_form.multiple);
}

static void make_dir(void)
{
    const char *root = getenv("TMPDIR");
    if (*path) return;
    snprintf(dir, sizeof dir, "%s/afd-fuzz-XXXXXX", root ? root : "/tmp");
    if (!mkdtemp(dir)) abort();
    snprintf(path, sizeof path, "%s/%s", dir, afd_fuzz_form.name);
    json_set_alloc_funcs(__wrap_malloc, __wrap_free);
    atexit(clean);
}

/* In the heap of the reader the bytes have no neighbours of the file's: a mapping ends with it. */
static void write_file(const uint8_t *data, size_t bytes)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f)) abort();
}

void afd_fuzz_touch(const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) (void)((const volatile unsigned char *)data)[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct afd_error error = {""};
    make_dir();
    write_file(data, bytes);
    size_t before = peak = held;
    void *opened = afd_fuzz_open(dir, path, &error);
    size_t most = peak - before, allowed = afd_fuzz_form.multiple * bytes + afd_fuzz_form.fixed;
    if (most > largest) largest = most;
    if (most > afd_fuzz_form.fixed && bytes) {
        double each = (double)(most - afd_fuzz_form.fixed) / (double)bytes;
        if (each > worst) worst = each;
    }
    if (most > allowed) {
        fprintf(stderr, "%s of %zu bytes: reading it took %zu bytes of memory; at most %zu are allowed\n",
                afd_fuzz_form.name, bytes, most, allowed);
        abort();
    }
    was_taken = opened != NULL;
    if (opened)
        afd_fuzz_use(opened, dir);
    else
        assert(*error.text);
    if (held != before) {
        fprintf(stderr, "%s of %zu bytes: %zd bytes of memory were not freed\n", afd_fuzz_form.name, bytes,
                (ssize_t)(held - before));
        abort();
    }
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}
