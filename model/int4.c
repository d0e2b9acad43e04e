#include "model/int4.h"

#include <string.h>

#include "base/half.h"

static uint32_t nibble(uint32_t word, uint32_t i)
{
    return word >> 4 * i & 15;
}

/* Bits of output o of 8 in an AWQ word; of input i in a word of afd_int4_words. */
static const uint8_t place[AFD_INT4_PACK] = {0, 4, 1, 5, 2, 6, 3, 7};
/* The other way around: what stands there. */
static const uint8_t order[AFD_INT4_PACK] = {0, 2, 4, 6, 1, 3, 5, 7};

static uint32_t weight_at(const struct afd_int4 *w, uint64_t out, uint64_t in)
{
    if (w->kind == AFD_INT4_AWQ)
        return nibble(w->weights[in * (w->outputs / AFD_INT4_PACK) + out / AFD_INT4_PACK],
                      place[out % AFD_INT4_PACK]);
    return nibble(w->weights[in / AFD_INT4_PACK * w->outputs + out], in % AFD_INT4_PACK);
}

static uint32_t zero_at(const struct afd_int4 *w, uint64_t out, uint64_t group)
{
    uint32_t zeros = w->zeros[group * (w->outputs / AFD_INT4_PACK) + out / AFD_INT4_PACK];
    return nibble(zeros, w->kind == AFD_INT4_AWQ ? place[out % AFD_INT4_PACK] : out % AFD_INT4_PACK) +
           w->zero_bias;
}

uint32_t afd_int4_group(const struct afd_int4 *w, uint32_t row, uint32_t group)
{
    uint64_t out = (uint64_t)w->out_begin + row, g = w->in_begin / AFD_INT4_GROUP + (uint64_t)group;
    return w->scales[g * w->outputs + out] | zero_at(w, out, g) << 16;
}

/* Nibble j of word i and nibble i of word j change places. */
static void transpose(uint32_t words[AFD_INT4_PACK])
{
    uint32_t mask = 0x0000ffff;
    for (uint32_t n = 4; n; n /= 2, mask ^= mask << 4 * n)
        for (uint32_t i = 0; i < AFD_INT4_PACK; i++) {
            if (i & n) continue;
            uint32_t differ = (words[i] >> 4 * n ^ words[i + n]) & mask;
            words[i] ^= differ << 4 * n;
            words[i + n] ^= differ;
        }
}

/* Inputs in .. in + 7 of an output, input i in bits 4i .. 4i+3. */
static uint32_t octet_at(const struct afd_int4 *w, uint64_t out, uint64_t in)
{
    uint32_t word = 0;
    if (w->kind == AFD_INT4_GPTQ) return w->weights[in / AFD_INT4_PACK * w->outputs + out];
    for (uint32_t i = 0; i < AFD_INT4_PACK; i++) word |= weight_at(w, out, in + i) << 4 * i;
    return word;
}

void afd_int4_words(const struct afd_int4 *w, uint32_t row, uint32_t octet, uint32_t words[AFD_INT4_PACK])
{
    uint64_t out = (uint64_t)w->out_begin + row, in = (uint64_t)w->in_begin + (uint64_t)octet * AFD_INT4_PACK;
    if (w->kind == AFD_INT4_AWQ && out % AFD_INT4_PACK == 0) { /* nothing is behind the last: whole words */
        uint32_t turned[AFD_INT4_PACK];
        for (uint32_t i = 0; i < AFD_INT4_PACK; i++)
            turned[i] = w->weights[(in + order[i]) * (w->outputs / AFD_INT4_PACK) + out / AFD_INT4_PACK];
        transpose(turned);
        for (uint32_t o = 0; o < AFD_INT4_PACK; o++) words[o] = turned[place[o]];
        return;
    }
    for (uint32_t o = 0; o < AFD_INT4_PACK; o++) {
        uint32_t word = out + o < w->outputs ? octet_at(w, out + o, in) : 0;
        words[o] = 0;
        for (uint32_t i = 0; i < AFD_INT4_PACK; i++) words[o] |= nibble(word, i) << 4 * place[i];
    }
}

void afd_int4_block(const struct afd_int4 *w, uint32_t row, uint32_t group, uint8_t *block)
{
    uint64_t out = (uint64_t)w->out_begin + row,
             in = (uint64_t)w->in_begin + (uint64_t)group * AFD_INT4_GROUP;
    uint32_t head = afd_int4_group(w, row, group);
    memcpy(block, &head, sizeof head);
    for (uint32_t j = 0; j < AFD_INT4_GROUP / 2; j++)
        block[4 + j] =
            (uint8_t)(weight_at(w, out, in + j) | weight_at(w, out, in + j + AFD_INT4_GROUP / 2) << 4);
}

void afd_int4_read(const struct afd_int4 *w, uint32_t row, uint32_t column, uint32_t n, float *out)
{
    uint64_t output = (uint64_t)w->out_begin + row;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t in = (uint64_t)w->in_begin + column + i, g = w->groups ? w->groups[in] : in / AFD_INT4_GROUP;
        int q = (int)weight_at(w, output, in) - (int)zero_at(w, output, g);
        out[i] = afd_f16_to_float(w->scales[g * w->outputs + output]) * (float)q;
    }
}
