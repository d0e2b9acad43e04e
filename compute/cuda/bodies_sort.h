/* bodies_sort.h: an FFN batch is put in order by its experts (struct afd_gpu_batch): in row order inside a
 * unit, without atomics, so that a batch is the same every time. kernels.h says what each kernel makes. */
#ifndef AFD_COMPUTE_CUDA_BODIES_SORT_H
#define AFD_COMPUTE_CUDA_BODIES_SORT_H

#include "base/half.h"
#include "compute/cuda/kernels.h"

enum { AFD_SORT_THREADS = 128, AFD_BEGIN_THREADS = 256 };

/* Read once: the record is a peer's, who may write it again. */
AFD_INLINE uint32_t afd_sort_u32(const char *record, uint32_t offset)
{
    return *(const volatile uint32_t *)(const volatile void *)(record + offset);
}

AFD_INLINE uint16_t afd_sort_u16(const char *record, uint32_t offset)
{
    return *(const volatile uint16_t *)(const volatile void *)(record + offset);
}

/* What the row's entry `k`, an expert or (the last) its turn, computes here. */
AFD_INLINE void afd_sort_entry(const struct afd_gpu_batch *b, uint32_t row, uint32_t k, uint32_t unit,
                               uint32_t shard, float weight, int is_asked)
{
    uint64_t at = (uint64_t)row * b->entries + k;
    b->entry_unit[at] = (uint16_t)(is_asked ? unit : AFD_GPU_NO_UNIT);
    b->entry_shard[at] = (uint8_t)shard;
    b->entry_weight[at] = weight;
}

/* 0: the record is refused (as records.c: read_turn). */
AFD_INLINE int afd_sort_row(const struct afd_args_ffn_turns *a, uint32_t row, const struct afd_gpu_part *part)
{
    const struct afd_gpu_batch *b = &a->batch;
    const char *record = (const char *)part->records + (uint64_t)(row - part->row_begin) * a->wire.a2f_stride;
    uint32_t experts = a->ffn.kind == AFD_FFN_EXPERTS ? a->ffn.experts : 0, before = 0;
    uint32_t count = experts ? a->ffn.top_k : 0, turn = afd_sort_u32(record, a->wire.turn_offset);
    b->records[row] = record;
    if (turn >= a->ep) return 0;
    uint64_t active = (uint64_t)1 << turn;
    for (uint32_t k = 0; k < a->wire.shape.top_k; k++) {
        uint32_t e = afd_sort_u16(record, a->wire.expert_offset + 2 * k);
        if (k >= count) {
            if (e != AFD_NO_EXPERT) return 0;
            afd_sort_entry(b, row, k, 0, 0, 0.0f, 0);
            continue;
        }
        if (e >= experts || (k > 0 && e <= before)) return 0;
        uint32_t shard = afd_shard_of_expert(&a->ffn, e, a->ep);
        float weight = afd_bits_float(afd_sort_u32(record, a->wire.weight_offset + 4 * k));
        active |= (uint64_t)1 << shard;
        afd_sort_entry(b, row, k, e, shard, weight, (int)(part->shards >> shard & 1));
        before = e;
    }
    afd_sort_entry(b, row, b->entries - 1, experts, turn, 1.0f,
                   a->has_last_unit && (part->shards >> turn & 1) != 0);
    b->active[row] = active & part->shards;
    return 1;
}

AFD_INLINE void afd_body_ffn_turns(const struct afd_args_ffn_turns *a, struct afd_place at, float *shared,
                                   struct afd_own *own)
{
    (void)shared, (void)own;
    const struct afd_gpu_batch *b = &a->batch;
    uint32_t row = at.block * AFD_SORT_THREADS + at.thread, low = 0, high = b->head->parts;
    if (row >= b->head->rows) return;
    while (high - low > 1) { /* the last part that begins at or before the row */
        uint32_t middle = (low + high) / 2;
        if (b->parts[middle].row_begin <= row)
            low = middle;
        else
            high = middle;
    }
    b->part_of[row] = low;
    b->bad[row] = afd_sort_row(a, row, &b->parts[low]) ? AFD_GPU_NO_PART : low;
}

/* ---- units and groups: a block has either */

/* The rows that thread `thread` looks through for block `block`, and what it looks for. */
struct afd_sort_range {
    uint32_t begin, end;
    uint32_t unit;  /* or, for a group: */
    uint32_t shard; /* AFD_MAX_SHARDS: it is a unit's block */
};

/* 0: there is no such block. */
AFD_INLINE int afd_sort_range_of(const struct afd_gpu_batch *b, struct afd_place at,
                                 struct afd_sort_range *out)
{
    uint32_t begin = 0, end = b->head->rows;
    out->unit = at.block;
    out->shard = AFD_MAX_SHARDS;
    if (at.block >= b->units) {
        uint32_t g = at.block - b->units;
        if (g >= b->head->groups) return 0;
        begin = b->parts[b->groups[g].part].row_begin;
        end = b->parts[b->groups[g].part + 1].row_begin;
        out->shard = b->groups[g].shard;
    }
    uint32_t each = (end - begin + AFD_SORT_THREADS - 1) / AFD_SORT_THREADS;
    out->begin = begin + at.thread * each < end ? begin + at.thread * each : end;
    out->end = out->begin + each < end ? out->begin + each : end;
    return 1;
}

/* The row's entry of the unit, b->entries where there is none; of a group: 0, or b->entries. */
AFD_INLINE uint32_t afd_sort_find(const struct afd_gpu_batch *b, const struct afd_sort_range *range,
                                  uint32_t row)
{
    if (range->shard < AFD_MAX_SHARDS) return b->active[row] >> range->shard & 1 ? 0 : b->entries;
    const uint16_t *units = b->entry_unit + (uint64_t)row * b->entries;
    uint32_t k = 0;
    while (k < b->entries && units[k] != range->unit) k++;
    return k;
}

AFD_INLINE void afd_body_ffn_counts(const struct afd_args_ffn_counts *a, struct afd_place at, float *shared,
                                    struct afd_own *own)
{
    (void)own;
    const struct afd_gpu_batch *b = &a->batch;
    uint32_t *found = (uint32_t *)shared, *told = found + AFD_SORT_THREADS;
    struct afd_sort_range range;
    if (!afd_sort_range_of(b, at, &range)) return;
    if (at.phase == 0) {
        found[at.thread] = told[at.thread] = 0;
        for (uint32_t r = range.begin; r < range.end; r++) {
            if (b->bad[r] != AFD_GPU_NO_PART || afd_sort_find(b, &range, r) == b->entries) continue;
            found[at.thread]++;
            told[at.thread] += !b->parts[b->part_of[r]].is_counted_elsewhere;
        }
    } else if (!at.thread) {
        uint32_t sum = 0, sum_told = 0;
        for (uint32_t t = 0; t < AFD_SORT_THREADS; t++) sum += found[t], sum_told += told[t];
        b->count[at.block] = sum;
        b->found->count[at.block] = range.shard < AFD_MAX_SHARDS ? sum : sum_told;
    }
}

/* Threads take runs of units and of groups; shared: what each run holds, then what is before it: items,
 * tiles, outputs; and the first refused part that it saw. */
AFD_INLINE void afd_body_ffn_begins(const struct afd_args_ffn_begins *a, struct afd_place at, float *shared,
                                    struct afd_own *own)
{
    (void)own;
    enum { T = AFD_BEGIN_THREADS };
    const struct afd_gpu_batch *b = &a->batch;
    uint32_t *items = (uint32_t *)shared, *tiles = items + T, *outputs = tiles + T, *bad = outputs + T;
    uint32_t units = b->units, groups = b->head->groups, rows = b->head->rows;
    uint32_t unit_run = (units + T - 1) / T, group_run = (groups + T - 1) / T;
    uint32_t unit0 = at.thread * unit_run, group0 = at.thread * group_run;
    if (at.phase == 0) {
        items[at.thread] = tiles[at.thread] = outputs[at.thread] = 0;
        bad[at.thread] = AFD_GPU_NO_PART;
        for (uint32_t u = unit0; u < unit0 + unit_run && u < units; u++) {
            items[at.thread] += b->count[u];
            tiles[at.thread] += (b->count[u] + a->tile_items - 1) / a->tile_items;
        }
        for (uint32_t g = group0; g < group0 + group_run && g < groups; g++)
            outputs[at.thread] += b->count[units + g];
        for (uint32_t r = at.thread; r < rows; r += T)
            bad[at.thread] = b->bad[r] < bad[at.thread] ? b->bad[r] : bad[at.thread];
    } else if (at.phase == 1) {
        if (at.thread) return;
        uint32_t before[3] = {0};
        for (uint32_t t = 0; t < T; t++) {
            uint32_t here[3] = {items[t], tiles[t], outputs[t]};
            items[t] = before[0], tiles[t] = before[1], outputs[t] = before[2];
            for (uint32_t i = 0; i < 3; i++) before[i] += here[i];
            bad[0] = bad[t] < bad[0] ? bad[t] : bad[0];
        }
        /* A refused batch computes nothing. */
        uint32_t is_bad = bad[0] != AFD_GPU_NO_PART;
        b->found->bad_part = bad[0];
        b->unit_begin[units] = is_bad ? 0 : before[0];
        b->tile_begin[units] = is_bad ? 0 : before[1];
        b->out_begin[groups] = is_bad ? 0 : before[2];
        b->totals->items = b->unit_begin[units];
        b->totals->outputs = b->out_begin[groups];
    } else {
        uint32_t is_good = bad[0] == AFD_GPU_NO_PART, item = items[at.thread], tile = tiles[at.thread];
        uint32_t output = outputs[at.thread];
        for (uint32_t u = unit0; u < unit0 + unit_run && u < units; u++) {
            b->unit_begin[u] = is_good ? item : 0;
            b->tile_begin[u] = is_good ? tile : 0;
            item += b->count[u];
            tile += (b->count[u] + a->tile_items - 1) / a->tile_items;
        }
        for (uint32_t g = group0; g < group0 + group_run && g < groups; g++) {
            b->out_begin[g] = is_good ? output : 0;
            output += b->count[units + g];
        }
    }
}

/* The unit's next item, or the group's next output, is `row`'s. */
AFD_INLINE void afd_sort_place(const struct afd_args_ffn_places *a, const struct afd_sort_range *range,
                               uint32_t block, uint32_t row, uint32_t entry, uint32_t before)
{
    const struct afd_gpu_batch *b = &a->batch;
    if (range->shard == AFD_MAX_SHARDS) {
        uint32_t item = b->unit_begin[block] + before;
        uint64_t at = (uint64_t)row * b->entries + entry;
        b->row_of[item] = row;
        b->unit[item] = range->unit;
        b->weight[item] = b->entry_weight[at];
        b->item_at[at] = item;
        return;
    }
    const struct afd_gpu_group *group = &b->groups[block - b->units];
    uint32_t output = b->out_begin[block - b->units] + before;
    b->out[output] = b->head->partials ? (void *)(b->head->partials + (uint64_t)output * a->hidden)
                                       : (void *)((char *)group->out + (uint64_t)before * a->f2a_stride);
    b->out_row[output] = row;
    b->out_shard[output] = group->shard;
}

AFD_INLINE void afd_body_ffn_places(const struct afd_args_ffn_places *a, struct afd_place at, float *shared,
                                    struct afd_own *own)
{
    (void)own;
    const struct afd_gpu_batch *b = &a->batch;
    uint32_t *before = (uint32_t *)shared;
    struct afd_sort_range range;
    if (!afd_sort_range_of(b, at, &range) || b->found->bad_part != AFD_GPU_NO_PART) return;
    if (at.phase == 0) {
        before[at.thread] = 0;
        for (uint32_t r = range.begin; r < range.end; r++)
            before[at.thread] += afd_sort_find(b, &range, r) < b->entries;
    } else if (at.phase == 1) {
        if (at.thread) return;
        uint32_t sum = 0;
        for (uint32_t t = 0; t < AFD_SORT_THREADS; t++) {
            uint32_t here = before[t];
            before[t] = sum;
            sum += here;
        }
    } else {
        uint32_t next = before[at.thread];
        for (uint32_t r = range.begin; r < range.end; r++) {
            uint32_t entry = afd_sort_find(b, &range, r);
            if (entry < b->entries) afd_sort_place(a, &range, at.block, r, entry, next++);
        }
    }
}

/* Output `output`'s item of its row's entry `k`, or AFD_GPU_NO_ITEM. Entries ascend by unit. */
AFD_INLINE uint32_t afd_sort_item(const struct afd_gpu_batch *b, uint32_t output, uint32_t k)
{
    uint64_t at = (uint64_t)b->out_row[output] * b->entries + k;
    int is_here = b->entry_unit[at] != AFD_GPU_NO_UNIT && b->entry_shard[at] == b->out_shard[output];
    return is_here ? b->item_at[at] : AFD_GPU_NO_ITEM;
}

#endif
