/* cost.h: what a decoded token costs: bytes, operations, and USD on an accelerator that is fully used.
 *
 * Pure functions. Formulas and conventions: Step-3 report, arXiv 2507.19427, section 4; docs/PLAN.md says
 * what they leave out. Multiply-adds count as two operations; `context` is the number of tokens attended to.
 */
#ifndef AFD_PLAN_COST_H
#define AFD_PLAN_COST_H

#include "deploy/hardware.h"
#include "plan/shape.h"

enum afd_convention {
    /* As tables 2, 3 and 6: a latent value is kv_rank + rope wide like its key; embedding, head and router
     * are left out; KV in 8 bits, but in models whose layers differ BF16 in full layers, 8 bits in windows
     * and float32 of linear attention's state; all arithmetic at the FP8 rate where there is one. */
    AFD_CONVENTION_REPORT,
    /* As it is computed: a latent value is kv_rank wide, router and head count, a KV element takes 2 bytes
     * (linear attention's state 4), matrices the rate of the type that the config stores them in. */
    AFD_CONVENTION_EXACT,
};

struct afd_count_terms {
    enum afd_convention convention;
    uint32_t kv_bytes; /* of a KV element, 1 or 2; 0: as the convention says */
};

/* Of one decoded token, all layers. */
struct afd_token_work {
    double kv_bytes;        /* read from the cache; read from and written to a state */
    double attention_flops; /* scores and values */
    double linear_flops;    /* projections before and after */
    double ffn_flops;
    int fp8_attention, fp8_matrices; /* which rate they run at */
};
struct afd_token_work afd_token_work(const struct afd_shape *shape, const struct afd_count_terms *terms,
                                     uint32_t context);

/* The same of one layer; all but the head, which belongs to none. */
struct afd_token_work afd_layer_work(const struct afd_shape *shape, const struct afd_count_terms *terms,
                                     uint32_t layer, uint32_t context);

/* Elements of the FFN matrices of a layer that `rows` rows read, experts equally likely, where `share` of the
 * experts (and of a dense layer's rows, not its weights) is at hand. */
double afd_layer_ffn_elements(const struct afd_shape *shape, uint32_t layer, double rows, double share);

/* Attention's operations for each byte of the cache (report 5.1). */
double afd_work_intensity(const struct afd_token_work *work);

/* USD of a million tokens (report 4.2): max(FLOP_attn * U_flop, Byte_KV * U_byte) + FLOP_linear * U_flop,
 * where U is the price of a card's second over its rate. NaN without a price. */
double afd_cost_attention(const struct afd_token_work *work, const struct afd_hardware *hardware);
/* FLOP_ffn * U_flop: the FFN is taken to be bound by compute. */
double afd_cost_ffn(const struct afd_token_work *work, const struct afd_hardware *hardware);

/* The pair that is cheapest, indices into the list; -1 when nothing has a price. */
struct afd_pair {
    int attention, ffn;
    double usd;
};
struct afd_pair afd_cost_best(const struct afd_token_work *work, const struct afd_hardware_list *list);

/* Dense FFN rows that fill the roofline with 8-bit weights, FLOPS / (2 * bandwidth) (report 5.3); an expert
 * layer of sparsity S needs that over S. */
double afd_ideal_dense_rows(const struct afd_hardware *hardware, int fp8);

/* The least sparsity S whose ideal batch the network carries in a stage of tpot_s / stages (report 5.4):
 * hidden * FLOPS * layers * V / (2 * Net * bandwidth * stage), Net a server's NICs together, V the bytes a
 * value that share a stage: 3 with 3 stages (8-bit there, 16-bit back), 2 with 4. NaN when the NIC is not
 * known. */
double afd_min_sparsity(const struct afd_shape *shape, const struct afd_hardware *hardware, double tpot_s,
                        uint32_t stages);

#endif
