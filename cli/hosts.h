/* hosts.h: clusters whose supervisors run on other hosts, reached over ssh or through a Slurm job.
 *
 * The state directory of such a cluster, where `afd up` was typed, has no supervisor of its own:
 *   DIR/cluster.json    {"cluster", "topology", "by": "ssh"|"slurm", "started", "job", "is_own"}
 *   DIR/scheduler.json  where the scheduler is reached from here
 *   DIR/topology.yaml   as every host has it;  DIR/secret
 * It stays until `afd down` has reached every host. The functions block on the hosts, for a bounded time. */
#ifndef AFD_CLI_HOSTS_H
#define AFD_CLI_HOSTS_H

#include <jansson.h>

#include "deploy/topology.h"

struct cli_hosts;

/* Of a cluster that was started from `dir`; NULL with words. */
struct cli_hosts *cli_hosts_open(const char *dir, struct afd_error *error_out);
void cli_hosts_close(struct cli_hosts *hosts); /* NULL is allowed */

/* Writes `dir` for the cluster of the topology file; in a Slurm job with the job's nodes as its hosts, if it
 * names none. */
enum afd_status cli_hosts_prepare(const char *file, const char *dir, struct afd_error *error_out);
/* The program `afd` on the hosts of `dir`'s topology. */
enum afd_status cli_hosts_program(const char *dir, char out[AFD_PATH_BYTES], struct afd_error *error_out);

/* By ssh: starts the supervisor of each host, or leaves the one that runs there. On failure, with words for
 * each host, those that were started are ended again if it is the first start. 0 or CLI_FAILED. */
int cli_hosts_start(struct cli_hosts *hosts, int is_first);
/* By slurm: submits the job, or uses the one that this process is in, and returns when `dir` is written. */
int cli_hosts_submit(const struct afd_topology *topology, const char *dir, afd_ns deadline,
                     const volatile int *interrupted);

/* As the supervisors say it: {"cluster", "topology", "state", "processes", "unreached": [{"host", "words"}]}.
 */
json_t *cli_hosts_ps(struct cli_hosts *hosts, struct afd_error *error_out);
/* Ends the scheduler's host, then the others, and forgets the cluster when all is down. 0 or CLI_FAILED. */
int cli_hosts_down(struct cli_hosts *hosts, uint32_t drain_s);
/* The log of "attn/3", "scheduler", "supervisor" or "supervisor/HOST". 0 or CLI_FAILED. */
int cli_hosts_logs(struct cli_hosts *hosts, const char *of, uint32_t lines, int is_following);

#endif
