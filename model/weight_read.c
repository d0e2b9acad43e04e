#include "model/weight_read.h"

#include <string.h>

#include "base/half.h"

float afd_narrow_at(const void *data, enum afd_dtype dtype, uint64_t index)
{
    const char *at = (const char *)data + index * afd_dtype_bytes(dtype);
    uint32_t u32;
    uint16_t u16;
    switch (dtype) { /* memcpy: a checkpoint's rows may be aligned to less than the element */
    case AFD_BF16:
        memcpy(&u16, at, sizeof u16);
        return afd_bf16_to_float(u16);
    case AFD_F16:
        memcpy(&u16, at, sizeof u16);
        return afd_f16_to_float(u16);
    case AFD_FP8:
        return afd_e4m3_to_float(*(const uint8_t *)at);
    default:
        memcpy(&u32, at, sizeof u32);
        return afd_bits_float(u32);
    }
}

void afd_narrow_put(void *data, enum afd_dtype dtype, uint64_t index, float value)
{
    char *at = (char *)data + index * afd_dtype_bytes(dtype);
    uint16_t u16;
    switch (dtype) {
    case AFD_BF16:
        u16 = afd_float_to_bf16(value), memcpy(at, &u16, sizeof u16);
        return;
    case AFD_F16:
        u16 = afd_float_to_f16(value), memcpy(at, &u16, sizeof u16);
        return;
    case AFD_FP8:
        *(uint8_t *)at = afd_float_to_e4m3(value);
        return;
    default:
        memcpy(at, &value, sizeof value);
        return;
    }
}

void afd_weight_read(const struct afd_weight_view *view, uint32_t row, uint32_t column, uint32_t n,
                     float *out)
{
    for (uint32_t i = 0; i < n; i++) {
        uint64_t r = view->transposed ? column + i : row, c = view->transposed ? row : column + i;
        const char *stored = (const char *)view->data + r * view->row_bytes;
        if (view->quant) {
            uint32_t count = view->transposed ? 1 : n;
            afd_quant_read(view->quant, stored, c, count, out + i);
            i += count - 1;
        } else {
            out[i] = afd_narrow_at(stored, view->dtype, c);
        }
    }
}

void afd_weight_values(const struct afd_weight_view *view, uint32_t row, uint32_t column, uint32_t n,
                       float *out)
{
    if (view->int4.kind) {
        afd_int4_read(&view->int4, row, column, n, out);
        return;
    }
    afd_weight_read(view, row, column, n, out);
    for (uint32_t i = 0; view->block && i < n; i++) {
        uint32_t r = view->transposed ? column + i : row, c = view->transposed ? row : column + i;
        uint64_t at = (view->block_row + r) / view->block * view->scale_pitch + c / view->block;
        out[i] = out[i] * afd_weight_scale(view, at);
    }
}
