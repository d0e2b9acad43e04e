/* slab.h: the memory of an attention rank's traffic: one allocation of the device, registered once.
 *
 *   +--------------------------------------+--------------------------------------------------+
 *   | A2F sources [slots][instances]       | F2A regions [instances][slots][shards]           |
 *   | header, then max_rows records        | header, then max_rows partial sums               |
 *   +--------------------------------------+--------------------------------------------------+
 * Each instance's regions begin on a page of their own, as transport.h demands of a pair's.
 * Sized for the largest number of FFN instances there may be. Each instance has a source of its own in both
 * dispatch modes: the header, which stands in front of the records, differs from instance to instance.
 * Plain struct; the memory belongs to it until afd_slab_fini; any thread may compute addresses. */
#ifndef AFD_ATTN_NODE_SLAB_H
#define AFD_ATTN_NODE_SLAB_H

#include "compute/compute.h"
#include "transport/transport.h"

struct afd_slab {
    struct afd_device *device;
    struct afd_wire_layout wire;
    uint32_t slots, instances, shards;
    unsigned char *memory;
    uint64_t bytes, sources_bytes, instance_bytes; /* of all; of the sources; of one instance's regions */
};

enum afd_status afd_slab_init(struct afd_slab *slab, struct afd_device *device,
                              const struct afd_wire_layout *wire, uint32_t slots, uint32_t instances,
                              uint32_t shards, struct afd_error *error_out);
void afd_slab_fini(struct afd_slab *slab);

struct afd_a2f_header *afd_slab_source(const struct afd_slab *slab, uint32_t slot, uint32_t instance);
unsigned char *afd_slab_records(const struct afd_slab *slab, uint32_t slot,
                                uint32_t instance); /* behind the header */
struct afd_region afd_slab_region(const struct afd_slab *slab, uint32_t instance, uint32_t slot,
                                  uint32_t shard);

#endif
