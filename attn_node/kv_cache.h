/* kv_cache.h: who owns which block of the KV cache.
 *
 * The memory itself is the device's; this core hands out block numbers. Each sequence has one table: the
 * blocks of its positions, in order. A block has a count of the tables it stands in, and a count of holds
 * (transfers that read or write it); it goes back to the free list when both are zero. Shared blocks are
 * never written: only whole blocks behind which the sequence goes on can be shared, so no copy on write is
 * needed.
 *
 * Pure core: no I/O, no clock, one thread; allocates in create alone. */
#ifndef AFD_ATTN_NODE_KV_CACHE_H
#define AFD_ATTN_NODE_KV_CACHE_H

#include <stdint.h>

#include "base/status.h"

struct afd_kv;

struct afd_kv_config {
    uint32_t blocks, block_tokens;
    uint32_t tables;     /* one a sequence */
    uint32_t max_tokens; /* of one table */
};

/* NULL: out of memory, or a number that is zero or too large. */
struct afd_kv *afd_kv_create(const struct afd_kv_config *config);
void afd_kv_destroy(struct afd_kv *kv); /* NULL is allowed */

uint32_t afd_kv_blocks_for(const struct afd_kv *kv, uint32_t tokens);
uint32_t afd_kv_max_tokens(const struct afd_kv *kv); /* that one table can hold: its limit, or all blocks */

/* Appends blocks until the table covers `tokens`; all of them or none: AFD_AGAIN when too few are free. */
enum afd_status afd_kv_grow(struct afd_kv *kv, uint32_t table, uint32_t tokens);
/* Drops the blocks behind the one that holds token `tokens` - 1; 0 empties the table. */
void afd_kv_truncate(struct afd_kv *kv, uint32_t table, uint32_t tokens);
/* The empty table `to` begins with the first `blocks` blocks of `from`, which are full and stay unwritten. */
void afd_kv_share(struct afd_kv *kv, uint32_t from, uint32_t to, uint32_t blocks);
/* The table's blocks, valid until it grows or shrinks. */
const uint32_t *afd_kv_table(const struct afd_kv *kv, uint32_t table, uint32_t *count_out);

/* A transfer that is under way keeps a block of a table from being given to somebody else. */
void afd_kv_hold(struct afd_kv *kv, uint32_t block);
void afd_kv_unhold(struct afd_kv *kv, uint32_t block);

uint32_t afd_kv_block_count(const struct afd_kv *kv);
uint32_t afd_kv_free_count(const struct afd_kv *kv);
uint32_t afd_kv_references(const struct afd_kv *kv, uint32_t block);

/* 1 when every count agrees with the tables and the free list: a pass over everything, for tests. */
int afd_kv_is_consistent(const struct afd_kv *kv);

#endif
