#include "model/random_weights.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/half.h"
#include "base/rng.h"

enum { POOL_BYTES = 64 << 20, COPIES = 48, ALIGN = 4096, SCALES = 1 << 20, SCALE_STARTS = 1 << 10 };

struct afd_random_weights {
    enum afd_random_kind kind;
    unsigned char *pool;   /* COPIES times the same POOL_BYTES */
    float *scales;         /* [SCALES] */
    uint16_t *half_scales; /* [SCALES] f16, of int4 */
};

/* Two bytes are one bf16 of sign, 2^-7 or so, and a random mantissa; each alone is an e4m3 that is not NaN.
 */
static void fill(unsigned char *pool)
{
    for (uint64_t i = 0; i < POOL_BYTES; i += 8) {
        uint64_t bits = afd_random(11, i, 0);
        uint64_t nan =
            (bits & 0x007f007f007f007fu) + 0x0001000100010001u; /* bit 7 of a low byte: 0x7f or 0xff */
        bits &= ~((nan & 0x0080008000800080u) >> 7);
        bits = (bits & 0x80ff80ff80ff80ffu) | 0x3c003c003c003c00u;
        *(uint64_t *)(void *)(pool + i) = bits;
    }
}

static enum afd_status map_pool(struct afd_random_weights *w, struct afd_error *error_out)
{
    int fd = memfd_create("afd-random-weights", MFD_CLOEXEC);
    size_t all = (size_t)POOL_BYTES * COPIES;
    void *at = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int ok = fd >= 0 && at != MAP_FAILED && !ftruncate(fd, POOL_BYTES);
    if (at != MAP_FAILED) w->pool = at;
    for (size_t i = 0; ok && i < COPIES; i++)
        ok = mmap(w->pool + i * POOL_BYTES, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                  0) != MAP_FAILED;
    if (ok) fill(w->pool);
    if (fd >= 0) close(fd);
    return ok ? AFD_OK
              : afd_fail(error_out, AFD_ERR_MEMORY, "no %d MiB for random weights", POOL_BYTES >> 20);
}

enum afd_status afd_random_weights_create(enum afd_random_kind kind, struct afd_random_weights **out,
                                          struct afd_error *error_out)
{
    struct afd_random_weights *w = calloc(1, sizeof *w);
    *out = NULL;
    if (w) w->scales = malloc(SCALES * sizeof *w->scales);
    if (w) w->half_scales = malloc(SCALES * sizeof *w->half_scales);
    if (!w || !w->scales || !w->half_scales) {
        afd_random_weights_destroy(w);
        return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    }
    w->kind = kind;
    for (uint32_t i = 0; i < SCALES; i++) {
        w->scales[i] = 0.01f + 0.02f * afd_random_unit(12, i, 0);
        w->half_scales[i] = afd_float_to_f16(w->scales[i] / 10.0f);
    }
    enum afd_status status = map_pool(w, error_out);
    if (status)
        afd_random_weights_destroy(w);
    else
        *out = w;
    return status;
}

const void *afd_random_weights_pool(const struct afd_random_weights *w, uint64_t *bytes_out)
{
    *bytes_out = POOL_BYTES;
    return w->pool;
}

void afd_random_weights_destroy(struct afd_random_weights *w)
{
    if (!w) return;
    if (w->pool) munmap(w->pool, (size_t)POOL_BYTES * COPIES);
    free(w->scales);
    free(w->half_scales);
    free(w);
}

static enum afd_random_kind kind_of(const struct afd_random_weights *w, const struct afd_weight *weight)
{
    enum afd_weight_use use = weight->use;
    uint32_t rows = weight->out_end - weight->out_begin, columns = weight->in_end - weight->in_begin;
    if (afd_weight_is_wide(use) || afd_weight_is_vector(use) || use == AFD_W_ROUTER) return AFD_RANDOM_BF16;
    int is_head = use == AFD_W_K_UP || use == AFD_W_V_UP; /* parts of one matrix, which stays as it is */
    int is_cut = rows % AFD_INT4_PACK || columns % AFD_INT4_GROUP;
    return w->kind == AFD_RANDOM_INT4 && (is_head || is_cut) ? AFD_RANDOM_BF16 : w->kind;
}

enum afd_status afd_random_weights_view(const struct afd_random_weights *w, const struct afd_weight *weight,
                                        struct afd_weight_view *out, struct afd_error *error_out)
{
    static const enum afd_dtype types[] = {AFD_FP8, AFD_BF16, AFD_DTYPE_COUNT};
    uint64_t number = afd_random(weight->layer, weight->use, weight->index), scales = 0;
    enum afd_random_kind kind = kind_of(w, weight);
    const unsigned char *data = w->pool + number % (POOL_BYTES / ALIGN) * ALIGN;
    *out = (struct afd_weight_view){.dtype = types[kind],
                                    .quant = kind == AFD_RANDOM_INT4 ? &afd_quants[AFD_INT4_128] : NULL,
                                    .rows = weight->out_end - weight->out_begin,
                                    .columns = weight->in_end - weight->in_begin};
    out->row_bytes = afd_weight_row_bytes(out);
    uint64_t bytes = out->rows * out->row_bytes;
    if (kind == AFD_RANDOM_INT4) {
        scales = (uint64_t)out->rows * (out->columns / AFD_INT4_GROUP);
        out->int4 = (struct afd_int4){.kind = AFD_INT4_GPTQ,
                                      .weights = (const uint32_t *)(const void *)data,
                                      .zeros = (const uint32_t *)(const void *)w->pool,
                                      .scales = w->half_scales + number % SCALE_STARTS,
                                      .outputs = out->rows,
                                      .zero_bias = 1};
    } else {
        out->data = data;
    }
    if (kind == AFD_RANDOM_FP8) {
        out->block = AFD_FP8_BLOCK;
        out->scale = w->scales + number % SCALE_STARTS;
        out->scale_pitch = (out->columns + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
        scales = out->scale_pitch * ((out->rows + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK);
    }
    if (bytes <= (uint64_t)POOL_BYTES * (COPIES - 1) && scales <= SCALES - SCALE_STARTS) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_LIMIT, "a matrix of %u x %u is larger than random weights go",
                    out->rows, out->columns);
}
