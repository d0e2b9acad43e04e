/* options.h: the command line of afd-attn-node. Text belongs to argv. */
#ifndef AFD_ATTN_NODE_OPTIONS_H
#define AFD_ATTN_NODE_OPTIONS_H

#include <stdint.h>

#include "base/log.h"

struct afd_attn_options {
    const char *topology, *secret_file, *scheduler, *health; /* health: NULL none */
    uint32_t rank;
    enum afd_log_level log_level;
};

/* Ends the process, with words, when something is missing or wrong, and after --help and --version. */
struct afd_attn_options afd_attn_options_parse(int argc, char **argv);

#endif
