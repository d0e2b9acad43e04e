/* quant.h: block-quantized weights: the formats of GGUF, and int4 groups of AWQ and GPTQ.
 *
 * A row of a matrix is a run of blocks along K; a block holds `values` weights in `bytes` bytes, and decodes
 * to float32 without any other data. The decoding of each format is one fixed sequence of float32 operations
 * (scale times integer, then the offset added or subtracted), here in scalar code and in
 * cpu/kernels_quant.inc for 16 rows at once, with the same bits. Pure functions, any thread. The layouts are
 * those of ggml (github.com/ggml-org/ggml, ggml-common.h), drawn above each decoder in quant.c. */
#ifndef AFD_MODEL_QUANT_H
#define AFD_MODEL_QUANT_H

#include <stdint.h>

enum afd_quant_kind {
    AFD_Q4_0,
    AFD_Q4_1,
    AFD_Q5_0,
    AFD_Q5_1,
    AFD_Q8_0,
    AFD_Q2_K,
    AFD_Q3_K,
    AFD_Q4_K,
    AFD_Q5_K,
    AFD_Q6_K,
    AFD_IQ4_NL,
    AFD_IQ4_XS,
    AFD_INT4_128, /* one group of 128 of AWQ or GPTQ, brought into one block: f16 scale, zero, nibbles */
    AFD_QUANT_COUNT
};

enum { AFD_QUANT_MAX_VALUES = 256, AFD_QUANT_MAX_BYTES = 256 };

struct afd_quant {
    enum afd_quant_kind kind;
    const char *name;
    uint32_t values, bytes; /* of a block; `values` divides 128 or is a multiple of it */
    void (*decode)(const uint8_t *block, float *out);    /* out [values] */
    void (*encode)(const float *values, uint8_t *block); /* round to nearest; NULL: INT4_128, which no file has */
};

extern const struct afd_quant afd_quants[AFD_QUANT_COUNT];

/* The values of IQ4_NL and IQ4_XS. */
extern const int8_t afd_iq4_values[16];

/* Row elements k .. k + n - 1, any k and n, of a row that starts at `row`. */
void afd_quant_read(const struct afd_quant *quant, const void *row, uint64_t k, uint32_t n, float *out);

#endif
