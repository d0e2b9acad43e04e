#include "attn_node/options.h"

#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"

const char *argp_program_version = "afd-attn-node " AFD_VERSION;

static const struct argp_option options[] = {
    {"topology", 't', "FILE", 0, "the cluster's topology file", 0},
    {"secret-file", 's', "FILE", 0, "the cluster's secret, mode 0600", 0},
    {"rank", 'r', "N", 0, "which attention rank this is", 0},
    {"scheduler", 'S', "HOST:PORT", 0, "the scheduler's control address", 0},
    {"health", 'H', "FILE", 0, "rewritten while this rank lives, for `afd probe`", 0},
    {"log-level", 'l', "LEVEL", 0, "error, warn, info or debug; default info", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    struct afd_attn_options *o = state->input;
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    char *end;
    switch (key) {
    case 't':
        o->topology = text;
        return 0;
    case 's':
        o->secret_file = text;
        return 0;
    case 'S':
        o->scheduler = text;
        return 0;
    case 'H':
        o->health = text;
        return 0;
    case 'r': {
        unsigned long n = strtoul(text, &end, 10);
        if (end == text || *end || n >= AFD_MAX_RANKS)
            argp_error(state, "--rank %s: expected a number", text);
        o->rank = (uint32_t)n;
        return 0;
    }
    case 'l':
        for (unsigned i = 0; i < sizeof levels / sizeof *levels; i++)
            if (!strcmp(text, levels[i])) {
                o->log_level = (enum afd_log_level)i;
                return 0;
            }
        argp_error(state, "--log-level %s: expected error, warn, info or debug", text);
        return EINVAL;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': only options are expected", text);
        return EINVAL;
    case ARGP_KEY_END:
        if (!o->topology) argp_error(state, "--topology FILE is missing");
        if (!o->secret_file) argp_error(state, "--secret-file FILE is missing");
        if (!o->scheduler) argp_error(state, "--scheduler HOST:PORT is missing");
        if (o->rank == UINT32_MAX) argp_error(state, "--rank N is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

struct afd_attn_options afd_attn_options_parse(int argc, char **argv)
{
    struct afd_attn_options o = {.rank = UINT32_MAX, .log_level = AFD_LOG_INFO};
    const struct argp argp = {.options = options,
                              .parser = parse,
                              .doc = "One attention rank of an afd cluster: embedding, attention, KV cache, "
                                     "routing and sampling. 'afd up' starts it."};
    argp_parse(&argp, argc, argv, 0, NULL, &o);
    return o;
}
