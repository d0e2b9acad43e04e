/* sizing.h: a cluster of A attention and F FFN instances for a model: stage times against the time per token,
 * memory, and the ratio and batch that serve most.
 *
 * Pure functions of numbers; nothing is allocated. Times are a roofline with stated efficiencies (struct
 * afd_efficiency), so every figure can be traced. Sources: Step-3 report (arXiv 2507.19427) 3.1, 5.3 to 5.5,
 * 6, 7; the dead zone: arXiv 2602.09721. */
#ifndef AFD_PLAN_SIZING_H
#define AFD_PLAN_SIZING_H

#include "plan/cost.h"

enum { AFD_SIZING_A = 24, AFD_SIZING_F = 12 }; /* the largest pools that a search looks at */

/* Shares of the peak rates that real kernels reach, and what peak rates leave out. */
struct afd_efficiency {
    double memory;        /* of the memory's bandwidth */
    double compute;       /* of the FLOPS */
    double nic, link;     /* of the network's and of the server's links */
    double attn_layer_us; /* of an attention layer: norms, rotation, quantization, launches */
    int is_gather_hidden; /* the all-gather inside an FFN instance runs beside the previous batch's experts */
};
/* Measured elsewhere than table 8, which they are to predict: docs/PLAN.md. */
extern const struct afd_efficiency afd_efficiency_hopper;
extern const struct afd_efficiency afd_efficiency_peak; /* all 1, nothing left out */

struct afd_sizing_input {
    const struct afd_shape *shape;
    const struct afd_hardware *attn, *ffn;
    struct afd_count_terms terms;
    struct afd_efficiency efficiency;
    uint32_t context;
    double tpot_s;
    uint32_t stages; /* 3: A, F, communication; 4: A, A2F, F, F2A (report 3.1, footnote 3) */
    int is_routed;   /* rows go to the instances that hold one of their experts, not to all */
};

/* What a topology does with `rows` rows on each attention card and micro-batch; as many micro-batches as
 * stages. */
struct afd_sizing {
    uint32_t a, f, gpus;
    uint32_t rows;                         /* of a card and micro-batch */
    double batch;                          /* sequences of the cluster */
    double attn_s, ffn_s;                  /* a micro-batch through all layers */
    double experts_s, gather_s, scatter_s; /* of ffn_s: the products; rows and sums inside a server */
    double net_s;                          /* 3 stages: both ways; 4: the longer way */
    double tpot_s;                         /* stages times the longest of them */
    double tokens_per_s, tokens_per_s_gpu;
    double usd;                   /* of a million tokens; NaN without prices */
    double attn_bytes, ffn_bytes; /* memory of a card */
    const char *binding;          /* "attention", "ffn", "network" */
    int fits;                     /* into both cards' memory */
};
void afd_sizing_at(const struct afd_sizing_input *input, uint32_t a, uint32_t f, uint32_t rows,
                   struct afd_sizing *out);
/* With the most rows that hold tpot_s and fit; 0 when not even one does. */
int afd_sizing_fill(const struct afd_sizing_input *input, uint32_t a, uint32_t f, struct afd_sizing *out);

/* All ratios: the one that is cheapest a token, or without prices serves most tokens a card; the smallest one
 * that holds at all. 0 when none holds. */
int afd_sizing_search(const struct afd_sizing_input *input, struct afd_sizing *best_out,
                      struct afd_sizing *smallest_out);

/* Bytes that leave an attention card in a layer and micro-batch of `rows` rows, and come back, at `f` FFN
 * instances: to all of them, or to those that hold one of a row's experts. */
double afd_sizing_wire_bytes(const struct afd_sizing_input *input, uint32_t f, uint32_t rows, int is_routed);

/* What a card may read of its memory in one layer's stage, and what that allows (report, section 6). */
struct afd_stage_reach {
    double layer_s;        /* of a stage */
    double layer_bytes;    /* at the peak bandwidth */
    double linear_bytes;   /* projections of a layer, 8 bits, the last one cut over the cards of a server */
    double context_tokens; /* of all sequences of the card together; 0: not even the projections */
    double sequences;      /* of the average context */
    double ffn_card_bytes; /* weights that half of the bandwidth reads in all layers' stages */
    uint32_t ffn_cards;    /* that hold the FFN so, whole servers */
};
struct afd_stage_reach afd_sizing_reach(const struct afd_sizing_input *input,
                                        const struct afd_hardware *hardware);

/* Whether AFD pays for this model and hardware, and why not. */
struct afd_verdict {
    int pays;
    const char *reason; /* "" or "slo", "dead_zone", "network_bound", "over_sparse", "same_hardware" */
    char words[320];
};
/* `hardware`: all that could be bought; input->attn and ->ffn its cheapest pair. `best`: of the search, NULL
 * when nothing holds. */
struct afd_verdict afd_sizing_verdict(const struct afd_sizing_input *input, const struct afd_sizing *best,
                                      uint32_t kinds);

#endif
