/* model: what a checkpoint is: its layers, parameters, the types its weights are stored in, their bytes, and
 * what of them a rank takes. */
#include <string.h>

#include "cli/model.h"
#include "model/heads.h"
#include "model/tensors.h"
#include "model/weights.h"

enum { MAX_TYPES = AFD_DTYPE_COUNT + AFD_QUANT_COUNT };

struct sum {
    uint64_t weights, bytes;
};

struct totals {
    const struct afd_model *model;
    const struct afd_checkpoint *checkpoint;
    struct afd_error *error_out;
    struct sum types[MAX_TYPES]; /* by dtype, then by quantized format */
    struct sum layers[AFD_MAX_LAYERS], all;
};

/* How the checkpoint would be cut over ranks. */
struct cut {
    uint32_t attn_tp, ep, tp;
};

/* One member of a group of attention ranks, or of an FFN instance with the shard that is the largest. */
struct rank {
    int ffn;
    uint32_t member, shard;
    struct sum sum;
};

static const char *type_name(int type)
{
    return type < AFD_DTYPE_COUNT ? afd_dtype_name((enum afd_dtype)type)
                                  : afd_quants[type - AFD_DTYPE_COUNT].name;
}

static void add_sum(struct sum *to, struct sum one)
{
    to->weights += one.weights;
    to->bytes += one.bytes;
}

/* Of block-FP8, beside its elements. */
static uint64_t scale_bytes(const struct afd_weight_view *view)
{
    uint64_t rows = view->transposed ? view->columns : view->rows,
             columns = view->transposed ? view->rows : view->columns;
    return (rows + view->block - 1) / view->block * ((columns + view->block - 1) / view->block) *
           afd_dtype_bytes(view->scale_dtype);
}

static int is_of_layer(enum afd_weight_use use)
{
    return use != AFD_W_EMBED && use != AFD_W_FINAL_NORM && use != AFD_W_HEAD;
}

/* Every weight is looked up, so a checkpoint that lacks one, or has it in another shape, is refused by name.
 */
static enum afd_status add(const struct afd_weight *weight, void *user)
{
    struct totals *t = user;
    struct afd_weight_view view;
    enum afd_status status = afd_weight_view(t->model, t->checkpoint, weight, &view, t->error_out);
    if (status) return status;
    int type = view.quant ? AFD_DTYPE_COUNT + (int)view.quant->kind : (int)view.dtype;
    uint64_t rows = view.transposed ? view.columns : view.rows;
    struct sum one = {(uint64_t)view.rows * view.columns, rows * afd_weight_row_bytes(&view)};
    if (view.block) one.bytes += scale_bytes(&view);
    add_sum(&t->types[type], one);
    add_sum(&t->all, one);
    if (is_of_layer(weight->use)) add_sum(&t->layers[weight->layer], one);
    return AFD_OK;
}

/* What the ranks of `cut` hold: attention's members, then the FFN's; [attn_tp + tp] of them. */
static enum afd_status add_ranks(const struct totals *t, const struct cut *cut, struct rank *out)
{
    enum afd_status status = AFD_OK;
    for (uint32_t i = 0; i < cut->attn_tp + cut->tp; i++) {
        int ffn = i >= cut->attn_tp;
        uint32_t member = ffn ? i - cut->attn_tp : i;
        out[i] = (struct rank){.ffn = ffn, .member = member};
        for (uint32_t s = 0; !status && s < (ffn ? cut->ep : 1); s++) {
            struct totals part = {t->model, t->checkpoint, t->error_out, {{0}}, {{0}}, {0}};
            struct afd_share share = {.ffn = ffn, .shards = 1ull << s, .ep = cut->ep, .tp_index = member};
            share.tp = ffn ? cut->tp : cut->attn_tp;
            status = afd_weights_each(t->model, &share, add, &part);
            if (part.all.bytes > out[i].sum.bytes || !s) out[i].sum = part.all, out[i].shard = s;
        }
    }
    return status;
}

static json_t *attention_json(const struct afd_attn_desc *a)
{
    json_t *out =
        json_pack("{s:s, s:i, s:i, s:i}", "kind", a->kind == AFD_ATTN_LATENT ? "latent" : "grouped", "heads",
                  (int)a->heads, "kv_heads", (int)a->kv_heads, "head_dim", (int)a->head_dim);
    if (a->q_rank) json_object_set_new(out, "query_rank", json_integer(a->q_rank));
    if (a->kv_rank) json_object_set_new(out, "kv_rank", json_integer(a->kv_rank));
    if (a->window) json_object_set_new(out, "window", json_integer(a->window));
    json_object_set_new(out, "kv_elements", json_integer(afd_attn_kv_elements(a)));
    return out;
}

static json_t *ffn_json(const struct afd_ffn_desc *f)
{
    if (f->kind == AFD_FFN_DENSE)
        return json_pack("{s:s, s:i}", "kind", "dense", "width", (int)f->intermediate);
    return json_pack("{s:s, s:i, s:i, s:i, s:i}", "kind", "experts", "width", (int)f->intermediate, "experts",
                     (int)f->experts, "top_k", (int)f->top_k, "shared_width", (int)f->shared_intermediate);
}

static json_t *ranks_json(const struct cut *cut, const struct rank *ranks)
{
    json_t *out = json_array();
    for (uint32_t i = 0; i < cut->attn_tp + cut->tp; i++) {
        const struct rank *r = &ranks[i];
        json_t *one =
            json_pack("{s:s, s:i, s:I, s:I}", "role", r->ffn ? "ffn" : "attn", "member", (int)r->member,
                      "weights", (json_int_t)r->sum.weights, "bytes", (json_int_t)r->sum.bytes);
        if (r->ffn) json_object_set_new(one, "shard", json_integer(r->shard));
        json_array_append_new(out, one);
    }
    return out;
}

static json_t *info_json(const struct totals *t, const struct cut *cut, const struct rank *ranks)
{
    const struct afd_model *m = t->model;
    uint64_t total, active;
    json_t *layers = json_array(), *types = json_array();
    afd_model_parameters(m, &total, &active);
    for (uint32_t l = 0; l < m->layer_count; l++)
        json_array_append_new(
            layers, json_pack("{s:o, s:o, s:I, s:I}", "attention", attention_json(&m->layers[l].attn), "ffn",
                              ffn_json(&m->layers[l].ffn), "weights", (json_int_t)t->layers[l].weights,
                              "bytes", (json_int_t)t->layers[l].bytes));
    for (int type = 0; type < MAX_TYPES; type++)
        if (t->types[type].weights)
            json_array_append_new(types, json_pack("{s:s, s:I, s:I}", "type", type_name(type), "weights",
                                                   (json_int_t)t->types[type].weights, "bytes",
                                                   (json_int_t)t->types[type].bytes));
    return json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:b, s:I, s:I, s:I, s:o, s:o, s:o}", "name", m->name, "architecture",
        m->architecture, "hidden", (int)m->hidden, "vocab", (int)m->vocab, "max_context", (int)m->max_context,
        "tied_head", m->tied_head, "parameters", (json_int_t)total, "active_parameters", (json_int_t)active,
        "bytes", (json_int_t)t->all.bytes, "types", types, "layers", layers, "ranks", ranks_json(cut, ranks));
}

static int same_layer(const struct afd_layer *a, const struct afd_layer *b)
{
    return a->attn.kind == b->attn.kind && a->attn.heads == b->attn.heads &&
           a->attn.window == b->attn.window && a->ffn.kind == b->ffn.kind &&
           a->ffn.intermediate == b->ffn.intermediate;
}

static void print_ranks(const struct cut *cut, const struct rank *ranks)
{
    static const char *const headers[] = {"<rank", ">M weights", ">bytes"};
    struct cli_table *table = cli_table_create(3, headers);
    for (uint32_t i = 0; i < cut->attn_tp + cut->tp; i++) {
        const struct rank *r = &ranks[i];
        uint32_t members = r->ffn ? cut->tp : cut->attn_tp;
        char bytes[32], member[32] = "", shard[64] = "";
        if (members > 1) snprintf(member, sizeof member, ", member %u of %u", r->member, members);
        if (r->ffn) snprintf(shard, sizeof shard, ", shard %u of %u", r->shard, cut->ep);
        cli_table_cell(table, "%s%s%s", r->ffn ? "ffn" : "attn", shard, member);
        cli_table_cell(table, "%.2f", (double)r->sum.weights / 1e6);
        cli_table_cell(table, "%s", cli_bytes(r->sum.bytes, bytes));
    }
    cli_table_print(table, stdout);
}

static void print_info(const struct totals *t)
{
    static const char *const headers[] = {"<layers", "<attention", ">heads",     ">KV heads",
                                          ">window", "<FFN",       ">width",     ">experts",
                                          ">top",    ">M weights", ">bytes each"};
    const struct afd_model *m = t->model;
    uint64_t total, active;
    char bytes[32];
    afd_model_parameters(m, &total, &active);
    printf("%s: %s, %u layers, hidden %u, vocabulary %u, context %u%s\n", m->name, m->architecture,
           m->layer_count, m->hidden, m->vocab, m->max_context, m->tied_head ? ", tied head" : "");
    printf("%.2f M parameters, %.2f M active for a token\n", (double)total / 1e6, (double)active / 1e6);
    for (int type = 0; type < MAX_TYPES; type++)
        if (t->types[type].weights)
            printf("  %-9s %10.2f M weights  %s\n", type_name(type), (double)t->types[type].weights / 1e6,
                   cli_bytes(t->types[type].bytes, bytes));
    struct cli_table *table = cli_table_create(11, headers);
    for (uint32_t l = 0, end; l < m->layer_count; l = end) {
        const struct afd_attn_desc *a = &m->layers[l].attn;
        const struct afd_ffn_desc *f = &m->layers[l].ffn;
        for (end = l + 1; end < m->layer_count && same_layer(&m->layers[l], &m->layers[end]) &&
                          t->layers[l].bytes == t->layers[end].bytes;)
            end++;
        cli_table_cell(table, "%u..%u", l, end - 1);
        cli_table_cell(table, "%s", a->kind == AFD_ATTN_LATENT ? "latent" : "grouped");
        cli_table_cell(table, "%u x %u", a->heads, a->head_dim);
        cli_table_cell(table, "%u", a->kv_heads);
        cli_table_cell(table, "%u", a->window);
        cli_table_cell(table, "%s", f->kind == AFD_FFN_DENSE ? "dense" : "experts");
        cli_table_cell(table, "%u", f->intermediate);
        cli_table_cell(table, "%u", f->experts);
        cli_table_cell(table, "%u", f->top_k);
        cli_table_cell(table, "%.2f", (double)t->layers[l].weights / 1e6);
        cli_table_cell(table, "%s", cli_bytes(t->layers[l].bytes, bytes));
    }
    cli_table_print(table, stdout);
}

static int info(const char *path, const struct cut *cut, int json)
{
    struct afd_error error;
    struct afd_model *model = NULL;
    struct afd_checkpoint *checkpoint = NULL;
    struct rank ranks[2 * AFD_MAX_TP];
    struct totals totals = {.error_out = &error};
    struct afd_share ffn = {.ffn = 1, .shards = 1, .ep = 1, .tp = 1}, attn = {.ep = 1, .tp = 1};
    enum afd_status status = afd_model_load(path, &model, &error);
    if (!status) status = afd_checkpoint_open(path, &checkpoint, &error);
    totals.model = model;
    totals.checkpoint = checkpoint;
    if (!status) status = afd_weights_each(model, &attn, add, &totals);
    if (!status) status = afd_weights_each(model, &ffn, add, &totals);
    if (!status) status = afd_heads_check(model, cut->attn_tp, &error);
    if (!status) status = add_ranks(&totals, cut, ranks);
    int result = status ? cli_fail("%s", error.text) : CLI_OK;
    if (!status && json) cli_print_json(info_json(&totals, cut, ranks));
    if (!status && !json) {
        print_info(&totals);
        print_ranks(cut, ranks);
    }
    afd_checkpoint_close(checkpoint);
    afd_model_destroy(model);
    return result;
}

int cli_model(const struct cli_command *self, int argc, char **argv)
{
    const char *words[2];
    uint64_t attn_tp = 1, ep = 1, tp = 1;
    int json = 0, help;
    if (argc > 1 && !strcmp(argv[1], "make")) return cli_model_make(self, argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "convert")) return cli_model_convert(self, argc - 1, argv + 1);
    const struct cli_option options[] = {
        {"--attn-tp", 0, CLI_COUNT, &attn_tp, "attention ranks that share a layer's heads (1)"},
        {"--ep", 0, CLI_COUNT, &ep, "shards of the experts (1)"},
        {"--tp", 0, CLI_COUNT, &tp, "FFN ranks that a shard is cut over (1)"},
        {"--json", 0, CLI_FLAG, &json, "one object, layer by layer"},
        {0}};
    int count = cli_parse(self, argc, argv, options, words, 2, &help);
    if (count < 0) return cli_parse_exit(help);
    if (count < 2 || strcmp(words[0], "info")) {
        cli_fail("model: expected: afd model %s", self->arguments);
        return CLI_USAGE;
    }
    if (attn_tp - 1 >= AFD_MAX_TP || tp - 1 >= AFD_MAX_TP || ep - 1 >= AFD_MAX_SHARDS) {
        cli_fail("model info: --attn-tp, --tp and --ep: expected 1 to %d", AFD_MAX_TP);
        return CLI_USAGE;
    }
    struct cut cut = {(uint32_t)attn_tp, (uint32_t)ep, (uint32_t)tp};
    return info(words[1], &cut, json);
}
