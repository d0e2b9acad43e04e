#include "oracle.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct matrix {
    size_t rows, columns; /* of one; `count` of them follow each other */
    size_t count;
    float *value;
};

struct layer {
    struct matrix attn_norm, q_down, q_norm, q_up, k, v, o, ffn_norm;
    struct matrix gate, up, down;               /* dense */
    struct matrix router, e_gate, e_up, e_down; /* experts, stacked */
    struct matrix s_gate, s_up, s_down;         /* shared expert */
    int is_moe;
};

struct oracle {
    size_t hidden, vocab, layers, heads, kv_heads, head_dim, top_k;
    int renormalise;
    double eps, theta;
    struct layer *layer;
    struct matrix embed, final_norm, head;
    struct file {
        unsigned char *bytes, *data;
        json_t *header;
    } files[8];
    size_t file_count;
};

static void die(const char *what, const char *name)
{
    fprintf(stderr, "oracle: %s: %s\n", what, name);
    abort();
}

static unsigned char *read_file(const char *dir, const char *name, size_t *bytes_out)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f) die("cannot open", path);
    fseek(f, 0, SEEK_END);
    long bytes = ftell(f);
    rewind(f);
    unsigned char *data = malloc((size_t)bytes + 1);
    if (!data || fread(data, 1, (size_t)bytes, f) != (size_t)bytes) die("cannot read", path);
    data[bytes] = 0;
    fclose(f);
    *bytes_out = (size_t)bytes;
    return data;
}

/* ldexp spells each format out: sign, exponent, mantissa. */
static double decode(const char *dtype, const unsigned char *p)
{
    if (!strcmp(dtype, "F32")) {
        float x;
        memcpy(&x, p, 4);
        return x;
    }
    unsigned u = p[0] | (!strcmp(dtype, "F8_E4M3") ? 0 : (unsigned)p[1] << 8);
    int exponent_bits = !strcmp(dtype, "BF16") ? 8 : !strcmp(dtype, "F16") ? 5 : 4;
    int mantissa_bits = !strcmp(dtype, "BF16") ? 7 : !strcmp(dtype, "F16") ? 10 : 3;
    int bias = (1 << (exponent_bits - 1)) - 1;
    double sign = u >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
    int exponent = (int)(u >> mantissa_bits) & ((1 << exponent_bits) - 1);
    double mantissa = u & ((1u << mantissa_bits) - 1);
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(ldexp(1, mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

static size_t element_bytes(const char *dtype)
{
    return !strcmp(dtype, "F32") ? 4 : !strcmp(dtype, "F8_E4M3") ? 1 : 2;
}

static json_t *find(const struct oracle *o, const char *name, const unsigned char **data_out)
{
    for (size_t i = 0; i < o->file_count; i++) {
        json_t *entry = json_object_get(o->files[i].header, name);
        if (!entry) continue;
        *data_out =
            o->files[i].data + json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
        return entry;
    }
    return NULL;
}

static void open_file(struct oracle *o, const char *dir, const char *name)
{
    struct file *f = &o->files[o->file_count++];
    size_t bytes;
    uint64_t header_bytes;
    if (o->file_count > sizeof o->files / sizeof *o->files) die("too many files", dir);
    f->bytes = read_file(dir, name, &bytes);
    memcpy(&header_bytes, f->bytes, 8);
    f->header = json_loadb((char *)f->bytes + 8, header_bytes, 0, NULL);
    f->data = f->bytes + 8 + header_bytes;
    if (!f->header) die("safetensors header is not JSON", name);
}

/* model.safetensors, or the files that an index names. */
static void open_files(struct oracle *o, const char *dir)
{
    char path[4096], names[8][128] = {""};
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    json_t *index = json_load_file(path, 0, NULL), *name;
    const char *tensor;
    if (!index) {
        open_file(o, dir, "model.safetensors");
        return;
    }
    json_object_foreach(json_object_get(index, "weight_map"), tensor, name)
    {
        size_t i = 0;
        while (i < o->file_count && strcmp(names[i], json_string_value(name))) i++;
        if (i < o->file_count) continue;
        snprintf(names[i], sizeof names[i], "%s", json_string_value(name));
        open_file(o, dir, names[i]);
    }
    json_decref(index);
}

/* Rank 1, 2 or 3 tensors; block-FP8 ones are multiplied by their scales. */
static struct matrix load(struct oracle *o, const char *name)
{
    const unsigned char *data = NULL, *scale = NULL;
    json_t *entry = find(o, name, &data);
    if (!entry) die("no tensor", name);
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    json_t *shape = json_object_get(entry, "shape");
    size_t dims = json_array_size(shape);
    size_t n[3] = {1, 1, 1};
    for (size_t i = 0; i < dims; i++) n[3 - dims + i] = (size_t)json_integer_value(json_array_get(shape, i));
    struct matrix m = {.count = n[0], .rows = n[1], .columns = n[2]};
    size_t total = m.count * m.rows * m.columns;
    m.value = malloc(total * sizeof *m.value);
    if (!m.value) die("memory", name);
    char scale_name[512];
    snprintf(scale_name, sizeof scale_name, "%s_scale_inv", name);
    find(o, scale_name, &scale);
    size_t block_rows = (m.rows + 127) / 128, block_columns = (m.columns + 127) / 128;
    for (size_t i = 0; i < total; i++) {
        double x = decode(dtype, data + i * element_bytes(dtype));
        if (scale) {
            size_t c = i % m.columns, r = i / m.columns % m.rows, e = i / m.columns / m.rows;
            x *= decode("F32", scale + 4 * ((e * block_rows + r / 128) * block_columns + c / 128));
        }
        m.value[i] = (float)x;
    }
    return m;
}

static struct matrix load_layer(struct oracle *o, size_t layer, const char *suffix)
{
    char name[256];
    snprintf(name, sizeof name, "model.layers.%zu.%s", layer, suffix);
    return load(o, name);
}

static size_t number(json_t *config, const char *key)
{
    json_t *v = json_object_get(config, key);
    if (!json_is_integer(v)) die("config lacks", key);
    return (size_t)json_integer_value(v);
}

static int listed(const char *list, size_t layer)
{
    for (const char *p = list; *p;) {
        char *end;
        if (strtoul(p, &end, 10) == layer && end != p) return 1;
        p = *end ? end + 1 : end;
    }
    return 0;
}

static void load_ffn(struct oracle *o, size_t i, struct layer *l)
{
    l->ffn_norm = load_layer(o, i, "post_attention_layernorm.weight");
    if (!l->is_moe) {
        l->gate = load_layer(o, i, "mlp.gate_proj.weight");
        l->up = load_layer(o, i, "mlp.up_proj.weight");
        l->down = load_layer(o, i, "mlp.down_proj.weight");
        return;
    }
    l->router = load_layer(o, i, "moe.gate.weight");
    l->e_gate = load_layer(o, i, "moe.gate_proj.weight");
    l->e_up = load_layer(o, i, "moe.up_proj.weight");
    l->e_down = load_layer(o, i, "moe.down_proj.weight");
    l->s_gate = load_layer(o, i, "share_expert.gate_proj.weight");
    l->s_up = load_layer(o, i, "share_expert.up_proj.weight");
    l->s_down = load_layer(o, i, "share_expert.down_proj.weight");
}

struct oracle *oracle_open(const char *dir)
{
    struct oracle *o = calloc(1, sizeof *o);
    size_t bytes;
    char *text = (char *)read_file(dir, "config.json", &bytes);
    json_t *config = json_loads(text, 0, NULL);
    free(text);
    if (!config) die("config.json is not JSON", dir);
    o->hidden = number(config, "hidden_size");
    o->vocab = number(config, "vocab_size");
    o->layers = number(config, "num_hidden_layers");
    o->heads = number(config, "num_attention_heads");
    o->kv_heads = number(config, "num_attention_groups");
    o->head_dim = number(config, "head_dim");
    o->top_k = number(config, "moe_top_k");
    o->renormalise = json_is_true(json_object_get(config, "norm_expert_weight"));
    o->eps = json_number_value(json_object_get(config, "rms_norm_eps"));
    o->theta = json_number_value(json_object_get(config, "rope_theta"));
    const char *moe = json_string_value(json_object_get(config, "moe_layers_enum"));

    open_files(o, dir);
    o->embed = load(o, "model.embed_tokens.weight");
    o->final_norm = load(o, "model.norm.weight");
    o->head = load(o, "lm_head.weight");
    o->layer = calloc(o->layers, sizeof *o->layer);
    for (size_t i = 0; i < o->layers; i++) {
        struct layer *l = &o->layer[i];
        l->is_moe = moe ? listed(moe, i) : i >= 1;
        l->attn_norm = load_layer(o, i, "input_layernorm.weight");
        l->q_down = load_layer(o, i, "self_attn.q_proj.weight");
        l->q_norm = load_layer(o, i, "self_attn.inter_norm.weight");
        l->q_up = load_layer(o, i, "self_attn.wq.weight");
        l->k = load_layer(o, i, "self_attn.k_proj.weight");
        l->v = load_layer(o, i, "self_attn.v_proj.weight");
        l->o = load_layer(o, i, "self_attn.o_proj.weight");
        load_ffn(o, i, l);
    }
    json_decref(config);
    return o;
}

void oracle_close(struct oracle *o)
{
    if (!o) return;
    for (size_t i = 0; i < o->layers; i++) {
        struct matrix *m = &o->layer[i].attn_norm;
        for (; m <= &o->layer[i].s_down; m++) free(m->value);
    }
    free(o->embed.value);
    free(o->final_norm.value);
    free(o->head.value);
    free(o->layer);
    for (size_t i = 0; i < o->file_count; i++) {
        json_decref(o->files[i].header);
        free(o->files[i].bytes);
    }
    free(o);
}

uint32_t oracle_vocab(const struct oracle *o)
{
    return (uint32_t)o->vocab;
}

/* y [rows] = W x, matrix `index` of the stack */
static void multiply(const struct matrix *w, size_t index, const float *x, float *y)
{
    const float *row = w->value + index * w->rows * w->columns;
    for (size_t r = 0; r < w->rows; r++, row += w->columns) {
        double sum = 0;
        for (size_t c = 0; c < w->columns; c++) sum += (double)row[c] * x[c];
        y[r] = (float)sum;
    }
}

static void rms_norm(const struct matrix *w, double eps, size_t n, const float *x, float *y)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    double inverse = 1 / sqrt(sum / (double)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = (float)(x[i] * inverse * w->value[i]);
}

static void rotate(double theta, size_t d, size_t position, float *x)
{
    for (size_t i = 0; i < d / 2; i++) {
        double angle = (double)position * pow(theta, -2.0 * (double)i / (double)d), a = x[i],
               b = x[i + d / 2];
        x[i] = (float)(a * cos(angle) - b * sin(angle));
        x[i + d / 2] = (float)(b * cos(angle) + a * sin(angle));
    }
}

/* out += weight * down(SiLU(gate x) * up x) */
static void swiglu(const struct matrix *gate, const struct matrix *up, const struct matrix *down,
                   size_t index, const float *x, double weight, double *out)
{
    float *g = malloc(gate->rows * sizeof *g), *u = malloc(gate->rows * sizeof *u),
          *y = malloc(down->rows * sizeof *y);
    multiply(gate, index, x, g);
    multiply(up, index, x, u);
    for (size_t i = 0; i < gate->rows; i++) g[i] = (float)(g[i] / (1 + exp(-(double)g[i])) * u[i]);
    multiply(down, index, g, y);
    for (size_t i = 0; i < down->rows; i++) out[i] += weight * y[i];
    free(g);
    free(u);
    free(y);
}

/* The nearest e4m3 value, ties to even mantissa, by search over the grid around x. */
static double round_e4m3(double x)
{
    double a = fabs(x);
    if (a >= 448) return x < 0 ? -448 : 448;
    int e;
    frexp(a, &e);
    double step = ldexp(1, (e - 1 < -6 ? -6 : e - 1) - 3);
    double n = nearbyint(a / step);
    return (x < 0 ? -1 : 1) * n * step;
}

static void fp8_round_trip(size_t n, float *x)
{
    for (size_t begin = 0; begin < n; begin += 128) {
        size_t end = begin + 128 < n ? begin + 128 : n;
        float largest = 1e-4f;
        for (size_t i = begin; i < end; i++)
            if (fabsf(x[i]) > largest) largest = fabsf(x[i]);
        float scale = largest / 448.0f;
        for (size_t i = begin; i < end; i++) x[i] = (float)(round_e4m3(x[i] / scale) * scale);
    }
}

static float round_bf16(double x)
{
    int e;
    if (x == 0) return 0;
    frexp(x, &e);
    double step = ldexp(1, e - 8);
    return (float)(nearbyint(x / step) * step);
}

/* y = FFN(m) of one row; returns the gap between the last chosen and the first rejected expert. */
static double ffn(const struct oracle *o, const struct layer *l, float *m, unsigned rounding, float *y)
{
    double *sum = calloc(o->hidden, sizeof *sum), gap = INFINITY;
    size_t experts = l->is_moe ? l->router.rows : 0;
    double *p = calloc(experts + 1, sizeof *p);
    float *scores = calloc(experts + 1, sizeof *scores);
    if (l->is_moe) multiply(&l->router, 0, m, scores);
    if (rounding & ORACLE_FP8_ROWS) fp8_round_trip(o->hidden, m);
    if (l->is_moe) {
        double largest = -INFINITY, total = 0;
        for (size_t e = 0; e < experts; e++)
            if (scores[e] > largest) largest = scores[e];
        for (size_t e = 0; e < experts; e++) total += p[e] = exp(scores[e] - largest);
        for (size_t e = 0; e < experts; e++) p[e] /= total;
        double chosen_total = 0, last = 0;
        char *chosen = calloc(experts, 1);
        for (size_t k = 0; k < o->top_k; k++) {
            size_t best = experts;
            for (size_t e = 0; e < experts; e++)
                if (!chosen[e] && (best == experts || p[e] > p[best])) best = e;
            chosen[best] = 1;
            chosen_total += last = p[best];
        }
        for (size_t e = 0; e < experts; e++)
            if (!chosen[e] && last - p[e] < gap) gap = last - p[e];
        for (size_t e = 0; e < experts; e++)
            if (chosen[e])
                swiglu(&l->e_gate, &l->e_up, &l->e_down, e, m, o->renormalise ? p[e] / chosen_total : p[e],
                       sum);
        swiglu(&l->s_gate, &l->s_up, &l->s_down, 0, m, 1, sum);
        free(chosen);
    } else {
        swiglu(&l->gate, &l->up, &l->down, 0, m, 1, sum);
    }
    for (size_t i = 0; i < o->hidden; i++)
        y[i] = rounding & ORACLE_BF16_SUMS ? round_bf16(sum[i]) : (float)sum[i];
    free(sum);
    free(p);
    free(scores);
    return gap;
}

/* h += Attention(norm(h)) for all rows of the sequence */
static void attention(const struct oracle *o, const struct layer *l, size_t count, float *h)
{
    size_t d = o->head_dim, q_size = o->heads * d, kv_size = o->kv_heads * d;
    float *q = malloc(count * q_size * sizeof *q), *k = malloc(count * kv_size * sizeof *k),
          *v = malloc(count * kv_size * sizeof *v);
    float *a = malloc(o->hidden * sizeof *a), *c = malloc(l->q_down.rows * sizeof *c),
          *mix = malloc(q_size * sizeof *mix);
    double *weight = malloc(count * sizeof *weight);
    for (size_t t = 0; t < count; t++) {
        rms_norm(&l->attn_norm, o->eps, o->hidden, h + t * o->hidden, a);
        multiply(&l->q_down, 0, a, c);
        rms_norm(&l->q_norm, o->eps, l->q_down.rows, c, c);
        multiply(&l->q_up, 0, c, q + t * q_size);
        multiply(&l->k, 0, a, k + t * kv_size);
        multiply(&l->v, 0, a, v + t * kv_size);
        for (size_t i = 0; i < o->heads; i++) rotate(o->theta, d, t, q + t * q_size + i * d);
        for (size_t i = 0; i < o->kv_heads; i++) rotate(o->theta, d, t, k + t * kv_size + i * d);
    }
    for (size_t t = 0; t < count; t++) {
        for (size_t i = 0; i < o->heads; i++) {
            size_t kv = i / (o->heads / o->kv_heads) * d;
            double largest = -INFINITY, total = 0;
            for (size_t s = 0; s <= t; s++) {
                double dot = 0;
                for (size_t j = 0; j < d; j++)
                    dot += (double)q[t * q_size + i * d + j] * k[s * kv_size + kv + j];
                weight[s] = dot / sqrt((double)d);
                if (weight[s] > largest) largest = weight[s];
            }
            for (size_t s = 0; s <= t; s++) total += weight[s] = exp(weight[s] - largest);
            for (size_t j = 0; j < d; j++) {
                double sum = 0;
                for (size_t s = 0; s <= t; s++) sum += weight[s] * v[s * kv_size + kv + j];
                mix[i * d + j] = (float)(sum / total);
            }
        }
        multiply(&l->o, 0, mix, a);
        for (size_t i = 0; i < o->hidden; i++) h[t * o->hidden + i] += a[i];
    }
    free(q);
    free(k);
    free(v);
    free(a);
    free(c);
    free(mix);
    free(weight);
}

void oracle_score(struct oracle *o, const uint32_t *tokens, size_t count, unsigned rounding,
                  double *logprobs_out, double *margins_out)
{
    float *h = malloc(count * o->hidden * sizeof *h), *m = malloc(o->hidden * sizeof *m),
          *y = malloc(o->hidden * sizeof *y);
    float *logits = malloc(o->vocab * sizeof *logits);
    double *gap = malloc(count * sizeof *gap);
    for (size_t t = 0; t < count; t++) {
        memcpy(h + t * o->hidden, o->embed.value + tokens[t] * o->hidden, o->hidden * sizeof *h);
        gap[t] = INFINITY;
    }
    for (size_t i = 0; i < o->layers; i++) {
        attention(o, &o->layer[i], count, h);
        for (size_t t = 0; t < count; t++) {
            float *row = h + t * o->hidden;
            rms_norm(&o->layer[i].ffn_norm, o->eps, o->hidden, row, m);
            double g = ffn(o, &o->layer[i], m, rounding, y);
            if (g < gap[t]) gap[t] = g;
            for (size_t j = 0; j < o->hidden; j++) row[j] += y[j];
        }
    }
    logprobs_out[0] = 0;
    margins_out[0] = INFINITY;
    double margin = INFINITY;
    for (size_t t = 0; t + 1 < count; t++) {
        rms_norm(&o->final_norm, o->eps, o->hidden, h + t * o->hidden, m);
        multiply(&o->head, 0, m, logits);
        double largest = -INFINITY, total = 0;
        for (size_t i = 0; i < o->vocab; i++)
            if (logits[i] > largest) largest = logits[i];
        for (size_t i = 0; i < o->vocab; i++) total += exp(logits[i] - largest);
        logprobs_out[t + 1] = logits[tokens[t + 1]] - largest - log(total);
        if (gap[t] < margin) margin = gap[t];
        margins_out[t + 1] = margin;
    }
    free(h);
    free(m);
    free(y);
    free(logits);
    free(gap);
}
