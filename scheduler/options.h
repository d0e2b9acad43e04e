/* options.h: the command line of afd-scheduler. Plain struct; the strings are argv's. */
#ifndef AFD_SCHEDULER_OPTIONS_H
#define AFD_SCHEDULER_OPTIONS_H

#include "base/log.h"

struct afd_scheduler_options {
    const char *topology, *secret_file, *state; /* required */
    const char *http, *control;                 /* NULL: the topology's */
    enum afd_log_level log_level;
};

/* Ends the process with a usage message when the line is wrong, or for --help and --version. */
void afd_scheduler_options_read(struct afd_scheduler_options *options, int argc, char **argv);

#endif
