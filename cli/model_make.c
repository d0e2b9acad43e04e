/* model make: a random tiny checkpoint of any family, for trying things out and for tests. */
#include <dirent.h>
#include <limits.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/model.h"
#include "model/convert.h"
#include "model/model.h"
#include "model/tiny_model.h"

enum { UNSET = UINT32_MAX };

static const struct size {
    const char *name, *help;
    size_t offset;
} sizes[] = {
#define SIZE(name, field, help)                                                                              \
    {                                                                                                        \
        name, help, offsetof(struct afd_tiny_model, field)                                                   \
    }
    SIZE("--hidden", hidden, "channels of a row"),
    SIZE("--vocab", vocab, "token ids, from 259"),
    SIZE("--layers", layers, "layers"),
    SIZE("--max-context", max_context, "longest sequence"),
    SIZE("--heads", heads, "query heads"),
    SIZE("--kv-heads", kv_heads, "key and value heads"),
    SIZE("--head-dim", head_dim, "channels of a query head"),
    SIZE("--q-rank", q_rank, "rank of the query (step3, deepseek)"),
    SIZE("--kv-rank", kv_rank, "rank of keys and values (deepseek)"),
    SIZE("--rope-dim", rope_dim, "rotated channels of a head (deepseek)"),
    SIZE("--value-dim", value_dim, "channels of a value head (deepseek)"),
    SIZE("--window", window, "tokens that a sliding layer sees (step3p5)"),
    SIZE("--intermediate", intermediate, "width of a dense layer"),
    SIZE("--experts", experts, "routed experts of a layer"),
    SIZE("--top-k", top_k, "experts a token"),
    SIZE("--expert-intermediate", expert_intermediate, "width of a routed expert"),
    SIZE("--shared-intermediate", shared_intermediate, "width of the shared expert"),
    SIZE("--groups", groups, "groups of experts (deepseek)"),
    SIZE("--group-top-k", group_top_k, "groups a token (deepseek)"),
    SIZE("--files", files, "safetensors files"),
#undef SIZE
};
enum { SIZES = sizeof sizes / sizeof *sizes };

static int take_preset(const char *preset, const char *family, struct afd_tiny_model *out)
{
    enum afd_tiny_family f = afd_tiny_family_of(family);
    if (f == AFD_TINY_FAMILY_COUNT) {
        char known[160] = "";
        for (int i = 0; i < AFD_TINY_FAMILY_COUNT; i++)
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                     afd_tiny_family_name((enum afd_tiny_family)i));
        cli_fail("model make: --family is \"%s\"; expected one of: %s", family, known);
        return -1;
    }
    if (!strcmp(preset, "small"))
        *out = afd_tiny_model_small();
    else if (!strcmp(preset, "awkward"))
        *out = afd_tiny_model_awkward();
    else if (!strcmp(preset, "fp8"))
        *out = afd_tiny_model_fp8();
    else {
        cli_fail("model make: --preset is \"%s\"; expected small, awkward or fp8", preset);
        return -1;
    }
    *out = afd_tiny_model_as(*out, f);
    return 0;
}

static int take_dtype(const char *name, enum afd_dtype *out)
{
    for (int d = 0; name && d < AFD_DTYPE_COUNT; d++)
        if (!strcmp(name, afd_dtype_name((enum afd_dtype)d))) {
            *out = (enum afd_dtype)d;
            return 0;
        }
    if (!name) return 0;
    cli_fail("model make: --dtype is \"%s\"; expected f32, bf16, f16 or fp8", name);
    return -1;
}

static int take_sizes(const uint64_t *values, struct afd_tiny_model *out)
{
    for (int i = 0; i < SIZES; i++) {
        if (values[i] == UNSET) continue;
        if (values[i] > AFD_MAX_VOCAB) {
            cli_fail("model make: %s: %llu is over %d", sizes[i].name, (unsigned long long)values[i],
                     AFD_MAX_VOCAB);
            return -1;
        }
        uint32_t value = (uint32_t)values[i];
        memcpy((char *)out + sizes[i].offset, &value, sizeof value);
    }
    return 0;
}

static void remove_files(const char *path)
{
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) unlinkat(dirfd(dir), e->d_name, 0);
    if (dir) closedir(dir);
    rmdir(path);
}

/* GGUF is what safetensors are converted to. Their directory's name, the family's, becomes the model's. */
static int make_gguf(const struct afd_tiny_model *tiny, const char *out)
{
    char outer[PATH_MAX - NAME_MAX], from[PATH_MAX];
    struct afd_error error;
    struct afd_convert job = {.in = from, .out = out, .to_gguf = 1};
    if (snprintf(outer, sizeof outer, "%s.making", out) >= (int)sizeof outer || mkdir(outer, 0777))
        return cli_fail("model make: %s: cannot make a directory beside it", out);
    snprintf(from, sizeof from, "%s/%s", outer, afd_tiny_family_name(tiny->family));
    enum afd_status status = afd_tiny_model_write(tiny, from, &error);
    if (!status) status = afd_convert_run(&job, &error);
    remove_files(from);
    rmdir(outer);
    return status ? cli_fail("model make: %s", error.text) : CLI_OK;
}

int cli_model_make(const struct cli_command *self, int argc, char **argv)
{
    enum { FIXED = 9 };
    const char *dir, *family = "step3", *preset = "small", *dtype = NULL, *moe_layers = NULL, *format = NULL;
    uint64_t values[SIZES], seed = UINT64_MAX;
    int renormalise = 0, tied = 0, no_weights = 0, help;
    struct cli_option options[FIXED + SIZES + 1] = {
        {"--family", 0, CLI_TEXT, &family,
         "step3, step3p5, deepseek_v2, deepseek_v3, qwen3, qwen3_moe, llama"},
        {"--preset", 0, CLI_TEXT, &preset, "small, awkward (sizes that divide nothing) or fp8"},
        {"--dtype", 0, CLI_TEXT, &dtype, "f32, bf16, f16 or fp8"},
        {"--format", 0, CLI_TEXT, &format,
         "safetensors (default), or gguf: then DIR is made or ends in .gguf"},
        {"--moe-layers", 0, CLI_TEXT, &moe_layers, "layers with experts: \"1,2\""},
        {"--seed", 0, CLI_COUNT, &seed, "another seed, other weights"},
        {"--renormalise", 0, CLI_FLAG, &renormalise, "divide a token's expert weights by their sum"},
        {"--tied", 0, CLI_FLAG, &tied, "the embedding is the head"},
        {"--no-weights", 0, CLI_FLAG, &no_weights,
         "writes no weights: ranks take random ones, of real sizes too (fp8, bf16)"},
    };
    for (int i = 0; i < SIZES; i++) {
        values[i] = UNSET;
        options[FIXED + i] = (struct cli_option){sizes[i].name, 0, CLI_COUNT, &values[i], sizes[i].help};
    }
    int count = cli_parse(self, argc, argv, options, &dir, 1, &help);
    if (count < 0) return cli_parse_exit(help);
    struct afd_tiny_model tiny;
    if (count < 1) cli_fail("model make: expected a directory");
    if (count < 1 || take_preset(preset, family, &tiny) || take_dtype(dtype, &tiny.dtype) ||
        take_sizes(values, &tiny))
        return CLI_USAGE;
    if (moe_layers) tiny.moe_layers = moe_layers;
    if (seed != UINT64_MAX) tiny.seed = seed;
    if (renormalise) tiny.renormalise = 1;
    if (tied) tiny.tied_head = 1;
    tiny.no_weights = no_weights;
    if (format && no_weights) {
        cli_fail("model make: --no-weights has no file of a --format");
        return CLI_USAGE;
    }
    if (format && !strcmp(format, "gguf")) return make_gguf(&tiny, dir);
    if (format && strcmp(format, "safetensors")) {
        cli_fail("model make: --format is \"%s\"; expected safetensors or gguf", format);
        return CLI_USAGE;
    }
    char config[PATH_MAX];
    struct afd_error error;
    if (snprintf(config, sizeof config, "%s/config.json", dir) >= PATH_MAX || !access(config, F_OK))
        return cli_fail("model make: %s: has a model already", dir);
    if (afd_tiny_model_write(&tiny, dir, &error)) return cli_fail("model make: %s", error.text);
    return CLI_OK;
}
