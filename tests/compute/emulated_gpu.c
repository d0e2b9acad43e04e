/* gpu.h on the CPU: the bodies of kernels.h run for each block, phase and thread in turn, so that the back
 * end and its kernels are checked, under sanitizers too, where there is no GPU. What this cannot show: a race
 * between threads of one phase other than by the order of threads, and anything of the GPU's own. Threads run
 * forwards in even phases and backwards in odd ones, so that such an order shows.
 *
 * Nothing runs when it is put on a stream: each look at a flag does one thing of one stream, which a random
 * number chooses. So memory that the CPU reads or writes too early shows, and what two streams share. A graph
 * launches the arguments that it was made of. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "compute/cuda/bodies.h"
#include "compute/cuda/bodies_ffn.h"
#include "compute/cuda/bodies_flash_team.h"
#include "compute/cuda/bodies_route.h"
#include "compute/cuda/gpu.h"
#include "compute/cuda/launches.h"

enum { ALIGN = 4096, MAX_THREADS = 256, MAX_COPIES = 2048 };

/* Something put on a stream: a copy, kernels, or a value for the flag. */
struct item {
    struct item *next;
    void *to;
    const void *from;
    uint64_t bytes, mark;
    struct afd_launches *kernels;
};

struct afd_gpu {
    struct stream {
        struct item *first, **last;
        uint64_t mark;
    } streams[AFD_GPU_STREAMS], *stream;
    pthread_mutex_t lock; /* memory is freed by other threads than the device's */
    int is_recording;
    struct afd_launches recorded;
    uint64_t looks;
    struct afd_gpu_graph_counts graphs;
};

struct afd_gpu_graph {
    struct afd_launches kernels;
};

enum afd_status afd_gpu_open(uint32_t index, struct afd_gpu **out, struct afd_error *error_out)
{
    (void)index;
    *out = calloc(1, sizeof **out);
    if (!*out) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a GPU");
    for (uint32_t s = 0; s < AFD_GPU_STREAMS; s++) (*out)->streams[s].last = &(*out)->streams[s].first;
    (*out)->stream = (*out)->streams;
    pthread_mutex_init(&(*out)->lock, NULL);
    return AFD_OK;
}

static void do_one(struct stream *stream); /* the lock is held */

/* As cudaFree does. */
static void drain(struct afd_gpu *gpu)
{
    pthread_mutex_lock(&gpu->lock);
    for (uint32_t s = 0; s < AFD_GPU_STREAMS; s++)
        while (gpu->streams[s].first) do_one(&gpu->streams[s]);
    pthread_mutex_unlock(&gpu->lock);
}

void afd_gpu_close(struct afd_gpu *gpu)
{
    if (gpu) drain(gpu);
    free(gpu);
}

void afd_gpu_use(struct afd_gpu *gpu, uint32_t stream)
{
    gpu->stream = &gpu->streams[stream];
}

static void append(struct afd_gpu *gpu, struct item what)
{
    struct item *item = malloc(sizeof *item);
    *item = what;
    pthread_mutex_lock(&gpu->lock);
    *gpu->stream->last = item;
    gpu->stream->last = &item->next;
    pthread_mutex_unlock(&gpu->lock);
}

const char *afd_gpu_name(const struct afd_gpu *gpu)
{
    (void)gpu;
    return "emulated GPU";
}

void afd_gpu_memory(struct afd_gpu *gpu, uint64_t *free_out, uint64_t *total_out)
{
    (void)gpu;
    *free_out = *total_out = (uint64_t)1 << 40;
}

void *afd_gpu_alloc(struct afd_gpu *gpu, uint64_t bytes)
{
    (void)gpu;
    uint64_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    void *memory = aligned_alloc(ALIGN, rounded ? rounded : ALIGN);
    return memory ? memset(memory, 0, rounded) : NULL;
}

void afd_gpu_free(struct afd_gpu *gpu, void *memory)
{
    if (memory) drain(gpu);
    free(memory);
}

void *afd_gpu_alloc_host(struct afd_gpu *gpu, uint64_t bytes)
{
    return afd_gpu_alloc(gpu, bytes);
}

void afd_gpu_free_host(struct afd_gpu *gpu, void *memory)
{
    afd_gpu_free(gpu, memory);
}

enum afd_status afd_gpu_upload(struct afd_gpu *gpu, void *to, uint64_t to_pitch, const void *from,
                               uint64_t from_pitch, uint64_t row_bytes, uint64_t rows)
{
    (void)gpu;
    for (uint64_t r = 0; r < rows; r++)
        memcpy((char *)to + r * to_pitch, (const char *)from + r * from_pitch, row_bytes);
    return AFD_OK;
}

enum afd_status afd_gpu_move(struct afd_gpu *gpu, void *to, const void *from, uint64_t bytes)
{
    (void)gpu;
    memcpy(to, from, bytes);
    return AFD_OK;
}

enum afd_status afd_gpu_export(struct afd_gpu *gpu, void *memory, uint64_t bytes, int *dmabuf_fd_out,
                               struct afd_error *error_out)
{
    (void)gpu, (void)memory, (void)bytes;
    *dmabuf_fd_out = -1;
    return afd_fail(error_out, AFD_ERR_REFUSED, "an emulated GPU has no adapter beside it");
}

enum afd_status afd_gpu_copy(struct afd_gpu *gpu, void *to, const void *from, uint64_t bytes)
{
    append(gpu, (struct item){.to = to, .from = from, .bytes = bytes});
    return AFD_OK;
}

/* Shared memory is poisoned first: on a GPU it holds what another block left. */
#define X(name, threads, floats)                                                                             \
    static void run_##name(uint32_t blocks, uint32_t phases, const void *args)                               \
    {                                                                                                        \
        _Static_assert((int)(threads) <= (int)MAX_THREADS, "a struct afd_own a thread");                     \
        float *shared = malloc((floats) * sizeof *shared);                                                   \
        for (uint32_t b = 0; b < blocks; b++) {                                                              \
            struct afd_own own[MAX_THREADS] = {0};                                                           \
            memset(shared, 0xff, (floats) * sizeof *shared);                                                 \
            for (uint32_t p = 0; p < phases; p++)                                                            \
                for (uint32_t t = 0; t < (threads); t++) {                                                   \
                    uint32_t thread = p % 2 ? (threads)-1 - t : t;                                           \
                    afd_body_##name(args, (struct afd_place){b, thread, p}, shared, &own[thread]);           \
                }                                                                                            \
        }                                                                                                    \
        free(shared);                                                                                        \
    }
AFD_KERNELS(X)
#undef X

/* A warp at a time; its copies that run beside the arithmetic have room here. */
#define X(name, warps, bytes, own_type)                                                                      \
    static void run_##name(uint32_t blocks, uint32_t phases, const void *args)                               \
    {                                                                                                        \
        unsigned char *shared =                                                                              \
            aligned_alloc(AFD_TILE_ALIGN, ((bytes) + AFD_TILE_ALIGN - 1) / AFD_TILE_ALIGN * AFD_TILE_ALIGN); \
        own_type *own = calloc(warps, sizeof *own);                                                          \
        struct afd_async_copy *copies = calloc((warps)*MAX_COPIES, sizeof *copies);                          \
        for (uint32_t b = 0; b < blocks; b++) {                                                              \
            memset(shared, 0xff, bytes);                                                                     \
            memset(own, 0xff, (warps) * sizeof *own);                                                        \
            for (uint32_t w = 0; w < (warps); w++)                                                           \
                own[w].async =                                                                               \
                    (struct afd_async){.copies = copies + w * MAX_COPIES, .capacity = MAX_COPIES};           \
            for (uint32_t p = 0; p < phases; p++)                                                            \
                for (uint32_t w = 0; w < (warps); w++) {                                                     \
                    uint32_t warp = p % 2 ? (warps)-1 - w : w;                                               \
                    afd_body_##name(args, (struct afd_warp_place){b, warp, p}, shared, &own[warp]);          \
                }                                                                                            \
        }                                                                                                    \
        free(copies);                                                                                        \
        free(own);                                                                                           \
        free(shared);                                                                                        \
    }
AFD_FFN_KERNELS(X)
AFD_PROJ_KERNELS(X)
#undef X

uint32_t afd_gpu_shared_bytes(const struct afd_gpu *gpu)
{
    (void)gpu;
    return 227 << 10; /* Hopper's */
}

int afd_gpu_has_groups(const struct afd_gpu *gpu)
{
    (void)gpu;
    return 1;
}

/* Warps forwards in even blocks and backwards in odd ones. Shared memory and registers are poisoned. A warp's
 * copies under way are those of two stages, and of the one that it begins. */
#define RUN_FLASH(name, own_type, tiles, ...)                                                                \
    static void run_##name(uint32_t blocks, uint32_t shared_bytes, const struct afd_args_flash *args)        \
    {                                                                                                        \
        size_t room = (shared_bytes + AFD_TILE_ALIGN - 1) / AFD_TILE_ALIGN * AFD_TILE_ALIGN;                 \
        unsigned char *shared = aligned_alloc(AFD_TILE_ALIGN, room);                                         \
        own_type *own = malloc(AFD_FLASH_WARPS * sizeof *own);                                               \
        struct afd_mma_c(*o)[tiles] = malloc(AFD_FLASH_WARPS * sizeof *o);                                   \
        struct afd_async_copy *copies = malloc(AFD_FLASH_WARPS * MAX_COPIES * sizeof *copies);               \
        for (uint32_t b = 0; b < blocks; b++) {                                                              \
            memset(shared, 0xff, shared_bytes);                                                              \
            memset(o, 0xff, AFD_FLASH_WARPS * sizeof *o);                                                    \
            memset(own, 0xff, AFD_FLASH_WARPS * sizeof *own);                                                \
            for (uint32_t w = 0; w < AFD_FLASH_WARPS; w++)                                                   \
                own[w].async =                                                                               \
                    (struct afd_async){.copies = copies + w * MAX_COPIES, .capacity = MAX_COPIES};           \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
        free(copies), free(o), free(own), free(shared);                                                      \
    }
#define X(name, tiles)                                                                                       \
    RUN_FLASH(name, struct afd_flash_warp, tiles, afd_flash_run(args, b, shared, b % 2, own, *o, tiles))
AFD_FLASH_KERNELS(X)
#undef X
#define X(name, tiles, is_fp8)                                                                               \
    RUN_FLASH(name, struct afd_flash_team_warp, tiles,                                                       \
              afd_flash_team_run(args, b, shared, b % 2, own, *o, tiles, is_fp8))
AFD_FLASH_TEAM_KERNELS(X)
#undef X

static void run_flash(enum afd_flash_kernel kernel, uint32_t blocks, uint32_t shared_bytes,
                      const struct afd_args_flash *args)
{
    static void (*const run[])(uint32_t, uint32_t, const struct afd_args_flash *) = {
#define X(name, ...) run_##name,
        AFD_FLASH_KERNELS(X) AFD_FLASH_TEAM_KERNELS(X)
#undef X
    };
    run[kernel](blocks, shared_bytes, args);
}

static void run_list(const struct afd_launches *list)
{
    static void (*const run[])(uint32_t, uint32_t, const void *) = {
#define X(name, ...) run_##name,
        AFD_KERNELS(X) AFD_FFN_KERNELS(X) AFD_PROJ_KERNELS(X)
#undef X
    };
    for (uint32_t i = 0; i < list->count; i++) {
        const struct afd_launch *l = &list->launch[i];
        if (l->is_flash)
            run_flash((enum afd_flash_kernel)l->kernel, l->blocks, l->phases, afd_launch_args(list, i));
        else
            run[l->kernel](l->blocks, l->phases, afd_launch_args(list, i));
    }
}

static void do_one(struct stream *stream)
{
    struct item *item = stream->first;
    if (item->bytes) memcpy(item->to, item->from, item->bytes);
    if (item->kernels) run_list(item->kernels);
    if (item->mark) stream->mark = item->mark;
    stream->first = item->next;
    if (!stream->first) stream->last = &stream->first;
    free(item->kernels);
    free(item);
}

static struct afd_launches *copy_of(const struct afd_launches *list)
{
    struct afd_launches *copy = malloc(sizeof *copy);
    afd_launches_copy(copy, list);
    return copy;
}

static enum afd_status launch(struct afd_gpu *gpu, struct afd_launch launch, const void *args)
{
    if (gpu->is_recording) return afd_launches_add(&gpu->recorded, launch, args) ? AFD_OK : AFD_ERR_DEVICE;
    struct afd_launches *one = calloc(1, sizeof *one);
    afd_launches_add(one, launch, args);
    append(gpu, (struct item){.kernels = one});
    return AFD_OK;
}

enum afd_status afd_gpu_launch(struct afd_gpu *gpu, enum afd_kernel kernel, uint32_t blocks, uint32_t phases,
                               const void *args)
{
    return launch(gpu, (struct afd_launch){0, kernel, blocks, phases, 0, 0}, args);
}

enum afd_status afd_gpu_flash(struct afd_gpu *gpu, enum afd_flash_kernel kernel, uint32_t blocks,
                              uint32_t shared_bytes, const struct afd_args_flash *args)
{
    return launch(gpu, (struct afd_launch){1, kernel, blocks, shared_bytes, 0, 0}, args);
}

void afd_gpu_record(struct afd_gpu *gpu)
{
    gpu->recorded.count = gpu->recorded.used = 0;
    gpu->is_recording = 1;
}

enum afd_status afd_gpu_replay(struct afd_gpu *gpu, struct afd_gpu_graph **graph)
{
    gpu->is_recording = 0;
    if (!graph) return AFD_OK;
    gpu->graphs.launched++;
    if (!*graph || !afd_launches_equal(&(*graph)->kernels, &gpu->recorded)) {
        gpu->graphs.captured++;
        if (!*graph) *graph = calloc(1, sizeof **graph);
        afd_launches_copy(&(*graph)->kernels, &gpu->recorded);
    }
    append(gpu, (struct item){.kernels = copy_of(&(*graph)->kernels)});
    return AFD_OK;
}

struct afd_gpu_graph_counts afd_gpu_graph_counts(const struct afd_gpu *gpu)
{
    return gpu->graphs;
}

void afd_gpu_graph_free(struct afd_gpu *gpu, struct afd_gpu_graph *graph)
{
    (void)gpu;
    free(graph);
}

enum afd_status afd_gpu_mark(struct afd_gpu *gpu, uint64_t value)
{
    append(gpu, (struct item){.mark = value});
    return AFD_OK;
}

enum afd_status afd_gpu_reached(struct afd_gpu *gpu, uint32_t stream, uint64_t value)
{
    enum afd_status status = AFD_OK;
    pthread_mutex_lock(&gpu->lock);
    if (gpu->streams[stream].mark < value) {
        struct stream *chosen = &gpu->streams[afd_random(7, gpu->looks++, 0) % AFD_GPU_STREAMS];
        if (!chosen->first) chosen = &gpu->streams[stream];
        status = chosen->first ? AFD_PENDING : AFD_ERR_DEVICE; /* nothing that would set it was put there */
        if (chosen->first) do_one(chosen);
    }
    pthread_mutex_unlock(&gpu->lock);
    return status;
}
