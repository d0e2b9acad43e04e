#include <cuda.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "compute/cuda/arch.h"
#include "compute/cuda/gpu.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/launches.h"

enum { POLLS_A_LOOK = 4096 }; /* between two questions whether the GPU has failed */

struct afd_gpu {
    int index;
    char name[300];
    int shared_bytes; /* that one block may take */
    int has_groups;
    cudaStream_t streams[AFD_GPU_STREAMS], stream; /* stream: what is put now goes there */
    _Atomic uint64_t *flags;                       /* [streams], pinned; the GPU writes them */
    uint32_t polls, stream_index;
    int is_recording, has_no_graphs;
    struct afd_launches recorded;
    struct afd_gpu_graph_counts graphs;
    _Atomic int has_failed;
};

struct afd_gpu_graph {
    cudaGraphExec_t exec;
    struct afd_launches made_of;
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
    g->has_groups = afd_cuda_arch_has_groups(AFD_CUDA_ARCHES, p.major, p.minor);
    if (afd_cuda_arch_runs(AFD_CUDA_ARCHES, p.major, p.minor)) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_DEVICE,
                    "GPU %d is a %s; expected one that runs code for sm_" AFD_CUDA_ARCHES
                    " (cmake -DAFD_CUDA_ARCH says what is compiled)",
                    g->index, g->name);
}

static enum afd_status make_streams(struct afd_gpu *g, struct afd_error *error_out)
{
    cudaError_t error = cudaSetDevice(g->index);
    for (uint32_t s = 0; s < AFD_GPU_STREAMS && !error; s++)
        error = cudaStreamCreateWithFlags(&g->streams[s], cudaStreamNonBlocking);
    if (!error)
        error = cudaDeviceGetAttribute(&g->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, g->index);
    if (!error) error = afd_cuda_flash_prepare((uint32_t)g->shared_bytes);
    if (!error)
        error = cudaHostAlloc((void **)&g->flags, AFD_GPU_STREAMS * sizeof *g->flags, cudaHostAllocMapped);
    if (!error) error = afd_cuda_prepare_ffn();
    if (!error) error = afd_cuda_prepare_proj();
    if (error) return afd_fail(error_out, AFD_ERR_DEVICE, "%s: %s", g->name, cudaGetErrorString(error));
    for (uint32_t s = 0; s < AFD_GPU_STREAMS; s++) atomic_init(&g->flags[s], 0);
    g->stream = g->streams[0];
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
    if (!status) status = make_streams(g, error_out);
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
    for (uint32_t s = 0; s < AFD_GPU_STREAMS; s++) {
        if (!g->streams[s]) continue;
        cudaStreamSynchronize(g->streams[s]);
        cudaStreamDestroy(g->streams[s]);
    }
    if (g->flags) cudaFreeHost((void *)g->flags);
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

/* The default stream's copy is done when the stream is; a copy within the GPU is not when the call returns.
 */
enum afd_status afd_gpu_move(struct afd_gpu *g, void *to, const void *from, uint64_t bytes)
{
    cudaSetDevice(g->index);
    cudaError_t error = cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
    return check(g, error ? error : cudaStreamSynchronize(cudaStreamLegacy), "move");
}

enum afd_status afd_gpu_export(struct afd_gpu *g, void *memory, uint64_t bytes, int *dmabuf_fd_out,
                               struct afd_error *error_out)
{
    int can = 0, order = 0;
    void *entry = NULL;
    enum cudaDriverEntryPointQueryResult found;
    *dmabuf_fd_out = -1;
    cudaSetDevice(g->index);
    if (cudaDeviceGetAttribute(&can, cudaDevAttrGPUDirectRDMASupported, g->index) || !can)
        return afd_fail(error_out, AFD_ERR_REFUSED, "%s does not support GPUDirect RDMA", g->name);
    /* Else what an adapter wrote may be seen by a kernel later than the message that tells of it. */
    if (cudaDeviceGetAttribute(&order, cudaDevAttrGPUDirectRDMAWritesOrdering, g->index) ||
        order < cudaGPUDirectRDMAWritesOrderingOwner)
        return afd_fail(error_out, AFD_ERR_REFUSED, "%s does not keep an adapter's writes in order", g->name);
    if (cudaGetDriverEntryPointByVersion("cuMemGetHandleForAddressRange", &entry, 11070, cudaEnableDefault,
                                         &found) ||
        found != cudaDriverEntryPointSuccess) {
        cudaGetLastError();
        return AFD_OK;
    }
    CUresult (*get_handle)(void *, CUdeviceptr, size_t, CUmemRangeHandleType, unsigned long long);
    memcpy(&get_handle, &entry, sizeof get_handle);
    if (get_handle(dmabuf_fd_out, (CUdeviceptr)(uintptr_t)memory, bytes, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD,
                   0))
        *dmabuf_fd_out = -1;
    return AFD_OK;
}

void afd_gpu_use(struct afd_gpu *g, uint32_t stream)
{
    g->stream = g->streams[stream];
    g->stream_index = stream;
}

enum afd_status afd_gpu_copy(struct afd_gpu *g, void *to, const void *from, uint64_t bytes)
{
    cudaSetDevice(g->index);
    return check(g, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, g->stream), "copy");
}

/* ---- kernels, one by one or as a graph */

static const char *name_of(const struct afd_launch *launch)
{
    static const char *const names[] = {
#define X(name, ...) #name,
        AFD_KERNELS(X) AFD_FFN_KERNEL_NAMES(X) AFD_PROJ_KERNEL_NAMES(X)
#undef X
    };
    return launch->is_flash ? "flash" : names[launch->kernel];
}

static cudaError_t put(struct afd_gpu *g, const struct afd_launch *launch, const void *args)
{
    return launch->is_flash ? afd_cuda_launch_flash((enum afd_flash_kernel)launch->kernel, launch->blocks,
                                                    launch->phases, args, g->stream)
                            : afd_cuda_launch((enum afd_kernel)launch->kernel, launch->blocks, launch->phases,
                                              args, g->stream);
}

static enum afd_status put_list(struct afd_gpu *g, const struct afd_launches *list)
{
    enum afd_status status = AFD_OK;
    for (uint32_t i = 0; i < list->count && !status; i++)
        status = check(g, put(g, &list->launch[i], afd_launch_args(list, i)), name_of(&list->launch[i]));
    return status;
}

/* A list that is full is launched as far as it goes, and what follows one by one. */
static enum afd_status launch(struct afd_gpu *g, struct afd_launch launch, const void *args)
{
    if (!launch.blocks) return AFD_OK;
    cudaSetDevice(g->index);
    if (g->is_recording && afd_launches_add(&g->recorded, launch, args)) return AFD_OK;
    if (g->is_recording) {
        g->is_recording = 0;
        enum afd_status status = put_list(g, &g->recorded);
        if (status) return status;
    }
    return check(g, put(g, &launch, args), name_of(&launch));
}

enum afd_status afd_gpu_launch(struct afd_gpu *g, enum afd_kernel kernel, uint32_t blocks, uint32_t phases,
                               const void *args)
{
    return launch(g, (struct afd_launch){0, kernel, phases ? blocks : 0, phases, 0, 0}, args);
}

enum afd_status afd_gpu_flash(struct afd_gpu *g, enum afd_flash_kernel kernel, uint32_t blocks,
                              uint32_t shared_bytes, const struct afd_args_flash *args)
{
    return launch(g, (struct afd_launch){1, kernel, blocks, shared_bytes, 0, 0}, args);
}

uint32_t afd_gpu_shared_bytes(const struct afd_gpu *g)
{
    return (uint32_t)g->shared_bytes;
}

int afd_gpu_has_groups(const struct afd_gpu *g)
{
    return g->has_groups;
}

void afd_gpu_record(struct afd_gpu *g)
{
    g->recorded.count = g->recorded.used = 0;
    g->is_recording = !g->has_no_graphs;
}

/* The recorded kernels as a graph that can be launched: the old one brought up to date, or a new one. The
 * capture is this thread's alone: the loader may allocate beside it. */
static cudaError_t capture(struct afd_gpu *g, cudaGraphExec_t *exec)
{
    cudaGraph_t graph = NULL;
    cudaGraphExecUpdateResultInfo info;
    cudaError_t error = cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeThreadLocal), end;
    if (error) return error;
    for (uint32_t i = 0; i < g->recorded.count && !error; i++)
        error = put(g, &g->recorded.launch[i], afd_launch_args(&g->recorded, i));
    end = cudaStreamEndCapture(g->stream, &graph);
    if (!error) error = end;
    if (!error && *exec && cudaGraphExecUpdate(*exec, graph, &info) != cudaSuccess) {
        cudaGetLastError(); /* other kernels than before */
        cudaGraphExecDestroy(*exec);
        *exec = NULL;
    }
    if (!error && !*exec) error = cudaGraphInstantiate(exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    return error;
}

/* Brings the graph up to date; 0: it cannot be made. */
static int prepare(struct afd_gpu *g, struct afd_gpu_graph **graph)
{
    if (*graph && afd_launches_equal(&(*graph)->made_of, &g->recorded)) return 1;
    if (!*graph) *graph = calloc(1, sizeof **graph);
    cudaError_t error = *graph ? capture(g, &(*graph)->exec) : cudaErrorMemoryAllocation;
    g->graphs.captured++;
    if (!error) {
        afd_launches_copy(&(*graph)->made_of, &g->recorded);
        return 1;
    }
    cudaGetLastError();
    g->has_no_graphs = 1;
    afd_log_warn("%s: no CUDA graphs, kernels are launched one by one: %s", g->name,
                 cudaGetErrorString(error));
    return 0;
}

enum afd_status afd_gpu_replay(struct afd_gpu *g, struct afd_gpu_graph **graph)
{
    if (!g->is_recording) return atomic_load(&g->has_failed) ? AFD_ERR_DEVICE : AFD_OK;
    g->is_recording = 0;
    if (!graph) return AFD_OK;
    cudaSetDevice(g->index);
    if (!prepare(g, graph)) return put_list(g, &g->recorded);
    g->graphs.launched++;
    return check(g, cudaGraphLaunch((*graph)->exec, g->stream), "graph");
}

struct afd_gpu_graph_counts afd_gpu_graph_counts(const struct afd_gpu *g)
{
    return g->graphs;
}

void afd_gpu_graph_free(struct afd_gpu *g, struct afd_gpu_graph *graph)
{
    cudaSetDevice(g->index);
    if (graph && graph->exec) cudaGraphExecDestroy(graph->exec);
    free(graph);
}

/* ---- how far the streams came */

enum afd_status afd_gpu_mark(struct afd_gpu *g, uint64_t value)
{
    cudaSetDevice(g->index);
    return check(g, afd_cuda_launch_flag((uint64_t *)(void *)&g->flags[g->stream_index], value, g->stream),
                 "flag");
}

enum afd_status afd_gpu_reached(struct afd_gpu *g, uint32_t stream, uint64_t value)
{
    if (atomic_load_explicit(&g->flags[stream], memory_order_acquire) >= value)
        return atomic_load(&g->has_failed) ? AFD_ERR_DEVICE : AFD_OK;
    if (++g->polls % POLLS_A_LOOK) return AFD_PENDING;
    cudaError_t error = cudaStreamQuery(g->streams[stream]);
    return error != cudaErrorNotReady && check(g, error, "wait") ? AFD_ERR_DEVICE : AFD_PENDING;
}
