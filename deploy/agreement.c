#include "deploy/agreement.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/crypto.h"
#include "compute/numerics.h"
#include "model/shards.h"
#include "model/tensors.h"

/* The model's hash and what its layers' shards are. */
static enum afd_status hash_shards(const struct afd_model *model, uint8_t hash[AFD_HASH_BYTES],
                                   struct afd_error *error_out)
{
    struct afd_sha256 *sha = afd_sha256_create();
    if (!sha) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    afd_sha256_update(sha, hash, AFD_HASH_BYTES);
    for (uint32_t l = 0; l < model->layer_count; l++) {
        const struct afd_ffn_desc *ffn = &model->layers[l].ffn;
        if (!ffn->shard_of) continue;
        afd_sha256_update(sha, &l, sizeof l);
        afd_sha256_update(sha, ffn->shard_of, ffn->experts);
    }
    afd_sha256_finish(sha, hash);
    return AFD_OK;
}

enum afd_status afd_agreement_model(const struct afd_topology *topology, struct afd_model **out,
                                    uint8_t hash_out[AFD_HASH_BYTES], struct afd_error *error_out)
{
    struct afd_model *model = NULL;
    enum afd_status status = afd_model_load(topology->model_dir, &model, error_out);
    if (!status && hash_out) status = afd_model_hash(topology->model_dir, hash_out, error_out);
    if (!status && *topology->shards_file) {
        status = afd_shards_read(model, topology->shards_file, topology->ffn.ep, error_out);
        if (!status && hash_out) status = hash_shards(model, hash_out, error_out);
    }
    if (status) {
        afd_model_destroy(model);
        return status;
    }
    *out = model;
    return AFD_OK;
}

struct afd_wire_shape afd_agreement_shape(const struct afd_topology *topology, const struct afd_model *model)
{
    return (struct afd_wire_shape){
        .hidden = model->hidden,
        .top_k = model->max_top_k,
        .max_rows = topology->pipeline.max_rows,
        .a2f = topology->pipeline.a2f,
        .f2a = topology->pipeline.f2a,
    };
}

const char *afd_agreement_numerics(enum afd_device_type type, enum afd_numerics numerics)
{
    return afd_numerics_id(type, numerics);
}

void afd_agreement_of(const struct afd_topology *topology, const struct afd_model *model,
                      const uint8_t model_hash[AFD_HASH_BYTES], const char *numerics,
                      struct afd_agreement *out)
{
    struct afd_wire_layout wire = afd_wire_layout_of(afd_agreement_shape(topology, model));
    *out = (struct afd_agreement){0};
    memcpy(out->model_hash, model_hash, AFD_HASH_BYTES);
    int n = snprintf(out->dtypes, sizeof out->dtypes, "a2f=%s f2a=%s", afd_dtype_name(wire.shape.a2f),
                     afd_dtype_name(wire.shape.f2a));
    assert(n > 0 && (size_t)n < sizeof out->dtypes);
    n = snprintf(
        out->layout, sizeof out->layout,
        "hidden=%u top_k=%u rows=%u slots=%u ep=%u tp=%u a2f_stride=%u f2a_stride=%u dispatch=%s layers=%u%s",
        wire.shape.hidden, wire.shape.top_k, wire.shape.max_rows, topology->pipeline.microbatches,
        topology->ffn.ep, topology->ffn.tp, wire.a2f_stride, wire.f2a_stride,
        topology->pipeline.dispatch == AFD_DISPATCH_ROUTED ? "routed" : "broadcast", model->layer_count,
        afd_topology_splits(topology) ? " rows=apart" : "");
    assert(n > 0 && (size_t)n < sizeof out->layout);
    n = snprintf(out->numerics, sizeof out->numerics, "%s", numerics);
    assert(n > 0 && (size_t)n < sizeof out->numerics);
}
