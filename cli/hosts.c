#include "cli/hosts.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "deploy/handover.h"
#include "deploy/remote.h"
#include "deploy/render.h"
#include "deploy/state.h"

enum { START_MS = 60000, ASK_MS = 20000, DOWN_GRACE_MS = 40000 };

struct cli_hosts {
    char dir[AFD_PATH_BYTES], program[AFD_PATH_BYTES];
    struct afd_topology *topology;
    uint32_t job, count;
    int is_own;                                        /* the job is of who typed `afd up`: it is not ended */
    char names[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES]; /* the scheduler's first */
    char states[AFD_MAX_CLUSTER_HOSTS][AFD_PATH_BYTES];
    struct afd_remote_call calls[AFD_MAX_CLUSTER_HOSTS];
    const char *words[AFD_MAX_CLUSTER_HOSTS][12];
};

static enum afd_status read_cluster(struct cli_hosts *h, struct afd_error *error)
{
    char file[AFD_PATH_BYTES + 32];
    json_t *cluster = afd_state_read(h->dir, "cluster.json");
    h->job = (uint32_t)json_integer_value(json_object_get(cluster, "job"));
    h->is_own = json_is_true(json_object_get(cluster, "is_own"));
    json_decref(cluster);
    snprintf(file, sizeof file, "%s/topology.yaml", h->dir);
    enum afd_status status = afd_topology_load(file, &h->topology, error);
    if (!status) status = afd_remote_program(h->topology, h->program, error);
    if (status) return status;
    h->count = afd_topology_hosts(h->topology, h->names);
    for (uint32_t i = 0; i < h->count && !status; i++)
        status = afd_remote_state(h->topology, h->dir, h->names[i], h->states[i], error);
    return status;
}

struct cli_hosts *cli_hosts_open(const char *dir, struct afd_error *error_out)
{
    struct cli_hosts *h = calloc(1, sizeof *h);
    if (!h) {
        afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
        return NULL;
    }
    snprintf(h->dir, sizeof h->dir, "%s", dir);
    if (!read_cluster(h, error_out)) return h;
    cli_hosts_close(h);
    return NULL;
}

void cli_hosts_close(struct cli_hosts *h)
{
    if (!h) return;
    afd_topology_destroy(h->topology);
    free(h);
}

/* ---- the directory of a cluster */

/* Appends to the copy of the topology: hosts: [the job's nodes]. */
static enum afd_status add_nodes(const char *path, struct afd_error *error)
{
    char node[AFD_NAME_BYTES + 2];
    uint32_t count = 0;
    FILE *list = popen("scontrol show hostnames", "re"), *f = list ? fopen(path, "ae") : NULL;
    if (f) fprintf(f, "\n# the nodes of Slurm's job\nhosts: [");
    while (f && fgets(node, sizeof node, list)) {
        node[strcspn(node, "\n")] = 0;
        fprintf(f, "%s\"%s\"", count++ ? ", " : "", node);
    }
    if (f) fprintf(f, "]\n");
    int failed = (f && fclose(f)) | (list && pclose(list)) | !f;
    return failed || !count ? afd_fail(error, AFD_ERR_CONFIG,
                                       "the nodes of this job are not known (scontrol show hostnames)")
                            : AFD_OK;
}

static enum afd_status write_scheduler(const struct afd_topology *t, const char *dir, struct afd_error *error)
{
    char http[2 * AFD_ADDRESS_BYTES], control[2 * AFD_ADDRESS_BYTES];
    afd_topology_reach(t, t->scheduler.http, http);
    afd_topology_reach(t, t->scheduler.control, control);
    json_t *scheduler = json_pack("{s:s, s:s}", "http", http, "control", control);
    enum afd_status status = afd_state_write(dir, "scheduler.json", scheduler, error);
    json_decref(scheduler);
    return status;
}

/* `given`: the file; in DIR lies a copy, which outlives changes of it. */
static enum afd_status write_cluster(const struct afd_topology *t, const char *given, const char *dir,
                                     struct afd_error *error)
{
    const char *job = getenv("SLURM_JOB_ID");
    int is_slurm = t->launch.by == AFD_LAUNCH_SLURM;
    json_t *cluster = json_pack("{s:s, s:s, s:s, s:I, s:I, s:b}", "cluster", t->cluster, "topology", given,
                                "by", is_slurm ? "slurm" : "ssh", "started", (json_int_t)time(NULL), "job",
                                (json_int_t)(is_slurm && job ? atoll(job) : 0), "is_own",
                                is_slurm && getenv("AFD_OWN_JOB") != NULL);
    enum afd_status status = afd_state_write(dir, "cluster.json", cluster, error);
    json_decref(cluster);
    return status;
}

enum afd_status cli_hosts_prepare(const char *file, const char *dir, struct afd_error *error_out)
{
    char path[AFD_PATH_BYTES + 32], given[AFD_PATH_BYTES];
    struct afd_topology *t = NULL;
    enum afd_status status = afd_topology_load(file, &t, error_out);
    if (!status) status = afd_state_make(dir, error_out);
    snprintf(path, sizeof path, "%s/secret", dir);
    if (!status) status = afd_secret_make(path, error_out);
    if (!status) status = afd_state_copy(t->file, dir, "topology.yaml", error_out);
    snprintf(path, sizeof path, "%s/topology.yaml", dir);
    if (!status && t->launch.by == AFD_LAUNCH_SLURM && !t->launch.names_hosts)
        status = add_nodes(path, error_out);
    if (t) strcpy(given, t->file);
    afd_topology_destroy(t);
    t = NULL;
    if (!status) status = afd_topology_load(path, &t, error_out); /* with its hosts: checked as a whole */
    if (!status) status = write_scheduler(t, dir, error_out);
    if (!status)
        status = write_cluster(t, given, dir, error_out); /* last: who waits for it finds the others */
    afd_topology_destroy(t);
    return status;
}

enum afd_status cli_hosts_program(const char *dir, char out[AFD_PATH_BYTES], struct afd_error *error_out)
{
    struct cli_hosts *h = cli_hosts_open(dir, error_out);
    if (!h) return AFD_ERR_CONFIG;
    strcpy(out, h->program);
    cli_hosts_close(h);
    return AFD_OK;
}

static void forget(const struct cli_hosts *h)
{
    char path[AFD_PATH_BYTES + 32];
    afd_state_clean(h->dir);
    snprintf(path, sizeof path, "%s/topology.yaml", h->dir);
    unlink(path);
}

/* ---- calls */

/* Call `i`, to `host`: program, words, --state DIR. */
static void set_call(struct cli_hosts *h, uint32_t i, uint32_t host, const char *const *words)
{
    uint32_t n = 0;
    h->words[i][n++] = h->program;
    while (*words) h->words[i][n++] = *words++;
    h->words[i][n++] = "--state";
    h->words[i][n++] = h->states[host];
    h->words[i][n] = NULL;
    h->calls[i] = (struct afd_remote_call){.host = h->names[host], .words = h->words[i]};
}

static void free_calls(struct cli_hosts *h, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) free(h->calls[i].output);
}

/* ---- start */

/* Ends the supervisors of the calls that succeeded. */
static void take_back(struct cli_hosts *h)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < h->count; i++)
        if (!h->calls[i].exit_status) set_call(h, count++, i, (const char *const[]){"down", NULL});
    afd_remote_run(h->topology, 0, h->calls, count, DOWN_GRACE_MS);
    for (uint32_t i = 0; i < count; i++)
        if (h->calls[i].exit_status)
            cli_fail("host %s: not taken down: %s", h->calls[i].host, h->calls[i].words_out);
    free_calls(h, count);
    forget(h);
}

int cli_hosts_start(struct cli_hosts *h, int is_first)
{
    struct afd_error error;
    struct afd_handover give;
    size_t bytes = 0;
    int failed = 0;
    if (afd_handover_load(h->dir, &give, &error)) return cli_fail("%s", error.text);
    char *message = afd_handover_message(&give, &bytes);
    afd_handover_free(&give);
    if (!message) return cli_fail("out of memory");
    for (uint32_t i = 0; i < h->count; i++) {
        set_call(h, i, i, (const char *const[]){"supervise", "--receive", "--host", h->names[i], NULL});
        h->calls[i].input = message;
        h->calls[i].input_bytes = bytes;
    }
    if (afd_remote_run(h->topology, 0, h->calls, h->count, START_MS))
        for (uint32_t i = 0; i < h->count; i++)
            if (h->calls[i].exit_status) failed = cli_fail("host %s: %s", h->names[i], h->calls[i].words_out);
    free_calls(h, h->count);
    free(message);
    if (failed && is_first) take_back(h);
    return failed;
}

/* ---- slurm: the job */

/* One line of a command's answer; 0 when it failed. */
static int ask_line(const char *command, char out[128])
{
    FILE *f = popen(command, "re");
    out[0] = 0;
    char *line = f ? fgets(out, 128, f) : NULL;
    int failed = !f || pclose(f);
    out[strcspn(out, "\n")] = 0;
    return line && !failed;
}

/* The job as a child of nobody, inside the allocation that this process stands in. */
static int run_here(const char *script, const char *log)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid) return pid < 0 ? -1 : 0;
    setsid();
    int out = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600), null = open("/dev/null", O_RDONLY);
    if (out < 0 || null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0) _exit(126);
    setenv("AFD_OWN_JOB", "1", 1);
    execl("/bin/sh", "sh", script, (char *)NULL);
    _exit(127);
}

static enum afd_status write_script(const struct afd_topology *t, const char *dir,
                                    char path[AFD_PATH_BYTES + 32], struct afd_error *error)
{
    char program[AFD_PATH_BYTES];
    enum afd_status status = afd_remote_program(t, program, error);
    snprintf(path, AFD_PATH_BYTES + 32, "%s/job.sh", dir);
    FILE *f = status ? NULL : fopen(path, "we");
    if (status) return status;
    if (!f) return afd_fail(error, AFD_ERR_IO, "%s: %s", path, strerror(errno));
    afd_render_slurm(t, program, t->file, dir, f);
    return fclose(f) ? afd_fail(error, AFD_ERR_IO, "%s: %s", path, strerror(errno)) : AFD_OK;
}

/* Waits until the job's first step has written DIR. */
static int wait_for_job(const char *dir, long long job, int is_own, afd_ns deadline,
                        const volatile int *interrupted)
{
    char command[128], state[128], log[AFD_PATH_BYTES + 32], last[128] = "";
    snprintf(log, sizeof log, "%s/logs/job.log", dir);
    for (uint32_t turn = 0;; turn++) {
        if (afd_state_is_remote(dir)) return CLI_OK;
        if (*interrupted) return cli_fail("interrupted");
        if (afd_now() >= deadline)
            return cli_fail("the job did not start in time (%s)", *last ? last : "pending");
        if (!is_own && turn % 10 == 9) {
            snprintf(command, sizeof command, "squeue -h -j %lld -o '%%T: %%R' 2>/dev/null", job);
            int is_there = ask_line(command, state);
            if (!is_there && !afd_state_is_remote(dir)) {
                cli_fail("job %lld has ended; the last lines of %s:", job, log);
                cli_print_tail(log, 12, stderr);
                return CLI_FAILED;
            }
            if (strcmp(state, last) != 0) printf("job %lld: %s\n", job, state);
            fflush(stdout);
            strcpy(last, state);
        }
        poll(NULL, 0, 200);
    }
}

int cli_hosts_submit(const struct afd_topology *t, const char *dir, afd_ns deadline,
                     const volatile int *interrupted)
{
    char script[AFD_PATH_BYTES + 32], log[AFD_PATH_BYTES + 32], command[2 * AFD_PATH_BYTES], answer[128];
    struct afd_error error;
    int is_own = getenv("SLURM_JOB_ID") != NULL;
    long long job = is_own ? atoll(getenv("SLURM_JOB_ID")) : 0;
    if (write_script(t, dir, script, &error)) return cli_fail("%s", error.text);
    snprintf(log, sizeof log, "%s/logs/job.log", dir);
    if (is_own && run_here(script, log)) return cli_fail("fork: %s", strerror(errno));
    if (!is_own) {
        snprintf(command, sizeof command, "sbatch --parsable '%s'", script);
        if (strchr(script, '\'') || !ask_line(command, answer) || (job = atoll(answer)) <= 0)
            return cli_fail("sbatch does not take %s", script);
        printf("job %lld submitted\n", job);
        fflush(stdout);
    }
    int result = wait_for_job(dir, job, is_own, deadline, interrupted);
    if (result && !is_own) {
        snprintf(command, sizeof command, "scancel %lld", job);
        ask_line(command, answer);
    }
    return result;
}

/* The supervisors have ended, so the job ends; what may be left of it is cancelled. */
static int end_job(const struct cli_hosts *h)
{
    char command[128], answer[128];
    if (h->is_own || !h->job) return CLI_OK;
    snprintf(command, sizeof command, "scancel %u", h->job);
    ask_line(command, answer);
    snprintf(command, sizeof command, "squeue -h -j %u -o %%T 2>/dev/null", h->job);
    for (afd_ns limit = afd_now() + AFD_SECONDS(60); ask_line(command, answer); poll(NULL, 0, 200))
        if (afd_now() >= limit) return cli_fail("job %u does not end: %s", h->job, answer);
    return CLI_OK;
}

/* ---- ps */

json_t *cli_hosts_ps(struct cli_hosts *h, struct afd_error *error_out)
{
    json_t *all = json_array(), *unreached = json_array(), *process;
    const char *state = "stopping";
    size_t k;
    for (uint32_t i = 0; i < h->count; i++) set_call(h, i, i, (const char *const[]){"ps", "--json", NULL});
    afd_remote_run(h->topology, h->job, h->calls, h->count, ASK_MS);
    for (uint32_t i = 0; i < h->count; i++) {
        json_t *one = h->calls[i].exit_status ? NULL : json_loads(h->calls[i].output, 0, NULL);
        if (!one)
            json_array_append_new(
                unreached, json_pack("{s:s, s:s}", "host", h->names[i], "words", h->calls[i].words_out));
        const char *its = json_string_value(json_object_get(one, "state"));
        if (its && !strcmp(its, "running")) state = "running";
        json_array_foreach(json_object_get(one, "processes"), k, process) json_array_append(all, process);
        json_decref(one);
    }
    free_calls(h, h->count);
    if (json_array_size(unreached) == h->count)
        afd_fail(error_out, AFD_ERR_PEER, "no host answers; %s: %s", h->names[0],
                 json_string_value(json_object_get(json_array_get(unreached, 0), "words")));
    return json_pack("{s:s, s:s, s:s, s:o, s:o}", "cluster", h->topology->cluster, "topology",
                     h->topology->file, "state", state, "processes", all, "unreached", unreached);
}

/* ---- down */

int cli_hosts_down(struct cli_hosts *h, uint32_t drain_s)
{
    uint32_t limit_ms = drain_s * 1000 + DOWN_GRACE_MS;
    int failed = 0;
    for (uint32_t i = 0; i < h->count; i++) set_call(h, i, i, (const char *const[]){"down", NULL});
    afd_remote_run(h->topology, h->job, h->calls, 1,
                   limit_ms); /* the scheduler drains; then nobody has work */
    if (h->count > 1) afd_remote_run(h->topology, h->job, h->calls + 1, h->count - 1, limit_ms);
    for (uint32_t i = 0; i < h->count; i++)
        if (h->calls[i].exit_status && !h->job) /* the end of a job ends all of it */
            failed = cli_fail("host %s: %s; there: afd down --state %s", h->names[i], h->calls[i].words_out,
                              h->states[i]);
    free_calls(h, h->count);
    failed |= end_job(h);
    if (!failed) forget(h);
    return failed;
}

/* ---- logs */

/* The host of a log and its name there: "attn-3.log" is of attn/3. */
static const char *find_log(const struct cli_hosts *h, const char *of, const char **name_out)
{
    char role[8];
    unsigned rank;
    int end = 0;
    *name_out = of;
    if (!strcmp(of, "scheduler") || !strcmp(of, "supervisor")) return h->names[0];
    if (!strncmp(of, "supervisor/", 11)) {
        *name_out = "supervisor";
        for (uint32_t i = 0; i < h->count; i++)
            if (!strcmp(h->names[i], of + 11)) return h->names[i];
        return NULL;
    }
    if (sscanf(of, "%4[a-z]%*1[/-]%4u%n", role, &rank, &end) != 2 || of[end]) return NULL;
    int is_ffn = !strcmp(role, "ffn");
    const struct afd_pool *pool = is_ffn ? &h->topology->ffn : &h->topology->attn;
    if ((!is_ffn && strcmp(role, "attn") != 0) || rank / pool->ranks_per_instance >= pool->max_instances)
        return NULL;
    return afd_rank_host(h->topology, is_ffn ? AFD_ROLE_FFN : AFD_ROLE_ATTN, rank);
}

int cli_hosts_logs(struct cli_hosts *h, const char *of, uint32_t lines, int is_following)
{
    const char *name, *host = find_log(h, of, &name);
    char count[16];
    struct afd_error error;
    struct afd_remote_command command;
    uint32_t i = 0;
    if (!host)
        return cli_fail("logs: the cluster has no %s; expected attn/N, ffn/N, scheduler or supervisor/HOST",
                        of);
    while (strcmp(h->names[i], host) != 0) i++;
    snprintf(count, sizeof count, "%u", lines);
    set_call(h, 0, i, (const char *const[]){"logs", name, "-n", count, is_following ? "-f" : NULL, NULL});
    if (afd_remote_command(h->topology, h->job, host, h->words[0], &command, &error))
        return cli_fail("%s", error.text);
    fflush(NULL);
    execvp(command.argv[0], command.argv);
    return cli_fail("%s: %s", command.argv[0], strerror(errno));
}
