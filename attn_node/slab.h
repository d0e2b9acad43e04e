/* slab.h: the memory of an attention rank's traffic: one allocation of the device, registered once.
 *
 *   +--------------------------------------+--------------------------------------------------+
 *   | A2F sources [slots][instances]       | F2A regions [instances][slots][shards]           |
 *   | header, then max_rows records        | header, then max_rows partial sums               |
 *   +--------------------------------------+--------------------------------------------------+
 * Each instance's regions begin on a page of their own, as transport.h demands of a pair's. With messages in
 * two pieces there are two such memories: of headers, and of rows, which may be the device's own.
 * Sized for the largest number of FFN instances there may be. Each instance has a source of its own in both
 * dispatch modes: the header, which stands in front of the records, differs from instance to instance.
 * Plain struct; the memory belongs to it until afd_slab_fini; any thread may compute addresses. */
#ifndef AFD_ATTN_NODE_SLAB_H
#define AFD_ATTN_NODE_SLAB_H

#include "compute/compute.h"
#include "transport/rows_memory.h"

struct afd_slab {
    struct afd_device *device;
    struct afd_wire_layout wire;
    uint32_t slots, instances, shards;
    int is_split;
    struct afd_slab_part {
        unsigned char *memory;
        uint64_t source, region; /* bytes of one of either */
        /* of all; of the sources; of one instance's regions; where the spare begins, or 0 */
        uint64_t bytes, sources_bytes, instance_bytes, spare_at;
    } whole, rows;                      /* whole: headers alone where messages are split, rows the rest */
    struct afd_rows_memory rows_memory; /* `rows` */
};

enum afd_status afd_slab_init(struct afd_slab *slab, struct afd_device *device,
                              const struct afd_wire_layout *wire, uint32_t slots, uint32_t instances,
                              uint32_t shards, int is_split, struct afd_error *error_out);
/* Registers all of it; rows of their own get their memory here. */
enum afd_status afd_slab_register(struct afd_slab *slab, struct afd_transport *transport,
                                  enum afd_rows_where where, struct afd_error *error_out);
void afd_slab_fini(struct afd_slab *slab); /* after the transport was closed */

struct afd_a2f_header *afd_slab_source(const struct afd_slab *slab, uint32_t slot, uint32_t instance);
unsigned char *afd_slab_records(const struct afd_slab *slab, uint32_t slot,
                                uint32_t instance);         /* of the same message */
unsigned char *afd_slab_spare(const struct afd_slab *slab); /* room for the records of one more message */
struct afd_region afd_slab_region(const struct afd_slab *slab, uint32_t instance, uint32_t slot,
                                  uint32_t shard);
/* The partial sums of a region's message. */
void *afd_slab_partials(const struct afd_slab *slab, uint32_t instance, uint32_t slot, uint32_t shard);

#endif
