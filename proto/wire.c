#include "proto/wire.h"

#include <assert.h>

static uint32_t align_up(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

uint32_t afd_dtype_bytes(enum afd_dtype dtype)
{
    static const uint8_t bytes[AFD_DTYPE_COUNT] = {4, 2, 2, 1};
    assert(dtype < AFD_DTYPE_COUNT);
    return bytes[dtype];
}

const char *afd_dtype_name(enum afd_dtype dtype)
{
    static const char *const names[AFD_DTYPE_COUNT] = {"f32", "bf16", "f16", "fp8"};
    return dtype < AFD_DTYPE_COUNT ? names[dtype] : "unknown";
}

struct afd_wire_layout afd_wire_layout_of(struct afd_wire_shape shape)
{
    struct afd_wire_layout l = {.shape = shape};
    uint32_t at = align_up(shape.hidden * afd_dtype_bytes(shape.a2f), 4);
    l.scale_offset = at;
    if (shape.a2f == AFD_FP8) at += (shape.hidden + AFD_FP8_GROUP - 1) / AFD_FP8_GROUP * 4;
    l.position_offset = at;
    l.turn_offset = at + 4;
    l.weight_offset = at + 8;
    l.expert_offset = l.weight_offset + shape.top_k * 4;
    l.a2f_stride = align_up(l.expert_offset + shape.top_k * 2, AFD_WIRE_ALIGN);
    l.f2a_stride = align_up(shape.hidden * afd_dtype_bytes(shape.f2a), AFD_WIRE_ALIGN);
    l.a2f_region_bytes = sizeof(struct afd_a2f_header) + (uint64_t)l.a2f_stride * shape.max_rows;
    l.f2a_region_bytes = sizeof(struct afd_f2a_header) + (uint64_t)l.f2a_stride * shape.max_rows;
    return l;
}
