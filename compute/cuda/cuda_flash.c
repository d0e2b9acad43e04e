/* Attention on the tensor cores as the attention side runs it: which layers it takes, the lists of a step's
 * items, one for each kind of layer, and the launch. */
#include "compute/cuda/cuda.h"

/* A list is its length, on 16 bytes, and its items. */
enum { ITEM_WORDS = sizeof(struct afd_flash_item) / sizeof(uint32_t) };

static uint32_t list_words(const struct afd_cuda_flash *flash)
{
    return (1 + flash->max_items) * ITEM_WORDS;
}

uint64_t afd_cuda_flash_words(const struct afd_cuda_flash *flash)
{
    return (uint64_t)flash->shape_count * list_words(flash);
}

/* The list of layers that share heads as `group` says and see as far as `window`; AFD_FLASH_MAX_SHAPES: there
 * are too many already. */
static uint32_t shape_of(struct afd_cuda_flash *flash, uint32_t group, uint32_t window)
{
    uint32_t i = 0;
    while (i < flash->shape_count && (flash->shape[i].group != group || flash->shape[i].window != window))
        i++;
    if (i == flash->shape_count && i < AFD_FLASH_MAX_SHAPES) {
        flash->shape[i].group = group;
        flash->shape[i].window = window;
        flash->shape_count++;
    }
    return i;
}

void afd_cuda_flash_init(struct afd_cuda_flash *flash, const struct afd_device_config *c,
                         unsigned char *const *pools, uint32_t shared_bytes, int has_groups)
{
    uint32_t rows = c->wire.shape.max_rows;
    flash->split = afd_flash_split(c->max_context);
    flash->parts = (c->max_context - 1) / flash->split + 1;
    for (uint32_t l = 0; l < c->model->layer_count && c->numerics == AFD_NUMERICS_NATIVE; l++) {
        const struct afd_attn_desc *a = &c->model->layers[l].attn;
        struct afd_gpu_kv kv = {.key_dim = afd_attn_key_dim(a),
                                .dtype = (enum afd_dtype)c->kv_dtype,
                                .latent = a->kind == AFD_ATTN_LATENT};
        uint32_t group = a->heads / a->kv_heads, sum_dim = afd_attn_sum_dim(a);
        struct afd_flash_choice choice = afd_flash_choose(&kv, sum_dim, shared_bytes, has_groups);
        /* A layer's pool begins where the one before it ends; copies take 16 bytes. */
        if (!choice.tile || (pools && (uintptr_t)pools[l] % 16)) continue;
        uint32_t shape = shape_of(flash, group, a->window);
        if (shape == AFD_FLASH_MAX_SHAPES) continue;
        if (flash->layers) flash->layers[l].choice = choice, flash->layers[l].shape = shape;
        uint32_t items = afd_flash_max_items(rows, group, c->max_context, flash->split);
        uint64_t sums = (uint64_t)flash->parts * rows * a->heads;
        if (items > flash->max_items) flash->max_items = items;
        if (sums > flash->sums) flash->sums = sums;
        if (sums * sum_dim > flash->channels) flash->channels = sums * sum_dim;
    }
}

void afd_cuda_flash_stage(struct afd_device *device, uint32_t slot_index)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_cuda_flash *flash = &cuda->flash;
    const struct afd_slot *slot = &device->slots[slot_index];
    struct afd_cuda_slot *s = &cuda->slots[slot_index];
    for (uint32_t i = 0; i < flash->shape_count; i++) {
        uint32_t *list = s->staged_lists + (uint64_t)i * list_words(flash);
        list[0] =
            afd_flash_plan(slot->segments, slot->segment_count, flash->shape[i].group, flash->shape[i].window,
                           flash->split, (struct afd_flash_item *)(void *)(list + ITEM_WORDS));
        afd_gpu_copy(cuda->gpu, s->lists + (uint64_t)i * list_words(flash), list,
                     (uint64_t)(1 + list[0]) * ITEM_WORDS * sizeof *list);
    }
}

int afd_cuda_flash_attend(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_kv *kv,
                          const float *q, uint32_t q_pitch, float *o, uint32_t o_pitch)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_cuda_flash *flash = &cuda->flash;
    const struct afd_attn_desc *a = &device->config.model->layers[op->layer].attn;
    const struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t rows = afd_cuda_rows(device, op->slot), sum_dim = afd_attn_sum_dim(a);
    const struct afd_flash_choice *choice = &flash->layers[op->layer].choice;
    uint64_t at = (uint64_t)flash->layers[op->layer].shape * list_words(flash);
    if (!choice->tile) return 0;
    struct afd_args_flash args = {.kv = *kv,
                                  .items =
                                      (const struct afd_flash_item *)(void *)(s->lists + at + ITEM_WORDS),
                                  .count = s->lists + at,
                                  .q = q,
                                  .o = o,
                                  .partial = flash->partial,
                                  .stats = flash->stats,
                                  .q_pitch = q_pitch,
                                  .o_pitch = o_pitch,
                                  .heads = a->heads,
                                  .sum_dim = sum_dim,
                                  .window = a->window,
                                  .split = flash->split,
                                  .rows = device->config.wire.shape.max_rows,
                                  .tile = choice->tile,
                                  .scale = a->scale};
    afd_gpu_flash(cuda->gpu, choice->kernel,
                  afd_cuda_bucket(s->staged_lists[at], flash->max_items) * a->kv_heads, choice->shared_bytes,
                  &args);
    if (flash->parts > 1)
        AFD_CUDA_RUN(cuda, flash_join, rows * a->heads, 1, .count = cuda->count, .positions = kv->positions,
                     .partial = args.partial, .stats = args.stats, .o = o, .o_pitch = o_pitch,
                     .heads = a->heads, .sum_dim = sum_dim, .window = a->window, .split = flash->split,
                     .rows = args.rows);
    return 1;
}
