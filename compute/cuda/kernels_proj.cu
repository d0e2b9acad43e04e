/* kernels_proj.cu: the bodies of kernels_proj.h on the GPU. Compiled as kernels.cu. */
#define _Static_assert static_assert
#include "compute/cuda/bodies_proj.h"
#include "compute/cuda/bodies_route.h"
#include "compute/cuda/launch.h"

#define AFD_WARP_KERNELS AFD_PROJ_KERNELS
#define AFD_WARP_PREPARE afd_cuda_prepare_proj
#define AFD_WARP_LAUNCH afd_cuda_launch_proj
#include "compute/cuda/warp_kernels.h"
