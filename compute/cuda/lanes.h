/* lanes.h: rows by warps: eight channels a lane, so that sixteen lanes have a group of 128 with one scale. */
#ifndef AFD_COMPUTE_CUDA_LANES_H
#define AFD_COMPUTE_CUDA_LANES_H

#include <math.h>

#include "base/half.h"
#include "compute/cuda/mma.h"
#include "proto/wire.h"

enum { AFD_LANE_CHANNELS = 8, AFD_WARP_CHANNELS = 32 * AFD_LANE_CHANNELS };

/* x of every lane becomes the sum over all 32, or the largest of the lane's group of 16. */
AFD_DEVICE void afd_warp_sum(float x[AFD_WARP_SLOTS])
{
    for (uint32_t mask = 16; mask; mask /= 2) {
        float other[AFD_WARP_SLOTS];
        afd_lane_xor(x, mask, other);
        AFD_EACH_SLOT(s) x[s] = x[s] + other[s];
    }
}

AFD_DEVICE void afd_group_max(float x[AFD_WARP_SLOTS])
{
    for (uint32_t mask = 1; mask < 16; mask *= 2) {
        float other[AFD_WARP_SLOTS];
        afd_lane_xor(x, mask, other);
        AFD_EACH_SLOT(s) x[s] = other[s] > x[s] ? other[s] : x[s];
    }
}

/* Eight channels to bf16, on 16 bytes. */
AFD_DEVICE void afd_lane_to_bf16(void *to, const float *x)
{
    uint32_t words[4] __attribute__((aligned(16)));
    AFD_UNROLL
    for (uint32_t i = 0; i < 4; i++)
        words[i] = afd_float_to_bf16(x[2 * i]) | (uint32_t)afd_float_to_bf16(x[2 * i + 1]) << 16;
    afd_copy16(to, words);
}

/* A warp's 256 channels from `begin` on to e4m3: scale = max(|x|, 1e-4) / 448 for each 128. `row` has `bytes`
 * bytes, a multiple of 8; x is zero behind the row's end. scale: of the row's first group, the next ones
 * `pitch` floats on. */
AFD_DEVICE void afd_warp_to_e4m3(float x[AFD_WARP_SLOTS][AFD_LANE_CHANNELS], uint32_t begin,
                                 unsigned char *row, uint32_t bytes, float *scale, uint32_t pitch)
{
    float max[AFD_WARP_SLOTS];
    AFD_EACH_SLOT(s)
    {
        max[s] = 1e-4f;
        AFD_UNROLL
        for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++)
            max[s] = fabsf(x[s][i]) > max[s] ? fabsf(x[s][i]) : max[s];
    }
    afd_group_max(max);
    AFD_EACH_LANE(lane, s)
    {
        uint32_t channel = begin + AFD_LANE_CHANNELS * lane;
        float one = max[s] / 448.0f;
        uint64_t word = 0;
        if (channel >= bytes) continue;
        AFD_UNROLL
        for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++)
            word |= (uint64_t)afd_float_to_e4m3(x[s][i] / one) << 8 * i;
        *(uint64_t *)(void *)(row + channel) = word;
        if (lane % 16 == 0) scale[(uint64_t)(channel / AFD_FP8_GROUP) * pitch] = one;
    }
}

#endif
