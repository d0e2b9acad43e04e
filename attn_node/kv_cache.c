#include "attn_node/kv_cache.h"

#include <assert.h>
#include <stdlib.h>

struct block {
    uint32_t references, holds;
};

struct afd_kv {
    struct afd_kv_config config;
    uint32_t table_blocks; /* room of one table */
    struct block *blocks;
    uint32_t *free; /* a stack: what was freed last is used first, its memory is still near */
    uint32_t free_count;
    uint32_t *entries; /* [tables][table_blocks] */
    uint32_t *counts;  /* [tables] */
};

struct afd_kv *afd_kv_create(const struct afd_kv_config *config)
{
    if (!config->blocks || !config->block_tokens || !config->tables || !config->max_tokens) return NULL;
    struct afd_kv *kv = calloc(1, sizeof *kv);
    if (!kv) return NULL;
    kv->config = *config;
    uint64_t room = ((uint64_t)config->max_tokens + config->block_tokens - 1) / config->block_tokens;
    kv->table_blocks = room < config->blocks ? (uint32_t)room : config->blocks;
    /* calloc and not an arena: tables of long contexts are large, and untouched pages cost nothing. */
    kv->blocks = calloc(config->blocks, sizeof *kv->blocks);
    kv->free = calloc(config->blocks, sizeof *kv->free);
    kv->entries = calloc((size_t)config->tables * kv->table_blocks, sizeof *kv->entries);
    kv->counts = calloc(config->tables, sizeof *kv->counts);
    if (!kv->blocks || !kv->free || !kv->entries || !kv->counts) {
        afd_kv_destroy(kv);
        return NULL;
    }
    for (uint32_t b = config->blocks; b-- > 0;) kv->free[kv->free_count++] = b;
    return kv;
}

void afd_kv_destroy(struct afd_kv *kv)
{
    if (!kv) return;
    free(kv->blocks);
    free(kv->free);
    free(kv->entries);
    free(kv->counts);
    free(kv);
}

uint32_t afd_kv_blocks_for(const struct afd_kv *kv, uint32_t tokens)
{
    return (uint32_t)(((uint64_t)tokens + kv->config.block_tokens - 1) / kv->config.block_tokens);
}

uint32_t afd_kv_max_tokens(const struct afd_kv *kv)
{
    uint64_t all = (uint64_t)kv->table_blocks * kv->config.block_tokens;
    return all < kv->config.max_tokens ? (uint32_t)all : kv->config.max_tokens;
}

static uint32_t *entries_of(const struct afd_kv *kv, uint32_t table)
{
    assert(table < kv->config.tables);
    return kv->entries + (size_t)table * kv->table_blocks;
}

static void free_if_unused(struct afd_kv *kv, uint32_t block)
{
    if (kv->blocks[block].references || kv->blocks[block].holds) return;
    assert(kv->free_count < kv->config.blocks);
    kv->free[kv->free_count++] = block;
}

enum afd_status afd_kv_grow(struct afd_kv *kv, uint32_t table, uint32_t tokens)
{
    uint32_t *entries = entries_of(kv, table), *count = &kv->counts[table];
    uint32_t wanted = afd_kv_blocks_for(kv, tokens);
    assert(wanted <= kv->table_blocks);
    if (wanted <= *count) return AFD_OK;
    if (wanted - *count > kv->free_count) return AFD_AGAIN;
    while (*count < wanted) {
        uint32_t b = kv->free[--kv->free_count];
        assert(!kv->blocks[b].references && !kv->blocks[b].holds);
        kv->blocks[b].references = 1;
        entries[(*count)++] = b;
    }
    return AFD_OK;
}

void afd_kv_truncate(struct afd_kv *kv, uint32_t table, uint32_t tokens)
{
    uint32_t *entries = entries_of(kv, table), *count = &kv->counts[table];
    uint32_t keep = afd_kv_blocks_for(kv, tokens);
    while (*count > keep) {
        uint32_t b = entries[--*count];
        assert(kv->blocks[b].references);
        kv->blocks[b].references--;
        free_if_unused(kv, b);
    }
}

void afd_kv_share(struct afd_kv *kv, uint32_t from, uint32_t to, uint32_t blocks)
{
    const uint32_t *source = entries_of(kv, from);
    uint32_t *target = entries_of(kv, to);
    assert(from != to && kv->counts[to] == 0 && blocks <= kv->counts[from]);
    for (uint32_t i = 0; i < blocks; i++) {
        target[i] = source[i];
        kv->blocks[source[i]].references++;
    }
    kv->counts[to] = blocks;
}

const uint32_t *afd_kv_table(const struct afd_kv *kv, uint32_t table, uint32_t *count_out)
{
    *count_out = kv->counts[table];
    return entries_of(kv, table);
}

void afd_kv_hold(struct afd_kv *kv, uint32_t block)
{
    assert(block < kv->config.blocks && kv->blocks[block].references + kv->blocks[block].holds > 0);
    kv->blocks[block].holds++;
}

void afd_kv_unhold(struct afd_kv *kv, uint32_t block)
{
    assert(block < kv->config.blocks && kv->blocks[block].holds);
    kv->blocks[block].holds--;
    free_if_unused(kv, block);
}

uint32_t afd_kv_block_count(const struct afd_kv *kv)
{
    return kv->config.blocks;
}

uint32_t afd_kv_free_count(const struct afd_kv *kv)
{
    return kv->free_count;
}

uint32_t afd_kv_references(const struct afd_kv *kv, uint32_t block)
{
    assert(block < kv->config.blocks);
    return kv->blocks[block].references;
}

int afd_kv_is_consistent(const struct afd_kv *kv)
{
    uint32_t *seen = calloc(kv->config.blocks, sizeof *seen);
    if (!seen) return 0;
    int good = 1;
    for (uint32_t t = 0; t < kv->config.tables; t++)
        for (uint32_t i = 0; i < kv->counts[t]; i++) seen[entries_of(kv, t)[i]]++;
    for (uint32_t b = 0; b < kv->config.blocks; b++) good &= seen[b] == kv->blocks[b].references;
    /* Free blocks stand in the list once; the others are referred to. */
    for (uint32_t i = 0; i < kv->free_count; i++) {
        const struct block *b = &kv->blocks[kv->free[i]];
        good &= !b->references && !b->holds && seen[kv->free[i]] == 0;
        seen[kv->free[i]] = 1;
    }
    uint32_t used = 0;
    for (uint32_t b = 0; b < kv->config.blocks; b++) used += kv->blocks[b].references || kv->blocks[b].holds;
    good &= used + kv->free_count == kv->config.blocks;
    free(seen);
    return good;
}
