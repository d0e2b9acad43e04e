/* model convert: a checkpoint in another format, or with weights of another type, and what that cost them. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/model.h"
#include "deploy/loading.h"
#include "model/convert.h"

enum { BAR_CELLS = 24, NAME_BYTES = 160 };

/* Tensors that differ in the numbers in their names alone. */
struct row {
    char pattern[NAME_BYTES], worst[NAME_BYTES];
    const char *from, *to;
    uint64_t tensors, bytes;
    double max_error, rms_relative; /* of the worst tensor */
};

struct report {
    struct row *rows;
    uint32_t count, room;
    json_t *tensors; /* NULL without --json */
    uint64_t bytes;
    struct afd_loading loading;
    afd_ns drawn;
    int tty;
};

static void show_progress(uint64_t done, uint64_t total, void *user)
{
    struct report *r = user;
    afd_ns now = afd_now();
    char line[AFD_LOADING_LINE_BYTES];
    if (r->tty && done < total && now < r->drawn + AFD_MS(100)) return;
    if (r->tty) r->loading.next = 0; /* a bar is drawn again when it likes; lines come every few seconds */
    if (!afd_loading_step(&r->loading, done, total, now, line)) return;
    r->drawn = now;
    if (!r->tty) {
        fprintf(stderr, "%s\n", line);
        return;
    }
    int cells = (int)(BAR_CELLS * (total ? (double)done / (double)total : 1));
    fprintf(stderr, "\r[%.*s%*s] %s\x1b[K%s", cells, "########################", BAR_CELLS - cells, "", line,
            done == total ? "\n" : "");
}

/* "model.layers.3.mlp.experts.7.up_proj.weight" to "model.layers.*.mlp.experts.*.up_proj.weight". */
static void pattern_of(const char *name, char out[NAME_BYTES])
{
    size_t n = 0;
    for (const char *at = name; *at && n + 1 < NAME_BYTES; at++) {
        int number = isdigit((unsigned char)*at) && (at == name || at[-1] == '.' || (n && out[n - 1] == '*'));
        if (!number)
            out[n++] = *at;
        else if (!n || out[n - 1] != '*')
            out[n++] = '*';
    }
    out[n] = 0;
}

static struct row *row_of(struct report *r, const struct afd_converted *t)
{
    char pattern[NAME_BYTES];
    pattern_of(t->name, pattern);
    for (uint32_t i = 0; i < r->count; i++)
        if (!strcmp(r->rows[i].pattern, pattern) && r->rows[i].from == t->from && r->rows[i].to == t->to)
            return &r->rows[i];
    if (r->count == r->room) {
        r->room = r->room ? 2 * r->room : 64;
        r->rows = realloc(r->rows, r->room * sizeof *r->rows);
        if (!r->rows) abort();
    }
    struct row *row = &r->rows[r->count++];
    *row = (struct row){.from = t->from, .to = t->to};
    memcpy(row->pattern, pattern, sizeof pattern);
    snprintf(row->worst, sizeof row->worst, "%s", t->name);
    return row;
}

static void add_tensor(const struct afd_converted *t, void *user)
{
    struct report *r = user;
    struct row *row = row_of(r, t);
    row->tensors++;
    row->bytes += t->bytes;
    r->bytes += t->bytes;
    if (t->max_error > row->max_error) row->max_error = t->max_error;
    if (t->rms_relative > row->rms_relative) {
        row->rms_relative = t->rms_relative;
        snprintf(row->worst, sizeof row->worst, "%s", t->name);
    }
    if (r->tensors)
        json_array_append_new(r->tensors,
                              json_pack("{s:s, s:s, s:s, s:I, s:I, s:f, s:f}", "name", t->name, "from",
                                        t->from, "to", t->to, "weights", (json_int_t)t->values, "bytes",
                                        (json_int_t)t->bytes, "max_error", t->max_error, "rms_relative_error",
                                        t->rms_relative));
}

static void print_report(const struct report *r)
{
    static const char *const headers[] = {"<tensors", ">count",     "<from",      "<to",
                                          ">bytes",   ">max error", ">rms error", "<worst (rms)"};
    struct cli_table *table = cli_table_create(8, headers);
    char bytes[32];
    for (uint32_t i = 0; i < r->count; i++) {
        const struct row *row = &r->rows[i];
        cli_table_cell(table, "%s", row->pattern);
        cli_table_cell(table, "%llu", (unsigned long long)row->tensors);
        cli_table_cell(table, "%s", row->from);
        cli_table_cell(table, "%s", row->to);
        cli_table_cell(table, "%s", cli_bytes(row->bytes, bytes));
        cli_table_cell(table, "%.3g", row->max_error);
        cli_table_cell(table, "%.3g%%", 100 * row->rms_relative);
        cli_table_cell(table, "%s", row->rms_relative > 0 && row->tensors > 1 ? row->worst : "");
    }
    cli_table_print(table, stdout);
    printf("%s of weights\n", cli_bytes(r->bytes, bytes));
}

/* "5GB", "5GiB", "5000000". */
static int parse_bytes(const char *text, uint64_t *out)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 1},     {"B", 1},      {"KB", 1e3},      {"MB", 1e6},
                 {"GB", 1e9}, {"KiB", 1024}, {"MiB", 1048576}, {"GiB", 1073741824}};
    char *end;
    double n = strtod(text, &end);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (end != text && !strcmp(end, units[i].unit) && n * units[i].bytes >= 1 &&
            n * units[i].bytes < 1e18) {
            *out = (uint64_t)(n * units[i].bytes);
            return 0;
        }
    cli_fail("model convert: --shard-size is \"%s\"; expected a size such as 5GB or 512MiB", text);
    return -1;
}

static int run(struct afd_convert *job, int json)
{
    struct afd_error error;
    struct report report = {.loading = afd_loading_begin(afd_now()),
                            .tty = isatty(STDERR_FILENO),
                            .tensors = json ? json_array() : NULL};
    job->user = &report;
    job->progress = show_progress;
    job->tensor = add_tensor;
    enum afd_status status = afd_convert_run(job, &error);
    if (status && report.drawn && report.tty) fputc('\n', stderr);
    int result = status ? cli_fail("model convert: %s", error.text) : CLI_OK;
    if (!status && json)
        cli_print_json(json_pack("{s:s, s:s, s:s, s:I, s:O}", "in", job->in, "out", job->out, "format",
                                 job->to_gguf ? "gguf" : "safetensors", "bytes", (json_int_t)report.bytes,
                                 "tensors", report.tensors));
    if (!status && !json) print_report(&report);
    json_decref(report.tensors);
    free(report.rows);
    return result;
}

int cli_model_convert(const struct cli_command *self, int argc, char **argv)
{
    struct afd_convert job = {0};
    const char *to = NULL, *shard = NULL;
    int json = 0, help;
    const struct cli_option options[] = {
        {"--output", 'o', CLI_TEXT, &job.out,
         "directory that is made; for GGUF also a file that ends in .gguf"},
        {"--to", 0, CLI_TEXT, &to, "safetensors or gguf"},
        {"--type", 0, CLI_TEXT, &job.type,
         "of the matrices: f32, bf16, f16; fp8, awq, gptq (safetensors); q8_0, q6_k, q5_k, q5_0, q5_1, q4_k, "
         "q4_0, q4_1, iq4_nl, iq4_xs, q3_k, q2_k (gguf); without it, what they are"},
        {"--shard-size", 0, CLI_TEXT, &shard, "safetensors: 5GB and so on, files and an index"},
        {"--no-tokenizer", 0, CLI_FLAG, &job.no_tokenizer, "leave the tokenizer out"},
        {"--json", 0, CLI_FLAG, &json, "one object, tensor by tensor"},
        {0}};
    int count = cli_parse(self, argc, argv, options, &job.in, 1, &help);
    if (count < 0) return cli_parse_exit(help);
    if (count < 1 || !job.out || !to || (strcmp(to, "gguf") && strcmp(to, "safetensors"))) {
        cli_fail(
            "model convert: expected: afd model convert PATH -o OUT --to safetensors|gguf [--type TYPE]");
        return CLI_USAGE;
    }
    job.to_gguf = !strcmp(to, "gguf");
    if (shard && parse_bytes(shard, &job.shard_bytes)) return CLI_USAGE;
    return run(&job, json);
}
