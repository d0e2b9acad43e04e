#include "attn_node/slab.h"

_Static_assert(sizeof(struct afd_a2f_header) == sizeof(struct afd_f2a_header), "what stands before rows");
enum { HEADER = sizeof(struct afd_a2f_header) };

/* Sources and regions of so many bytes; with room for one source more. */
static struct afd_slab_part part_of(const struct afd_slab *slab, uint64_t source, uint64_t region,
                                    int has_spare)
{
    struct afd_slab_part part = {.source = source, .region = region};
    part.sources_bytes = afd_page_align((uint64_t)slab->slots * slab->instances * source);
    part.instance_bytes = afd_page_align((uint64_t)slab->slots * slab->shards * region);
    part.bytes = part.sources_bytes + slab->instances * part.instance_bytes;
    part.spare_at = has_spare ? part.bytes : 0;
    part.bytes += has_spare ? afd_page_align(source) : 0;
    return part;
}

enum afd_status afd_slab_init(struct afd_slab *slab, struct afd_device *device,
                              const struct afd_wire_layout *wire, uint32_t slots, uint32_t instances,
                              uint32_t shards, int is_split, struct afd_error *error_out)
{
    *slab = (struct afd_slab){.device = device,
                              .wire = *wire,
                              .slots = slots,
                              .instances = instances,
                              .shards = shards,
                              .is_split = is_split};
    slab->whole = is_split ? part_of(slab, HEADER, HEADER, 0)
                           : part_of(slab, wire->a2f_region_bytes, wire->f2a_region_bytes, 1);
    if (is_split)
        slab->rows = part_of(slab, wire->a2f_region_bytes - HEADER, wire->f2a_region_bytes - HEADER, 1);
    slab->whole.memory = afd_device_alloc(device, slab->whole.bytes);
    if (slab->whole.memory) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_MEMORY,
                    "no memory for messages of %llu bytes: %u slots, %u rows, %u FFN instances, %u shards",
                    (unsigned long long)slab->whole.bytes, slots, wire->shape.max_rows, instances, shards);
}

enum afd_status afd_slab_register(struct afd_slab *slab, struct afd_transport *transport,
                                  enum afd_rows_where where, struct afd_error *error_out)
{
    enum afd_status status = afd_transport_register(transport, slab->whole.memory, slab->whole.bytes);
    if (status) return afd_fail(error_out, status, "the message memory cannot be registered");
    if (!slab->is_split) return AFD_OK;
    status =
        afd_rows_memory_open(slab->device, transport, where, slab->rows.bytes, &slab->rows_memory, error_out);
    slab->rows.memory = slab->rows_memory.base;
    return status;
}

void afd_slab_fini(struct afd_slab *slab)
{
    if (slab->whole.memory) afd_device_free(slab->device, slab->whole.memory);
    if (slab->device) afd_rows_memory_close(slab->device, &slab->rows_memory);
    slab->whole.memory = slab->rows.memory = NULL;
}

static unsigned char *source_in(const struct afd_slab *slab, const struct afd_slab_part *part, uint32_t slot,
                                uint32_t instance)
{
    return part->memory + ((uint64_t)slot * slab->instances + instance) * part->source;
}

static unsigned char *region_in(const struct afd_slab *slab, const struct afd_slab_part *part,
                                uint32_t instance, uint32_t slot, uint32_t shard)
{
    return part->memory + part->sources_bytes + instance * part->instance_bytes +
           ((uint64_t)slot * slab->shards + shard) * part->region;
}

struct afd_a2f_header *afd_slab_source(const struct afd_slab *slab, uint32_t slot, uint32_t instance)
{
    return (struct afd_a2f_header *)source_in(slab, &slab->whole, slot, instance);
}

unsigned char *afd_slab_records(const struct afd_slab *slab, uint32_t slot, uint32_t instance)
{
    return slab->is_split ? source_in(slab, &slab->rows, slot, instance)
                          : source_in(slab, &slab->whole, slot, instance) + HEADER;
}

unsigned char *afd_slab_spare(const struct afd_slab *slab)
{
    const struct afd_slab_part *part = slab->is_split ? &slab->rows : &slab->whole;
    return part->memory + part->spare_at;
}

struct afd_region afd_slab_region(const struct afd_slab *slab, uint32_t instance, uint32_t slot,
                                  uint32_t shard)
{
    return (struct afd_region){.base = region_in(slab, &slab->whole, instance, slot, shard),
                               .bytes = slab->wire.f2a_region_bytes,
                               .rest = slab->is_split ? region_in(slab, &slab->rows, instance, slot, shard)
                                                      : NULL,
                               .head = slab->is_split ? HEADER : 0};
}

void *afd_slab_partials(const struct afd_slab *slab, uint32_t instance, uint32_t slot, uint32_t shard)
{
    return slab->is_split ? region_in(slab, &slab->rows, instance, slot, shard)
                          : region_in(slab, &slab->whole, instance, slot, shard) + HEADER;
}
