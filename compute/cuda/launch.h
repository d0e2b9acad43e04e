/* launch.h: what the .cu files give to gpu_cuda.c. Everything is put on `stream` and returns at once. */
#ifndef AFD_COMPUTE_CUDA_LAUNCH_H
#define AFD_COMPUTE_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include "compute/cuda/flash.h"

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t afd_cuda_launch(enum afd_kernel kernel, uint32_t blocks, uint32_t phases, const void *args,
                            cudaStream_t stream);
/* The kernels of kernels_ffn.h and of kernels_proj.h; once a device, before the first of them: prepare. */
cudaError_t afd_cuda_prepare_ffn(void);
cudaError_t afd_cuda_launch_ffn(enum afd_kernel kernel, uint32_t blocks, uint32_t phases, const void *args,
                                cudaStream_t stream);
cudaError_t afd_cuda_prepare_proj(void);
cudaError_t afd_cuda_launch_proj(enum afd_kernel kernel, uint32_t blocks, uint32_t phases, const void *args,
                                 cudaStream_t stream);
/* Writes the value to pinned memory, after all that the stream did before is visible there. */
cudaError_t afd_cuda_launch_flag(uint64_t *flag, uint64_t value, cudaStream_t stream);

/* At open: blocks of flash.h may take so much shared memory. */
cudaError_t afd_cuda_flash_prepare(uint32_t shared_bytes);
cudaError_t afd_cuda_launch_flash(enum afd_flash_kernel kernel, uint32_t blocks, uint32_t shared_bytes,
                                  const struct afd_args_flash *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
