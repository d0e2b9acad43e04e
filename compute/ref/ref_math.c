#include <math.h>

#include "compute/math.h"
#include "compute/ref/ref.h"

float afd_ref_fold(float lanes[AFD_LANES])
{
    for (uint32_t width = AFD_LANES / 2; width; width /= 2)
        for (uint32_t i = 0; i < width; i++) lanes[i] = lanes[i] + lanes[i + width];
    return lanes[0];
}

float afd_ref_dot(const float *a, const float *b, uint32_t n)
{
    float sum = 0.0f;
    for (uint32_t begin = 0; begin < n; begin += AFD_DOT_BLOCK) {
        float lanes[AFD_LANES] = {0};
        uint32_t end = begin + AFD_DOT_BLOCK < n ? begin + AFD_DOT_BLOCK : n;
        for (uint32_t k = begin; k < begin + afd_pitch(end - begin); k++) /* to whole vectors, with zeros */
            lanes[k % AFD_LANES] = fmaf(k < end ? a[k] : 0.0f, k < end ? b[k] : 0.0f, lanes[k % AFD_LANES]);
        sum = sum + afd_ref_fold(lanes);
    }
    return sum;
}

float afd_ref_sum(const float *x, uint32_t n)
{
    float sum = 0.0f;
    for (uint32_t begin = 0; begin < n; begin += AFD_DOT_BLOCK) {
        float lanes[AFD_LANES] = {0};
        for (uint32_t k = begin; k < n && k < begin + AFD_DOT_BLOCK; k++)
            lanes[k % AFD_LANES] = lanes[k % AFD_LANES] + x[k];
        sum = sum + afd_ref_fold(lanes);
    }
    return sum;
}

void afd_ref_matvec(const struct afd_weight_view *w, const float *x, float *y)
{
    float weights[AFD_DOT_BLOCK];
    for (uint32_t r = 0; r < w->rows; r++) {
        y[r] = 0.0f;
        for (uint32_t begin = 0; begin < w->columns; begin += AFD_DOT_BLOCK) {
            uint32_t n = w->columns - begin < AFD_DOT_BLOCK ? w->columns - begin : AFD_DOT_BLOCK;
            float block = 0.0f;
            afd_weight_read(w, r, begin, n, weights);
            for (uint32_t k = 0; k < n; k++) block = fmaf(x[begin + k], weights[k], block);
            if (w->block)
                block = afd_weight_scale(w, r / w->block * w->scale_pitch + begin / AFD_DOT_BLOCK) * block;
            y[r] = y[r] + block;
        }
    }
}

void afd_ref_rmsnorm(const float *x, const float *weight, uint32_t n, float eps, float *y)
{
    float inv = 1.0f / sqrtf(afd_ref_dot(x, x, n) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++) y[i] = (x[i] * inv) * weight[i];
}

void afd_ref_rope(float *x, const float *table, uint32_t dim)
{
    uint32_t half = dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half], c = table[i], s = table[half + i];
        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

float afd_ref_softmax_terms(const float *x, uint32_t n, float max, float temperature, float *terms_out)
{
    float sum = 0.0f;
    for (uint32_t begin = 0; begin < n; begin += AFD_DOT_BLOCK) {
        float lanes[AFD_LANES] = {0};
        for (uint32_t i = begin; i < n && i < begin + AFD_DOT_BLOCK; i++) {
            float term = afd_exp((x[i] - max) / temperature);
            lanes[i % AFD_LANES] = lanes[i % AFD_LANES] + term;
            if (terms_out) terms_out[i] = term;
        }
        sum = sum + afd_ref_fold(lanes);
    }
    return sum;
}
