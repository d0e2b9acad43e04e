/* regions.c: a pair's receive regions: that they lie in registered memory, which pages they touch, and that
 * these are nobody else's. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/backend.h"

uint64_t afd_page_align(uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static const struct afd_memory *memory_of(const struct afd_transport *t, const struct afd_region *region)
{
    const unsigned char *base = region->base;
    for (uint32_t i = 0; i < t->memory_count; i++) {
        const struct afd_memory *m = &t->memory[i];
        if (base >= m->base && (uint64_t)(base - m->base) <= m->bytes &&
            region->bytes <= m->bytes - (uint64_t)(base - m->base))
            return m;
    }
    return NULL;
}

static int by_base(const void *a, const void *b)
{
    const struct afd_pages *x = a, *y = b;
    return x->base < y->base ? -1 : x->base > y->base;
}

/* Sorted, and merged where they touch or overlap; not over the border of two registered memories. */
static uint32_t merge(struct afd_pages *pages, uint32_t count)
{
    uint32_t merged = 0;
    if (count) qsort(pages, count, sizeof *pages, by_base);
    for (uint32_t i = 0; i < count; i++) {
        struct afd_pages *last = merged ? &pages[merged - 1] : NULL;
        unsigned char *end = pages[i].base + pages[i].bytes;
        if (!last || pages[i].base > last->base + last->bytes || pages[i].memory != last->memory)
            pages[merged++] = pages[i];
        else if (end > last->base + last->bytes)
            last->bytes = (uint64_t)(end - last->base);
    }
    return merged;
}

/* Regions of one piece. */
static enum afd_status set(struct afd_pair *pair, const struct afd_region *regions, uint32_t count,
                           struct afd_error *error_out)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (count > AFD_MAX_REGIONS)
        return afd_fail(error_out, AFD_ERR_REQUEST, "%u regions: at most %d", count, AFD_MAX_REGIONS);
    pair->regions = calloc(count + 1u, sizeof *pair->regions);
    pair->pages = calloc(count + 1u, sizeof *pair->pages);
    pair->notices = calloc(count + 1u, sizeof *pair->notices);
    if (!pair->regions || !pair->pages || !pair->notices)
        return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    uint32_t touched = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct afd_memory *memory = memory_of(pair->transport, &regions[i]);
        if (!memory)
            return afd_fail(error_out, AFD_ERR_REQUEST, "region %u does not lie in registered memory", i);
        if (!regions[i].bytes) continue;
        uintptr_t first = (uintptr_t)regions[i].base / page * page;
        uintptr_t end = ((uintptr_t)regions[i].base + regions[i].bytes + page - 1) / page * page;
        pair->pages[touched++] = (struct afd_pages){(unsigned char *)first, end - first, memory->base};
    }
    if (count) memcpy(pair->regions, regions, count * sizeof *regions);
    pair->region_count = count;
    pair->pages_count = merge(pair->pages, touched);
    return AFD_OK;
}

enum afd_status afd_regions_set(struct afd_pair *pair, const struct afd_region *regions, uint32_t count,
                                struct afd_error *error_out)
{
    struct afd_region *pieces;
    if (!count || !regions->head) return set(pair, regions, count, error_out);
    enum afd_status status = afd_split_regions(pair, regions, &count, &pieces, error_out);
    if (!status) status = set(pair, pieces, count, error_out);
    free(pieces);
    return status;
}

static const struct afd_pages *shared_pages(const struct afd_pair *a, const struct afd_pair *b)
{
    for (uint32_t i = 0, k = 0; i < a->pages_count && k < b->pages_count;) {
        const struct afd_pages *x = &a->pages[i], *y = &b->pages[k];
        if (x->base + x->bytes <= y->base)
            i++;
        else if (y->base + y->bytes <= x->base)
            k++;
        else
            return x;
    }
    return NULL;
}

enum afd_status afd_regions_claim(struct afd_pair *pair, struct afd_error *error_out)
{
    const struct afd_transport *t = pair->transport;
    char other[24];
    for (uint32_t i = 0; i < t->pair_limit; i++) {
        const struct afd_pair *live = t->pairs[i];
        if (!live || live == pair || !live->holds_pages || !shared_pages(pair, live)) continue;
        return afd_fail(
            error_out, AFD_ERR_REQUEST,
            "a region lies on a page of the live pair with %s, generation %u: pages belong to one "
            "pair alone",
            afd_identity_text(&live->peer.other, other), live->peer.generation);
    }
    pair->holds_pages = 1;
    return AFD_OK;
}
