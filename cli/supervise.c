/* supervise: a host's supervisor, however it is started: left behind by `afd up` on this machine, received
 * over ssh, or as a task of a Slurm job, whose batch step prepares it. Nobody types it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/hosts.h"
#include "deploy/handover.h"
#include "deploy/launcher.h"

struct supervise {
    const char *topology, *dir, *host;
    uint64_t lock_fd, ready_fd;
};

static int has_host(const struct afd_topology *t, const char *host)
{
    char hosts[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES];
    uint32_t count = afd_topology_hosts(t, hosts), i = 0;
    while (i < count && strcmp(hosts[i], host) != 0) i++;
    return i < count;
}

/* The life of a supervisor: until it is told to end. */
static int supervise(const struct supervise *s)
{
    struct afd_error error;
    struct afd_topology *topology = NULL;
    char bin[AFD_PATH_BYTES];
    struct afd_launch launch = {
        .host = s->host, .state_dir = s->dir, .bin_dir = bin, .ready_fd = (int)s->ready_fd};
    afd_log_init("supervisor", AFD_LOG_INFO);
    enum afd_status status = afd_topology_load(s->topology, &topology, &error);
    launch.topology = topology;
    if (!status) status = afd_launcher_bin(bin, &error);
    if (!status) status = afd_launcher_run(&launch, &error);
    if (status) afd_log_error("%s", error.text);
    afd_topology_destroy(topology);
    return status ? CLI_FAILED : CLI_OK;
}

/* ---- over ssh */

/* All three daemons, so that a later order does not fail for want of one. */
static enum afd_status check_programs(struct afd_error *error)
{
    static const char *const names[] = {"afd-scheduler", "afd-attn-node", "afd-ffn-node"};
    char bin[AFD_PATH_BYTES], path[AFD_PATH_BYTES + 32];
    enum afd_status status = afd_launcher_bin(bin, error);
    for (size_t i = 0; !status && i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", bin, names[i]);
        if (access(path, X_OK)) status = afd_fail(error, AFD_ERR_CONFIG, "%s: %s", path, strerror(errno));
    }
    return status;
}

/* A supervisor holds the directory already: of the same topology, or words. */
static enum afd_status check_same(const char *dir, const struct afd_handover *given, struct afd_error *error)
{
    struct afd_handover there;
    enum afd_status status = afd_handover_load(dir, &there, error);
    if (status) return status;
    if (there.bytes != given->bytes || memcmp(there.topology, given->topology, given->bytes) != 0)
        status = afd_fail(error, AFD_ERR_CONFIG, "another topology runs in %s; `afd down` ends it", dir);
    afd_handover_free(&there);
    return status;
}

static enum afd_status start_received(const char *dir, const char *host, const struct afd_handover *given,
                                      struct afd_error *error)
{
    char file[AFD_PATH_BYTES + 32];
    struct afd_topology *topology = NULL;
    enum afd_status status = afd_state_make(dir, error);
    if (status) return status;
    int lock = afd_state_lock(dir, &status, error);
    if (status == AFD_AGAIN) return check_same(dir, given, error);
    if (lock < 0) return status;
    afd_state_clean(dir);
    afd_state_clean_logs(dir);
    snprintf(file, sizeof file, "%s/topology.yaml", dir);
    status = afd_handover_store(given, dir, error);
    if (!status) status = check_programs(error);
    if (!status) status = afd_topology_load(file, &topology, error);
    if (!status && !has_host(topology, host))
        status = afd_fail(error, AFD_ERR_CONFIG, "the topology has no host %s", host);
    if (!status && access(topology->model_dir, R_OK))
        status = afd_fail(error, AFD_ERR_CONFIG, "model.path %s: %s", topology->model_dir, strerror(errno));
    if (!status) status = afd_launcher_start(topology, host, dir, lock, error);
    afd_topology_destroy(topology);
    close(lock);
    return status;
}

static int receive(const struct supervise *s)
{
    struct afd_error error;
    struct afd_handover given;
    char dir[AFD_PATH_BYTES];
    enum afd_status status = afd_state_place(s->dir, "", dir, &error);
    if (!status) status = afd_handover_read(0, &given, &error);
    if (status) return cli_fail("%s", error.text);
    status = start_received(dir, s->host, &given, &error);
    afd_handover_free(&given);
    return status ? cli_fail("%s", error.text) : CLI_OK;
}

/* ---- in a Slurm job */

/* The task of a host, in DIR/host-NAME of the file system that the hosts share. */
static int be_task(const struct supervise *s)
{
    char dir[AFD_PATH_BYTES], file[AFD_PATH_BYTES + 32], log[AFD_PATH_BYTES + 32];
    const char *host = getenv("SLURMD_NODENAME");
    struct afd_error error;
    struct afd_handover given = {.topology = NULL};
    struct afd_topology *topology = NULL;
    if (!host) return cli_fail("SLURMD_NODENAME is not set: this is no task of a Slurm job");
    if (snprintf(dir, sizeof dir, "%s/host-%s", s->dir, host) >= (int)sizeof dir)
        return cli_fail("%s: too long", s->dir);
    enum afd_status status = afd_handover_load(s->dir, &given, &error);
    int lock = -1;
    if (!status) status = afd_state_make(dir, &error);
    if (!status) lock = afd_state_lock(dir, &status, &error);
    if (!status) {
        afd_state_clean(dir);
        status = afd_handover_store(&given, dir, &error);
    }
    snprintf(file, sizeof file, "%s/topology.yaml", dir);
    snprintf(log, sizeof log, "%s/logs/supervisor.log", dir);
    if (!status) status = afd_topology_load(file, &topology, &error);
    int is_needed = !status && has_host(topology, host);
    afd_handover_free(&given);
    afd_topology_destroy(topology);
    if (status) return cli_fail("%s: %s", host, error.text);
    if (!is_needed) {
        printf("%s: the topology has nothing to run here\n", host);
        close(lock);
        return CLI_OK;
    }
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0) return cli_fail("%s: %s", log, strerror(errno));
    close(fd);
    struct supervise task = {.topology = file, .dir = dir, .host = host, .ready_fd = UINT64_MAX};
    int result = supervise(&task);
    close(lock);
    return result;
}

/* The batch step: writes the state directory, then becomes the step that runs a task a host. */
static int allocate(const struct supervise *s)
{
    static const char *const options[] = {"--no-kill",           "--kill-on-bad-exit=0", "--wait=0",
                                          "--ntasks-per-node=1", "--cpu-bind=none",      "--input=none"};
    struct afd_error error;
    char dir[AFD_PATH_BYTES], program[AFD_PATH_BYTES], nodes[32], output[AFD_PATH_BYTES + 32];
    const char *count = getenv("SLURM_JOB_NUM_NODES");
    if (!count) return cli_fail("SLURM_JOB_NUM_NODES is not set: this is no Slurm job");
    if (afd_state_place(s->dir, "", dir, &error) || cli_hosts_prepare(s->topology, dir, &error) ||
        cli_hosts_program(dir, program, &error))
        return cli_fail("%s", error.text);
    snprintf(nodes, sizeof nodes, "--nodes=%.20s", count);
    snprintf(output, sizeof output, "--output=%s/logs/task-%%N.log", dir);
    const char *argv[16] = {"srun", nodes, output};
    int n = 3;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) argv[n++] = options[i];
    argv[n++] = program, argv[n++] = "supervise", argv[n++] = "--task", argv[n++] = "--state",
    argv[n++] = dir;
    execvp(argv[0], (char **)argv);
    return cli_fail("srun: %s", strerror(errno));
}

int cli_supervise(const struct cli_command *self, int argc, char **argv)
{
    struct supervise s = {.lock_fd = UINT64_MAX, .ready_fd = UINT64_MAX};
    int is_received = 0, is_task = 0, is_allocation = 0, help;
    const struct cli_option options[] = {
        {"--topology", 0, CLI_TEXT, &s.topology, "the topology"},
        {"--state", 0, CLI_TEXT, &s.dir, "the state directory"},
        {"--host", 0, CLI_TEXT, &s.host, "this host's name (default: all of them)"},
        {"--lock-fd", 0, CLI_COUNT, &s.lock_fd, "the lock, held"},
        {"--ready-fd", 0, CLI_COUNT, &s.ready_fd, "told when it listens"},
        {"--receive", 0, CLI_FLAG, &is_received, "secret and topology come from standard input"},
        {"--task", 0, CLI_FLAG, &is_task, "of a Slurm job: this node's supervisor"},
        {"--allocation", 0, CLI_FLAG, &is_allocation, "of a Slurm job: its batch step"},
        {0}};
    if (cli_parse(self, argc, argv, options, NULL, 0, &help) < 0) return cli_parse_exit(help);
    if (is_received && s.dir && s.host) return receive(&s);
    if (is_task && s.dir) return be_task(&s);
    if (is_allocation && s.dir && s.topology) return allocate(&s);
    if (!s.topology || !s.dir || s.lock_fd > 1000 || s.ready_fd > 1000 ||
        fcntl((int)s.lock_fd, F_SETFD, FD_CLOEXEC) || fcntl((int)s.ready_fd, F_SETFD, FD_CLOEXEC)) {
        cli_fail("supervise is started by `afd up`");
        return CLI_USAGE;
    }
    return supervise(&s);
}
