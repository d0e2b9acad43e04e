/* mma.h on the CPU: what the instructions do to the registers of 32 lanes, by the tables of the PTX manual.
 * Written from the side of the matrix, element by element, where a kernel is written from the side of the
 * lane: a kernel that has a fragment wrong disagrees with this file. Sums: one chain of fused multiply-adds.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "compute/cuda/mma.h"

enum { ROWS = 16, COLUMNS = 8, WORDS = 8, WORD = 4, MAX_K = 32, SCORE_COLUMNS = 64 };

/* The lane and register of word `word` of row `row` of an A fragment; B has columns in place of rows. */
static uint32_t a_word(const struct afd_mma_a *a, uint32_t row, uint32_t word)
{
    return a->r[row % 8 * 4 + word % 4][row / 8 + word / 4 * 2];
}

static uint32_t b_word(const struct afd_mma_b *b, uint32_t column, uint32_t word)
{
    return b->r[column * 4 + word % 4][word / 4];
}

static float *c_at(struct afd_mma_c *c, uint32_t row, uint32_t column)
{
    return &c->r[row % 8 * 4 + column / 2][row / 8 * 2 + column % 2];
}

enum kind { BF16, E4M3, F16 };

static float element16(uint16_t bits, enum kind kind)
{
    return kind == BF16 ? afd_bf16_to_float(bits) : afd_f16_to_float(bits);
}

/* Element i of a word. */
static float element(uint32_t word, uint32_t i, enum kind kind)
{
    return kind == E4M3 ? afd_e4m3_to_float((uint8_t)(word >> 8 * i))
                        : element16((uint16_t)(word >> 16 * i), kind);
}

/* Eight words as they come, decoded: 16 or 32 elements. */
struct line {
    float x[MAX_K];
};

static void decode(struct line *line, uint32_t word, uint32_t at, enum kind kind)
{
    uint32_t each = kind == E4M3 ? 4 : 2;
    for (uint32_t i = 0; i < each; i++) line->x[at * each + i] = element(word, i, kind);
}

static float line_product(float sum, const struct line *a, const struct line *b, enum kind kind)
{
    for (uint32_t k = 0; k < (kind == E4M3 ? 32u : 16u); k++) sum = fmaf(a->x[k], b->x[k], sum);
    return sum;
}

static void warp_product(struct afd_mma_c *c, const struct afd_mma_a *a, const struct afd_mma_b *b,
                         enum kind kind)
{
    struct line rows[ROWS], columns[COLUMNS];
    for (uint32_t w = 0; w < WORDS; w++) {
        for (uint32_t i = 0; i < ROWS; i++) decode(&rows[i], a_word(a, i, w), w, kind);
        for (uint32_t i = 0; i < COLUMNS; i++) decode(&columns[i], b_word(b, i, w), w, kind);
    }
    for (uint32_t row = 0; row < ROWS; row++)
        for (uint32_t column = 0; column < COLUMNS; column++) {
            float *sum = c_at(c, row, column);
            *sum = line_product(*sum, &rows[row], &columns[column], kind);
        }
}

void afd_mma_bf16(struct afd_mma_c *c, const struct afd_mma_a *a, const struct afd_mma_b *b)
{
    warp_product(c, a, b, BF16);
}

void afd_mma_e4m3(struct afd_mma_c *c, const struct afd_mma_a *a, const struct afd_mma_b *b)
{
    warp_product(c, a, b, E4M3);
}

void afd_load_matrices(uint32_t r[AFD_WARP_SLOTS][4], const void *const address[AFD_WARP_SLOTS])
{
    for (uint32_t matrix = 0; matrix < 4; matrix++)
        for (uint32_t row = 0; row < 8; row++) {
            const char *from = address[matrix * 8 + row];
            assert((uintptr_t)from % 16 == 0);
            for (uint32_t word = 0; word < 4; word++) memcpy(&r[row * 4 + word][matrix], from + word * 4, 4);
        }
}

void afd_load_transposed(uint32_t r[AFD_WARP_SLOTS][4], const void *const address[AFD_WARP_SLOTS])
{
    for (uint32_t matrix = 0; matrix < 4; matrix++)
        for (uint32_t row = 0; row < 8; row += 2)
            for (uint32_t column = 0; column < 8; column++) {
                uint16_t low, high;
                memcpy(&low, (const char *)address[matrix * 8 + row] + column * 2, sizeof low);
                memcpy(&high, (const char *)address[matrix * 8 + row + 1] + column * 2, sizeof high);
                r[column * 4 + row / 2][matrix] = (uint32_t)high << 16 | low;
            }
}

/* The hardware's swizzle: bits 4 to 6 of the address within 1024 bytes xored with bits 7 to 9. */
static uint32_t tile_word(const void *tile, uint32_t row, uint32_t byte)
{
    uint32_t linear = row % 8 * 128 + byte, word;
    memcpy(&word, (const char *)tile + row / 8 * 1024 + (linear ^ (linear >> 3 & 0x70)), sizeof word);
    return word;
}

static void group_product(struct afd_group_c *c, const void *a, const void *b, uint32_t k, int begin,
                          uint32_t warp, enum kind kind)
{
    assert((uintptr_t)a % AFD_TILE_ALIGN == 0 && (uintptr_t)b % AFD_TILE_ALIGN == 0);
    struct line rows[ROWS], columns[AFD_GROUP_COLUMNS];
    for (uint32_t w = 0; w < WORDS; w++) {
        for (uint32_t i = 0; i < ROWS; i++)
            decode(&rows[i], tile_word(a, 16 * warp + i, k + WORD * w), w, kind);
        for (uint32_t i = 0; i < AFD_GROUP_COLUMNS; i++)
            decode(&columns[i], tile_word(b, i, k + WORD * w), w, kind);
    }
    for (uint32_t row = 0; row < ROWS; row++)
        for (uint32_t column = 0; column < AFD_GROUP_COLUMNS; column++) {
            uint32_t lane = row % 8 * 4 + column % 8 / 2, i = row / 8 * 2 + column % 2;
            float *out = &c->r[lane][column / 8 * 4 + i];
            *out = line_product(begin ? 0.0f : *out, &rows[row], &columns[column], kind);
        }
}

void afd_group_mma_e4m3(struct afd_group_c *c, const void *a, const void *b, uint32_t k, int begin,
                        uint32_t warp)
{
    group_product(c, a, b, k, begin, warp, E4M3);
}

void afd_group_mma_bf16(struct afd_group_c *c, const void *a, const void *b, uint32_t k, int begin,
                        uint32_t warp)
{
    group_product(c, a, b, k, begin, warp, BF16);
}

/* Column `column` of the product of 16 rows beside those before. */
static float *side_by_side(struct afd_mma_c *c, uint32_t row, uint32_t column)
{
    return c_at(&c[column / COLUMNS], row, column % COLUMNS);
}

static void scores(struct afd_mma_c *c, const void *a, const void *b, uint32_t k, int begin, uint32_t warp,
                   enum kind kind)
{
    assert((uintptr_t)a % AFD_TILE_ALIGN == 0 && (uintptr_t)b % AFD_TILE_ALIGN == 0);
    struct line rows[ROWS], line;
    for (uint32_t w = 0; w < WORDS; w++)
        for (uint32_t i = 0; i < ROWS; i++)
            decode(&rows[i], tile_word(a, 16 * warp + i, k + WORD * w), w, kind);
    for (uint32_t column = 0; column < SCORE_COLUMNS; column++) {
        for (uint32_t w = 0; w < WORDS; w++) decode(&line, tile_word(b, column, k + WORD * w), w, kind);
        for (uint32_t row = 0; row < ROWS; row++) {
            float *out = side_by_side(c, row, column);
            *out = line_product(begin ? 0.0f : *out, &rows[row], &line, kind);
        }
    }
}

void afd_group_scores_bf16(struct afd_mma_c *c, const void *a, const void *b, uint32_t k, int begin,
                           uint32_t warp)
{
    scores(c, a, b, k, begin, warp, BF16);
}

void afd_group_scores_f16(struct afd_mma_c *c, const void *a, const void *b, uint32_t k, int begin,
                          uint32_t warp)
{
    scores(c, a, b, k, begin, warp, F16);
}

/* A matrix whose columns lie side by side ("MN-major"): eight of K and 64 columns are 1024 bytes, K in steps
 * of 128 bytes, swizzled as above; the next eight of K follow, the next 64 columns are at `leading`. */
static float turned(const void *b, uint32_t leading, uint32_t k, uint32_t column, enum kind kind)
{
    uint32_t linear = k % 8 * 128 + column % 64 * 2;
    uint16_t two;
    memcpy(&two, (const char *)b + column / 64 * leading + k / 8 * 1024 + (linear ^ (linear >> 3 & 0x70)),
           sizeof two);
    return element16(two, kind);
}

static void values(struct afd_mma_c *c, const struct afd_mma_a *a, const void *b, uint32_t next,
                   enum kind kind)
{
    assert((uintptr_t)b % AFD_TILE_ALIGN == 0 && next % AFD_TILE_ALIGN == 0);
    struct line rows[ROWS], line;
    for (uint32_t w = 0; w < WORDS; w++)
        for (uint32_t i = 0; i < ROWS; i++) decode(&rows[i], a_word(a, i, w), w, kind);
    for (uint32_t column = 0; column < AFD_GROUP_COLUMNS; column++) {
        for (uint32_t k = 0; k < 16; k++) line.x[k] = turned(b, next, k, column, kind);
        for (uint32_t row = 0; row < ROWS; row++) {
            float *out = side_by_side(c, row, column);
            *out = line_product(*out, &rows[row], &line, kind);
        }
    }
}

void afd_group_values_bf16(struct afd_mma_c *c, const struct afd_mma_a *a, const void *b, uint32_t next)
{
    values(c, a, b, next, BF16);
}

void afd_group_values_f16(struct afd_mma_c *c, const struct afd_mma_a *a, const void *b, uint32_t next)
{
    values(c, a, b, next, F16);
}

uint32_t afd_add_pairs(uint32_t a, uint32_t b)
{
    uint16_t low = afd_float_to_bf16(afd_bf16_to_float((uint16_t)a) + afd_bf16_to_float((uint16_t)b));
    uint16_t high =
        afd_float_to_bf16(afd_bf16_to_float((uint16_t)(a >> 16)) + afd_bf16_to_float((uint16_t)(b >> 16)));
    return low | (uint32_t)high << 16;
}

void afd_lane_xor(const float x[AFD_WARP_SLOTS], uint32_t mask, float out[AFD_WARP_SLOTS])
{
    float from[AFD_WARP_SLOTS];
    memcpy(from, x, sizeof from); /* out may be x */
    for (uint32_t lane = 0; lane < AFD_WARP_SLOTS; lane++) out[lane] = from[lane ^ mask];
}

void afd_async_copy(struct afd_async *async, void *to, const void *from, uint32_t bytes)
{
    assert(async->count < async->capacity && bytes <= 16);
    assert((uintptr_t)to % 16 == 0 && (!bytes || (uintptr_t)from % 16 == 0));
    memset(to, 0xff, 16);
    async->copies[async->count++] = (struct afd_async_copy){to, from, bytes, async->group};
}

void afd_async_commit(struct afd_async *async)
{
    async->group++;
}

/* What was not committed does not arrive. */
void afd_async_wait_for(struct afd_async *async, uint32_t pending)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < async->count; i++) {
        const struct afd_async_copy *copy = &async->copies[i];
        if (copy->group + pending >= async->group) {
            async->copies[kept++] = *copy;
            continue;
        }
        memset(copy->to, 0, 16);
        if (copy->bytes) memcpy(copy->to, copy->from, copy->bytes);
    }
    async->count = kept;
}
