#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "compute/cuda/arch.h"
#include "compute/cuda/gpu.h"
#include "compute/cuda/launch.h"

enum { POLLS_A_LOOK = 4096 }; /* between two questions whether the GPU has failed */

struct afd_gpu {
    int index;
    char name[300];
    int shared_bytes; /* that one block may take */
    cudaStream_t stream;
    _Atomic uint64_t *flag; /* pinned; the GPU writes it */
    _Atomic int has_failed;
};

/* The first failure is logged; what follows only fails. */
static enum afd_status check(struct afd_gpu *g, cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return atomic_load(&g->has_failed) ? AFD_ERR_DEVICE : AFD_OK;
    if (!atomic_exchange(&g->has_failed, 1))
        afd_log_error("%s: %s: %s; this rank's device is lost", g->name, what, cudaGetErrorString(error));
    return AFD_ERR_DEVICE;
}

static enum afd_status describe(struct afd_gpu *g, struct afd_error *error_out)
{
    struct cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, g->index);
    if (error) return afd_fail(error_out, AFD_ERR_DEVICE, "GPU %d: %s", g->index, cudaGetErrorString(error));
    snprintf(g->name, sizeof g->name, "%s, sm_%d%d", p.name, p.major, p.minor);
    if (afd_cuda_arch_runs(AFD_CUDA_ARCHES, p.major, p.minor)) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_DEVICE,
                    "GPU %d is a %s; expected one that runs code for sm_" AFD_CUDA_ARCHES
                    " (cmake -DAFD_CUDA_ARCH says what is compiled)",
                    g->index, g->name);
}

static enum afd_status make_stream(struct afd_gpu *g, struct afd_error *error_out)
{
    cudaError_t error = cudaSetDevice(g->index);
    if (!error) error = cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking);
    if (!error)
        error = cudaDeviceGetAttribute(&g->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, g->index);
    if (!error) error = afd_cuda_flash_prepare((uint32_t)g->shared_bytes);
    if (!error) error = cudaHostAlloc((void **)&g->flag, sizeof *g->flag, cudaHostAllocMapped);
    if (!error) error = afd_cuda_prepare_ffn();
    if (!error) error = afd_cuda_prepare_proj();
    if (error) return afd_fail(error_out, AFD_ERR_DEVICE, "%s: %s", g->name, cudaGetErrorString(error));
    atomic_init(g->flag, 0);
    return AFD_OK;
}

enum afd_status afd_gpu_open(uint32_t index, struct afd_gpu **out, struct afd_error *error_out)
{
    int count = 0;
    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 0); /* read by the runtime's first call */
    cudaError_t error = cudaGetDeviceCount(&count);
    *out = NULL;
    if (error || !count)
        return afd_fail(error_out, AFD_ERR_DEVICE, "this process sees no GPU%s%s", error ? ": " : "",
                        error ? cudaGetErrorString(error) : "");
    struct afd_gpu *g = calloc(1, sizeof *g);
    if (!g) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a GPU");
    g->index = (int)(index % (uint32_t)count);
    enum afd_status status = describe(g, error_out);
    if (!status) status = make_stream(g, error_out);
    if (!status) {
        *out = g;
        return AFD_OK;
    }
    afd_gpu_close(g);
    return status;
}

void afd_gpu_close(struct afd_gpu *g)
{
    if (!g) return;
    cudaSetDevice(g->index);
    if (g->stream) {
        cudaStreamSynchronize(g->stream);
        cudaStreamDestroy(g->stream);
    }
    if (g->flag) cudaFreeHost((void *)g->flag);
    free(g);
}

const char *afd_gpu_name(const struct afd_gpu *g)
{
    return g->name;
}

void afd_gpu_memory(struct afd_gpu *g, uint64_t *free_out, uint64_t *total_out)
{
    size_t free_bytes = 0, total = 0;
    cudaSetDevice(g->index);
    check(g, cudaMemGetInfo(&free_bytes, &total), "memory");
    *free_out = free_bytes;
    *total_out = total;
}

void *afd_gpu_alloc(struct afd_gpu *g, uint64_t bytes)
{
    void *memory = NULL;
    cudaSetDevice(g->index);
    if (cudaMalloc(&memory, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError(); /* too little memory is an answer, not a failure */
        return NULL;
    }
    if (!check(g, cudaMemset(memory, 0, bytes), "memset")) return memory;
    cudaFree(memory);
    return NULL;
}

void afd_gpu_free(struct afd_gpu *g, void *memory)
{
    cudaSetDevice(g->index);
    if (memory) check(g, cudaFree(memory), "free");
}

void *afd_gpu_alloc_host(struct afd_gpu *g, uint64_t bytes)
{
    void *memory = NULL;
    cudaSetDevice(g->index);
    if (cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    return memset(memory, 0, bytes);
}

void afd_gpu_free_host(struct afd_gpu *g, void *memory)
{
    cudaSetDevice(g->index);
    if (memory) check(g, cudaFreeHost(memory), "free");
}

enum afd_status afd_gpu_upload(struct afd_gpu *g, void *to, uint64_t to_pitch, const void *from,
                               uint64_t from_pitch, uint64_t row_bytes, uint64_t rows)
{
    cudaSetDevice(g->index);
    return check(g, cudaMemcpy2D(to, to_pitch, from, from_pitch, row_bytes, rows, cudaMemcpyHostToDevice),
                 "upload");
}

enum afd_status afd_gpu_copy(struct afd_gpu *g, void *to, const void *from, uint64_t bytes)
{
    cudaSetDevice(g->index);
    return check(g, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, g->stream), "copy");
}

enum afd_status afd_gpu_launch(struct afd_gpu *g, enum afd_kernel kernel, uint32_t blocks, uint32_t phases,
                               const void *args)
{
    static const char *const names[] = {
#define X(name, ...) #name,
        AFD_KERNELS(X) AFD_FFN_KERNEL_NAMES(X) AFD_PROJ_KERNEL_NAMES(X)
#undef X
    };
    if (!blocks || !phases) return AFD_OK;
    cudaSetDevice(g->index);
    return check(g, afd_cuda_launch(kernel, blocks, phases, args, g->stream), names[kernel]);
}

uint32_t afd_gpu_shared_bytes(const struct afd_gpu *g)
{
    return (uint32_t)g->shared_bytes;
}

enum afd_status afd_gpu_flash(struct afd_gpu *g, enum afd_flash_kernel kernel, uint32_t blocks,
                              uint32_t shared_bytes, const struct afd_args_flash *args)
{
    if (!blocks) return AFD_OK;
    cudaSetDevice(g->index);
    return check(g, afd_cuda_launch_flash(kernel, blocks, shared_bytes, args, g->stream), "flash");
}

enum afd_status afd_gpu_mark(struct afd_gpu *g, uint64_t value)
{
    cudaSetDevice(g->index);
    return check(g, afd_cuda_launch_flag((uint64_t *)(void *)g->flag, value, g->stream), "flag");
}

enum afd_status afd_gpu_wait(struct afd_gpu *g, uint64_t value)
{
    for (uint32_t polls = 1; atomic_load_explicit(g->flag, memory_order_acquire) < value; polls++) {
        if (polls % POLLS_A_LOOK) continue;
        cudaError_t error = cudaStreamQuery(g->stream);
        if (error != cudaErrorNotReady && check(g, error, "wait")) return AFD_ERR_DEVICE;
    }
    return atomic_load(&g->has_failed) ? AFD_ERR_DEVICE : AFD_OK;
}
