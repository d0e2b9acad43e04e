#include "base/arena.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 64 * 1024, ALIGN = 64 };

struct chunk {
    struct chunk *next;
    size_t used, bytes;
    _Alignas(ALIGN) unsigned char data[];
};

struct afd_arena {
    struct chunk *chunks;
    size_t used, limit;
};

struct afd_arena *afd_arena_create(size_t limit_bytes)
{
    struct afd_arena *arena = calloc(1, sizeof *arena);
    if (arena) arena->limit = limit_bytes;
    return arena;
}

void afd_arena_destroy(struct afd_arena *arena)
{
    if (!arena) return;
    for (struct chunk *c = arena->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(arena);
}

void *afd_arena_alloc(struct afd_arena *arena, size_t count, size_t bytes_each)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, bytes_each, &bytes) || bytes > (size_t)-1 - ALIGN) return NULL;
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (bytes == 0) bytes = ALIGN;
    if (arena->limit && bytes > arena->limit - arena->used) return NULL;
    struct chunk *c = arena->chunks;
    if (!c || c->bytes - c->used < bytes) {
        size_t room = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
        size_t total;
        if (__builtin_add_overflow(sizeof *c, room, &total)) return NULL;
        c = aligned_alloc(ALIGN, (total + ALIGN - 1) / ALIGN * ALIGN);
        if (!c) return NULL;
        c->next = arena->chunks;
        c->used = 0;
        c->bytes = room;
        arena->chunks = c;
    }
    void *out = c->data + c->used;
    c->used += bytes;
    arena->used += bytes;
    return memset(out, 0, bytes);
}

char *afd_arena_strdup(struct afd_arena *arena, const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *out = afd_arena_alloc(arena, 1, bytes);
    return out ? memcpy(out, text, bytes) : NULL;
}

size_t afd_arena_used(const struct afd_arena *arena)
{
    return arena->used;
}
