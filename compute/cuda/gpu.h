/* gpu.h: one GPU: memory, copies and kernels on streams, graphs of kernels, and a flag a stream that says how
 * far it came.
 *
 * A gpu belongs to one device (compute.h). What is put on a stream runs in that order, beside the other
 * streams; nothing here waits for a stream but afd_gpu_upload and close. The device's thread calls; upload
 * and the allocations may be called by the loader's thread beside it. A failure of the GPU is sticky: what
 * follows fails with AFD_ERR_DEVICE. gpu_cuda.c does it with the CUDA runtime; gpu_none.c stands in a build
 * without; tests/compute/emulated_gpu.c runs the same kernels on the CPU. */
#ifndef AFD_COMPUTE_CUDA_GPU_H
#define AFD_COMPUTE_CUDA_GPU_H

#include "base/error.h"
#include "compute/cuda/flash.h"

enum { AFD_GPU_STREAMS = AFD_MAX_SLOTS };

struct afd_gpu;

/* The n-th GPU that the process sees, by PCI address, counted over and over (as deploy/nic.h). AFD_ERR_DEVICE
 * with words: none is there, or it is not what the kernels were compiled for. */
enum afd_status afd_gpu_open(uint32_t index, struct afd_gpu **out, struct afd_error *error_out);
void afd_gpu_close(struct afd_gpu *gpu); /* waits for the streams; frees its memory; NULL is allowed */

const char *afd_gpu_name(const struct afd_gpu *gpu); /* "NVIDIA H200, sm_90" */
void afd_gpu_memory(struct afd_gpu *gpu, uint64_t *free_out, uint64_t *total_out);

/* Zeroed; NULL: none left. The GPU's own memory is not readable by the CPU. Host memory is pinned and has the
 * same address on both sides, and begins a page. */
void *afd_gpu_alloc(struct afd_gpu *gpu, uint64_t bytes);
void afd_gpu_free(struct afd_gpu *gpu, void *memory);
void *afd_gpu_alloc_host(struct afd_gpu *gpu, uint64_t bytes);
void afd_gpu_free_host(struct afd_gpu *gpu, void *memory);

/* `rows` rows from the CPU's memory to the GPU's, at once; blocks. */
enum afd_status afd_gpu_upload(struct afd_gpu *gpu, void *to, uint64_t to_pitch, const void *from,
                               uint64_t from_pitch, uint64_t row_bytes, uint64_t rows);
/* Within the GPU's memory and pinned memory, at once; blocks. */
enum afd_status afd_gpu_move(struct afd_gpu *gpu, void *to, const void *from, uint64_t bytes);
/* Memory of afd_gpu_alloc for writes by a network adapter, which kernels that are launched later see: a
 * dma-buf of it, or -1 where the driver gives none: the adapter's may find it by address. AFD_ERR_REFUSED
 * with words: this GPU takes no such writes, or not in order. */
enum afd_status afd_gpu_export(struct afd_gpu *gpu, void *memory, uint64_t bytes, int *dmabuf_fd_out,
                               struct afd_error *error_out);
/* What follows is put on this stream, < AFD_GPU_STREAMS; 0 at open. */
void afd_gpu_use(struct afd_gpu *gpu, uint32_t stream);

/* In the stream's order, either way; host memory is pinned, and stays as it is until the copy was made. */
enum afd_status afd_gpu_copy(struct afd_gpu *gpu, void *to, const void *from, uint64_t bytes);

/* The kernel's body runs for every block, thread (kernels_ffn.h: warp) and phase; threads of a block are one
 * phase apart at most. */
enum afd_status afd_gpu_launch(struct afd_gpu *gpu, enum afd_kernel kernel, uint32_t blocks, uint32_t phases,
                               const void *args);

/* Attention's blocks (flash.h), the most shared memory that one may take, and whether the GPU, and the build,
 * has products by warpgroups. */
uint32_t afd_gpu_shared_bytes(const struct afd_gpu *gpu);
int afd_gpu_has_groups(const struct afd_gpu *gpu);
enum afd_status afd_gpu_flash(struct afd_gpu *gpu, enum afd_flash_kernel kernel, uint32_t blocks,
                              uint32_t shared_bytes, const struct afd_args_flash *args);

/* Kernels between the two become one graph, and are launched as that: kept in *graph (NULL at first), it is
 * launched again as it is where they and their arguments are the same as the last time, and brought up to
 * date else. Where graphs cannot be made (told once) they are launched one by one. Copies and marks are not
 * between. NULL in place of `graph`: what was recorded is forgotten. */
struct afd_gpu_graph;
void afd_gpu_record(struct afd_gpu *gpu);
enum afd_status afd_gpu_replay(struct afd_gpu *gpu, struct afd_gpu_graph **graph);
/* Those launched, and those of them that had to be made or brought up to date. */
struct afd_gpu_graph_counts {
    uint64_t launched, captured;
};
struct afd_gpu_graph_counts afd_gpu_graph_counts(const struct afd_gpu *gpu);
void afd_gpu_graph_free(struct afd_gpu *gpu, struct afd_gpu_graph *graph); /* NULL is allowed */

/* After everything that was put on the stream so far, its flag has this value; values grow. */
enum afd_status afd_gpu_mark(struct afd_gpu *gpu, uint64_t value);
/* Looks at a stream's flag: AFD_PENDING: it has not this value yet; AFD_ERR_DEVICE: the GPU has failed. */
enum afd_status afd_gpu_reached(struct afd_gpu *gpu, uint32_t stream, uint64_t value);
/* Polls until it has, or the GPU has failed. */
static inline enum afd_status afd_gpu_wait(struct afd_gpu *gpu, uint32_t stream, uint64_t value)
{
    enum afd_status status;
    do status = afd_gpu_reached(gpu, stream, value);
    while (status == AFD_PENDING);
    return status;
}

#endif
