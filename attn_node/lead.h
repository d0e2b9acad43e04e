/* lead.h: what member 0 of an attention group has the group compute: a batch for each layer of a slot's step
 * (members.h), from the partial sums that came back for the layer before to the records for the next.
 *
 * Owned by the slots' steps (steps.h), which have the device and what its ops point to. At most
 * AFD_GROUP_DEPTH batches at once. One thread; nothing blocks, nothing is allocated after create. */
#ifndef AFD_ATTN_NODE_LEAD_H
#define AFD_ATTN_NODE_LEAD_H

#include "attn_node/members.h"
#include "attn_node/step_list.h"

struct afd_lead;

struct afd_lead_config {
    struct afd_device *device;
    struct afd_members *members;
    uint32_t slots, hidden;
    struct afd_step_list_limits limits;
};

struct afd_lead *afd_lead_create(const struct afd_lead_config *config); /* NULL: out of memory */
void afd_lead_destroy(struct afd_lead *lead);                           /* NULL is allowed */

/* The slot's step, as the device has it too: goes to the members before its layer 0. */
void afd_lead_load(struct afd_lead *lead, uint32_t slot, const struct afd_step *step);
/* Begins a batch. `partials`, and what `route` points to, stay as they are until it is over. AFD_PENDING, or
 * the device's failure. */
enum afd_status afd_lead_submit(struct afd_lead *lead, uint32_t slot, uint32_t layer,
                                const struct afd_partials *partials, const struct afd_op *route);
/* The slot whose op has completed, UINT32_MAX: none of a batch. *is_over_out: it was the batch's last. */
uint32_t afd_lead_computed(struct afd_lead *lead, uint64_t ticket, int *is_over_out);
/* Carries batches on; returns how much happened. *status_out: AFD_ERR_PEER when a member is lost, or the
 * device's failure: no batch goes on. */
uint32_t afd_lead_progress(struct afd_lead *lead, enum afd_status *status_out);
/* The others may end in order: nothing is asked of them any more. */
void afd_lead_leave(struct afd_lead *lead);
int afd_lead_is_on_device(const struct afd_lead *lead); /* ops of a batch are under way */

#endif
