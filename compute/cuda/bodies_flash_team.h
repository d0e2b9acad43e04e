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

/* Where a lane's raw chunk of a stage's row r is. */
AFD_DEVICE unsigned char *afd_flash_team_raw(const struct afd_flash_team_block *t, uint32_t index, uint32_t r,
                                             uint32_t chunk)
{
    return t->b.shared + t->l.raw + index % 2 * t->l.raw_bytes + (r * t->l.chunks + chunk) * 16;
}

/* 16 bytes of bf16 in panels of 64 rows. */
AFD_DEVICE unsigned char *afd_flash_team_panel_at(unsigned char *panels, uint32_t r, uint32_t chunk)
{
    return panels + chunk / AFD_TILE_CHUNKS * AFD_FLASH_PANEL + afd_tile_offset(r, chunk % AFD_TILE_CHUNKS);
}

/* Whether a stage has row r of K, or of V; its token. K is of tile `index`, V of the one before. */
AFD_DEVICE int afd_flash_team_has(const struct afd_flash_team_block *t, uint32_t index, uint32_t r,
                                  uint32_t is_value, uint32_t *token_out)
{
    if (is_value ? index == 0 : index >= t->b.tiles) return 0;
    *token_out = t->b.first + (index - is_value) * AFD_FLASH_MAX_TILE + r;
    return *token_out >= t->b.begin && *token_out < t->b.end;
}

/* Begins to copy stage `index`, bf16 to its place, fp8 to the raw rows. What is outside of the part becomes
 * zero. */
AFD_DEVICE void afd_flash_team_copy(const struct afd_flash_team_block *t, uint32_t index, uint32_t warp,
                                    struct afd_async *async)
{
    const struct afd_gpu_kv *kv = &t->b.a->kv;
    const struct afd_flash_team_layout *l = &t->l;
    unsigned char *stage = afd_flash_team_stage(t, index);
    for (uint32_t r = warp; r < AFD_FLASH_MAX_TILE && index <= t->b.tiles; r += AFD_FLASH_WARPS) {
        const unsigned char *row[2];
        uint32_t bytes[2];
        AFD_UNROLL for (uint32_t part = 0; part < 2; part++)
        {
            uint32_t token = t->b.begin;
            bytes[part] = afd_flash_team_has(t, index, r, part, &token) ? 16 : 0;
            row[part] = (const unsigned char *)afd_gpu_kv_at(
                kv, t->b.item.first_row, bytes[part] ? token : t->b.begin, t->b.kv_head, part);
        }
        for (uint32_t c0 = 0; c0 < l->chunks; c0 += 32) AFD_EACH_LANE(lane, s)
            {
                uint32_t is_value = c0 + lane >= l->key_chunks, c = c0 + lane - is_value * l->key_chunks;
                unsigned char *to = l->is_fp8
                                        ? afd_flash_team_raw(t, index, r, c0 + lane)
                                        : afd_flash_team_panel_at(stage + (is_value ? l->value : 0), r, c);
                if (c0 + lane < l->chunks)
                    afd_async_copy(async, to, (is_value ? row[1] : row[0]) + c * 16,
                                   is_value ? bytes[1] : bytes[0]);
            }
    }
    afd_async_commit(async);
}

/* The raw rows of stage `index` to their place in bf16: what a lane has copied, it widens. Eight lanes'
 * stores are 128 bytes of other banks: those of an odd panel have the upper half first. */
AFD_DEVICE void afd_flash_team_widen(const struct afd_flash_team_block *t, uint32_t index, uint32_t warp)
{
    const struct afd_flash_team_layout *l = &t->l;
    unsigned char *stage = afd_flash_team_stage(t, index);
    for (uint32_t r = warp; r < AFD_FLASH_MAX_TILE && index <= t->b.tiles; r += AFD_FLASH_WARPS)
        for (uint32_t c0 = 0; c0 < l->chunks; c0 += 32) AFD_EACH_LANE(lane, s)
            {
                uint32_t is_value = c0 + lane >= l->key_chunks, c = c0 + lane - is_value * l->key_chunks;
                unsigned char *to = stage + (is_value ? l->value : 0);
                struct afd_flash_16 out[2];
                uint32_t odd = c / 4 % 2;
                if (c0 + lane >= l->chunks) continue;
                afd_flash_widen_chunk(afd_flash_team_raw(t, index, r, c0 + lane), out);
                *(struct afd_flash_16 *)afd_flash_team_panel_at(to, r, 2 * c + odd) = odd ? out[1] : out[0];
                *(struct afd_flash_16 *)afd_flash_team_panel_at(to, r, 2 * c + 1 - odd) =
                    odd ? out[0] : out[1];
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
                                      struct afd_flash_team_warp *own, uint32_t tiles)
{
    const unsigned char *k = afd_flash_team_stage(t, index);
    afd_group_settle_8(own->s);
    afd_group_begin();
    AFD_UNROLL for (uint32_t step = 0; step < tiles / 2; step++)
    {
        uint32_t panel = step / 4 * AFD_FLASH_PANEL;
        afd_group_scores_bf16(own->s, t->b.shared + panel, k + panel, step % 4 * 32, step == 0, warp % 4);
    }
    afd_group_commit();
}

/* The terms of the scores of tile `index`; O and the sum are brought to the new maximum. */
AFD_DEVICE void afd_flash_team_terms(const struct afd_flash_team_block *t, uint32_t index,
                                     struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles)
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
            own->p[i / 2].r[s][i % 2 * 2 + r] = afd_flash_bf16x2(x, y);
        }
        own->rows.sum[r][s] = fmaf(own->rows.sum[r][s], factor, sum);
        AFD_UNROLL for (uint32_t i = 0; i < 2 * tiles; i++) o[i / 2].r[s][2 * r + i % 2] =
            o[i / 2].r[s][2 * r + i % 2] * factor;
    }
}

/* Begins O += P V of tile `index`, whose V is in the stage behind its K's. */
AFD_DEVICE void afd_flash_team_sums(const struct afd_flash_team_block *t, uint32_t index,
                                    struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles)
{
    const unsigned char *v = afd_flash_team_stage(t, index + 1) + t->l.value;
    AFD_UNROLL for (uint32_t i = 0; i < tiles; i += 16) afd_group_settle_16(o + i);
    AFD_UNROLL for (uint32_t step = 0; step < AFD_FLASH_TEAM_STEPS; step++) afd_group_settle_a(&own->p[step]);
    afd_group_begin();
    AFD_UNROLL for (uint32_t step = 0; step < AFD_FLASH_TEAM_STEPS;
                    step++) AFD_UNROLL for (uint32_t i = 0; i < tiles; i += 16)
        afd_group_values_bf16(o + i, &own->p[step],
                              v + i / 8 * AFD_FLASH_PANEL + step * 16 * AFD_TILE_ROW_BYTES, AFD_FLASH_PANEL);
    afd_group_commit();
}

/* ---- phases */

/* Beside the products of phase `index`: widens the stage that the next phase reads. */
AFD_DEVICE void afd_flash_team_beside(const struct afd_flash_team_block *t, uint32_t index, uint32_t warp,
                                      struct afd_flash_team_warp *own)
{
    if (!t->l.is_fp8) return;
    AFD_ASYNC_WAIT(&own->async, 1);
    afd_flash_team_widen(t, index + 1, warp);
    afd_flash_team_copy(t, index + 3, warp, &own->async);
}

AFD_DEVICE void afd_flash_team_begin(const struct afd_flash_team_block *t, uint32_t warp,
                                     struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles)
{
    afd_flash_team_copy(t, 0, warp, &own->async);
    if (t->l.is_fp8) afd_flash_team_copy(t, 1, warp, &own->async);
    afd_flash_load_queries(&t->b, tiles / 2, 0, warp);
    afd_flash_team_clear(t, warp, tiles);
    afd_flash_limits(&t->b, warp, &own->rows);
    AFD_EACH_SLOT(s)
    AFD_UNROLL for (uint32_t i = 0; i < 4 * tiles; i++) o[i / 4].r[s][i % 4] = 0.0f;
    if (t->l.is_fp8) {
        AFD_ASYNC_WAIT(&own->async, 1);
        afd_flash_team_widen(t, 0, warp);
        afd_flash_team_copy(t, 2, warp, &own->async);
    } else {
        AFD_ASYNC_WAIT(&own->async, 0);
    }
    afd_tile_publish();
}

/* Phase `index`, 0 .. tiles: a team's scores of tile `index`, the other's sums of the tile before. */
AFD_DEVICE void afd_flash_team_phase(const struct afd_flash_team_block *t, uint32_t index, uint32_t warp,
                                     struct afd_flash_team_warp *own, struct afd_mma_c *o, uint32_t tiles)
{
    if (!t->l.is_fp8) afd_flash_team_copy(t, index + 1, warp, &own->async);
    if (warp / 4 == afd_flash_team_of(t, index)) {
        if (index < t->b.tiles) {
            afd_flash_team_scores(t, index, warp, own, tiles);
            afd_flash_team_beside(t, index, warp, own);
            afd_group_wait_8(own->s);
        }
    } else if (index) {
        afd_flash_team_terms(t, index - 1, own, o, tiles);
        afd_flash_team_sums(t, index - 1, own, o, tiles);
        afd_flash_team_beside(t, index, warp, own);
        AFD_UNROLL for (uint32_t i = 0; i < tiles; i += 16) afd_group_wait_16(o + i);
    } else {
        afd_flash_team_beside(t, index, warp, own);
    }
    if (!t->l.is_fp8) AFD_ASYNC_WAIT(&own->async, 0);
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

/* `own` and `o` [AFD_FLASH_HELD][tiles] are the warps'. */
AFD_DEVICE void afd_flash_team_run(const struct afd_args_flash *a, uint32_t block, unsigned char *shared,
                                   int backwards, struct afd_flash_team_warp *own, struct afd_mma_c *o,
                                   uint32_t tiles)
{
    struct afd_flash_team_block t;
    (void)backwards;
    if (!afd_flash_begin(a, block, shared, &t.b)) return;
    t.l = afd_flash_team_layout_of(&a->kv, a->sum_dim);
    t.b.stats = (float *)(shared + t.l.stats);
    AFD_EACH_WARP(warp, backwards)
    afd_flash_team_begin(&t, warp, &own[AFD_HELD(warp)], o + AFD_HELD(warp) * tiles, tiles);
    for (uint32_t index = 0; index <= t.b.tiles; index++) AFD_EACH_WARP(warp, backwards)
    afd_flash_team_phase(&t, index, warp, &own[AFD_HELD(warp)], o + AFD_HELD(warp) * tiles, tiles);
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
