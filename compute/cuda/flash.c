#include "compute/cuda/flash.h"

uint32_t afd_flash_tile(const struct afd_gpu_kv *kv, uint32_t sum_dim, uint32_t shared_bytes)
{
    uint32_t step = kv->dtype == AFD_FP8 ? 16 : 8;
    if (kv->dtype != AFD_FP8 && kv->dtype != AFD_BF16) return 0;
    if (kv->key_dim % step || sum_dim % 8 || sum_dim > AFD_FLASH_MAX_SUM_DIM) return 0;
    for (uint32_t tile = AFD_FLASH_MAX_TILE; tile >= AFD_FLASH_MIN_TILE; tile /= 2)
        if (afd_flash_layout_of(kv, sum_dim, tile).bytes <= shared_bytes) return tile;
    return 0;
}

static int fits_teams(const struct afd_gpu_kv *kv, uint32_t sum_dim, uint32_t shared_bytes)
{
    if (kv->latent || kv->key_dim > 256 || sum_dim > kv->key_dim) return 0;
    return afd_flash_team_layout_of(kv, sum_dim).bytes <= shared_bytes;
}

struct afd_flash_choice afd_flash_choose(const struct afd_gpu_kv *kv, uint32_t sum_dim, uint32_t shared_bytes,
                                         int has_groups)
{
    struct afd_flash_choice c = {AFD_FLASH_flash_512, afd_flash_tile(kv, sum_dim, shared_bytes), 0};
    if (!c.tile) return c;
    if (has_groups && fits_teams(kv, sum_dim, shared_bytes)) {
        if (kv->dtype == AFD_FP8)
            c.kernel = kv->key_dim <= 128 ? AFD_FLASH_flash_team_128_fp8 : AFD_FLASH_flash_team_256_fp8;
        else
            c.kernel = kv->key_dim <= 128 ? AFD_FLASH_flash_team_128_bf16 : AFD_FLASH_flash_team_256_bf16;
        c.tile = AFD_FLASH_MAX_TILE;
        c.shared_bytes = afd_flash_team_layout_of(kv, sum_dim).bytes;
        return c;
    }
    if (sum_dim <= 256) c.kernel = sum_dim <= 128 ? AFD_FLASH_flash_128 : AFD_FLASH_flash_256;
    c.shared_bytes = afd_flash_layout_of(kv, sum_dim, c.tile).bytes;
    return c;
}

uint32_t afd_flash_max_items(uint32_t rows, uint32_t group, uint32_t max_context, uint32_t split)
{
    uint32_t blocks = (group + AFD_FLASH_QUERIES - 1) / AFD_FLASH_QUERIES;
    return rows * blocks * ((max_context + split - 1) / split);
}

enum { CLASSES = 32 }; /* of items by their tokens */

struct plan {
    uint32_t group, window, split;
    uint32_t at[CLASSES];         /* items of a class, then where its next one goes */
    struct afd_flash_item *items; /* NULL: count */
};

static void put(struct plan *plan, struct afd_flash_item item, uint32_t tokens)
{
    uint32_t class = CLASSES - 1 - (uint32_t)((uint64_t)(tokens - 1) * CLASSES / plan->split);
    if (plan->items)
        plan->items[plan->at[class]++] = item;
    else
        plan->at[class]++;
}

static void plan_segment(struct plan *plan, const struct afd_segment *segment)
{
    for (uint32_t query = 0; query < segment->rows * plan->group; query += AFD_FLASH_QUERIES) {
        uint32_t after = query + AFD_FLASH_QUERIES, all = segment->rows * plan->group;
        uint32_t last = segment->first_position + ((after < all ? after : all) - 1) / plan->group;
        uint32_t begin = afd_kv_first_seen(plan->window, segment->first_position + query / plan->group);
        for (uint32_t part = begin / plan->split; part <= last / plan->split; part++) {
            uint32_t from = part * plan->split, to = from + plan->split;
            if (from < begin) from = begin;
            if (to > last + 1) to = last + 1;
            put(plan, (struct afd_flash_item){segment->first_row, segment->rows, query, part}, to - from);
        }
    }
}

uint32_t afd_flash_plan(const struct afd_segment *segments, uint32_t segment_count, uint32_t group,
                        uint32_t window, uint32_t split, struct afd_flash_item *items_out)
{
    struct plan plan = {.group = group, .window = window, .split = split};
    uint32_t count = 0;
    for (uint32_t s = 0; s < segment_count; s++) plan_segment(&plan, &segments[s]);
    for (uint32_t c = 0; c < CLASSES; c++) {
        uint32_t here = plan.at[c];
        plan.at[c] = count;
        count += here;
    }
    plan.items = items_out;
    for (uint32_t s = 0; s < segment_count; s++) plan_segment(&plan, &segments[s]);
    return count;
}
