/* arena.h: memory that is allocated at start and freed all at once.
 *
 * Single-threaded. Memory is zeroed and 64-byte aligned. NULL means that the limit or the machine's memory is
 * exhausted. Nothing is allocated on the token path: tables come from an arena sized at start. */
#ifndef AFD_BASE_ARENA_H
#define AFD_BASE_ARENA_H

#include <stddef.h>

struct afd_arena;

/* `limit_bytes` 0: no limit but the machine's. */
struct afd_arena *afd_arena_create(size_t limit_bytes);
void afd_arena_destroy(struct afd_arena *arena); /* NULL is allowed */
void *afd_arena_alloc(struct afd_arena *arena, size_t count, size_t bytes_each);
char *afd_arena_strdup(struct afd_arena *arena, const char *text);
size_t afd_arena_used(const struct afd_arena *arena);

#endif
