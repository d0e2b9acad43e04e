/* heads.h: tensor parallelism of attention: which heads of a layer a member of a group of tp has.
 *
 * A member has consecutive query heads and the KV heads that they look at: whole KV heads with all of theirs
 * where there are as many as members; else each KV head is held by tp / kv_heads members, which cut its query
 * heads (so with MFA and latent attention, which have one). Cuts fall on quantization blocks, unevenly where
 * they must, the larger parts first; a member holds one head at least. Pure functions, any thread. */
#ifndef AFD_MODEL_HEADS_H
#define AFD_MODEL_HEADS_H

#include "model/model.h"

struct afd_heads {
    uint32_t begin, end;       /* query heads */
    uint32_t kv_begin, kv_end; /* KV heads */
};

/* AFD_ERR_CONFIG with words that name the layer: it cannot be cut over so many. */
enum afd_status afd_heads_check(const struct afd_model *model, uint32_t tp, struct afd_error *error_out);
/* Of a layer that passed the check. */
struct afd_heads afd_heads_of(const struct afd_model *model, uint32_t layer, uint32_t tp, uint32_t index);

/* The model as the member computes it, its own heads in each layer's description; tables are the whole
 * model's, which must outlive it. `layers` [layer_count] is the caller's memory. */
void afd_heads_cut(const struct afd_model *whole, uint32_t tp, uint32_t index, struct afd_layer *layers,
                   struct afd_model *out);

#endif
