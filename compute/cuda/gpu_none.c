/* gpu_none.c: gpu.h in a build without CUDA: no GPU can be opened, so nothing else is ever called. */
#include <assert.h>

#include "compute/cuda/gpu.h"

enum afd_status afd_gpu_open(uint32_t index, struct afd_gpu **out, struct afd_error *error_out)
{
    (void)index;
    *out = NULL;
    return afd_fail(error_out, AFD_ERR_CONFIG,
                    "device type cuda is not built in (cmake -DAFD_CUDA=ON); expected cpu or ref");
}

void afd_gpu_close(struct afd_gpu *gpu)
{
    assert(!gpu);
}

const char *afd_gpu_name(const struct afd_gpu *gpu)
{
    (void)gpu;
    return "none";
}

void afd_gpu_memory(struct afd_gpu *gpu, uint64_t *free_out, uint64_t *total_out)
{
    (void)gpu;
    *free_out = *total_out = 0;
}

void *afd_gpu_alloc(struct afd_gpu *gpu, uint64_t bytes)
{
    (void)gpu, (void)bytes;
    return NULL;
}

void afd_gpu_free(struct afd_gpu *gpu, void *memory)
{
    (void)gpu, (void)memory;
}

void *afd_gpu_alloc_host(struct afd_gpu *gpu, uint64_t bytes)
{
    (void)gpu, (void)bytes;
    return NULL;
}

void afd_gpu_free_host(struct afd_gpu *gpu, void *memory)
{
    (void)gpu, (void)memory;
}

enum afd_status afd_gpu_upload(struct afd_gpu *gpu, void *to, uint64_t to_pitch, const void *from,
                               uint64_t from_pitch, uint64_t row_bytes, uint64_t rows)
{
    (void)gpu, (void)to, (void)to_pitch, (void)from, (void)from_pitch, (void)row_bytes, (void)rows;
    return AFD_ERR_DEVICE;
}

enum afd_status afd_gpu_move(struct afd_gpu *gpu, void *to, const void *from, uint64_t bytes)
{
    (void)gpu, (void)to, (void)from, (void)bytes;
    return AFD_ERR_DEVICE;
}

enum afd_status afd_gpu_export(struct afd_gpu *gpu, void *memory, uint64_t bytes, int *dmabuf_fd_out,
                               struct afd_error *error_out)
{
    (void)gpu, (void)memory, (void)bytes;
    *dmabuf_fd_out = -1;
    return afd_fail(error_out, AFD_ERR_DEVICE, "this build has no CUDA");
}

enum afd_status afd_gpu_copy(struct afd_gpu *gpu, void *to, const void *from, uint64_t bytes)
{
    (void)gpu, (void)to, (void)from, (void)bytes;
    return AFD_ERR_DEVICE;
}

enum afd_status afd_gpu_launch(struct afd_gpu *gpu, enum afd_kernel kernel, uint32_t blocks, uint32_t phases,
                               const void *args)
{
    (void)gpu, (void)kernel, (void)blocks, (void)phases, (void)args;
    return AFD_ERR_DEVICE;
}

uint32_t afd_gpu_shared_bytes(const struct afd_gpu *gpu)
{
    (void)gpu;
    return 0;
}

int afd_gpu_has_groups(const struct afd_gpu *gpu)
{
    (void)gpu;
    return 0;
}

enum afd_status afd_gpu_flash(struct afd_gpu *gpu, enum afd_flash_kernel kernel, uint32_t blocks,
                              uint32_t shared_bytes, const struct afd_args_flash *args)
{
    (void)gpu, (void)kernel, (void)blocks, (void)shared_bytes, (void)args;
    return AFD_ERR_DEVICE;
}

enum afd_status afd_gpu_mark(struct afd_gpu *gpu, uint64_t value)
{
    (void)gpu, (void)value;
    return AFD_ERR_DEVICE;
}

enum afd_status afd_gpu_reached(struct afd_gpu *gpu, uint32_t stream, uint64_t value)
{
    (void)gpu, (void)stream, (void)value;
    return AFD_ERR_DEVICE;
}

void afd_gpu_use(struct afd_gpu *gpu, uint32_t stream)
{
    (void)gpu, (void)stream;
}

void afd_gpu_record(struct afd_gpu *gpu)
{
    (void)gpu;
}

enum afd_status afd_gpu_replay(struct afd_gpu *gpu, struct afd_gpu_graph **graph)
{
    (void)gpu, (void)graph;
    return AFD_ERR_DEVICE;
}

struct afd_gpu_graph_counts afd_gpu_graph_counts(const struct afd_gpu *gpu)
{
    (void)gpu;
    return (struct afd_gpu_graph_counts){0};
}

void afd_gpu_graph_free(struct afd_gpu *gpu, struct afd_gpu_graph *graph)
{
    (void)gpu, (void)graph;
}
