/* options.h: the command line of afd-ffn-node. A wrong one ends the process with words and status 64. */
#ifndef AFD_FFN_NODE_OPTIONS_H
#define AFD_FFN_NODE_OPTIONS_H

#include <stdint.h>

#include "base/log.h"

struct ffn_options {
    const char *topology, *secret_file, *scheduler, *health; /* health: NULL none */
    uint32_t rank;
    enum afd_log_level level;
};

void ffn_options_parse(int argc, char **argv, struct ffn_options *out);

#endif
