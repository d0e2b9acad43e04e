/* kernels_ffn.cu: the bodies of kernels_ffn.h on the GPU. Compiled as kernels.cu. */
#define _Static_assert static_assert
#include "compute/cuda/bodies_ffn.h"
#include "compute/cuda/launch.h"

#define AFD_WARP_KERNELS AFD_FFN_KERNELS
#define AFD_WARP_PREPARE afd_cuda_prepare_ffn
#define AFD_WARP_LAUNCH afd_cuda_launch_ffn
#include "compute/cuda/warp_kernels.h"
