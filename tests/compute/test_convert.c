/* Guards: a conversion that loses a tensor, takes one for another, permutes rows or groups wrongly, says
 * another model in the metadata, rounds more than its type must, leaves something that loads when it was
 * stopped, or changes what a text is encoded to. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/half.h"
#include "model/convert.h"
#include "model/tokenizer.h"
#include "model/weight_read.h"
#include "tests/compute/machine.h"

enum { TOKENS = 5, PATH_BYTES = 96 };

/* Rows of 256 and 512: every block type fits somewhere. */
static struct afd_tiny_model regular(enum afd_tiny_family family)
{
    struct afd_tiny_model t = afd_tiny_model_small();
    t.hidden = 256, t.intermediate = 512, t.expert_intermediate = 256, t.shared_intermediate = 256;
    t.q_rank = 64, t.head_dim = 32, t.layers = 2, t.moe_layers = "1", t.renormalise = 1, t.dtype = AFD_F32;
    t = afd_tiny_model_as(t, family);
    if (family == AFD_TINY_QWEN3_MOE) t.moe_layers = "0,1"; /* all that a GGUF file can say */
    return t;
}

static struct afd_tiny_model ragged(enum afd_tiny_family family)
{
    struct afd_tiny_model t = afd_tiny_model_as(afd_tiny_model_awkward(), family);
    t.files = 1;
    if (family == AFD_TINY_QWEN3_MOE) t.moe_layers = "0,1,2,3";
    if (family == AFD_TINY_DEEPSEEK_V2 || family == AFD_TINY_DEEPSEEK_V3) t.moe_layers = "1,2,3";
    return t;
}

static const enum afd_tiny_family in_gguf[] = {AFD_TINY_LLAMA,       AFD_TINY_QWEN3,       AFD_TINY_QWEN3_MOE,
                                               AFD_TINY_DEEPSEEK_V2, AFD_TINY_DEEPSEEK_V3, AFD_TINY_STEP3P5};
enum { IN_GGUF = sizeof in_gguf / sizeof *in_gguf };

static void remove_tree(const char *path)
{
    char command[PATH_BYTES + 16];
    snprintf(command, sizeof command, "rm -rf %s", path);
    if (system(command)) fail_msg("%s", command);
}

static void path_of(const char *dir, const char *name, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/%s", dir, name);
}

static void convert(const char *in, const char *out, const char *type, struct afd_convert job)
{
    struct afd_error error;
    job.in = in, job.out = out, job.type = type;
    job.to_gguf = strstr(out, "gguf") != NULL;
    if (afd_convert_run(&job, &error))
        fail_msg("%s to %s (%s): %s", in, out, type ? type : "kept", error.text);
}

/* ---- weights */

struct pair {
    struct afd_model *model[2];
    struct afd_checkpoint *checkpoint[2];
    double differences, squares, worst;
};

static void read_weight(const struct pair *p, int side, const struct afd_weight *w, float **out,
                        uint64_t *count)
{
    struct afd_weight_view view;
    struct afd_error error;
    if (afd_weight_view(p->model[side], p->checkpoint[side], w, &view, &error)) fail_msg("%s", error.text);
    *count = (uint64_t)view.rows * view.columns;
    *out = malloc(*count * sizeof **out);
    for (uint32_t r = 0; r < view.rows; r++)
        afd_weight_values(&view, r, 0, view.columns, *out + (size_t)r * view.columns);
    int norm = afd_weight_is_vector(w->use) && w->use != AFD_W_ROUTER_BIAS;
    for (uint64_t i = 0; norm && i < *count; i++) (*out)[i] += p->model[side]->norm_offset;
}

/* GGUF's order of a Llama's rows, told here once more. */
static uint32_t row_in(const struct afd_model *m, const struct afd_weight *w, uint32_t row)
{
    const struct afd_attn_desc *a = &m->layers[w->layer].attn;
    uint32_t half = a->head_dim / 2, head = row / a->head_dim, i = row % a->head_dim;
    int permuted = m->format == AFD_FORMAT_GGUF && !strcmp(m->architecture, "LlamaForCausalLM") &&
                   (w->use == AFD_W_Q_UP || w->use == AFD_W_K);
    return permuted ? head * a->head_dim + (i < half ? 2 * i : 2 * (i - half) + 1) : row;
}

static enum afd_status compare_one(const struct afd_weight *w, void *user)
{
    struct pair *p = user;
    float *x, *y;
    uint64_t n, m;
    double differences = 0, squares = 0;
    read_weight(p, 0, w, &x, &n);
    read_weight(p, 1, w, &y, &m);
    assert_true(n == m);
    uint32_t columns = w->in_end;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t row = (uint32_t)(i / columns), column = (uint32_t)(i % columns);
        double a = (double)x[(uint64_t)row_in(p->model[0], w, row) * columns + column];
        double b = (double)y[(uint64_t)row_in(p->model[1], w, row) * columns + column];
        differences += (a - b) * (a - b);
        squares += a * a;
    }
    free(x);
    free(y);
    double rms = squares > 0 ? sqrt(differences / squares) : 0;
    if (rms > p->worst) p->worst = rms;
    return AFD_OK;
}

/* The largest relative root mean square difference of a weight. */
static double compare_weights(const char *a, const char *b)
{
    const char *const paths[2] = {a, b};
    struct pair p = {0};
    struct afd_error error;
    for (int i = 0; i < 2; i++)
        if (afd_model_load(paths[i], &p.model[i], &error) ||
            afd_checkpoint_open(paths[i], &p.checkpoint[i], &error))
            fail_msg("%s", error.text);
    struct afd_share attn = {.ep = 1, .tp = 1}, ffn = {.ffn = 1, .shards = 1, .ep = 1, .tp = 1};
    afd_weights_each(p.model[0], &attn, compare_one, &p);
    afd_weights_each(p.model[0], &ffn, compare_one, &p);
    for (int i = 0; i < 2; i++) {
        afd_checkpoint_close(p.checkpoint[i]);
        afd_model_destroy(p.model[i]);
    }
    return p.worst;
}

/* ---- whole models */

static float *run(const char *path, enum afd_device_type type, uint32_t *vocab_out)
{
    struct machine_config config = machine_plain(type);
    uint32_t tokens[TOKENS], blocks[TOKENS];
    struct machine m = machine_open(path, config);
    *vocab_out = m.model->vocab;
    for (uint32_t i = 0; i < TOKENS; i++) tokens[i] = (i * 37 + 11) % m.model->vocab, blocks[i] = i;
    struct afd_segment segment = {0, TOKENS, 0, blocks, (TOKENS - 1) / config.kv_block_tokens + 1, 0};
    float *logits = malloc((size_t)TOKENS * m.model->vocab * sizeof *logits);
    machine_step(&m, 0, &(struct afd_step){TOKENS, 1, tokens, &segment}, logits);
    machine_close(&m);
    return logits;
}

/* The largest difference of a logit. */
static double compare_logits(const char *a, enum afd_device_type on_a, const char *b,
                             enum afd_device_type on_b)
{
    uint32_t vocab, other;
    float *x = run(a, on_a, &vocab), *y = run(b, on_b, &other);
    double worst = 0;
    assert_int_equal(vocab, other);
    for (uint64_t i = 0; i < (uint64_t)TOKENS * vocab; i++) {
        double d = fabs((double)x[i] - (double)y[i]);
        if (!(d <= worst)) worst = d;
    }
    free(x);
    free(y);
    return worst;
}

static void expect_same_model(const char *a, const char *b)
{
    double worst = compare_logits(a, AFD_DEVICE_CPU, b, AFD_DEVICE_CPU);
    if (!(worst <= 1e-4)) fail_msg("%s and %s: a logit differs by %g", a, b, worst);
}

/* ---- tests */

/* float32 through GGUF and back: every tensor has the bytes that it had, but for Step-3.5's norms, to which 1
 * was added and taken off. */
static void float32_survives_gguf(void **state)
{
    (void)state;
    for (int f = 0; f < IN_GGUF; f++) {
        char dir[64], gguf[PATH_BYTES], back[PATH_BYTES];
        struct afd_tiny_model tiny = ragged(in_gguf[f]);
        machine_write(&tiny, dir);
        path_of(dir, "m.gguf", gguf);
        path_of(dir, "back", back);
        convert(dir, gguf, NULL, (struct afd_convert){0});
        convert(gguf, back, NULL, (struct afd_convert){0});
        expect_same_model(dir, gguf);
        expect_same_model(dir, back);
        struct afd_checkpoint *a, *b;
        struct afd_error error;
        if (afd_checkpoint_open(dir, &a, &error) || afd_checkpoint_open(back, &b, &error))
            fail_msg("%s", error.text);
        assert_int_equal(afd_checkpoint_count(a), afd_checkpoint_count(b));
        for (uint32_t i = 0; i < afd_checkpoint_count(a); i++) {
            const struct afd_tensor *x = afd_checkpoint_at(a, i), *y = afd_checkpoint_find(b, x->name);
            if (!y) fail_msg("%s: lost", x->name);
            assert_int_equal(x->bytes, y->bytes);
            if (in_gguf[f] == AFD_TINY_STEP3P5 && strstr(x->name, "norm.weight")) continue;
            if (memcmp(x->data, y->data, x->bytes)) fail_msg("%s: other bytes", x->name);
        }
        afd_checkpoint_close(a);
        afd_checkpoint_close(b);
        assert_true(compare_weights(dir, back) < 1e-6);
        remove_tree(back);
        assert_int_equal(unlink(gguf), 0);
        machine_remove(dir);
    }
}

/* Each type: the weights are as near as its steps are, and the model that it makes is the model of those
 * weights (converted back to float32), on ref and on cpu. A type's bound is its step over the spread of
 * normal numbers, with room for a head or an embedding in it. */
static void types_round_as_little_as_they_must(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        double rms;
        int gguf;
    } types[] = {{"bf16", 0.003, 0},  {"f16", 0.0005, 0}, {"fp8", 0.04, 0},   {"awq", 0.12, 0},
                 {"gptq", 0.12, 0},   {"bf16", 0.003, 1}, {"f16", 0.0005, 1}, {"q8_0", 0.01, 1},
                 {"q6_k", 0.03, 1},   {"q5_0", 0.06, 1},  {"q5_1", 0.06, 1},  {"q4_0", 0.12, 1},
                 {"q4_1", 0.12, 1},   {"q4_k", 0.12, 1},  {"q5_k", 0.06, 1},  {"iq4_nl", 0.12, 1},
                 {"iq4_xs", 0.12, 1}, {"q3_k", 0.25, 1},  {"q2_k", 0.45, 1}};
    static const enum afd_tiny_family families[] = {AFD_TINY_QWEN3_MOE, AFD_TINY_LLAMA, AFD_TINY_DEEPSEEK_V3};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (size_t f = i % 3; f < 3; f += 3) { /* each type with one family */
            char dir[64], out[PATH_BYTES], plain[PATH_BYTES];
            struct afd_tiny_model tiny = regular(families[f]);
            machine_write(&tiny, dir);
            path_of(dir, types[i].gguf ? "gguf" : "out", out);
            path_of(dir, "plain", plain);
            convert(dir, out, types[i].type, (struct afd_convert){0});
            convert(out, plain, "f32", (struct afd_convert){0});
            double worst = compare_weights(dir, out);
            print_message("%s %s: worst rms %.4f\n", afd_tiny_family_name(families[f]), types[i].type, worst);
            if (!(worst > 0 && worst <= types[i].rms))
                fail_msg("%s: a weight's relative rms difference is %g; expected at most %g", types[i].type,
                         worst, types[i].rms);
            expect_same_model(out, plain);
            remove_tree(out);
            remove_tree(plain);
            machine_remove(dir);
        }
}

/* A type that is kept is kept in every bit. */
static void kept_blocks_are_the_same_bytes(void **state)
{
    (void)state;
    char dir[64], first[PATH_BYTES], second[PATH_BYTES];
    struct afd_tiny_model tiny = regular(AFD_TINY_LLAMA);
    machine_write(&tiny, dir);
    path_of(dir, "gguf-1", first);
    path_of(dir, "gguf-2", second);
    convert(dir, first, "q4_k", (struct afd_convert){0});
    convert(first, second, NULL, (struct afd_convert){0});
    assert_true(compare_weights(first, second) == 0);
    expect_same_model(first, second);
    remove_tree(first);
    remove_tree(second);
    machine_remove(dir);
}

/* Files of at most a size, all tensors in one of them, and the index says which. */
static void shards_have_an_index(void **state)
{
    (void)state;
    char dir[64], out[PATH_BYTES], file[PATH_BYTES + 64];
    struct stat info;
    struct afd_tiny_model tiny = regular(AFD_TINY_STEP3);
    machine_write(&tiny, dir);
    path_of(dir, "out", out);
    convert(dir, out, "fp8", (struct afd_convert){.shard_bytes = 300000});
    snprintf(file, sizeof file, "%s/model.safetensors.index.json", out);
    assert_int_equal(stat(file, &info), 0);
    snprintf(file, sizeof file, "%s/model.safetensors", out);
    assert_int_equal(stat(file, &info), -1);
    assert_true(compare_weights(dir, out) < 0.04); /* opens, and so holds to the index */
    remove_tree(out);
    machine_remove(dir);
}

/* ---- int4, taken apart by the published layouts alone */

static const void *raw(const struct afd_checkpoint *c, const char *module, const char *part)
{
    char name[160];
    snprintf(name, sizeof name, "%s.%s", module, part);
    const struct afd_tensor *t = afd_checkpoint_find(c, name);
    if (!t) fail_msg("%s: missing", name);
    return t->data;
}

/* AutoAWQ: qweight [in, out / 8], of 8 outputs nibble i is output 0 2 4 6 1 3 5 7 [i]. AutoGPTQ: qweight
 * [in / 8, out], zeros less 1, and the group of each input. */
static float unpack(const struct afd_checkpoint *c, const char *module, int awq, uint32_t outs, uint32_t out,
                    uint32_t in)
{
    static const uint32_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    const uint32_t *weights = raw(c, module, "qweight"), *zeros = raw(c, module, "qzeros");
    const uint16_t *scales = raw(c, module, "scales");
    uint32_t group = awq ? in / 128 : ((const uint32_t *)raw(c, module, "g_idx"))[in], place = out % 8;
    for (uint32_t i = 0; awq && i < 8; i++)
        if (order[i] == out % 8) place = i;
    uint32_t word = awq ? weights[in * (outs / 8) + out / 8] : weights[in / 8 * outs + out];
    uint32_t q = word >> 4 * (awq ? place : in % 8) & 15;
    uint32_t zero = (zeros[group * (outs / 8) + out / 8] >> 4 * place & 15) + !awq;
    return afd_f16_to_float(scales[group * outs + out]) * (float)((int)q - (int)zero);
}

static const char module[] = "model.layers.1.mlp.down_proj";
static const struct afd_weight down = {.use = AFD_W_DOWN, .layer = 1, .out_end = 256, .in_end = 512};

static void int4_is_packed_as_published(void **state)
{
    (void)state;
    for (int awq = 0; awq < 2; awq++) {
        char dir[64], out[PATH_BYTES];
        struct afd_error error;
        struct pair p = {0};
        float *exact, *read;
        uint64_t n;
        struct afd_tiny_model tiny = regular(AFD_TINY_LLAMA);
        machine_write(&tiny, dir);
        path_of(dir, "out", out);
        convert(dir, out, awq ? "awq" : "gptq", (struct afd_convert){0});
        if (afd_model_load(dir, &p.model[0], &error) || afd_checkpoint_open(dir, &p.checkpoint[0], &error) ||
            afd_model_load(out, &p.model[1], &error) || afd_checkpoint_open(out, &p.checkpoint[1], &error))
            fail_msg("%s", error.text);
        read_weight(&p, 0, &down, &exact, &n);
        read_weight(&p, 1, &down, &read, &n);
        for (uint32_t o = 0; o < 256; o++)
            for (uint32_t i = 0; i < 512; i++) {
                float x = exact[o * 512 + i], y = unpack(p.checkpoint[1], module, awq, 256, o, i);
                assert_true(y == read[o * 512 + i]);
                /* 15 steps over a range of at most 2 * 3.5 deviations of 1.5 / sqrt(512) */
                assert_true(fabsf(x - y) <= 0.5f * 7.0f * 1.5f / 22.6f / 15.0f * 1.01f);
            }
        for (int i = 0; i < 2; i++) afd_checkpoint_close(p.checkpoint[i]), afd_model_destroy(p.model[i]);
        free(exact);
        free(read);
        remove_tree(out);
        machine_remove(dir);
    }
}

/* Act-order: inputs of one group are scattered. The file is one of ours with two inputs' groups exchanged in
 * every layer; what must come out is what the published layout says, in the reader and in a product. */
static void act_order_follows_g_idx(void **state)
{
    (void)state;
    char dir[64], out[PATH_BYTES], plain[PATH_BYTES], file[PATH_BYTES + 32];
    struct afd_error error;
    struct pair p = {0};
    float *read;
    uint64_t n;
    struct afd_tiny_model tiny = regular(AFD_TINY_LLAMA);
    machine_write(&tiny, dir);
    path_of(dir, "out", out);
    path_of(dir, "plain", plain);
    convert(dir, out, "gptq", (struct afd_convert){0});
    if (afd_checkpoint_open(out, &p.checkpoint[1], &error)) fail_msg("%s", error.text);
    const char *map = afd_checkpoint_at(p.checkpoint[1], 0)->data; /* offsets, from any tensor of the file */
    snprintf(file, sizeof file, "%s/model.safetensors", out);
    FILE *f = fopen(file, "r+b");
    uint64_t header = 0, least = UINT64_MAX;
    assert_non_null(f);
    assert_int_equal(fread(&header, 8, 1, f), 1);
    for (uint32_t i = 0; i < afd_checkpoint_count(p.checkpoint[1]); i++) {
        uint64_t at = (uint64_t)((const char *)afd_checkpoint_at(p.checkpoint[1], i)->data - map);
        if ((int64_t)at < (int64_t)least || least == UINT64_MAX) least = at;
    }
    for (uint32_t i = 0; i < afd_checkpoint_count(p.checkpoint[1]); i++) {
        const struct afd_tensor *t = afd_checkpoint_at(p.checkpoint[1], i);
        if (!strstr(t->name, ".g_idx") || t->shape[0] < 256) continue;
        uint32_t groups[2] = {1, 0}; /* of inputs 0 and 128 */
        long at = (long)(8 + header + ((uint64_t)((const char *)t->data - map) - least));
        for (int k = 0; k < 2; k++)
            assert_true(!fseek(f, at + 128L * k * 4, SEEK_SET) && fwrite(&groups[k], 4, 1, f) == 1);
    }
    assert_int_equal(fclose(f), 0);
    afd_checkpoint_close(p.checkpoint[1]);
    if (afd_model_load(out, &p.model[1], &error) || afd_checkpoint_open(out, &p.checkpoint[1], &error))
        fail_msg("%s", error.text);
    read_weight(&p, 1, &down, &read, &n);
    for (uint32_t o = 0; o < 256; o++)
        for (uint32_t i = 0; i < 512; i++)
            assert_true(unpack(p.checkpoint[1], module, 0, 256, o, i) == read[o * 512 + i]);
    assert_int_equal(((const uint32_t *)raw(p.checkpoint[1], module, "g_idx"))[128], 0);
    convert(out, plain, "f32", (struct afd_convert){0});
    expect_same_model(out, plain);
    assert_true(compare_logits(out, AFD_DEVICE_REF, out, AFD_DEVICE_CPU) == 0);
    afd_checkpoint_close(p.checkpoint[1]);
    afd_model_destroy(p.model[1]);
    free(read);
    remove_tree(out);
    remove_tree(plain);
    machine_remove(dir);
}

/* ---- tokenizers */

/* The checkpoint's tokenizer encodes `text` as it did in the two it was converted from. */
static void expect_tokenizer_survives(const char *dir, const char *text, int adds_bos)
{
    char paths[3][PATH_BYTES];
    struct afd_error error;
    uint32_t *ids[3];
    size_t count[3];
    snprintf(paths[0], PATH_BYTES, "%s", dir);
    path_of(dir, "m.gguf", paths[1]);
    path_of(dir, "back", paths[2]);
    convert(dir, paths[1], NULL, (struct afd_convert){0});
    convert(paths[1], paths[2], NULL, (struct afd_convert){0});
    for (int i = 0; i < 3; i++) {
        struct afd_tokenizer *t;
        if (afd_tokenizer_load(paths[i], &t, &error)) fail_msg("%s", error.text);
        assert_int_equal(
            afd_tokenizer_encode(t, text, strlen(text), AFD_ENCODE_SPECIAL, 1000, &ids[i], &count[i]),
            AFD_OK);
        assert_int_equal(count[i], count[0]);
        assert_memory_equal(ids[i], ids[0], count[0] * sizeof **ids);
        assert_int_equal(afd_tokenizer_adds_bos(t), adds_bos);
        assert_int_equal(afd_tokenizer_bos(t), AFD_TINY_BOS);
        assert_true(afd_tokenizer_special(t, "<|EOT|>") == AFD_TINY_EOT);
        afd_tokenizer_destroy(t);
    }
    for (int i = 0; i < 3; i++) free(ids[i]);
    remove_tree(paths[1]);
    remove_tree(paths[2]);
}

static void tokenizer_survives_gguf(void **state)
{
    (void)state;
    char dir[64];
    struct afd_tiny_model tiny = regular(AFD_TINY_QWEN3);
    machine_write(&tiny, dir);
    expect_tokenizer_survives(dir, "It's  12345 aabbzz\n\n日本語 <|EOT|> the cat<|endoftext|>", 0);
    machine_remove(dir);
}

/* A tokenizer.json of SentencePiece's form: bytes, three control tokens of the tiny model's ids, and pieces.
 */
static void write_spaced(const char *dir, const char *merges, const char *prepend)
{
    static const char *const special[] = {"<|endoftext|>", "<|BOT|>", "<|EOT|>"};
    static const char *const pieces[] = {"<unk>",   "\u2581", "a",   "b",   "ab",
                                         "\u2581a", "ba",     "aba", "aaa", "aa"};
    char path[PATH_BYTES];
    path_of(dir, "tokenizer.json", path);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "{\"added_tokens\":[{\"id\":259,\"content\":\"<unk>\",\"special\":true}");
    for (int i = 0; i < 3; i++)
        fprintf(f, ",{\"id\":%d,\"content\":\"%s\",\"special\":true}", 256 + i, special[i]);
    fprintf(f,
            "],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[%s{\"type\":\"Replace\",\"pattern\":"
            "{\"String\":\" \"},\"content\":\"\u2581\"}]},\"pre_tokenizer\":null,\"post_processor\":null,"
            "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
            "\"\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}%s]},",
            prepend, *prepend ? ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}" : "");
    fprintf(f,
            "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"byte_fallback\":true,\"fuse_unk\":true,"
            "\"merges\":[%s],\"vocab\":{\"<0x00>\":0",
            merges);
    for (int b = 1; b < 256; b++) fprintf(f, ",\"<0x%02X>\":%d", b, b);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) fprintf(f, ",\"%s\":%zu", pieces[i], 259 + i);
    fprintf(f, "}}}");
    assert_int_equal(fclose(f), 0);
    path_of(dir, "tokenizer_config.json", path);
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "{\"bos_token\":\"<|endoftext|>\",\"eos_token\":\"<|EOT|>\",\"add_bos_token\":true}");
    assert_int_equal(fclose(f), 0);
}

/* In the order of scores: what makes the same token together. */
#define BEST "\"a b\",\"\u2581 a\",\"b a\""
#define NEXT "\"a ba\",\"ab a\""
#define LAST "\"a a\",\"a aa\",\"aa a\""
static const char prepends[] = "{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},";

/* Guards: scores that merge in another order than the merges did, and types and spaces that are lost. */
static void spaced_tokenizer_survives_gguf(void **state)
{
    (void)state;
    char dir[64];
    struct afd_tiny_model tiny = regular(AFD_TINY_LLAMA);
    static const char text[] = "abab aba  aaab baaab\n日本語<|EOT|>ab a b<|endoftext|>";
    tiny.vocab = 269;
    machine_write(&tiny, dir);
    write_spaced(dir, BEST "," NEXT "," LAST, prepends);
    expect_tokenizer_survives(dir, text, 1);
    write_spaced(dir, LAST "," NEXT "," BEST, "");
    expect_tokenizer_survives(dir, text, 1);
    write_spaced(dir, "\"a aa\",\"a a\",\"aa a\"," BEST "," NEXT, prepends); /* runs that take turns */
    expect_tokenizer_survives(dir, text, 1);
    machine_remove(dir);
}

/* ---- what cannot be, and what breaks */

static void expect_refusal(const char *in, const char *out, int to_gguf, const char *type, const char *words)
{
    struct afd_error error = {""};
    struct afd_convert job = {.in = in, .out = out, .to_gguf = to_gguf, .type = type};
    char left[PATH_BYTES + 16];
    struct stat info;
    assert_int_not_equal(afd_convert_run(&job, &error), AFD_OK);
    if (!strstr(error.text, words)) fail_msg("\"%s\" does not say \"%s\"", error.text, words);
    snprintf(left, sizeof left, "%s.unfinished", out);
    assert_int_equal(stat(left, &info), -1);
}

static void refuses_with_words(void **state)
{
    (void)state;
    char dir[64], moe[64], out[PATH_BYTES];
    struct afd_tiny_model tiny = regular(AFD_TINY_STEP3), sparse = regular(AFD_TINY_QWEN3_MOE);
    sparse.moe_layers = "1"; /* and layer 0 dense */
    machine_write(&tiny, dir);
    machine_write(&sparse, moe);
    path_of(dir, "out", out);
    expect_refusal(dir, out, 1, NULL, "GGUF has no architecture");
    expect_refusal(moe, out, 1, NULL, "layer 0 is dense");
    expect_refusal(dir, out, 0, "q4_k", "safetensors has f32");
    expect_refusal(dir, out, 0, "seven", "safetensors has f32");
    expect_refusal(dir, dir, 0, NULL, "is there already");
    machine_remove(moe);
    machine_remove(dir);
}

/* Guards: a tokenizer whose merges no scores say, written as if some did. */
static void refuses_merges_that_are_no_scores(void **state)
{
    (void)state;
    char dir[64], out[PATH_BYTES];
    struct afd_tiny_model tiny = regular(AFD_TINY_LLAMA);
    tiny.vocab = 269;
    machine_write(&tiny, dir);
    path_of(dir, "m.gguf", out);
    write_spaced(dir, BEST "," NEXT ",\"a a\",\"a aa\"", prepends);
    expect_refusal(dir, out, 1, NULL, "1 make \"aaa\", and 2 pairs of tokens would");
    write_spaced(dir, "\"a ba\"," BEST ",\"ab a\"," LAST, prepends);
    expect_refusal(dir, out, 1, NULL, "those of \"aba\" and of \"ab\" take turns");
    write_spaced(dir, BEST "," NEXT "," LAST, "{\"type\":\"NFC\"},");
    expect_refusal(dir, out, 1, NULL, "GGUF can say U+2581 for each space");
    machine_remove(dir);
}

/* Files cannot grow beyond a limit, as on a full disk. */
static void full_disk_leaves_nothing(void **state)
{
    (void)state;
    char dir[64], out[PATH_BYTES];
    struct rlimit before, small;
    struct afd_tiny_model tiny = regular(AFD_TINY_LLAMA);
    machine_write(&tiny, dir);
    path_of(dir, "out", out);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &small);
    expect_refusal(dir, out, 0, NULL, "File too large");
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(access(out, F_OK), -1);
    machine_remove(dir);
}

static void die_half_way(uint64_t done, uint64_t total, void *user)
{
    (void)user;
    if (done > total / 2) raise(SIGKILL);
}

static void killed_leaves_nothing_that_loads(void **state)
{
    (void)state;
    for (int to_gguf = 0; to_gguf < 2; to_gguf++) {
        char dir[64], out[PATH_BYTES], left[PATH_BYTES + 16];
        struct afd_error error;
        struct afd_model *model;
        struct afd_tiny_model tiny = regular(AFD_TINY_LLAMA);
        int status = 0;
        machine_write(&tiny, dir);
        path_of(dir, to_gguf ? "gguf" : "out", out);
        pid_t child = fork();
        if (!child) {
            struct afd_convert job = {.in = dir, .out = out, .to_gguf = to_gguf, .progress = die_half_way};
            afd_convert_run(&job, &error);
            _exit(0);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        snprintf(left, sizeof left, "%s.unfinished", out);
        assert_int_equal(access(out, F_OK), -1);
        assert_int_equal(access(left, F_OK), 0);
        assert_int_not_equal(afd_model_load(left, &model, &error), AFD_OK);
        convert(dir, out, NULL, (struct afd_convert){0}); /* takes the place of what was left */
        assert_int_equal(access(left, F_OK), -1);
        expect_same_model(dir, out);
        remove_tree(out);
        machine_remove(dir);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float32_survives_gguf),
        cmocka_unit_test(types_round_as_little_as_they_must),
        cmocka_unit_test(kept_blocks_are_the_same_bytes),
        cmocka_unit_test(shards_have_an_index),
        cmocka_unit_test(int4_is_packed_as_published),
        cmocka_unit_test(act_order_follows_g_idx),
        cmocka_unit_test(tokenizer_survives_gguf),
        cmocka_unit_test(spaced_tokenizer_survives_gguf),
        cmocka_unit_test(refuses_with_words),
        cmocka_unit_test(refuses_merges_that_are_no_scores),
        cmocka_unit_test(full_disk_leaves_nothing),
        cmocka_unit_test(killed_leaves_nothing_that_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
