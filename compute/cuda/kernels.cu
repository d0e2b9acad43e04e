/* kernels.cu: the bodies of kernels.h on the GPU: a loop over the phases with a barrier between. Compiled
 * with -fmad=false, so that, as on the CPU, nothing is fused that the source does not fuse. */
#define _Static_assert static_assert
#include "compute/cuda/bodies.h"
#include "compute/cuda/launch.h"

#define X(name, threads, floats)                                                                             \
    static __global__ void __launch_bounds__(threads)                                                        \
        afd_kernel_##name(const __grid_constant__ struct afd_args_##name args, uint32_t phases)              \
    {                                                                                                        \
        __shared__ __align__(16) float shared[floats];                                                       \
        struct afd_own own = {0.0f};                                                                         \
        for (uint32_t phase = 0; phase < phases; phase++) {                                                  \
            struct afd_place at = {blockIdx.x, threadIdx.x, phase};                                          \
            afd_body_##name(&args, at, shared, &own);                                                        \
            __syncthreads();                                                                                 \
        }                                                                                                    \
    }
AFD_KERNELS(X)
#undef X

static __global__ void afd_kernel_flag(uint64_t *flag, uint64_t value)
{
    __threadfence_system();
    *(volatile uint64_t *)flag = value;
}

cudaError_t afd_cuda_launch(enum afd_kernel kernel, uint32_t blocks, uint32_t phases, const void *args,
                            cudaStream_t stream)
{
    switch (kernel) {
#define X(name, threads, floats)                                                                             \
    case AFD_KERNEL_##name:                                                                                  \
        afd_kernel_##name<<<blocks, threads, 0, stream>>>(*(const struct afd_args_##name *)args, phases);    \
        break;
        AFD_KERNELS(X)
#undef X
    default: /* those of kernels_ffn.h, then of kernels_proj.h */
        return (kernel < AFD_KERNEL_product_e4m3 ? afd_cuda_launch_ffn : afd_cuda_launch_proj)(
            kernel, blocks, phases, args, stream);
    }
    return cudaGetLastError();
}

cudaError_t afd_cuda_launch_flag(uint64_t *flag, uint64_t value, cudaStream_t stream)
{
    afd_kernel_flag<<<1, 1, 0, stream>>>(flag, value);
    return cudaGetLastError();
}
