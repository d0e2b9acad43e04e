/* remote.h: commands on the hosts of a cluster, over ssh or as steps of a Slurm job.
 *
 * A call names a host and the words of a command, which reach the program as they are: what a shell on the
 * way would read into them is quoted. Several calls run at one time; each ends by itself, or is ended when
 * the time is over. Functions of the command line: afd_remote_run blocks for at most its timeout. Nothing
 * secret may stand among the words: what only the other side may know goes in as input. */
#ifndef AFD_DEPLOY_REMOTE_H
#define AFD_DEPLOY_REMOTE_H

#include "deploy/topology.h"

enum {
    AFD_REMOTE_WORDS = 48,
    AFD_REMOTE_TEXT_BYTES = 8192,
    AFD_REMOTE_OUTPUT_BYTES = 1 << 20,
    AFD_REMOTE_UNREACHED = -1, /* exit_status: the host was not reached, the program not found, or too late */
};

struct afd_remote_call {
    const char *host;
    const char *const *words; /* NULL ends them */
    const void *input;
    size_t input_bytes;
    /* results */
    int exit_status;
    char *output;        /* what it wrote, to be freed; NULL: nothing was run */
    char words_out[512]; /* the end of what it said on standard error, or why there is no answer */
};

/* `job`: of Slurm, 0 without. Returns AFD_OK when every call was made and ended with 0. */
enum afd_status afd_remote_run(const struct afd_topology *topology, uint32_t job,
                               struct afd_remote_call *calls, uint32_t count, uint32_t timeout_ms);

/* The command line that runs `words` on `host`: for who wants to exec it himself. */
struct afd_remote_command {
    char *argv[AFD_REMOTE_WORDS];
    uint32_t count;
    char text[AFD_REMOTE_TEXT_BYTES];
    size_t used;
};
enum afd_status afd_remote_command(const struct afd_topology *topology, uint32_t job, const char *host,
                                   const char *const *words, struct afd_remote_command *out,
                                   struct afd_error *error_out);

/* The program `afd` on each host: in launch.dir, or where this one is. */
enum afd_status afd_remote_program(const struct afd_topology *topology, char out[AFD_PATH_BYTES],
                                   struct afd_error *error_out);
/* The state directory of a host: by ssh one of its own file system, relative to the home folder; by slurm
 * below `dir`, which all hosts share. */
enum afd_status afd_remote_state(const struct afd_topology *topology, const char *dir, const char *host,
                                 char out[AFD_PATH_BYTES], struct afd_error *error_out);

#endif
