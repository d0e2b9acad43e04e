/* The workspace of a topology's devices, by the configurations that their ranks would open them with. */
#include "cli/cli.h"
#include "compute/compute.h"
#include "deploy/agreement.h"

void cli_work_bytes(const struct afd_topology *t, const struct afd_model *model, uint64_t out[AFD_ROLE_COUNT])
{
    struct afd_device_config config = {.numerics = t->pipeline.numerics,
                                       .model = model,
                                       .wire = afd_wire_layout_of(afd_agreement_shape(t, model)),
                                       .slots = t->pipeline.microbatches,
                                       .max_segments = t->pipeline.max_rows,
                                       .max_context = t->max_context ? t->max_context : model->max_context,
                                       .kv_dtype = t->attn.kv_dtype,
                                       .kv_block_tokens = t->attn.kv_block_tokens,
                                       .max_logit_rows = t->pipeline.max_rows,
                                       .max_batch_rows = afd_topology_batch_rows(t)};
    for (int role = 0; role < AFD_ROLE_COUNT; role++) {
        config.type = role == AFD_ROLE_FFN ? t->ffn.device : t->attn.device;
        config.share = (struct afd_share){.ffn = role == AFD_ROLE_FFN, .ep = t->ffn.ep, .tp = t->attn.tp};
        if (config.share.ffn) config.share.tp = t->ffn.tp, config.share.shards = 1;
        out[role] = afd_device_work_bytes(&config);
    }
}
