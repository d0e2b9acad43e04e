/* shape.h: the numbers of a model, for reckoning with it; no weights, and no need to be able to run it.
 *
 * What the runtime can execute is read by model/; other families are read by the field names that the config
 * files of Hugging Face transformers share, or come from a table of published models. Owned by the caller
 * (afd_shape_destroy), read-only after load, any thread may read. A config whose numbers do not make a model
 * is AFD_ERR_CONFIG with words. */
#ifndef AFD_PLAN_SHAPE_H
#define AFD_PLAN_SHAPE_H

#include "model/model.h"

struct afd_shape {
    struct afd_model *model;
    /* [layer_count] 1: attention with a fixed state of heads x head_dim x value_dim instead of a KV cache,
     * with an output gate: lightning attention (arXiv 2501.08313, section 2.2), where queries and keys have
     * as many heads as values, and gated delta networks (arXiv 2412.06464), where they may have fewer
     * (kv_heads) */
    unsigned char *is_linear;
    int is_hybrid;   /* layers differ in what they attend to */
    int is_runnable; /* read by model/: the runtime executes it */
};

/* `source`: a name of the table below, a config.json, or the folder of one. */
enum afd_status afd_shape_load(const char *source, struct afd_shape **out, struct afd_error *error_out);
void afd_shape_destroy(struct afd_shape *shape); /* NULL is allowed */

/* Names of published models; NULL at the end. */
const char *afd_shape_name(uint32_t index);

/* Elements of the matrices: of attention, of the FFN, of both with embedding and head. */
struct afd_shape_elements {
    double attention, ffn, embedding, head, total;
};
struct afd_shape_elements afd_shape_elements(const struct afd_shape *shape);

/* Of a layer's attention: the projections. */
double afd_shape_attn_elements(const struct afd_shape *shape, uint32_t layer);

/* Of the routed and shared experts of a layer the share that a token uses, of the layer where it is least;
 * the report's S (5.4): (top_k + shared) / experts, shared counted in widths of an expert. 1: no experts. */
double afd_shape_sparsity(const struct afd_shape *shape);

#endif
