/* bodies_flash_team.h: the kernels of flash.h by two teams of a warpgroup each, and its products (mma.h).
 * What the teams do in a phase, and which stage they read and fill, is drawn there. */
#ifndef AFD_COMPUTE_CUDA_BODIES_FLASH_TEAM_H
#define AFD_COMPUTE_CUDA_BODIES_FLASH_TEAM_H

#include "compute/cuda/bodies_flash.h"

enum { AFD_FLASH_TEAM_SCORES = AFD_FLASH_MAX_TILE / 8, AFD_FLASH_TEAM_STEPS = AFD_FLASH_MAX_TILE / 16 };

/* What a warp has in registers, but for O: 16 queries, scores or terms of its team's tile. */
struct afd_flash_team_warp {
    struct afd_mma_c s[AFD_FLASH_TEAM_SCORES];
    struct afd_mma_a p[AFD_FLASH_TEAM_STEPS];
    struct afd_flash_queries rows;
    struct afd_async async;
};

struct afd_flash_team_block {
    struct afd_flash_block b;
    struct afd_flash_team_layout l;
};

/* The team of a tile; tiles are counted from the sequence's beginning. */
AFD_DEVICE uint32_t afd_flash_team_of(const struct afd_flash_team_block *t, uint32_t tile)
{
    return (t->b.first / AFD_FLASH_MAX_TILE + tile) % 2;
}

/* ---- into shared memory */

AFD_DEVICE unsigned char *afd_flash_team_stage(const struct afd_flash_team_block *t, uint32_t index)
{
    return t->b.shared + t->l.stage + index % 2 * t->l.stage_bytes;
}

/* 16 bytes of bf16 or f16 in panels of 64 rows. */
AFD_DEVICE unsigned char *afd_flash_team_panel_at(unsigned char *panels, uint32_t r, uint32_t chunk)
{
    return panels + chunk / AFD_TILE_CHUNKS * AFD_FLASH_PANEL + afd_tile_offset(r, chunk % AFD_TILE_CHUNKS);
}

/* What a lane copies of a stage: chunk c of K or V, rows warp, warp + 8, .. of the tile. In a panel they are
 * AFD_FLASH_PANEL / 8 bytes apart, their swizzle is the same. */
struct afd_flash_team_chunk {
    uint32_t is_there, is_value, c;
    unsigned char *raw, *panels; /* in shared memory: of row `warp`; where the stage's K or V begin */
};

AFD_DEVICE struct afd_flash_team_chunk afd_flash_team_chunk_of(const struct afd_flash_team_block *t,
                                                               uint32_t index, uint32_t warp, uint32_t chunk)
{
    const struct afd_flash_team_layout *l = &t->l;
    struct afd_flash_team_chunk out;
    out.is_there = chunk < l->chunks;
    out.is_value = chunk >= l->key_chunks;
    out.c = chunk - out.is_value * l->key_chunks;
    out.raw = t->b.shared + l->raw + index % 2 * l->raw_bytes + (warp * l->chunks + chunk) * 16;
    out.panels = afd_flash_team_stage(t, index) + out.is_value * l->value;
    return out;
}

/* The row of K or V of a token, or of the nearest that the part has. */
AFD_DEVICE const unsigned char *afd_flash_team_row(const struct afd_flash_team_block *t, uint32_t token,
                                                   uint32_t part, uint32_t *token_out)
{
    *token_out = token < t->b.begin ? t->b.begin : token < t->b.end ? token : t->b.end - 1;
    return (const unsigned char *)afd_gpu_kv_at(&t->b.a->kv, t->b.item.first_row, *token_out, t->b.kv_head,
                                                part);
}

/* Begins to copy stage `index`, K of tile `index` and V of the one before, bf16 to its place, fp8 to the raw
 * rows. What is outside of the part becomes zero. Where a block of the cache has whole tiles, one look into
 * the table is enough for a tile. */
AFD_DEVICE void afd_flash_team_copy(const struct afd_flash_team_block *t, uint32_t index, int is_fp8,
                                    uint32_t warp, struct afd_async *async)
{
    uint32_t is_whole = t->b.a->kv.block_tokens % AFD_FLASH_MAX_TILE == 0;
    uint32_t row_bytes = t->l.key_chunks * 16;
    for (uint32_t c0 = 0; c0 < t->l.chunks && index <= t->b.tiles; c0 += 32) AFD_EACH_LANE(lane, s)
        {
            struct afd_flash_team_chunk chunk = afd_flash_team_chunk_of(t, index, warp, c0 + lane);
            uint32_t has = chunk.is_value ? index > 0 : index < t->b.tiles, nearest;
            uint32_t token0 = t->b.first + (has ? index - chunk.is_value : 0) * AFD_FLASH_MAX_TILE + warp;
            const unsigned char *row = afd_flash_team_row(t, token0, chunk.is_value, &nearest);
            unsigned char *to = is_fp8 ? chunk.raw : afd_flash_team_panel_at(chunk.panels, warp, chunk.c);
            if (!chunk.is_there) continue;
            if (is_whole) row += ((int64_t)token0 - (int64_t)nearest) * row_bytes;
            AFD_UNROLL for (uint32_t i = 0; i < AFD_FLASH_MAX_TILE / AFD_FLASH_WARPS; i++)
            {
                uint32_t token = token0 + i * AFD_FLASH_WARPS;
                if (i && is_whole) row += AFD_FLASH_WARPS * row_bytes;
                if (i && !is_whole) row = afd_flash_team_row(t, token, chunk.is_value, &nearest);
                afd_async_copy(async,
                               to + i * (is_fp8 ? AFD_FLASH_WARPS * t->l.chunks * 16 : AFD_FLASH_PANEL / 8),
                               row + chunk.c * 16, has && token >= t->b.begin && token < t->b.end ? 16 : 0);
            }
        }
    afd_async_commit(async);
}

/* Two e4m3 as two f16, which has all of its values: one instruction, where bf16 takes four. */
AFD_DEVICE uint32_t afd_flash_team_widen_pair(uint32_t two)
{
#ifdef __CUDACC__
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((uint16_t)two));
    return halves;
#else
    return afd_flash_f16x2(afd_e4m3_to_float((uint8_t)two), afd_e4m3_to_float((uint8_t)(two >> 8)));
#endif
}

AFD_DEVICE struct afd_flash_16 afd_flash_team_widen_half(const uint32_t eight[2])
{
    struct afd_flash_16 out;
    AFD_UNROLL for (uint32_t i = 0; i < 4; i++) out.word[i] =
        afd_flash_team_widen_pair(eight[i / 2] >> i % 2 * 16 & 0xffff);
    return out;
}

/* The raw rows of stage `index` to their place in f16: what a lane has copied, it widens. Eight lanes' stores
 * are 128 bytes of other banks: those of an odd panel have the upper half first. */
AFD_DEVICE void afd_flash_team_widen(const struct afd_flash_team_block *t, uint32_t index, uint32_t warp)
{
    for (uint32_t c0 = 0; c0 < t->l.chunks && index <= t->b.tiles; c0 += 32) AFD_EACH_LANE(lane, s)
        {
            struct afd_flash_team_chunk chunk = afd_flash_team_chunk_of(t, index, warp, c0 + lane);
            uint32_t odd = chunk.c / 4 % 2;
            unsigned char *first = afd_flash_team_panel_at(chunk.panels, warp, 2 * chunk.c + odd);
            unsigned char *second = afd_flash_team_panel_at(chunk.panels, warp, 2 * chunk.c + 1 - odd);
            if (!chunk.is_there) continue;
            AFD_UNROLL for (uint32_t i = 0; i < AFD_FLASH_MAX_TILE / AFD_FLASH_WARPS; i++)
            {
                struct afd_flash_16 in =
                    *(const struct afd_flash_16 *)(chunk.raw + i * AFD_FLASH_WARPS * t->l.chunks * 16);
                uint32_t a[2] = {odd ? in.word[2] : in.word[0], odd ? in.word[3] : in.word[1]};
                uint32_t b[2] = {odd ? in.word[0] : in.word[2], odd ? in.word[1] : in.word[3]};
                *(struct afd_flash_16 *)(first + i * (AFD_FLASH_PANEL / 8)) = afd_flash_team_widen_half(a);
                *(struct afd_flash_16 *)(second + i * (AFD_FLASH_PANEL / 8)) = afd_flash_team_widen_half(b);
            }
        }
}

/* The channels that fill K up: nothing writes them later. */
AFD_DEVICE void afd_flash_team_clear(const struct afd_flash_team_block *t, uint32_t warp, uint32_t tiles)
{
    for (uint32_t r = warp; r < 2 * AFD_FLASH_MAX_TILE; r += AFD_FLASH_WARPS) AFD_EACH_LANE(lane, s)
        {
            uint32_t chunk = t->b.a->kv.key_dim / 8 + lane;
            unsigned char *to = afd_flash_team_stage(t, r / AFD_FLASH_MAX_TILE);
            if (chunk < tiles)
                *(struct afd_flash_16 *)afd_flash_team_panel_at(to, r % AFD_FLASH_MAX_TILE, chunk) =
                    (struct afd_flash_16){{0, 0, 0, 0}};
        }
}

/* ---- arithmetic */

/* Begins S of the team's queries and tile `index`. */
AFD_DEVICE void afd_flash_team_scores(const struct afd_flash_team_block *t, uint32_t index, uint32_t warp,
                                      struct afd_flash_team_warp *own, uint32_t tiles, int is_fp8)
{
    const unsigned char *k = afd_flash_team_stage(t, index);
    afd_group_settle_8(own->s);
    afd_group_begin();
    AFD_UNROLL for (uint32_t step = 0; step < tiles / 2; step++)
    {
        uint32_t panel = step / 4 * AFD_FLASH_PANEL;
        const unsigned char *q = t->b.shared + panel;
        if (is_fp8)
            afd_group_scores_f16(own->s, q, k + panel, step % 4 * 32, step == 0, warp % 4);
        else
            afd_group_scores_bf16(own->s, q, k + panel, step % 4 * 32, step == 0, warp % 4);
    }
    afd_group_commit();
}

/* The terms of the scores of tile `index`; O and the sum are brought to the new maximum. */
AFD_DEVICE void afd_flash_team_terms(const struct afd_flash_team_block *t, uint32_t index,
                                     struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles,
                                     int is_fp8)
{
    float most[2][AFD_WARP_SLOTS];
    afd_flash_see(&t->b, &own->rows, t->b.first + index * AFD_FLASH_MAX_TILE, AFD_FLASH_MAX_TILE, own->s,
                  AFD_FLASH_TEAM_SCORES, most);
    AFD_EACH_SLOT(s)
    AFD_UNROLL for (uint32_t r = 0; r < 2; r++)
    {
        float from, factor = afd_flash_raise(&own->rows.max[r][s], most[r][s], &from), sum = 0.0f;
        AFD_UNROLL for (uint32_t i = 0; i < AFD_FLASH_TEAM_SCORES; i++)
        {
            float x = afd_flash_exp2(own->s[i].r[s][2 * r] - from);
            float y = afd_flash_exp2(own->s[i].r[s][2 * r + 1] - from);
            sum = sum + (x + y);
            own->p[i / 2].r[s][i % 2 * 2 + r] = is_fp8 ? afd_flash_f16x2(x, y) : afd_flash_bf16x2(x, y);
        }
        own->rows.sum[r][s] = fmaf(own->rows.sum[r][s], factor, sum);
        AFD_UNROLL for (uint32_t i = 0; i < 2 * tiles; i++) o[i / 2].r[s][2 * r + i % 2] =
            o[i / 2].r[s][2 * r + i % 2] * factor;
    }
}

/* Begins O += P V of tile `index`, whose V is in the stage behind its K's. */
AFD_DEVICE void afd_flash_team_sums(const struct afd_flash_team_block *t, uint32_t index,
                                    struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles,
                                    int is_fp8)
{
    const unsigned char *v = afd_flash_team_stage(t, index + 1) + t->l.value;
    AFD_UNROLL for (uint32_t i = 0; i < tiles; i += 16) afd_group_settle_16(o + i);
    AFD_UNROLL for (uint32_t step = 0; step < AFD_FLASH_TEAM_STEPS; step++) afd_group_settle_a(&own->p[step]);
    afd_group_begin();
    AFD_UNROLL for (uint32_t i = 0; i < AFD_FLASH_TEAM_STEPS * tiles / 16; i++)
    {
        uint32_t step = i / (tiles / 16), half = i % (tiles / 16); /* 128 channels */
        const unsigned char *at = v + 2 * half * AFD_FLASH_PANEL + step * 16 * AFD_TILE_ROW_BYTES;
        if (is_fp8)
            afd_group_values_f16(o + 16 * half, &own->p[step], at, AFD_FLASH_PANEL);
        else
            afd_group_values_bf16(o + 16 * half, &own->p[step], at, AFD_FLASH_PANEL);
    }
    afd_group_commit();
}

/* ---- phases */

/* Beside the products of phase `index`: widens the stage that the next phase reads. */
AFD_DEVICE void afd_flash_team_beside(const struct afd_flash_team_block *t, uint32_t index, int is_fp8,
                                      uint32_t warp, struct afd_flash_team_warp *own)
{
    if (!is_fp8) return;
    AFD_ASYNC_WAIT(&own->async, 1);
    afd_flash_team_widen(t, index + 1, warp);
    afd_flash_team_copy(t, index + 3, is_fp8, warp, &own->async);
}

AFD_DEVICE void afd_flash_team_begin(const struct afd_flash_team_block *t, uint32_t warp,
                                     struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles,
                                     int is_fp8)
{
    afd_flash_team_copy(t, 0, is_fp8, warp, &own->async);
    if (is_fp8) afd_flash_team_copy(t, 1, is_fp8, warp, &own->async);
    afd_flash_load_queries(&t->b, tiles / 2, 0, is_fp8, warp);
    afd_flash_team_clear(t, warp, tiles);
    afd_flash_limits(&t->b, warp, &own->rows);
    AFD_EACH_SLOT(s)
    AFD_UNROLL for (uint32_t i = 0; i < 4 * tiles; i++) o[i / 4].r[s][i % 4] = 0.0f;
    if (is_fp8) {
        AFD_ASYNC_WAIT(&own->async, 1);
        afd_flash_team_widen(t, 0, warp);
        afd_flash_team_copy(t, 2, is_fp8, warp, &own->async);
    } else {
        AFD_ASYNC_WAIT(&own->async, 0);
    }
    afd_tile_publish();
}

/* Phase `index`, 0 .. tiles: a team's scores of tile `index`, the other's sums of the tile before. */
AFD_DEVICE void afd_flash_team_phase(const struct afd_flash_team_block *t, uint32_t index, uint32_t warp,
                                     struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles,
                                     int is_fp8)
{
    if (!is_fp8) afd_flash_team_copy(t, index + 1, is_fp8, warp, &own->async);
    if (warp / 4 == afd_flash_team_of(t, index)) {
        if (index < t->b.tiles) {
            afd_flash_team_scores(t, index, warp, own, tiles, is_fp8);
            afd_flash_team_beside(t, index, is_fp8, warp, own);
            afd_group_wait_8(own->s);
        }
    } else if (index) {
        afd_flash_team_terms(t, index - 1, own, o, tiles, is_fp8);
        afd_flash_team_sums(t, index - 1, own, o, tiles, is_fp8);
        afd_flash_team_beside(t, index, is_fp8, warp, own);
        AFD_UNROLL for (uint32_t i = 0; i < tiles; i += 16) afd_group_wait_16(o + i);
    } else {
        afd_flash_team_beside(t, index, is_fp8, warp, own);
    }
    if (!is_fp8) AFD_ASYNC_WAIT(&own->async, 0);
    afd_tile_publish();
}

/* ---- the teams' sums together */

AFD_DEVICE float *afd_flash_team_maxima(const struct afd_flash_team_block *t, uint32_t team)
{
    return t->b.stats + (2 + team) * AFD_FLASH_QUERIES;
}

/* The team's maxima to shared memory. */
AFD_DEVICE void afd_flash_team_tell(const struct afd_flash_team_block *t, uint32_t warp,
                                    const struct afd_flash_team_warp *own)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL for (uint32_t r = 0; r < 2; r++) if (lane % 4 == 0)
        afd_flash_team_maxima(t, warp / 4)[warp % 4 * 16 + lane / 4 + r * 8] = own->rows.max[r][s];
}

/* Where the stages were: what a lane of a warp of the other team gets of 8 channels. */
AFD_DEVICE struct afd_flash_16 *afd_flash_team_given(const struct afd_flash_team_block *t, uint32_t warp,
                                                     uint32_t i, uint32_t tiles, uint32_t lane)
{
    return (struct afd_flash_16 *)(t->b.shared + t->l.stage) + (warp * tiles / 2 + i) * 32 + lane;
}

AFD_DEVICE void afd_flash_team_give(const struct afd_flash_team_block *t, uint32_t warp,
                                    const struct afd_mma_c *half, uint32_t tiles)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL for (uint32_t i = 0; i < tiles / 2; i++)
    {
        struct afd_flash_16 out;
        AFD_UNROLL for (uint32_t j = 0; j < 4; j++) out.word[j] = afd_float_bits(half[i].r[s][j]);
        *afd_flash_team_given(t, warp ^ 4, i, tiles, lane) = out;
    }
}

/* Sums and O of the team to the maximum of both; sums, and the half of O that the other stores, to it. */
AFD_DEVICE void afd_flash_team_join(const struct afd_flash_team_block *t, uint32_t warp,
                                    struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL for (uint32_t r = 0; r < 2; r++)
    {
        uint32_t query = warp % 4 * 16 + lane / 4 + r * 8;
        float from, most = fmaxf(afd_flash_team_maxima(t, 0)[query], afd_flash_team_maxima(t, 1)[query]);
        float factor = afd_flash_raise(&own->rows.max[r][s], most, &from);
        own->rows.sum[r][s] = own->rows.sum[r][s] * factor;
        AFD_UNROLL for (uint32_t i = 0; i < 2 * tiles; i++) o[i / 2].r[s][2 * r + i % 2] =
            o[i / 2].r[s][2 * r + i % 2] * factor;
    }
    afd_flash_join_sums(&t->b, warp, &own->rows);
    if (warp < 4)
        afd_flash_team_give(t, warp, o + tiles / 2, tiles);
    else
        afd_flash_team_give(t, warp, o, tiles);
}

AFD_DEVICE void afd_flash_team_store(const struct afd_flash_team_block *t, uint32_t warp,
                                     struct afd_flash_team_warp *own, struct afd_mma_c *half, uint32_t tiles)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL for (uint32_t i = 0; i < tiles / 2; i++)
    {
        struct afd_flash_16 in = *afd_flash_team_given(t, warp, i, tiles, lane);
        AFD_UNROLL for (uint32_t j = 0; j < 4; j++) half[i].r[s][j] =
            half[i].r[s][j] + afd_bits_float(in.word[j]);
    }
    afd_flash_store(&t->b, tiles * 4, warp, &own->rows, half, tiles / 2);
}

/* `own` and `o` [AFD_FLASH_HELD][tiles] are the warps'; tiles and is_fp8 are the kernel's. */
AFD_DEVICE void afd_flash_team_run(const struct afd_args_flash *a, uint32_t block, unsigned char *shared,
                                   int backwards, struct afd_flash_team_warp *own, struct afd_mma_c *o,
                                   uint32_t tiles, int is_fp8)
{
    struct afd_flash_team_block t;
    (void)backwards;
    if (!afd_flash_begin(a, block, shared, &t.b)) return;
    t.l = afd_flash_team_layout_of(&a->kv, a->sum_dim);
    t.b.stats = (float *)(shared + t.l.stats);
    AFD_EACH_WARP(warp, backwards)
    afd_flash_team_begin(&t, warp, &own[AFD_HELD(warp)], o + AFD_HELD(warp) * tiles, tiles, is_fp8);
    for (uint32_t index = 0; index <= t.b.tiles; index++) AFD_EACH_WARP(warp, backwards)
    afd_flash_team_phase(&t, index, warp, &own[AFD_HELD(warp)], o + AFD_HELD(warp) * tiles, tiles, is_fp8);
    AFD_EACH_WARP(warp, backwards) afd_flash_team_tell(&t, warp, &own[AFD_HELD(warp)]);
    AFD_EACH_WARP(warp, backwards)
    afd_flash_team_join(&t, warp, &own[AFD_HELD(warp)], o + AFD_HELD(warp) * tiles, tiles);
    AFD_EACH_WARP(warp, backwards)
    {
        struct afd_mma_c *mine = o + AFD_HELD(warp) * tiles;
        if (warp < 4)
            afd_flash_team_store(&t, warp, &own[AFD_HELD(warp)], mine, tiles);
        else
            afd_flash_team_store(&t, warp, &own[AFD_HELD(warp)], mine + tiles / 2, tiles);
    }
}

#endif
