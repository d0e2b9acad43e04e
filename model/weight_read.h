/* weight_read.h: elements of a weight as float32, whatever it is stored as. Pure functions over the mapping
 * that a view points into; any thread. */
#ifndef AFD_MODEL_WEIGHT_READ_H
#define AFD_MODEL_WEIGHT_READ_H

#include "model/weights.h"

float afd_narrow_at(const void *data, enum afd_dtype dtype, uint64_t index);
void afd_narrow_put(void *data, enum afd_dtype dtype, uint64_t index, float value); /* RNE; fp8 saturates */

/* Of the block `index` scales behind that of element (0, 0). */
static inline float afd_weight_scale(const struct afd_weight_view *view, uint64_t index)
{
    if (view->scale_dtype == AFD_F32) return ((const float *)view->scale)[index];
    return afd_narrow_at(view->scale, view->scale_dtype, index);
}

/* Elements column .. column + n - 1 of a row as they are stored: without their fp8 block's scale. Not for
 * int4 of AWQ and GPTQ. */
void afd_weight_read(const struct afd_weight_view *view, uint32_t row, uint32_t column, uint32_t n,
                     float *out);
/* The same elements as the numbers that they stand for, of every format. */
void afd_weight_values(const struct afd_weight_view *view, uint32_t row, uint32_t column, uint32_t n,
                       float *out);

#endif
