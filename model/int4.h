/* int4.h: int4 weights in groups of 128 as AutoAWQ and AutoGPTQ write them into safetensors, brought into
 * blocks of AFD_INT4_128 (quant.h) row by row. Nothing is lost or rounded: the block has the group's f16
 * scale, its zero, and its nibbles in another order. Pure functions over the mapping, any thread.
 *
 *   AWQ   qweight [in, out / 8]: of 8 outputs, word bits 4i .. 4i+3 are output 0 2 4 6 1 3 5 7 [i];
 *         qzeros [in / 128, out / 8] packed the same way; scales [in / 128, out]; w = (q - zero) * scale
 *   GPTQ  qweight [in / 8, out]: of 8 inputs, bits 4i .. 4i+3 are input i; qzeros [in / 128, out / 8], bits
 *         4i .. 4i+3 output i, holding zero - 1 (checkpoint_format gptq_v2: zero); scales as above; g_idx
 * [in]: the group of each input */
#ifndef AFD_MODEL_INT4_H
#define AFD_MODEL_INT4_H

#include <stdint.h>

enum { AFD_INT4_GROUP = 128, AFD_INT4_PACK = 8 };

enum afd_int4_kind { AFD_INT4_NONE, AFD_INT4_AWQ, AFD_INT4_GPTQ };

/* A slice of a matrix. */
struct afd_int4 {
    enum afd_int4_kind kind;
    const uint32_t *weights, *zeros;
    const uint16_t *scales;
    uint32_t outputs;             /* of the whole matrix */
    uint32_t out_begin, in_begin; /* where the slice begins */
    uint32_t zero_bias;           /* what is added to a stored zero */
    const uint32_t *groups;       /* act-order: g_idx of the whole matrix; NULL: groups of 128 in order */
};

/* The group of inputs 128 group .. of output `row` of the slice: its f16 scale, its zero from bit 16 on. */
uint32_t afd_int4_group(const struct afd_int4 *w, uint32_t row, uint32_t group);
/* Inputs 8 octet .. 8 octet + 7 of outputs row .. row + 7 of the slice, a word an output: bits 4i .. 4i+3 are
 * input 0 2 4 6 1 3 5 7 [i], so that inputs 2i and 2i + 1 stand in the word's halves. Outputs behind the
 * matrix' last are zero. */
void afd_int4_words(const struct afd_int4 *w, uint32_t row, uint32_t octet, uint32_t words[AFD_INT4_PACK]);
/* The block of inputs 128 group .. of output `row` of the slice. */
void afd_int4_block(const struct afd_int4 *w, uint32_t row, uint32_t group, uint8_t *block);
/* Inputs column .. column + n - 1 of output `row` of the slice; the only way where groups are scattered. */
void afd_int4_read(const struct afd_int4 *w, uint32_t row, uint32_t column, uint32_t n, float *out);

#endif
