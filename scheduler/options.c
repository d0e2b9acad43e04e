#include "scheduler/options.h"

#include <argp.h>
#include <string.h>

enum { KEY_TOPOLOGY = 256, KEY_SECRET, KEY_STATE, KEY_HTTP, KEY_CONTROL, KEY_LEVEL };

static const struct argp_option options[] = {
    {"topology", KEY_TOPOLOGY, "FILE", 0, "the cluster, as YAML", 0},
    {"secret-file", KEY_SECRET, "FILE", 0, "the cluster's secret: 64 hexadecimal characters, mode 0600", 0},
    {"state", KEY_STATE, "DIR", 0, "where scheduler.json is written once both sockets listen", 0},
    {"http", KEY_HTTP, "HOST:PORT", 0, "instead of the topology's scheduler.http", 0},
    {"control", KEY_CONTROL, "HOST:PORT", 0, "instead of the topology's scheduler.control", 0},
    {"log-level", KEY_LEVEL, "LEVEL", 0, "error, warn, info (default) or debug", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    struct afd_scheduler_options *o = state->input;
    switch (key) {
    case KEY_TOPOLOGY:
        o->topology = arg;
        return 0;
    case KEY_SECRET:
        o->secret_file = arg;
        return 0;
    case KEY_STATE:
        o->state = arg;
        return 0;
    case KEY_HTTP:
        o->http = arg;
        return 0;
    case KEY_CONTROL:
        o->control = arg;
        return 0;
    case KEY_LEVEL:
        for (int i = 0; i < 4; i++) {
            if (strcmp(arg, levels[i]) != 0) continue;
            o->log_level = (enum afd_log_level)i;
            return 0;
        }
        argp_error(state, "--log-level %s: expected error, warn, info or debug", arg);
        return EINVAL;
    case ARGP_KEY_ARG:
        argp_error(state, "what is '%s'? there are options only", arg);
        return EINVAL;
    case ARGP_KEY_END:
        if (!o->topology || !o->secret_file || !o->state)
            argp_error(state, "--topology, --secret-file and --state are needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void print_version(FILE *stream, struct argp_state *state)
{
    (void)state;
    fprintf(stream, "afd-scheduler %s\n", AFD_VERSION);
}

void afd_scheduler_options_read(struct afd_scheduler_options *o, int argc, char **argv)
{
    static const struct argp argp = {
        options, parse, NULL, "afd-scheduler: owns the cluster view and every request; serves HTTP.",
        NULL,    NULL,  NULL};
    argp_program_version_hook = print_version;
    *o = (struct afd_scheduler_options){.log_level = AFD_LOG_INFO};
    argp_parse(&argp, argc, argv, 0, NULL, o);
}
