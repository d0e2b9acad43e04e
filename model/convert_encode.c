/* Numbers into the types that a checkpoint stores them in, and what that costs them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "model/convert_parts.h"
#include "model/weight_read.h"

static const struct afd_store stores[] = {
    {"f32", AFD_STORE_PLAIN, AFD_F32, 0, 1, 1},
    {"bf16", AFD_STORE_PLAIN, AFD_BF16, 0, 1, 1},
    {"f16", AFD_STORE_PLAIN, AFD_F16, 0, 1, 1},
    {"fp8", AFD_STORE_FP8, AFD_FP8, 0, 1, 0},
    {"awq", AFD_STORE_AWQ, AFD_DTYPE_COUNT, 0, 1, 0},
    {"gptq", AFD_STORE_GPTQ, AFD_DTYPE_COUNT, 0, 1, 0},
    {"q8_0", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q8_0, 0, 1},
    {"q4_0", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q4_0, 0, 1},
    {"q4_1", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q4_1, 0, 1},
    {"q5_0", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q5_0, 0, 1},
    {"q5_1", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q5_1, 0, 1},
    {"q2_k", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q2_K, 0, 1},
    {"q3_k", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q3_K, 0, 1},
    {"q4_k", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q4_K, 0, 1},
    {"q5_k", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q5_K, 0, 1},
    {"q6_k", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_Q6_K, 0, 1},
    {"iq4_nl", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_IQ4_NL, 0, 1},
    {"iq4_xs", AFD_STORE_QUANT, AFD_DTYPE_COUNT, AFD_IQ4_XS, 0, 1},
};
enum { STORES = sizeof stores / sizeof *stores };

const struct afd_store *afd_store_find(const char *name)
{
    for (int i = 0; i < STORES; i++)
        if (!strcmp(stores[i].name, name)) return &stores[i];
    return NULL;
}

const struct afd_store *afd_store_of(enum afd_dtype dtype, const struct afd_quant *quant)
{
    for (int i = 0; i < STORES; i++) {
        const struct afd_store *s = &stores[i];
        if (quant ? s->kind == AFD_STORE_QUANT && s->quant == quant->kind : s->dtype == dtype) return s;
    }
    return NULL;
}

const char *afd_convert_types(int to_gguf)
{
    return to_gguf ? "f32, bf16, f16, q8_0, q6_k, q5_k, q5_0, q5_1, q4_k, q4_0, q4_1, iq4_nl, iq4_xs, q3_k, "
                     "q2_k"
                   : "f32, bf16, f16, fp8, awq, gptq";
}

/* `wrote` is what a reader will get in the place of `x`. */
static enum afd_status count_error(const float *x, const float *wrote, uint32_t n,
                                   struct afd_store_error *error, struct afd_error *error_out)
{
    for (uint32_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - (double)wrote[i]);
        if (!isfinite(x[i]))
            return afd_fail(error_out, AFD_ERR_CONFIG, "has a weight that is no finite number");
        if (!isfinite(wrote[i]))
            return afd_fail(error_out, AFD_ERR_CONFIG, "has a weight of %g, too large for the type; try bf16",
                            (double)x[i]);
        if (d > error->max) error->max = d;
        error->differences += d * d;
        error->squares += (double)x[i] * (double)x[i];
    }
    return AFD_OK;
}

/* One block of at most 128 rows and 128 columns shares a scale: the largest magnitude becomes 448. */
static float fp8_scale(const float *rows, uint32_t count, uint32_t columns, uint32_t begin, uint32_t end)
{
    float largest = 0;
    for (uint32_t r = 0; r < count; r++)
        for (uint32_t c = begin; c < end; c++) largest = fmaxf(largest, fabsf(rows[(size_t)r * columns + c]));
    return largest > 0 && isfinite(largest) ? largest / 448.0f : 1.0f;
}

static enum afd_status store_fp8(const float *rows, uint32_t count, uint32_t columns, uint8_t *out,
                                 float *scales, struct afd_store_error *error, struct afd_error *error_out)
{
    float wrote[AFD_FP8_BLOCK];
    enum afd_status status = AFD_OK;
    for (uint32_t begin = 0; begin < columns && !status; begin += AFD_FP8_BLOCK) {
        uint32_t end = columns - begin < AFD_FP8_BLOCK ? columns : begin + AFD_FP8_BLOCK;
        float scale = scales[begin / AFD_FP8_BLOCK] = fp8_scale(rows, count, columns, begin, end);
        for (uint32_t r = 0; r < count && !status; r++) {
            const float *x = rows + (size_t)r * columns + begin;
            uint8_t *q = out + (size_t)r * columns + begin;
            for (uint32_t c = 0; c < end - begin; c++) {
                q[c] = afd_float_to_e4m3(x[c] / scale);
                wrote[c] = afd_e4m3_to_float(q[c]) * scale;
            }
            status = count_error(x, wrote, end - begin, error, error_out);
        }
    }
    return status;
}

static enum afd_status store_plain(enum afd_dtype dtype, const float *x, uint32_t n, void *out,
                                   struct afd_store_error *error, struct afd_error *error_out)
{
    enum afd_status status = AFD_OK;
    for (uint32_t i = 0; i < n && !status; i++) {
        afd_narrow_put(out, dtype, i, x[i]);
        float wrote = afd_narrow_at(out, dtype, i);
        status = count_error(x + i, &wrote, 1, error, error_out);
    }
    return status;
}

static enum afd_status store_quant(const struct afd_quant *quant, const float *x, uint32_t n, uint8_t *out,
                                   struct afd_store_error *error, struct afd_error *error_out)
{
    float wrote[AFD_QUANT_MAX_VALUES];
    enum afd_status status = AFD_OK;
    for (uint32_t i = 0; i < n && !status; i += quant->values, out += quant->bytes) {
        quant->encode(x + i, out);
        quant->decode(out, wrote);
        status = count_error(x + i, wrote, quant->values, error, error_out);
    }
    return status;
}

enum afd_status afd_store_rows(const struct afd_store *store, const float *rows, uint32_t count,
                               uint32_t columns, void *out, float *scales, struct afd_store_error *error,
                               struct afd_error *error_out)
{
    uint32_t n = count * columns; /* rows are whole blocks, so that all of them are one run of blocks */
    if (store->kind == AFD_STORE_FP8) return store_fp8(rows, count, columns, out, scales, error, error_out);
    if (store->kind == AFD_STORE_QUANT)
        return store_quant(&afd_quants[store->quant], rows, n, out, error, error_out);
    return store_plain(store->dtype, rows, n, out, error, error_out);
}

/* ---- int4 in groups of 128 inputs */

enum afd_status afd_int4_out_init(struct afd_int4_out *out, enum afd_int4_kind kind, uint32_t rows,
                                  uint32_t columns)
{
    uint64_t groups = columns / AFD_INT4_GROUP, words = rows / AFD_INT4_PACK;
    *out = (struct afd_int4_out){.kind = kind, .rows = rows, .columns = columns};
    out->weights = calloc(words * columns, sizeof *out->weights);
    out->zeros = calloc(groups * words, sizeof *out->zeros);
    out->scales = calloc(groups * rows, sizeof *out->scales);
    out->groups = calloc(columns, sizeof *out->groups);
    if (!out->weights || !out->zeros || !out->scales || !out->groups) return AFD_ERR_MEMORY;
    for (uint32_t c = 0; c < columns; c++) out->groups[c] = c / AFD_INT4_GROUP;
    return AFD_OK;
}

void afd_int4_out_fini(struct afd_int4_out *out)
{
    free(out->weights);
    free(out->zeros);
    free(out->scales);
    free(out->groups);
    *out = (struct afd_int4_out){0};
}

static uint32_t place_of(enum afd_int4_kind kind, uint32_t output)
{
    static const uint8_t awq[AFD_INT4_PACK] = {0, 4, 1, 5, 2, 6, 3, 7};
    return kind == AFD_INT4_AWQ ? awq[output % AFD_INT4_PACK] : output % AFD_INT4_PACK;
}

/* The scale and the zero of a group: its range, with 0 in it, in 15 steps. GPTQ stores the zero less 1, so
 * its zero is 1 at least. */
static float fit(enum afd_int4_kind kind, const float *x, uint16_t *scale_out, int *zero_out)
{
    float low = 0, high = 0;
    for (int i = 0; i < AFD_INT4_GROUP; i++) low = fminf(low, x[i]), high = fmaxf(high, x[i]);
    int least = kind == AFD_INT4_GPTQ;
    float step = fmaxf((high - low) / 15.0f, high / (float)(15 - least));
    uint16_t half = afd_float_to_f16(step > 0 ? step : 1.0f);
    float scale = afd_f16_to_float(half);
    long zero = scale > 0 && isfinite(scale) ? lroundf(-low / scale) : least;
    *scale_out = half;
    *zero_out = zero < least ? least : zero > 15 ? 15 : (int)zero;
    return scale;
}

static void put_group(struct afd_int4_out *out, const float *x, uint32_t row, uint32_t group, float *wrote)
{
    uint16_t half;
    int zero;
    float scale = fit(out->kind, x, &half, &zero);
    uint64_t words = out->rows / AFD_INT4_PACK;
    out->scales[(uint64_t)group * out->rows + row] = half;
    out->zeros[group * words + row / AFD_INT4_PACK] |= (uint32_t)(zero - (out->kind == AFD_INT4_GPTQ))
                                                       << 4 * place_of(out->kind, row);
    for (uint32_t i = 0; i < AFD_INT4_GROUP; i++) {
        uint64_t in = (uint64_t)group * AFD_INT4_GROUP + i;
        float steps = scale > 0 ? x[i] / scale : 0;
        long q = (steps > -64 && steps < 64 ? lroundf(steps) : 0) + zero;
        q = q < 0 ? 0 : q > 15 ? 15 : q;
        if (out->kind == AFD_INT4_AWQ)
            out->weights[in * words + row / AFD_INT4_PACK] |= (uint32_t)q << 4 * place_of(out->kind, row);
        else
            out->weights[in / AFD_INT4_PACK * out->rows + row] |= (uint32_t)q << 4 * (in % AFD_INT4_PACK);
        wrote[i] = scale * (float)(q - zero);
    }
}

enum afd_status afd_int4_out_rows(struct afd_int4_out *out, const float *rows, uint32_t begin, uint32_t count,
                                  struct afd_store_error *error, struct afd_error *error_out)
{
    float wrote[AFD_INT4_GROUP];
    enum afd_status status = AFD_OK;
    for (uint32_t r = 0; r < count; r++)
        for (uint32_t g = 0; g < out->columns / AFD_INT4_GROUP && !status; g++) {
            const float *x = rows + (size_t)r * out->columns + (size_t)g * AFD_INT4_GROUP;
            put_group(out, x, begin + r, g, wrote);
            status = count_error(x, wrote, AFD_INT4_GROUP, error, error_out);
        }
    return status;
}
