/* make_tiny: writes a random Step3 checkpoint for shell tests.
 *
 *     make_tiny --out DIR [--preset small|awkward|fp8] [--hidden 64] ... [--dtype f32|bf16|f16|fp8]
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/tiny_model.h"

static struct afd_tiny_model tiny;

static const struct {
    const char *name;
    uint32_t *value;
} numbers[] = {
    {"hidden", &tiny.hidden},
    {"vocab", &tiny.vocab},
    {"layers", &tiny.layers},
    {"max-context", &tiny.max_context},
    {"heads", &tiny.heads},
    {"kv-heads", &tiny.kv_heads},
    {"head-dim", &tiny.head_dim},
    {"q-rank", &tiny.q_rank},
    {"intermediate", &tiny.intermediate},
    {"experts", &tiny.experts},
    {"top-k", &tiny.top_k},
    {"expert-intermediate", &tiny.expert_intermediate},
    {"shared-intermediate", &tiny.shared_intermediate},
    {"files", &tiny.files},
};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static int usage(void)
{
    fprintf(stderr, "usage: make_tiny --out DIR [--preset small|awkward|fp8] [--dtype f32|bf16|f16|fp8]\n"
                    "  [--moe-layers 1,2] [--renormalise] [--tied] [--seed N]\n ");
    for (size_t i = 0; i < NUMBERS; i++) fprintf(stderr, " [--%s N]", numbers[i].name);
    fprintf(stderr, "\n");
    return 2;
}

static int set(const char *name, const char *value)
{
    if (!strcmp(name, "preset")) {
        if (!strcmp(value, "small"))
            tiny = afd_tiny_model_small();
        else if (!strcmp(value, "awkward"))
            tiny = afd_tiny_model_awkward();
        else if (!strcmp(value, "fp8"))
            tiny = afd_tiny_model_fp8();
        else
            return -1;
        return 0;
    }
    if (!strcmp(name, "dtype")) {
        for (int d = 0; d < AFD_DTYPE_COUNT; d++)
            if (!strcmp(value, afd_dtype_name((enum afd_dtype)d))) {
                tiny.dtype = (enum afd_dtype)d;
                return 0;
            }
        return -1;
    }
    if (!strcmp(name, "moe-layers")) {
        tiny.moe_layers = value;
        return 0;
    }
    char *end;
    unsigned long long n = strtoull(value, &end, 10);
    if (end == value || *end) return -1;
    if (!strcmp(name, "seed")) tiny.seed = n;
    for (size_t i = 0; i < NUMBERS; i++)
        if (!strcmp(name, numbers[i].name)) *numbers[i].value = (uint32_t)n;
    return 0;
}

int main(int argc, char **argv)
{
    enum { EXTRA = 7 };
    struct option options[NUMBERS + EXTRA + 1] = {
        {"out", required_argument, NULL, 'o'},     {"preset", required_argument, NULL, 0},
        {"dtype", required_argument, NULL, 0},     {"moe-layers", required_argument, NULL, 0},
        {"seed", required_argument, NULL, 0},      {"renormalise", no_argument, &tiny.renormalise, 1},
        {"tied", no_argument, &tiny.tied_head, 1},
    };
    for (size_t i = 0; i < NUMBERS; i++)
        options[EXTRA + i] = (struct option){numbers[i].name, required_argument, NULL, 0};
    const char *out = NULL;
    int option, index;
    tiny = afd_tiny_model_small();
    while ((option = getopt_long(argc, argv, "", options, &index)) != -1) {
        if (option == 'o')
            out = optarg;
        else if (option)
            return usage();
        else if (optarg && set(options[index].name, optarg))
            return usage();
    }
    struct afd_error error;
    if (!out || optind < argc) return usage();
    if (afd_tiny_model_write(&tiny, out, &error)) {
        fprintf(stderr, "make_tiny: %s\n", error.text);
        return 1;
    }
    return 0;
}
