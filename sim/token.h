/* token.h: the arithmetic of the simulated model: 64-bit words in place of vectors.
 *
 * A row's word goes through the layers as a vector does: attention reads what the KV cache holds of earlier
 * positions, each shard that the row is active in adds a partial sum, the sum is folded in. Every operation
 * depends on all of its inputs, so a partial sum that is missing, doubled, of another layer or of another row
 * changes the token, and a KV entry of another sequence does. Pure functions.
 *
 *   chain   A(p) = mix(A(p-1), token(p), p)            written to the KV cache when the row enters
 *   layer   h = attend(h, A(some earlier position)); then, over the shards s it is active in,
 *           h = fold(h, sum of partial(h, layer, s))
 *   end     B(p) = mix(B(p-1), h, p)                   written when the row leaves; token(p+1) = f(B(p),
 * seed)
 *
 * Both chains run over positions, so results do not depend on how a prompt was cut into chunks. */
#ifndef AFD_SIM_TOKEN_H
#define AFD_SIM_TOKEN_H

#include <stdint.h>

#include "model/model.h"

static inline uint64_t sim_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    return x ^ x >> 29;
}

static inline uint64_t sim_chain(uint64_t before, uint32_t token, uint32_t position)
{
    return sim_mix(before, (uint64_t)token << 32 | position);
}

/* The earlier position whose entry a row's attention reads in a layer; its own without any. */
static inline uint32_t sim_looks_at(uint32_t position, uint32_t layer)
{
    uint64_t x = (uint32_t)(position * 0x9e3779b1u ^ layer * 0x85ebca6bu);
    return (uint32_t)(x * position >> 32);
}

static inline uint64_t sim_attend(uint64_t h, uint64_t entry, uint32_t layer)
{
    return sim_mix(h ^ layer, entry);
}

/* The shards that a row is active in: those of its experts, and the one whose turn it is. */
static inline uint64_t sim_shards(uint64_t h, uint32_t layer, uint32_t picks, uint32_t ep)
{
    uint64_t set = 0, bits = h * 0xff51afd7ed558ccdu + layer;
    if (ep == 1) return 1;
    for (uint32_t k = 0; k < picks; k++) { /* 16 bits each; four a word */
        if (k && k % 4 == 0) bits = sim_mix(bits, k);
        set |= (uint64_t)1 << ((bits >> 16 * (k % 4) & 0xffff) * ep >> 16);
    }
    return set;
}

static inline uint32_t sim_picks(const struct afd_ffn_desc *ffn)
{
    return 1 + (ffn->kind == AFD_FFN_EXPERTS ? ffn->top_k : 0);
}

/* What one member of an instance with tp ranks contributes; the sum over the members is a partial sum. */
static inline uint64_t sim_share(uint32_t member)
{
    return 2 * (uint64_t)member + 3;
}

static inline uint64_t sim_partial(uint64_t h, uint32_t layer, uint32_t shard)
{
    return sim_mix(h + shard, (uint64_t)layer << 8 | 1);
}

static inline uint64_t sim_fold(uint64_t h, uint64_t sum)
{
    return sim_mix(h, sum);
}

static inline uint64_t sim_history(uint64_t before, uint64_t h, uint32_t position)
{
    return sim_mix(before ^ position, h);
}

static inline uint32_t sim_token(uint64_t history, uint64_t seed, uint32_t vocab)
{
    return (uint32_t)((sim_mix(history, seed) >> 32) * vocab >> 32);
}

enum { SIM_STOP_STRIDE = 61 }; /* with stop tokens: one of so many tokens ends a sequence */

#endif
