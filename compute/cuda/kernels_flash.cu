/* kernels_flash.cu: the bodies of bodies_flash.h and bodies_flash_team.h on the GPU. As kernels.cu. */
#define _Static_assert static_assert
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "compute/cuda/bodies_flash.h"
#else
#define AFD_HAS_TEAMS
#include "compute/cuda/bodies_flash_team.h"
#endif
#include "compute/cuda/launch.h"

#define X(name, tiles)                                                                                       \
    static __global__ void __launch_bounds__(32 * AFD_FLASH_WARPS, (tiles) == 8 ? 2 : 1)                     \
        afd_kernel_##name(const __grid_constant__ struct afd_args_flash args)                                \
    {                                                                                                        \
        extern __shared__ __align__(AFD_TILE_ALIGN) unsigned char shared[];                                  \
        struct afd_flash_warp own[AFD_FLASH_HELD];                                                           \
        struct afd_mma_c o[tiles];                                                                           \
        afd_flash_run(&args, blockIdx.x, shared, 0, own, o, tiles);                                          \
    }
AFD_FLASH_KERNELS(X)
#undef X

/* Elsewhere than on sm_90a there is nothing to run, and nobody runs it (arch.h). */
#define X(name, tiles, is_fp8)                                                                               \
    static __global__ void __launch_bounds__(32 * AFD_FLASH_WARPS, 1)                                        \
        afd_kernel_##name(const __grid_constant__ struct afd_args_flash args)                                \
    {                                                                                                        \
        AFD_FLASH_TEAMS(tiles, is_fp8)                                                                       \
    }
#ifndef AFD_HAS_TEAMS
#define AFD_FLASH_TEAMS(tiles, is_fp8) __trap();
#else
#define AFD_FLASH_TEAMS(tiles, is_fp8)                                                                       \
    extern __shared__ __align__(AFD_TILE_ALIGN)                                                              \
    unsigned char shared[];                                                                                  \
    struct afd_flash_team_warp own[AFD_FLASH_HELD];                                                          \
    struct afd_mma_c o[tiles];                                                                               \
    afd_flash_team_run(&args, blockIdx.x, shared, 0, own, o, tiles, is_fp8);
#endif
AFD_FLASH_TEAM_KERNELS(X)
#undef X

cudaError_t afd_cuda_flash_prepare(uint32_t shared_bytes)
{
    cudaError_t error = cudaSuccess;
#define X(name, ...)                                                                                         \
    if (!error)                                                                                              \
        error = cudaFuncSetAttribute(afd_kernel_##name, cudaFuncAttributeMaxDynamicSharedMemorySize,         \
                                     (int)shared_bytes);
    AFD_FLASH_KERNELS(X)
    AFD_FLASH_TEAM_KERNELS(X)
#undef X
    return error;
}

cudaError_t afd_cuda_launch_flash(enum afd_flash_kernel kernel, uint32_t blocks, uint32_t shared_bytes,
                                  const struct afd_args_flash *args, cudaStream_t stream)
{
    switch (kernel) {
#define X(name, ...)                                                                                         \
    case AFD_FLASH_##name:                                                                                   \
        afd_kernel_##name<<<blocks, 32 * AFD_FLASH_WARPS, shared_bytes, stream>>>(*args);                    \
        break;
        AFD_FLASH_KERNELS(X)
        AFD_FLASH_TEAM_KERNELS(X)
#undef X
    default:
        return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}
