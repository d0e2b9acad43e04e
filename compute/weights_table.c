/* The weights of a share.
 *
 * ref reads matrices where the checkpoint's mapping has them, so ranks of one host share the page cache. cpu
 * copies them into panels (cpu/panels.h), in their stored type: each rank then has its own copy of its slice,
 * as many bytes as are stored (outputs are filled up to 16), in anonymous memory, huge pages where the system
 * gives them. The pages of the mapping that were read are given back, so that the checkpoint does not stay
 * resident beside the copy; the page cache keeps it as long as nobody needs the memory. The embedding is
 * looked up in the mapping, and when it is the head as well, there are two of it. The norms, which are small
 * and read whole, become float32 copies. cuda copies from the mapping too (cuda/cuda_weights.c).
 *
 * int4 groups of AWQ and GPTQ become blocks; ref, which reads them there, has them where cpu has its panels.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "compute/backend.h"
#include "compute/cpu/panels.h"
#include "model/heads.h"

enum { PAGE = 4096, HUGE_PAGE = 2 << 20, ALIGN = 64 };

struct load {
    const struct afd_device_config *config;
    struct afd_arena *arena;
    struct afd_weight_table *table;
    struct afd_panels *panels; /* what is filled now: the common ones, or a shard's */
    int experts;               /* a shard's */
    struct afd_error *error_out;
    uint64_t done, total, used;      /* used: bytes of the panels that are given out */
    struct afd_team team;            /* cpu */
    const struct afd_matrix *matrix; /* the team's */
    _Atomic uint32_t bad_row;        /* of the matrix: it has an fp8 NaN; UINT32_MAX: none */
};

/* 1 when one of the bytes is an fp8 NaN, which the vector code's decoding does not know. */
static int has_nan(const unsigned char *row, uint64_t bytes)
{
    uint64_t i = 0, nan = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t u;
        memcpy(&u, row + i, 8);
        /* a byte of 0x7f, and no other, carries into its top bit */
        nan |= ((u & 0x7f7f7f7f7f7f7f7fu) + 0x0101010101010101u) & 0x8080808080808080u;
    }
    for (; i < bytes; i++) nan |= (row[i] & 0x7f) == 0x7f;
    return nan != 0;
}

/* Rows as they are stored. */
static uint32_t stored_rows(const struct afd_weight_view *view)
{
    return view->transposed ? view->columns : view->rows;
}

static void check_rows(struct load *load, const struct afd_weight_view *view, uint32_t begin, uint32_t end)
{
    for (uint32_t r = begin; r < end && r < stored_rows(view) && view->dtype == AFD_FP8; r++)
        if (has_nan((const unsigned char *)view->data + r * view->row_bytes, afd_weight_row_bytes(view)))
            atomic_store(&load->bad_row, r);
}

/* Reads the matrix in, a byte a page. */
static void touch(const struct afd_weight_view *view)
{
    uint64_t bytes = afd_weight_row_bytes(view);
    for (uint32_t r = 0; r < stored_rows(view); r++)
        for (uint64_t i = 0; i < bytes; i += PAGE)
            *(const volatile unsigned char *)((const char *)view->data + r * view->row_bytes + i);
}

static const float *copy_vector(struct load *load, const struct afd_weight_view *view, float offset)
{
    float *out = afd_arena_alloc(load->arena, afd_pitch(view->columns), sizeof *out);
    if (out) afd_weight_read(view, 0, 0, view->columns, out);
    for (uint32_t i = 0; out && i < view->columns; i++) out[i] = out[i] + offset;
    return out;
}

static int is_head_of_blocks(const struct load *load, const struct afd_weight *weight,
                             const struct afd_weight_view *view)
{
    return (weight->use == AFD_W_K_UP || weight->use == AFD_W_V_UP) && view->block &&
           load->config->numerics == AFD_NUMERICS_NATIVE;
}

/* Every head's part of kv_b begins and ends with an fp8 block. */
static int heads_are_blocks(const struct load *load, const struct afd_weight *weight)
{
    const struct afd_attn_desc *a = &load->config->model->layers[weight->layer].attn;
    return !((a->head_dim - a->rope.dim) % AFD_FP8_BLOCK) && !(a->value_dim % AFD_FP8_BLOCK);
}

/* What a product cannot use as it is stored gets a copy: a head's part of kv_b that is turned around or
 * begins inside an fp8 block (numerics native: that of any head, as all are to be of one type), and int4
 * groups, of which cuda makes its own. */
static int needs_copy(const struct load *load, const struct afd_weight *weight,
                      const struct afd_weight_view *view)
{
    int is_int4 = view->int4.kind && load->config->type != AFD_DEVICE_CUDA;
    return view->transposed || view->block_row || is_int4 ||
           (is_head_of_blocks(load, weight, view) && !heads_are_blocks(load, weight));
}

/* The copy's type: the stored one (int4: the same numbers in blocks), but float32 where a block's scale would
 * have to change places with its rows, or the inputs of a group are scattered (act-order). With numerics
 * native the scales do change places, where a head is whole blocks; else a head is bf16. */
static struct afd_weight_view copy_shape(const struct load *load, const struct afd_weight *weight,
                                         const struct afd_weight_view *view)
{
    int blocks = view->int4.kind && !view->int4.groups;
    struct afd_weight_view copy = {.dtype = view->quant || view->block ? AFD_F32 : view->dtype,
                                   .rows = view->rows,
                                   .columns = view->columns};
    if (blocks) copy.dtype = AFD_DTYPE_COUNT, copy.quant = view->quant;
    if (is_head_of_blocks(load, weight, view)) {
        copy.dtype = heads_are_blocks(load, weight) ? AFD_FP8 : AFD_BF16;
        copy.block = copy.dtype == AFD_FP8 ? AFD_FP8_BLOCK : 0;
        copy.scale_pitch = (copy.columns + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    }
    copy.row_bytes = afd_weight_row_bytes(&copy);
    return copy;
}

/* Of a head that is whole blocks; behind the copy's rows, which end on a float. */
static uint64_t scale_bytes(const struct afd_weight_view *copy)
{
    uint64_t down = (copy->rows + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    return copy->block ? down * copy->scale_pitch * sizeof(float) : 0;
}

static void copy_scales(const struct afd_weight_view *view, const struct afd_weight_view *copy, float *scale)
{
    for (uint32_t r = 0; r < copy->rows; r += AFD_FP8_BLOCK)
        for (uint32_t c = 0; c < copy->columns; c += AFD_FP8_BLOCK)
            scale[r / AFD_FP8_BLOCK * copy->scale_pitch + c / AFD_FP8_BLOCK] =
                afd_weight_scale(view, c / AFD_FP8_BLOCK * view->scale_pitch + r / AFD_FP8_BLOCK);
}

static void copy_matrix(const struct afd_weight_view *view, const struct afd_weight_view *copy, void *data)
{
    for (uint32_t r = 0; r < view->rows; r++) {
        uint8_t *row = (uint8_t *)data + r * copy->row_bytes;
        for (uint32_t g = 0; copy->quant && g < view->columns / AFD_INT4_GROUP; g++)
            afd_int4_block(&view->int4, r, g, row + (size_t)g * copy->quant->bytes);
        for (uint32_t c = 0; !copy->quant && c < view->columns; c++) {
            float x;
            (copy->block ? afd_weight_read : afd_weight_values)(view, r, c, 1, &x);
            afd_narrow_put(row, copy->dtype, c, x);
        }
    }
}

static uint32_t first_head(const struct load *load, uint32_t layer)
{
    const struct afd_share *share = &load->config->share;
    return afd_heads_of(load->config->model, layer, share->tp, share->tp_index).begin;
}

/* Where `weight` goes in the table; *vector_out: where its float32 copy goes, or NULL. */
static struct afd_matrix *place_of(struct load *load, const struct afd_weight *weight,
                                   const float ***vector_out)
{
    struct afd_weight_table *table = load->table;
    struct afd_layer_weights *layer = &table->layers[weight->layer];
    switch (weight->use) {
    case AFD_W_EMBED:
        return &table->embed;
    case AFD_W_HEAD:
        return &table->head;
    case AFD_W_EXPERT_GATE:
        return &layer->expert_gate[weight->index];
    case AFD_W_EXPERT_UP:
        return &layer->expert_up[weight->index];
    case AFD_W_EXPERT_DOWN:
        return &layer->expert_down[weight->index];
    case AFD_W_K_UP:
        return &layer->k_up[weight->index - first_head(load, weight->layer)];
    case AFD_W_V_UP:
        return &layer->v_up[weight->index - first_head(load, weight->layer)];
    case AFD_W_FINAL_NORM:
        *vector_out = &table->final_norm;
        break;
    case AFD_W_ATTN_NORM:
        *vector_out = &layer->attn_norm;
        break;
    case AFD_W_Q_NORM:
        *vector_out = &layer->q_norm;
        break;
    case AFD_W_Q_HEAD_NORM:
        *vector_out = &layer->q_head_norm;
        break;
    case AFD_W_K_HEAD_NORM:
        *vector_out = &layer->k_head_norm;
        break;
    case AFD_W_KV_NORM:
        *vector_out = &layer->kv_norm;
        break;
    case AFD_W_FFN_NORM:
        *vector_out = &layer->ffn_norm;
        break;
    case AFD_W_ROUTER_BIAS:
        *vector_out = &layer->router_bias;
        break;
    default:
        break;
    }
    return &layer->use[weight->use];
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* One panel at a time: its rows are in the cache when they are turned around. */
static void pack_part(void *user, uint32_t index)
{
    struct load *load = user;
    const struct afd_weight_view *view = &load->matrix->view;
    uint64_t panels = (view->rows + AFD_PANEL - 1) / AFD_PANEL, threads = load->team.threads;
    uint32_t begin = (uint32_t)(panels * index / threads), end = (uint32_t)(panels * (index + 1) / threads);
    for (uint32_t p = begin; p < end; p++) {
        check_rows(load, view, p * AFD_PANEL, (p + 1) * AFD_PANEL);
        afd_panels_pack(view, p, p + 1, (char *)load->panels->memory + load->used);
    }
}

/* The mapping's pages of a matrix: read ahead, or given back (whoever reads them again gets them again). */
static void advise(const struct afd_weight_view *view, int advice)
{
    uintptr_t begin = (uintptr_t)view->data / PAGE * PAGE;
    uintptr_t end =
        (uintptr_t)view->data + (stored_rows(view) - 1) * view->row_bytes + afd_weight_row_bytes(view);
    if (view->rows) madvise((void *)begin, end - begin, advice);
}

static void pack(struct load *load, struct afd_matrix *matrix)
{
    load->matrix = matrix;
    afd_team_run(&load->team, pack_part, load);
    matrix->panels = (char *)load->panels->memory + load->used;
    load->used += aligned(afd_panels_bytes(&matrix->view));
}

static int in_panels(const struct load *load, enum afd_weight_use use, int vector)
{
    return load->config->type == AFD_DEVICE_CPU && !vector &&
           (use != AFD_W_EMBED || load->config->model->tied_head);
}

static int is_of_shard(const struct afd_weight *weight)
{
    return weight->use == AFD_W_EXPERT_GATE || weight->use == AFD_W_EXPERT_UP ||
           weight->use == AFD_W_EXPERT_DOWN;
}

static enum afd_status add_one(const struct afd_weight *weight, void *user)
{
    struct load *load = user;
    const float **vector = NULL;
    if (is_of_shard(weight) != load->experts) return AFD_OK;
    struct afd_matrix *matrix = place_of(load, weight, &vector);
    enum afd_status status = afd_weight_view(load->config->model, load->config->checkpoint, weight,
                                             &matrix->view, load->error_out);
    if (status) return status;
    int is_copied = needs_copy(load, weight, &matrix->view);
    struct afd_weight_view held = is_copied ? copy_shape(load, weight, &matrix->view) : matrix->view;
    if (in_panels(load, weight->use, vector != NULL))
        load->panels->bytes += aligned(afd_panels_bytes(&held));
    else if (is_copied)
        load->panels->bytes += aligned(held.row_bytes * held.rows + scale_bytes(&held));
    return AFD_OK;
}

/* The matrix in a copy of its own, which stays where cpu has its panels, or is turned into them. */
static enum afd_status load_copy(struct load *load, const struct afd_weight *weight,
                                 struct afd_matrix *matrix)
{
    struct afd_weight_view stored = matrix->view;
    int panels = load->config->type == AFD_DEVICE_CPU;
    matrix->view = copy_shape(load, weight, &stored);
    uint64_t bytes = matrix->view.row_bytes * matrix->view.rows, all = bytes + scale_bytes(&matrix->view);
    char *data = panels ? malloc(all) : (char *)load->panels->memory + load->used;
    if (!data)
        return afd_fail(load->error_out, AFD_ERR_MEMORY, "no memory for a copy of %llu bytes",
                        (unsigned long long)all);
    check_rows(load, &stored, 0, stored_rows(&stored));
    copy_matrix(&stored, &matrix->view, data);
    matrix->view.data = data;
    if (matrix->view.block) {
        float *scale = (float *)(void *)(data + bytes);
        copy_scales(&stored, &matrix->view, scale);
        matrix->view.scale = scale;
    }
    if (!panels) {
        load->used += aligned(all);
        return AFD_OK;
    }
    pack(load, matrix);
    free(data);
    matrix->view.data = NULL;
    return AFD_OK;
}

static enum afd_status load_one(const struct afd_weight *weight, void *user)
{
    struct load *load = user;
    const float **vector = NULL;
    if (is_of_shard(weight) != load->experts) return AFD_OK;
    struct afd_matrix *matrix = place_of(load, weight, &vector);
    const struct afd_weight_view stored = matrix->view, *view = &stored;
    enum afd_status status = AFD_OK;
    int norm = vector && weight->use != AFD_W_ROUTER_BIAS;
    atomic_store(&load->bad_row, UINT32_MAX);
    if (needs_copy(load, weight, view)) {
        status = load_copy(load, weight, matrix);
    } else if (in_panels(load, weight->use, vector != NULL)) {
        advise(view, MADV_WILLNEED);
        pack(load, matrix);
        advise(view, MADV_DONTNEED);
    } else if (view->data) { /* else int4, for cuda */
        touch(view);
        check_rows(load, view, 0, view->rows);
    }
    if (status) return status;
    if (load->bad_row != UINT32_MAX)
        return afd_fail(load->error_out, AFD_ERR_CONFIG,
                        "layer %u, expert %u, weight %d: row %u has an fp8 NaN; expected numbers",
                        weight->layer, weight->index, (int)weight->use, weight->out_begin + load->bad_row);
    if (vector && !(*vector = copy_vector(load, view, norm ? load->config->model->norm_offset : 0.0f)))
        return afd_fail(load->error_out, AFD_ERR_MEMORY, "no memory for the norms");
    load->done += afd_weight_held_bytes(view);
    if (load->config->progress) load->config->progress(load->done, load->total, load->config->progress_user);
    return AFD_OK;
}

static enum afd_status make_tables(struct load *load)
{
    const struct afd_model *model = load->config->model;
    struct afd_layer_weights *layers = afd_arena_alloc(load->arena, model->layer_count, sizeof *layers);
    int ok = layers != NULL;
    for (uint32_t l = 0; ok && l < model->layer_count && !load->config->share.ffn; l++) {
        const struct afd_attn_desc *attn = &model->layers[l].attn;
        if (attn->kind != AFD_ATTN_LATENT) continue;
        layers[l].k_up = afd_arena_alloc(load->arena, attn->heads, sizeof *layers->k_up);
        layers[l].v_up = afd_arena_alloc(load->arena, attn->heads, sizeof *layers->v_up);
        ok = layers[l].k_up && layers[l].v_up;
    }
    for (uint32_t l = 0; ok && l < model->layer_count && load->config->share.ffn; l++) {
        const struct afd_ffn_desc *ffn = &model->layers[l].ffn;
        if (ffn->kind != AFD_FFN_EXPERTS) continue;
        layers[l].expert_gate = afd_arena_alloc(load->arena, ffn->experts, sizeof *layers->expert_gate);
        layers[l].expert_up = afd_arena_alloc(load->arena, ffn->experts, sizeof *layers->expert_up);
        layers[l].expert_down = afd_arena_alloc(load->arena, ffn->experts, sizeof *layers->expert_down);
        ok = layers[l].expert_gate && layers[l].expert_up && layers[l].expert_down;
    }
    load->table->layers = layers;
    return ok ? AFD_OK : afd_fail(load->error_out, AFD_ERR_MEMORY, "no memory for the table of weights");
}

/* Pages come as the team's threads first write them. */
static enum afd_status map_panels(struct load *load)
{
    struct afd_panels *panels = load->panels;
    load->used = 0;
    if (!panels->bytes) return AFD_OK;
    panels->memory = mmap(NULL, panels->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (panels->memory == MAP_FAILED) {
        panels->memory = NULL;
        return afd_fail(load->error_out, AFD_ERR_MEMORY, "no memory for %llu bytes of weights",
                        (unsigned long long)panels->bytes);
    }
    if (panels->bytes >= HUGE_PAGE) madvise(panels->memory, panels->bytes, MADV_HUGEPAGE);
    return AFD_OK;
}

/* The caller is member 0 and is not pinned. */
static enum afd_status start_team(struct load *load)
{
    const struct afd_device_config *c = load->config;
    if (c->type != AFD_DEVICE_CPU) return AFD_OK;
    load->team.threads = c->threads;
    load->team.members = afd_arena_alloc(load->arena, c->threads, sizeof *load->team.members);
    for (uint32_t i = 0; load->team.members && i < c->threads; i++)
        load->team.members[i].core = c->core_count && i ? (int32_t)c->cores[i % c->core_count] : -1;
    if (!load->team.members || afd_team_start(&load->team))
        return afd_fail(load->error_out, AFD_ERR_MEMORY, "cannot start %u threads to load with", c->threads);
    return AFD_OK;
}

/* One pass: what every shard needs, or the experts of one. */
static enum afd_status fill(struct load *load, struct afd_panels *panels, const struct afd_share *share,
                            int experts)
{
    load->panels = panels;
    load->experts = experts;
    panels->bytes = 0;
    enum afd_status status = afd_weights_each(load->config->model, share, add_one, load);
    if (!status) status = map_panels(load);
    if (!status) status = afd_weights_each(load->config->model, share, load_one, load);
    return status;
}

static struct afd_share share_of_shard(const struct afd_share *share, uint32_t shard)
{
    struct afd_share one = *share;
    one.shards = (uint64_t)1 << shard;
    return one;
}

enum afd_status afd_weight_table_load(const struct afd_device_config *config, struct afd_arena *arena,
                                      struct afd_weight_table *out, struct afd_error *error_out)
{
    struct load load = {.config = config, .arena = arena, .table = out, .error_out = error_out};
    load.total = afd_share_bytes(config->model, config->checkpoint, &config->share, 16);
    enum afd_status status = make_tables(&load);
    if (!status) status = start_team(&load);
    if (!status) status = fill(&load, &out->common, &config->share, 0);
    for (uint64_t left = config->share.ffn ? config->share.shards : 0; left && !status; left &= left - 1) {
        uint32_t shard = (uint32_t)__builtin_ctzll(left);
        struct afd_share one = share_of_shard(&config->share, shard);
        status = fill(&load, &out->shard[shard], &one, 1);
    }
    if (load.team.started) afd_team_stop(&load.team);
    if (!status && !config->share.ffn && config->model->tied_head) out->head = out->embed;
    return status;
}

struct expert_bytes {
    const struct afd_device_config *config;
    uint64_t bytes;
};

/* What cannot be viewed is refused by name when it is loaded. */
static enum afd_status add_expert_bytes(const struct afd_weight *weight, void *user)
{
    struct expert_bytes *sum = user;
    struct afd_weight_view view;
    struct afd_error unused;
    if (is_of_shard(weight) &&
        !afd_weight_view(sum->config->model, sum->config->checkpoint, weight, &view, &unused))
        sum->bytes += afd_weight_held_bytes(&view);
    return AFD_OK;
}

uint64_t afd_weight_table_shard_bytes(const struct afd_device_config *config, uint64_t shards)
{
    struct expert_bytes sum = {.config = config};
    struct afd_share share = config->share;
    share.shards = shards;
    afd_weights_each(config->model, &share, add_expert_bytes, &sum);
    return sum.bytes;
}

enum afd_status afd_weight_table_add(const struct afd_device_config *config, struct afd_weight_table *table,
                                     uint32_t shard, struct afd_error *error_out)
{
    struct afd_member alone = {.core = -1};
    struct load load = {.config = config, .table = table, .error_out = error_out};
    struct afd_share one = share_of_shard(&config->share, shard);
    load.total = afd_weight_table_shard_bytes(config, one.shards);
    load.team = (struct afd_team){.threads = 1, .members = &alone};
    if (afd_team_start(&load.team))
        return afd_fail(error_out, AFD_ERR_MEMORY, "cannot start a thread to load with");
    enum afd_status status = fill(&load, &table->shard[shard], &one, 1);
    afd_team_stop(&load.team);
    return status;
}

static void unmap(struct afd_panels *panels)
{
    if (panels->memory) munmap(panels->memory, panels->bytes);
    *panels = (struct afd_panels){0};
}

void afd_weight_table_remove(struct afd_weight_table *table, uint32_t shard)
{
    unmap(&table->shard[shard]);
}

void afd_weight_table_unload(struct afd_weight_table *table)
{
    unmap(&table->common);
    for (uint32_t s = 0; s < AFD_MAX_SHARDS; s++) unmap(&table->shard[s]);
}
