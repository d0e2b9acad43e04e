/* Attention on the tensor cores (compute/cuda/flash.h) on the GPU that the CPU plays, against sums in double
 * precision, and against itself in other batches, chunks and splits. Guards: a fragment or an address of one
 * lane that is wrong; a token too many or too few; what lies beside the tokens (it is NaN here) reaching a
 * sum; a barrier or a wait that is missing; an output that nothing wrote; a result that depends on its
 * neighbours. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/rng.h"
#include "compute/cuda/gpu.h"

enum { MAX_SEGMENTS = 4, MAX_TOKENS = 700, SPLIT = 128, PITCH_MORE = 16, PRIME = 1009 };

struct geometry {
    uint32_t heads, kv_heads, key_dim, sum_dim; /* sum_dim < key_dim: latent */
    enum afd_dtype dtype;
    uint32_t window, block_tokens, tile; /* tile 0: by teams of warpgroups */
};

/* Sequences in a cache, and the queries of their last rows. */
struct scene {
    struct geometry g;
    struct afd_gpu *gpu;
    uint64_t marked;
    struct afd_gpu_kv kv;
    uint32_t sequences, tokens[MAX_SEGMENTS]; /* of each */
    uint32_t per;                             /* blocks of a table */
    unsigned char *pool;
    uint32_t *tables; /* [sequences][per] */
};

static float unit(uint64_t a, uint64_t b, uint64_t c)
{
    return afd_random_unit(a, b, c) * 2.0f - 1.0f;
}

static uint32_t row_bytes(const struct geometry *g)
{
    return g->key_dim * (g->dtype == AFD_FP8 ? 1 : 2);
}

static int is_latent(const struct geometry *g)
{
    return g->sum_dim < g->key_dim;
}

static unsigned char *kv_at(const struct scene *s, uint32_t sequence, uint32_t token, uint32_t head,
                            uint32_t part)
{
    uint64_t block = s->tables[sequence * s->per + token / s->g.block_tokens];
    uint64_t line = is_latent(&s->g) ? 0 : part * s->g.kv_heads + head;
    return s->pool + block * s->kv.block_bytes +
           (line * s->g.block_tokens + token % s->g.block_tokens) * row_bytes(&s->g);
}

static float kv_read(const struct scene *s, const unsigned char *row, uint32_t i)
{
    uint16_t two;
    if (s->g.dtype == AFD_FP8) return afd_e4m3_to_float(row[i]);
    memcpy(&two, row + 2 * i, sizeof two);
    return afd_bf16_to_float(two);
}

static void kv_fill(struct scene *s, uint32_t sequence, uint32_t token)
{
    for (uint32_t part = 0; part < (is_latent(&s->g) ? 1 : 2); part++)
        for (uint32_t h = 0; h < s->g.kv_heads; h++) {
            unsigned char *row = kv_at(s, sequence, token, h, part);
            for (uint32_t i = 0; i < s->g.key_dim; i++) {
                float x = unit(sequence * 1000 + token, part * 64 + h, i) * 2.0f;
                uint16_t two = afd_float_to_bf16(x);
                if (s->g.dtype == AFD_FP8)
                    row[i] = afd_float_to_e4m3(x);
                else
                    memcpy(row + 2 * i, &two, sizeof two);
            }
        }
}

/* All that no token has is NaN; tables are shuffled; what a window has left behind is not in them. */
static struct scene scene_of(struct geometry g, uint32_t sequences, const uint32_t *tokens, uint32_t rows)
{
    struct scene s = {.g = g, .sequences = sequences, .per = (MAX_TOKENS - 1) / g.block_tokens + 1};
    struct afd_error error;
    assert_int_equal(afd_gpu_open(0, &s.gpu, &error), AFD_OK);
    uint32_t blocks = sequences * s.per, lines = is_latent(&g) ? 1 : 2 * g.kv_heads;
    s.kv = (struct afd_gpu_kv){.block_bytes = (uint64_t)lines * g.block_tokens * row_bytes(&g),
                               .block_tokens = g.block_tokens,
                               .kv_heads = g.kv_heads,
                               .key_dim = g.key_dim,
                               .dtype = g.dtype,
                               .latent = is_latent(&g)};
    s.pool = afd_gpu_alloc(s.gpu, blocks * s.kv.block_bytes);
    s.kv.pool = s.pool;
    memset(s.pool, 0xff, blocks * s.kv.block_bytes);
    s.tables = malloc(blocks * sizeof *s.tables);
    assert_true(blocks < PRIME);
    for (uint32_t i = 0; i < blocks; i++) s.tables[i] = (i * PRIME + 3) % blocks;
    for (uint32_t q = 0; q < sequences; q++) {
        uint32_t first = tokens[q] > rows ? tokens[q] - rows : 0; /* the first row's position */
        uint32_t seen = afd_kv_first_seen(g.window, first) / g.block_tokens;
        s.tokens[q] = tokens[q];
        for (uint32_t t = seen * g.block_tokens; t < tokens[q]; t++) kv_fill(&s, q, t);
        for (uint32_t b = 0; b < seen; b++) s.tables[q * s.per + b] = AFD_KV_NO_BLOCK;
    }
    return s;
}

static void scene_free(struct scene *s)
{
    afd_gpu_free(s->gpu, s->pool);
    afd_gpu_close(s->gpu);
    free(s->tables);
}

/* The query of a sequence's row is the same in whatever step it is computed. */
static void query_fill(const struct scene *s, uint32_t sequence, uint32_t position, float *q)
{
    for (uint32_t i = 0; i < s->g.heads * s->g.key_dim; i++) q[i] = unit(77 + sequence, position, i) * 3.0f;
}

static float scale_of(const struct geometry *g)
{
    return 1.0f / sqrtf((float)g->key_dim);
}

/* A query's channel as the tensor cores take it. */
static float as_multiplied(const struct geometry *g, float q)
{
    if (!g->tile && g->dtype == AFD_FP8) return afd_f16_to_float(afd_float_to_f16(q));
    return afd_bf16_to_float(afd_float_to_bf16(q));
}

/* One head's output, and for each channel the sum of terms times magnitudes, which the error scales with. */
static void expect(const struct scene *s, uint32_t sequence, uint32_t position, uint32_t head, const float *q,
                   double *o, double *magnitude)
{
    const struct geometry *g = &s->g;
    static double p[MAX_TOKENS];
    double max = -INFINITY, sum = 0;
    uint32_t low = afd_kv_first_seen(g->window, position), kv_head = head / (g->heads / g->kv_heads);
    for (uint32_t t = low; t <= position; t++) {
        const unsigned char *k = kv_at(s, sequence, t, kv_head, 0);
        p[t] = 0;
        for (uint32_t i = 0; i < g->key_dim; i++)
            p[t] += (double)as_multiplied(g, q[i]) * (double)kv_read(s, k, i);
        p[t] *= (double)scale_of(g);
        max = fmax(max, p[t]);
    }
    for (uint32_t t = low; t <= position; t++) sum += p[t] = exp(p[t] - max);
    for (uint32_t i = 0; i < g->sum_dim; i++) o[i] = magnitude[i] = 0;
    for (uint32_t t = low; t <= position; t++) {
        const unsigned char *v = kv_at(s, sequence, t, kv_head, is_latent(g) ? 0 : 1);
        for (uint32_t i = 0; i < g->sum_dim; i++) {
            double x = (double)kv_read(s, v, i);
            o[i] += p[t] / sum * x;
            magnitude[i] += p[t] / sum * fabs(x);
        }
    }
}

/* A step: the last rows[q] rows of each sequence. */
struct step {
    struct afd_segment segments[MAX_SEGMENTS];
    uint32_t segment_count, rows;
    uint32_t sequence[MAX_TOKENS], position[MAX_TOKENS], block_begin[MAX_TOKENS];
    float *q, *o;
    uint32_t q_pitch, o_pitch;
};

static void step_add(const struct scene *s, struct step *step, uint32_t sequence, uint32_t first,
                     uint32_t rows)
{
    step->segments[step->segment_count++] =
        (struct afd_segment){.first_row = step->rows, .rows = rows, .first_position = first};
    for (uint32_t r = 0; r < rows; r++, step->rows++) {
        step->sequence[step->rows] = sequence;
        step->position[step->rows] = first + r;
        step->block_begin[step->rows] = sequence * s->per;
    }
}

/* The tile that is asked for: of less shared memory than there is. */
static struct afd_flash_choice choice_of(const struct scene *s, const struct geometry *g)
{
    uint32_t most = afd_gpu_shared_bytes(s->gpu), is_team = !g->tile;
    uint32_t bytes = is_team ? most : afd_flash_layout_of(&s->kv, g->sum_dim, g->tile).bytes;
    struct afd_flash_choice c = afd_flash_choose(&s->kv, g->sum_dim, bytes, (int)is_team);
    assert_true(bytes <= most && c.shared_bytes <= bytes);
    assert_int_equal(c.tile, is_team ? AFD_FLASH_MAX_TILE : g->tile);
    assert_int_equal(c.kernel >= AFD_FLASH_flash_team_128_bf16, is_team);
    return c;
}

static void step_run(struct scene *s, struct step *step, uint32_t split)
{
    const struct geometry *g = &s->g;
    uint32_t group = g->heads / g->kv_heads, parts = (MAX_TOKENS - 1) / split + 1, count;
    uint64_t sums = (uint64_t)parts * step->rows * g->heads;
    step->q_pitch = g->heads * g->key_dim + PITCH_MORE, step->o_pitch = g->heads * g->sum_dim + PITCH_MORE;
    step->q = afd_gpu_alloc(s->gpu, (uint64_t)step->rows * step->q_pitch * sizeof(float));
    step->o = afd_gpu_alloc(s->gpu, (uint64_t)step->rows * step->o_pitch * sizeof(float));
    memset(step->o, 0xff, (uint64_t)step->rows * step->o_pitch * sizeof(float));
    for (uint32_t r = 0; r < step->rows; r++)
        query_fill(s, step->sequence[r], step->position[r], step->q + (size_t)r * step->q_pitch);
    uint32_t most = afd_flash_max_items(step->rows, group, MAX_TOKENS, split);
    struct afd_flash_item *items = afd_gpu_alloc(s->gpu, most * sizeof *items);
    float *partial = afd_gpu_alloc(s->gpu, sums * g->sum_dim * sizeof *partial);
    float *stats = afd_gpu_alloc(s->gpu, sums * 2 * sizeof *stats);
    memset(partial, 0xff, sums * g->sum_dim * sizeof *partial);
    memset(stats, 0xff, sums * 2 * sizeof *stats);
    count = afd_flash_plan(step->segments, step->segment_count, group, g->window, split, items);
    assert_true(count > 0 && count <= most);
    struct afd_args_flash args = {.kv = s->kv,
                                  .items = items,
                                  .count = &count,
                                  .q = step->q,
                                  .o = step->o,
                                  .partial = partial,
                                  .stats = stats,
                                  .q_pitch = step->q_pitch,
                                  .o_pitch = step->o_pitch,
                                  .heads = g->heads,
                                  .sum_dim = g->sum_dim,
                                  .window = g->window,
                                  .split = split,
                                  .rows = step->rows,
                                  .tile = g->tile,
                                  .scale = scale_of(g)};
    args.kv.blocks = s->tables, args.kv.block_begin = step->block_begin, args.kv.positions = step->position;
    struct afd_flash_choice choice = choice_of(s, g);
    args.tile = choice.tile;
    /* More blocks than there are items: a captured graph has a fixed number. */
    afd_gpu_flash(s->gpu, choice.kernel, (count + 3) * g->kv_heads, choice.shared_bytes, &args);
    struct afd_args_flash_join join = {&step->rows, step->position, partial,   stats,
                                       step->o,     step->o_pitch,  g->heads,  g->sum_dim,
                                       g->window,   split,          step->rows};
    afd_gpu_launch(s->gpu, AFD_KERNEL_flash_join, step->rows * g->heads, 1, &join);
    afd_gpu_mark(s->gpu, ++s->marked);
    assert_int_equal(afd_gpu_wait(s->gpu, 0, s->marked), AFD_OK);
    afd_gpu_free(s->gpu, items), afd_gpu_free(s->gpu, partial), afd_gpu_free(s->gpu, stats);
}

static void step_free(const struct scene *s, struct step *step)
{
    afd_gpu_free(s->gpu, step->q), afd_gpu_free(s->gpu, step->o);
}

/* Within 2^-8 of what each term adds: P is rounded to bf16 (2^-9 of each term), and as much again is left for
 * the scores' and sums' float32 and the exponentials. A term in the wrong place is off by its whole size. */
static void must_agree(const struct scene *s, const struct step *step)
{
    const struct geometry *g = &s->g;
    double o[AFD_FLASH_MAX_SUM_DIM], magnitude[AFD_FLASH_MAX_SUM_DIM];
    for (uint32_t r = 0; r < step->rows; r++)
        for (uint32_t h = 0; h < g->heads; h++) {
            const float *got = step->o + (size_t)r * step->o_pitch + h * g->sum_dim;
            expect(s, step->sequence[r], step->position[r], h,
                   step->q + (size_t)r * step->q_pitch + h * g->key_dim, o, magnitude);
            for (uint32_t i = 0; i < g->sum_dim; i++)
                if (!(fabs((double)got[i] - o[i]) <= 0x1p-8 * magnitude[i] + 1e-6))
                    fail_msg(
                        "%u/%u heads of %u/%u, %s, window %u, tile %u: row %u (position %u) head %u channel "
                        "%u is %.6g, expected %.6g",
                        g->heads, g->kv_heads, g->key_dim, g->sum_dim, afd_dtype_name(g->dtype), g->window,
                        g->tile, r, step->position[r], h, i, (double)got[i], o[i]);
        }
    for (uint32_t r = 0; r < step->rows; r++) /* nothing is written behind a row */
        for (uint32_t i = g->heads * g->sum_dim; i < step->o_pitch; i++)
            assert_true(isnan(step->o[(size_t)r * step->o_pitch + i]));
}

/* Also by teams, if they take such rows. */
static void each_way(void (*what)(struct geometry), struct geometry g)
{
    what(g);
    g.tile = 0;
    if (!is_latent(&g)) what(g);
}

/* Decode: a row a sequence, ragged. */
static void decode_once(struct geometry g)
{
    const uint32_t tokens[] = {1, 129, 64, 301};
    struct scene s = scene_of(g, 4, tokens, 1);
    struct step step = {0};
    for (uint32_t q = 0; q < 4; q++) step_add(&s, &step, q, tokens[q] - 1, 1);
    step_run(&s, &step, SPLIT);
    must_agree(&s, &step);
    step_free(&s, &step);
    scene_free(&s);
}

static void decode(struct geometry g)
{
    each_way(decode_once, g);
}

/* A chunk of a prompt beside a decoding row and a prompt's beginning. */
static void prefill_once(struct geometry g)
{
    const uint32_t tokens[] = {150, 200, 9}, rows[] = {21, 1, 9};
    struct scene s = scene_of(g, 3, tokens, 21);
    struct step step = {0};
    for (uint32_t q = 0; q < 3; q++) step_add(&s, &step, q, tokens[q] - rows[q], rows[q]);
    step_run(&s, &step, SPLIT);
    must_agree(&s, &step);
    step_free(&s, &step);
    scene_free(&s);
}

static void prefill(struct geometry g)
{
    each_way(prefill_once, g);
}

static const struct geometry MFA = {64, 1, 256, 256, AFD_BF16, 0, 64, 64};
static const struct geometry GQA = {32, 4, 128, 128, AFD_BF16, 0, 16, 64};
static const struct geometry MLA = {128, 1, 576, 512, AFD_BF16, 0, 64, 32};

static void of_the_report(void **state)
{
    (void)state;
    decode(MFA), decode(GQA);
    struct geometry g = MLA;
    g.heads = 80; /* one block and a part of one */
    decode(g);
}

static void of_the_report_fp8(void **state)
{
    (void)state;
    struct geometry g = MFA;
    g.dtype = AFD_FP8;
    decode(g);
    g = MLA, g.dtype = AFD_FP8, g.heads = 16, g.tile = 64;
    decode(g);
}

/* Groups that no block of queries is a multiple of, channels that no fragment is, blocks of the cache that
 * are no tile, windows, both tiles. */
static void awkward(void **state)
{
    (void)state;
    const struct geometry all[] = {
        {12, 2, 64, 64, AFD_BF16, 0, 7, 32},  {5, 1, 40, 40, AFD_BF16, 0, 24, 64},
        {6, 6, 8, 8, AFD_BF16, 0, 16, 32},    {6, 2, 72, 72, AFD_BF16, 37, 16, 64},
        {7, 1, 48, 40, AFD_BF16, 0, 24, 32},  {4, 1, 208, 200, AFD_BF16, 100, 64, 64},
        {96, 1, 32, 32, AFD_FP8, 0, 24, 64},  {12, 4, 48, 48, AFD_FP8, 129, 16, 32},
        {9, 1, 160, 136, AFD_FP8, 50, 5, 64}, {3, 1, 24, 8, AFD_BF16, 1, 11, 32},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) decode(all[i]), prefill(all[i]);
}

static void chunks(void **state)
{
    (void)state;
    struct geometry g = MFA;
    g.heads = 8;
    prefill(g);
    g = GQA, g.window = 60, g.tile = 32;
    prefill(g);
    g.dtype = AFD_FP8, g.block_tokens = g.tile = 64; /* whole tiles in a block of the cache */
    prefill(g);
    g = MLA, g.heads = 3;
    prefill(g);
}

/* A row's bits are the same alone as in a chunk, in a batch, and in any order of the segments. */
static void not_of_the_neighbours(void **state)
{
    (void)state;
    const struct geometry all[] = {{12, 2, 64, 64, AFD_BF16, 0, 16, 64},
                                   {8, 1, 96, 64, AFD_FP8, 90, 16, 32},
                                   {12, 2, 64, 64, AFD_BF16, 0, 16, 0},
                                   {8, 1, 96, 96, AFD_FP8, 90, 16, 0}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const uint32_t tokens[] = {290, 150};
        struct scene s = scene_of(all[i], 2, tokens, 33);
        struct step together = {0};
        step_add(&s, &together, 1, 149, 1);
        step_add(&s, &together, 0, 257, 33);
        step_run(&s, &together, SPLIT);
        for (uint32_t r = 0; r < together.rows; r++) {
            struct step alone = {0};
            step_add(&s, &alone, together.sequence[r], together.position[r], 1);
            step_run(&s, &alone, SPLIT);
            assert_memory_equal(alone.o, together.o + (size_t)r * together.o_pitch,
                                all[i].heads * all[i].sum_dim * sizeof(float));
            step_free(&s, &alone);
        }
        step_free(&s, &together);
        scene_free(&s);
    }
}

/* Every split gives what one part gives, but for rounding. */
static void splits_once(struct geometry g)
{
    const uint32_t tokens[] = {640}, sizes[] = {64, 192, 640};
    struct scene s = scene_of(g, 1, tokens, 3);
    for (size_t i = 0; i < 3; i++) {
        struct step step = {0};
        step_add(&s, &step, 0, 637, 3);
        step_run(&s, &step, sizes[i]);
        must_agree(&s, &step);
        step_free(&s, &step);
    }
    scene_free(&s);
}

static void splits(void **state)
{
    (void)state;
    each_way(splits_once, (struct geometry){16, 1, 128, 128, AFD_BF16, 0, 64, 64});
}

/* The list: every (query, token that it sees) once, longest items first, no more than promised. */
static void plan(void **state)
{
    (void)state;
    const struct afd_segment segments[] = {{.rows = 1, .first_position = 4000},
                                           {.first_row = 1, .rows = 30, .first_position = 990},
                                           {.first_row = 31, .rows = 1, .first_position = 0}};
    for (uint32_t window = 0; window <= 1500; window += 1500) {
        static uint8_t seen[32][8][8];
        struct afd_flash_item items[256];
        uint32_t count = afd_flash_plan(segments, 3, 8, window, 512, items), last = UINT32_MAX;
        memset(seen, 0, sizeof seen);
        assert_true(count <= afd_flash_max_items(32, 8, 4096, 512));
        for (uint32_t i = 0; i < count; i++) {
            uint32_t from = UINT32_MAX, to = 0;
            for (uint32_t q = items[i].query; q < items[i].query + 64 && q < items[i].rows * 8; q++) {
                uint32_t row = items[i].first_row + q / 8;
                uint32_t position = row == 0 ? 4000 : row == 31 ? 0 : 990 + row - 1;
                uint32_t begin = items[i].part * 512, end = begin + 512,
                         low = afd_kv_first_seen(window, position);
                seen[row][q % 8][items[i].part]++;
                from = low > begin && low < from ? low : begin < from && low <= begin ? begin : from;
                to = position + 1 < end ? position + 1 > to ? position + 1 : to : end;
            }
            assert_true(to > from && (to - from - 1) / 16 <= (last - 1) / 16);
            last = to - from;
        }
        for (uint32_t row = 0; row < 32; row++) {
            uint32_t position = row == 0 ? 4000 : row == 31 ? 0 : 990 + row - 1;
            for (uint32_t part = afd_kv_first_seen(window, position) / 512; part <= position / 512; part++)
                for (uint32_t h = 0; h < 8; h++) assert_int_equal(seen[row][h][part], 1);
        }
    }
}

/* What does not fit a GPU's shared memory, or is not stored as the kernels read it, is left alone. */
static void tiles(void **state)
{
    (void)state;
    struct afd_gpu_kv kv = {.key_dim = 256, .kv_heads = 1, .dtype = AFD_BF16};
    assert_int_equal(afd_flash_tile(&kv, 256, 227 << 10), 64); /* Hopper */
    assert_int_equal(afd_flash_tile(&kv, 256, 163 << 10), 32); /* Ampere */
    assert_int_equal(afd_flash_tile(&kv, 256, 99 << 10), 0);
    kv.dtype = AFD_FP8;
    assert_int_equal(afd_flash_tile(&kv, 256, 99 << 10), 32); /* Ada */
    assert_int_equal(afd_flash_choose(&kv, 256, 227 << 10, 0).kernel, AFD_FLASH_flash_256);
    assert_int_equal(afd_flash_choose(&kv, 256, 227 << 10, 1).kernel, AFD_FLASH_flash_team_256_fp8);
    assert_int_equal(afd_flash_choose(&kv, 256, 163 << 10, 1).kernel, AFD_FLASH_flash_256);
    kv = (struct afd_gpu_kv){.key_dim = 576, .kv_heads = 1, .dtype = AFD_FP8, .latent = 1};
    assert_int_equal(afd_flash_tile(&kv, 512, 227 << 10), 64);
    kv.dtype = AFD_BF16;
    assert_int_equal(afd_flash_tile(&kv, 512, 227 << 10), 32);
    assert_int_equal(afd_flash_choose(&kv, 512, 227 << 10, 1).kernel, AFD_FLASH_flash_512);
    kv.key_dim = 20;
    assert_int_equal(afd_flash_tile(&kv, 16, 227 << 10), 0);
    kv.key_dim = 64, kv.dtype = AFD_F16;
    assert_int_equal(afd_flash_tile(&kv, 64, 227 << 10), 0);
    for (uint32_t context = 1; context < 1 << 20; context += 997)
        assert_true((context - 1) / afd_flash_split(context) < AFD_FLASH_MAX_PARTS &&
                    afd_flash_split(context) % AFD_FLASH_MAX_TILE == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_the_report), cmocka_unit_test(of_the_report_fp8),
        cmocka_unit_test(awkward),       cmocka_unit_test(chunks),
        cmocka_unit_test(splits),        cmocka_unit_test(not_of_the_neighbours),
        cmocka_unit_test(plan),          cmocka_unit_test(tiles)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
