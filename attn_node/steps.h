/* steps.h: a slot's step as ops of the device.
 *
 * Owns what the ops point to: tables of a slot are written before its ops are submitted, and stay until the
 * last of them completed. Ops of one compute are quiet but the last, whose ticket stands for all. One thread;
 * nothing blocks; a failure is the device's. */
#ifndef AFD_ATTN_NODE_STEPS_H
#define AFD_ATTN_NODE_STEPS_H

#include "attn_node/batch.h"
#include "attn_node/lead.h"
#include "attn_node/pipeline.h"
#include "attn_node/slab.h"

struct afd_steps;

struct afd_steps_config {
    struct afd_device *device;
    const struct afd_slab *slab;
    const struct afd_batch *batch;
    const struct afd_pipeline *pipeline;
    uint32_t layers;
    enum afd_dispatch dispatch;
    struct afd_lead *lead; /* attention tp: layers are the group's batches; NULL: the device's alone */
};

struct afd_steps *afd_steps_create(const struct afd_steps_config *config); /* NULL: out of memory */
void afd_steps_destroy(struct afd_steps *steps);                           /* NULL is allowed */

/* Gives the slot's step, as the batch core formed it, to the device. */
enum afd_status afd_steps_load(struct afd_steps *steps, uint32_t slot);
/* COMPUTE of the pipeline: submits the ops of one layer, or those of the step's end. AFD_OK: nothing is to be
 * done (the end of a step without choices); AFD_PENDING: afd_steps_computed will tell. */
enum afd_status afd_steps_submit(struct afd_steps *steps, uint32_t slot, uint32_t layer);
/* The slot whose op has completed; UINT32_MAX for another one. *is_over_out: its compute is over with it. */
uint32_t afd_steps_computed(struct afd_steps *steps, uint64_t ticket, int *is_over_out);
int afd_steps_are_busy(const struct afd_steps *steps); /* the device has ops of some slot */

/* After a layer: rows active in each shard, that chose each expert, and records written for an instance. */
const uint32_t *afd_steps_active(const struct afd_steps *steps, uint32_t slot);
const uint32_t *afd_steps_experts(const struct afd_steps *steps, uint32_t slot);
uint32_t afd_steps_rows(const struct afd_steps *steps, uint32_t slot, uint32_t instance);
/* The records for two instances, `stride` bytes each, change places. */
enum afd_status afd_steps_exchange(struct afd_steps *steps, uint32_t slot, uint32_t a, uint32_t b,
                                   uint32_t stride);
/* After the end: what was chosen, one a choice, and the tokens alone. */
const struct afd_chosen *afd_steps_chosen(const struct afd_steps *steps, uint32_t slot);
const uint32_t *afd_steps_tokens(struct afd_steps *steps, uint32_t slot);

#endif
