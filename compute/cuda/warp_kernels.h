/* warp_kernels.h: makes GPU kernels of the bodies of a list: a warp's body for each warp, a loop over the
 * phases with a barrier between. Included by a .cu file, which defines AFD_WARP_KERNELS, its list, and
 * AFD_WARP_PREPARE and AFD_WARP_LAUNCH, the functions of launch.h. */
#define X(name, warps, bytes, own_type)                                                                      \
    static __global__ void __launch_bounds__((warps)*32, 1)                                                  \
        afd_kernel_##name(const __grid_constant__ struct afd_args_##name args, uint32_t phases)              \
    {                                                                                                        \
        extern __shared__ __align__(AFD_TILE_ALIGN) unsigned char shared[];                                  \
        own_type own;                                                                                        \
        for (uint32_t phase = 0; phase < phases; phase++) {                                                  \
            struct afd_warp_place at = {blockIdx.x, threadIdx.x / 32, phase};                                \
            afd_body_##name(&args, at, shared, &own);                                                        \
            __syncthreads();                                                                                 \
        }                                                                                                    \
    }
AFD_WARP_KERNELS(X)
#undef X

/* What the kernel takes, or all that there is: then it was compiled with a stage less. */
static int shared_bytes(int bytes)
{
    int device = 0, most = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return bytes < most ? bytes : most;
}

cudaError_t AFD_WARP_PREPARE(void)
{
    cudaError_t error = cudaSuccess;
#define X(name, warps, bytes, own_type)                                                                      \
    if (!error)                                                                                              \
        error = cudaFuncSetAttribute((const void *)afd_kernel_##name,                                        \
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes(bytes));
    AFD_WARP_KERNELS(X)
#undef X
    return error;
}

cudaError_t AFD_WARP_LAUNCH(enum afd_kernel kernel, uint32_t blocks, uint32_t phases, const void *args,
                            cudaStream_t stream)
{
    switch (kernel) {
#define X(name, warps, bytes, own_type)                                                                      \
    case AFD_KERNEL_##name:                                                                                  \
        afd_kernel_##name<<<blocks, (warps)*32, shared_bytes(bytes), stream>>>(                              \
            *(const struct afd_args_##name *)args, phases);                                                  \
        break;
        AFD_WARP_KERNELS(X)
#undef X
    default:
        return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}
