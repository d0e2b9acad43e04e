#include "attn_node/slab.h"

enum afd_status afd_slab_init(struct afd_slab *slab, struct afd_device *device,
                              const struct afd_wire_layout *wire, uint32_t slots, uint32_t instances,
                              uint32_t shards, struct afd_error *error_out)
{
    *slab = (struct afd_slab){
        .device = device, .wire = *wire, .slots = slots, .instances = instances, .shards = shards};
    slab->sources_bytes = afd_page_align((uint64_t)slots * instances * wire->a2f_region_bytes);
    slab->instance_bytes = afd_page_align((uint64_t)slots * shards * wire->f2a_region_bytes);
    slab->bytes = slab->sources_bytes + instances * slab->instance_bytes;
    slab->memory = afd_device_alloc(device, slab->bytes);
    if (slab->memory) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_MEMORY,
                    "no memory for messages of %llu bytes: %u slots, %u rows, %u FFN instances, %u shards",
                    (unsigned long long)slab->bytes, slots, wire->shape.max_rows, instances, shards);
}

void afd_slab_fini(struct afd_slab *slab)
{
    if (slab->memory) afd_device_free(slab->device, slab->memory);
    slab->memory = NULL;
}

struct afd_a2f_header *afd_slab_source(const struct afd_slab *slab, uint32_t slot, uint32_t instance)
{
    uint64_t index = (uint64_t)slot * slab->instances + instance;
    return (struct afd_a2f_header *)(slab->memory + index * slab->wire.a2f_region_bytes);
}

unsigned char *afd_slab_records(const struct afd_slab *slab, uint32_t slot, uint32_t instance)
{
    return (unsigned char *)(afd_slab_source(slab, slot, instance) + 1);
}

struct afd_region afd_slab_region(const struct afd_slab *slab, uint32_t instance, uint32_t slot,
                                  uint32_t shard)
{
    uint64_t index = (uint64_t)slot * slab->shards + shard;
    unsigned char *of_instance = slab->memory + slab->sources_bytes + instance * slab->instance_bytes;
    return (struct afd_region){.base = of_instance + index * slab->wire.f2a_region_bytes,
                               .bytes = slab->wire.f2a_region_bytes};
}
