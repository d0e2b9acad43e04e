#include "ffn_node/options.h"

#include <argp.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"

static const struct argp_option option_table[] = {
    {"topology", 't', "FILE", 0, "the cluster's YAML file", 0},
    {"secret-file", 's', "FILE", 0, "the cluster's secret, mode 0600", 0},
    {"rank", 'r', "N", 0, "the number of this rank in the FFN pool", 0},
    {"scheduler", 'c', "HOST:PORT", 0, "the scheduler's control address", 0},
    {"health", 'H', "FILE", 0, "rewritten while this rank lives, for `afd probe`", 0},
    {"log-level", 'l', "LEVEL", 0, "error, warn, info (default) or debug", 0},
    {"version", 'V', NULL, 0, "print the version", 0},
    {0},
};

static uint32_t parse_rank(struct argp_state *state, const char *text)
{
    char *end;
    long rank = strtol(text, &end, 10);
    if (*end || end == text || rank < 0 || rank >= AFD_MAX_RANKS)
        argp_error(state, "--rank %s: expected 0 to %d", text, AFD_MAX_RANKS - 1);
    return (uint32_t)rank;
}

static enum afd_log_level parse_level(struct argp_state *state, const char *text)
{
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    int level = 0;
    while (level < 4 && strcmp(text, levels[level])) level++;
    if (level == 4) argp_error(state, "--log-level %s: expected error, warn, info or debug", text);
    return (enum afd_log_level)level;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct ffn_options *o = state->input;
    switch (key) {
    case 't':
        o->topology = arg;
        return 0;
    case 's':
        o->secret_file = arg;
        return 0;
    case 'c':
        o->scheduler = arg;
        return 0;
    case 'r':
        o->rank = parse_rank(state, arg);
        return 0;
    case 'H':
        o->health = arg;
        return 0;
    case 'l':
        o->level = parse_level(state, arg);
        return 0;
    case 'V':
        fprintf(state->out_stream, "afd-ffn-node %s\n", AFD_VERSION);
        exit(0);
    case ARGP_KEY_END:
        if (!o->topology || !o->secret_file || !o->scheduler || o->rank == UINT32_MAX)
            argp_error(state, "--topology, --secret-file, --rank and --scheduler are needed");
        return 0;
    }
    return ARGP_ERR_UNKNOWN;
}

void ffn_options_parse(int argc, char **argv, struct ffn_options *out)
{
    static const struct argp argp = {option_table, parse, NULL, "One FFN rank of an afd cluster.",
                                     NULL,         NULL,  NULL};
    *out = (struct ffn_options){.rank = UINT32_MAX, .level = AFD_LOG_INFO};
    argp_parse(&argp, argc, argv, 0, NULL, out);
}
