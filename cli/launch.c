/* up, down, ps, logs and the hidden supervise: the processes of a cluster. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/hosts.h"
#include "deploy/agreement.h"
#include "deploy/launcher.h"
#include "deploy/loading.h"
#include "deploy/planner.h"
#include "model/tensors.h"
#include "proto/channel.h"

static volatile int interrupted;

static void on_interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

/* ---- up */

struct up {
    const struct afd_topology *topology;
    const char *dir;
    struct cli_hosts *hosts; /* NULL: by local */
    uint32_t ranks;
    afd_ns deadline;
};

static void log_path(const struct up *up, const char *role, int rank, char path[2 * AFD_PATH_BYTES])
{
    if (!strcmp(role, "scheduler"))
        snprintf(path, 2 * AFD_PATH_BYTES, "%s/logs/scheduler.log", up->dir);
    else
        snprintf(path, 2 * AFD_PATH_BYTES, "%s/logs/%s-%d.log", up->dir, role, rank);
}

static void print_log_tail(const struct up *up, const char *role, int rank)
{
    char path[2 * AFD_PATH_BYTES];
    if (up->hosts) {
        fprintf(stderr,
                strcmp(role, "scheduler") ? "what it wrote: afd logs %s/%d\n"
                                          : "what it wrote: afd logs %s\n",
                role, rank);
        return;
    }
    log_path(up, role, rank, path);
    fprintf(stderr, "---- the last lines of %s\n", path);
    cli_print_tail(path, 12, stderr);
}

/* A process that was given up, after its log's end was shown; 0: none. */
static int show_failed(const struct up *up, const json_t *ps)
{
    json_t *process;
    size_t i;
    int failed = 0;
    json_array_foreach(json_object_get(ps, "processes"), i, process)
    {
        const char *role = json_string_value(json_object_get(process, "role"));
        int rank = (int)json_integer_value(json_object_get(process, "rank"));
        const char *state = json_string_value(json_object_get(process, "state"));
        if (!state || strcmp(state, "failed")) continue;
        failed = 1;
        cli_fail("%s/%d cannot be kept running (%s)", role, rank,
                 json_string_value(json_object_get(process, "last_exit")));
        print_log_tail(up, role, rank);
    }
    return failed;
}

/* What the scheduler says; NULL when it cannot be asked yet. */
static json_t *ask_scheduler(const struct up *up)
{
    char url[CLI_URL_BYTES], address[AFD_ADDRESS_BYTES];
    struct afd_error error;
    long code;
    if (afd_state_address(up->dir, "http", address, &error)) return NULL;
    snprintf(url, sizeof url, "http://%s", address);
    return cli_get_json(url, "/afd/v1/cluster", &code, &error);
}

/* Ranks that are ready; -1 when the scheduler cannot be asked yet. Of them all the cluster is to have, which
 * a journal may have changed since the topology file. *all_out: the cluster serves. */
static int count_ready(struct up *up, int *all_out)
{
    json_t *cluster = ask_scheduler(up), *rank;
    size_t i;
    int ready = 0;
    *all_out = 0;
    if (!cluster) return -1;
    json_array_foreach(json_object_get(cluster, "ranks"), i, rank)
    {
        const char *state = json_string_value(json_object_get(rank, "state"));
        ready += state && !strcmp(state, "ready");
    }
    const char *state = json_string_value(json_object_get(cluster, "state"));
    up->ranks = (uint32_t)json_array_size(json_object_get(cluster, "ranks"));
    *all_out = ready == (int)up->ranks && state && !strcmp(state, "ready");
    json_decref(cluster);
    return ready;
}

/* Who is late, and what the first of them wrote last. */
static int fail_late(const struct up *up)
{
    json_t *cluster = ask_scheduler(up), *rank;
    size_t i;
    int shown = 0;
    cli_fail("not every rank became ready in time");
    json_array_foreach(json_object_get(cluster, "ranks"), i, rank)
    {
        const char *state = json_string_value(json_object_get(rank, "state"));
        const char *role = json_string_value(json_object_get(rank, "role"));
        int number = (int)json_integer_value(json_object_get(rank, "rank"));
        if (!role || (state && !strcmp(state, "ready"))) continue;
        fprintf(stderr, "%s/%d is %s\n", role, number, state ? state : "unknown");
        if (!shown++) print_log_tail(up, role, number);
    }
    if (!shown) print_log_tail(up, "scheduler", 0);
    json_decref(cluster);
    return CLI_FAILED;
}

static void show_progress(const struct up *up, int ready, int *last)
{
    if (ready == *last) return;
    *last = ready;
    if (ready < 0)
        printf("starting the scheduler\n");
    else
        printf("ranks ready: %d of %u\n", ready, up->ranks);
    fflush(stdout);
}

/* Of the ranks that are not ready, one that loads, and how many others do. */
static void show_loading(struct up *up)
{
    json_t *cluster = ask_scheduler(up), *rank;
    char line[AFD_LOADING_LINE_BYTES], first[AFD_LOADING_LINE_BYTES + 32] = "";
    size_t i;
    int loading = 0;
    json_array_foreach(json_object_get(cluster, "ranks"), i, rank)
    {
        const char *role = json_string_value(json_object_get(rank, "role"));
        int number = (int)json_integer_value(json_object_get(rank, "rank"));
        if (!role || !cli_loading(rank, line)) continue;
        if (!loading++) snprintf(first, sizeof first, "%s/%d: %s", role, number, line);
    }
    json_decref(cluster);
    if (loading > 1)
        printf("%s; %d more load\n", first, loading - 1);
    else if (loading)
        printf("%s\n", first);
    fflush(stdout);
}

/* What the supervisors say; NULL: none does. */
static json_t *ask_supervisors(const struct up *up)
{
    struct afd_error error;
    if (!up->hosts) return afd_state_ask(up->dir, "ps", 5000, &error);
    return cli_hosts_ps(up->hosts, &error);
}

/* Returns CLI_OK when all ranks serve; else words are written. */
static int wait_ready(struct up *up)
{
    enum {
        EVERY_MS = 100,
        REMOTE_TURNS = 30,
    }; /* hosts are asked now and then: each time takes a connection */
    int last = -2;
    afd_ns shown = afd_now();
    for (uint32_t turn = 1;; turn++) {
        int all, ready = count_ready(up, &all);
        show_progress(up, ready, &last);
        if (all) return CLI_OK;
        if (afd_now() - shown >= AFD_SECONDS(AFD_LOADING_SECONDS)) {
            show_loading(up);
            shown = afd_now();
        }
        if (interrupted) return cli_fail("interrupted");
        int is_turn = !up->hosts || turn % REMOTE_TURNS == 0;
        json_t *ps = is_turn ? ask_supervisors(up) : NULL;
        int failed = ps ? show_failed(up, ps) : 0;
        json_decref(ps);
        if (failed) return CLI_FAILED;
        if (!ps && !up->hosts && !afd_state_is_running(up->dir)) {
            cli_fail("the supervisor ended");
            print_log_tail(up, "scheduler", 0);
            return CLI_FAILED;
        }
        if (afd_now() >= up->deadline) return fail_late(up);
        poll(NULL, 0, EVERY_MS);
    }
}

/* Instances of each pool that the cluster has now; 0: it cannot be asked. */
static int count_instances(const struct up *up, uint32_t out[AFD_ROLE_COUNT])
{
    json_t *cluster = ask_scheduler(up), *rank;
    size_t i;
    int known = cluster != NULL;
    out[AFD_ROLE_ATTN] = out[AFD_ROLE_FFN] = 0;
    json_array_foreach(json_object_get(cluster, "ranks"), i, rank)
    {
        const char *role = json_string_value(json_object_get(rank, "role"));
        int is_ffn = role && !strcmp(role, afd_role_name(AFD_ROLE_FFN));
        const struct afd_pool *pool = is_ffn ? &up->topology->ffn : &up->topology->attn;
        if (json_integer_value(json_object_get(rank, "rank")) % pool->ranks_per_instance == 0)
            out[is_ffn ? AFD_ROLE_FFN : AFD_ROLE_ATTN]++;
    }
    json_decref(cluster);
    return known;
}

/* What was changed while it ran: the topology file does not say it. */
static void print_difference(const struct up *up, const char *what_then)
{
    const struct afd_topology *t = up->topology;
    uint32_t now[AFD_ROLE_COUNT];
    if (!count_instances(up, now) ||
        (now[AFD_ROLE_ATTN] == t->attn.instances && now[AFD_ROLE_FFN] == t->ffn.instances))
        return;
    printf("note: the cluster is %uA%uF, as it was scaled; %s has %uA%uF: %s\n", now[AFD_ROLE_ATTN],
           now[AFD_ROLE_FFN], t->file, t->attn.instances, t->ffn.instances, what_then);
}

static void print_ready(const struct up *up, const char *address)
{
    print_difference(up,
                     "it goes on as it was; `afd scale` changes it, and after `afd down` the file counts");
    printf("ready: http://%s\n", address);
}

/* A cluster that runs in the directory already: the same one, or words. */
static int reuse(const struct up *up)
{
    json_t *cluster = afd_state_read(up->dir, "cluster.json");
    const char *topology = json_string_value(json_object_get(cluster, "topology"));
    int same = topology && !strcmp(topology, up->topology->file), result;
    if (same) {
        printf("the cluster %s runs already (%s)\n", up->topology->cluster, up->dir);
        result = CLI_OK;
    } else
        result = cli_fail("another cluster runs in %s (%s); `afd down --state %s` ends it", up->dir,
                          topology ? topology : "starting", up->dir);
    json_decref(cluster);
    return result;
}

/* What can be known to be wrong before anything is started. */
static int check_plan(const struct afd_topology *t)
{
    struct afd_error error;
    struct afd_model *model = NULL;
    struct afd_plan *plan = NULL;
    struct cli_weights weights = {.error = &error};
    struct afd_plan_options options = {.host_memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) *
                                                            (uint64_t)sysconf(_SC_PAGESIZE)};
    enum afd_status status = afd_launcher_check(t, &error);
    int is_elsewhere = t->launch.by != AFD_LAUNCH_LOCAL;
    if (!status && is_elsewhere && access(t->model_dir, R_OK)) {
        printf("note: %s is not here, so the plan is not checked\n", t->model_dir);
        return CLI_OK;
    }
    if (!status) status = afd_agreement_model(t, &model, NULL, &error);
    if (!status) cli_work_bytes(t, model, options.work_bytes);
    weights.model = model;
    if (!status) status = cli_weights_open(t->model_dir, &weights);
    if (!status && !weights.checkpoint && !is_elsewhere) /* whose words are those of what is not there */
        status = afd_checkpoint_open(t->model_dir, &weights.checkpoint, &error);
    if (!status) status = afd_plan_make(t, model, weights.checkpoint, &options, &plan, &error);
    for (uint32_t i = 0; plan && i < plan->warning_count; i++) printf("warning: %s\n", plan->warnings[i]);
    afd_plan_destroy(plan);
    afd_checkpoint_close(weights.checkpoint);
    afd_model_destroy(model);
    return status ? cli_fail("%s", error.text) : CLI_OK;
}

/* Makes the directory's content and leaves a supervisor behind. AFD_AGAIN: one runs there already. */
static enum afd_status launch(const struct up *up, struct afd_error *error)
{
    char secret[2 * AFD_PATH_BYTES];
    enum afd_status status = afd_state_make(up->dir, error);
    if (status) return status;
    int lock = afd_state_lock(up->dir, &status, error);
    if (lock < 0) return status;
    afd_state_clean(up->dir); /* of a supervisor that was killed */
    afd_state_clean_logs(up->dir);
    snprintf(secret, sizeof secret, "%s/secret", up->dir);
    status = afd_secret_make(secret, error);
    if (!status) {
        printf("starting %s: %u attention and %u FFN ranks; state and logs in %s\n", up->topology->cluster,
               afd_pool_ranks(&up->topology->attn), afd_pool_ranks(&up->topology->ffn), up->dir);
        fflush(stdout);
        status = afd_launcher_start(up->topology, NULL, up->dir, lock, error);
    }
    close(lock); /* the supervisor has it now */
    return status;
}

/* By ssh or slurm: a supervisor on each host. One that runs already stays, so that `afd up` again brings back
 * the hosts that are missing. */
static int up_on_hosts(struct up *up)
{
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    enum afd_status status = afd_state_make(up->dir, &error);
    int is_slurm = up->topology->launch.by == AFD_LAUNCH_SLURM, result = CLI_FAILED;
    int was_up = afd_state_is_remote(up->dir);
    int lock = status ? -1 : afd_state_lock(up->dir, &status, &error);
    if (lock < 0) return cli_fail("%s", error.text);
    if (was_up) result = reuse(up);
    if (was_up && (result || is_slurm)) goto out;
    printf("starting %s by %s: %u attention and %u FFN ranks\n", up->topology->cluster,
           is_slurm ? "slurm" : "ssh", afd_pool_ranks(&up->topology->attn),
           afd_pool_ranks(&up->topology->ffn));
    fflush(stdout);
    result = is_slurm ? cli_hosts_submit(up->topology, up->dir, up->deadline, &interrupted) : CLI_OK;
    if (!result && !is_slurm && cli_hosts_prepare(up->topology->file, up->dir, &error))
        result = cli_fail("%s", error.text);
    if (!result && !(up->hosts = cli_hosts_open(up->dir, &error))) result = cli_fail("%s", error.text);
    if (!result && !is_slurm) result = cli_hosts_start(up->hosts, !was_up);
    if (result) goto out;
    result = wait_ready(up);
    if (!result && !afd_state_address(up->dir, "http", address, &error))
        print_ready(up, address);
    else if (!was_up)
        cli_hosts_down(up->hosts, 1);
out:
    cli_hosts_close(up->hosts);
    close(lock);
    return result;
}

static int up_in(struct up *up)
{
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    enum afd_status status = launch(up, &error);
    if (status == AFD_AGAIN) {
        int result = reuse(up);
        if (result) return result;
    } else if (status)
        return cli_fail("%s", error.text);
    int result = wait_ready(up);
    if (!result && !afd_state_address(up->dir, "http", address, &error)) {
        print_ready(up, address);
        return CLI_OK;
    }
    if (status == AFD_OK && afd_state_down(up->dir, 1, &error)) cli_fail("%s", error.text);
    return CLI_FAILED;
}

int cli_up(const struct cli_command *self, int argc, char **argv)
{
    const char *file, *state = NULL;
    uint64_t timeout_s = 300;
    int help;
    const struct cli_option options[] = {
        {"--state", 0, CLI_TEXT, &state, "state directory (default $AFD_STATE or ~/.afd/CLUSTER)"},
        {"--timeout", 0, CLI_COUNT, &timeout_s, "seconds until every rank must be ready (default 300)"},
        {0}};
    int count = cli_parse(self, argc, argv, options, &file, 1, &help);
    if (count < 0) return cli_parse_exit(help);
    if (!count) {
        cli_fail("up: which topology? usage: afd up %s", self->arguments);
        return CLI_USAGE;
    }
    struct afd_error error;
    struct afd_topology *topology = NULL;
    char dir[AFD_PATH_BYTES];
    if (afd_topology_load(file, &topology, &error)) return cli_fail("%s", error.text);
    int result = check_plan(topology);
    if (!result && afd_state_place(state, topology->cluster, dir, &error))
        result = cli_fail("%s", error.text);
    if (!result) {
        struct up up = {.topology = topology,
                        .dir = dir,
                        .ranks = afd_pool_ranks(&topology->attn) + afd_pool_ranks(&topology->ffn),
                        .deadline = afd_now() + AFD_SECONDS(timeout_s)};
        struct sigaction action = {.sa_handler = on_interrupt};
        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        result = topology->launch.by == AFD_LAUNCH_LOCAL ? up_in(&up) : up_on_hosts(&up);
    }
    afd_topology_destroy(topology);
    return result;
}

/* ---- down */

/* The drain time of the cluster; and, when it was scaled, that this is forgotten. */
static uint32_t begin_down(const char *dir)
{
    enum { DEFAULT_S = 30 };
    json_t *cluster = afd_state_read(dir, "cluster.json");
    const char *file = json_string_value(json_object_get(cluster, "topology"));
    struct afd_topology *topology = NULL;
    struct afd_error error;
    uint32_t seconds = DEFAULT_S;
    if (file && !afd_topology_load(file, &topology, &error)) {
        struct up up = {.topology = topology, .dir = dir};
        print_difference(&up, "`afd up` begins with the file again");
        seconds = topology->scheduler.drain_s;
    }
    afd_topology_destroy(topology);
    json_decref(cluster);
    return seconds;
}

static int down_hosts(const char *dir, uint32_t drain_s)
{
    struct afd_error error;
    struct cli_hosts *hosts = cli_hosts_open(dir, &error);
    int result = hosts ? cli_hosts_down(hosts, drain_s) : cli_fail("%s", error.text);
    cli_hosts_close(hosts);
    return result;
}

int cli_down(const struct cli_command *self, int argc, char **argv)
{
    const char *state = NULL, *name = NULL;
    int help;
    const struct cli_option options[] = {
        {"--state", 0, CLI_TEXT, &state,
         "state directory or name of the cluster (default: the one that runs)"},
        {0}};
    if (cli_parse(self, argc, argv, options, &name, 1, &help) < 0) return cli_parse_exit(help);
    struct afd_error error;
    char dir[AFD_PATH_BYTES];
    enum afd_status status = afd_state_find(state ? state : name, dir, &error);
    if (status == AFD_AGAIN) {
        printf("nothing runs: %s\n", error.text);
        return CLI_OK;
    }
    if (status) return cli_fail("%s", error.text);
    uint32_t drain_s = begin_down(dir);
    printf("stopping %s: what runs may finish, %u s at most\n", dir, drain_s);
    fflush(stdout);
    if (afd_state_is_remote(dir)) {
        if (down_hosts(dir, drain_s)) return CLI_FAILED;
    } else if (afd_state_down(dir, drain_s, &error))
        return cli_fail("%s", error.text);
    printf("down: %s\n", dir);
    return CLI_OK;
}

/* ---- ps */

int cli_ps(const struct cli_command *self, int argc, char **argv)
{
    static const char *const headers[] = {"<rank",  ">instance", ">pid",    "<host",
                                          "<state", ">restarts", ">uptime", "<last exit"};
    const char *state = NULL;
    int json = 0, help;
    const struct cli_option options[] = {
        {"--state", 0, CLI_TEXT, &state,
         "state directory or name of the cluster (default: the one that runs)"},
        {"--json", 0, CLI_FLAG, &json, "one object"},
        {0}};
    if (cli_parse(self, argc, argv, options, NULL, 0, &help) < 0) return cli_parse_exit(help);
    struct afd_error error;
    char dir[AFD_PATH_BYTES];
    if (afd_state_find(state, dir, &error)) return cli_fail("%s", error.text);
    struct cli_hosts *hosts = afd_state_is_remote(dir) ? cli_hosts_open(dir, &error) : NULL;
    json_t *ps = hosts                      ? cli_hosts_ps(hosts, &error)
                 : afd_state_is_remote(dir) ? NULL
                                            : afd_state_ask(dir, "ps", 5000, &error),
           *p;
    cli_hosts_close(hosts);
    if (!ps) return cli_fail("%s", error.text);
    if (json) return cli_print_json(ps);
    struct cli_table *table = cli_table_create(8, headers);
    size_t i;
    json_array_foreach(json_object_get(ps, "processes"), i, p)
    {
        const char *role = json_string_value(json_object_get(p, "role"));
        int is_rank = role && strcmp(role, "scheduler") != 0;
        long long rank = json_integer_value(json_object_get(p, "rank"));
        cli_table_cell(table, is_rank ? "%s/%lld" : "%s", role, rank);
        if (is_rank)
            cli_table_cell(table, "%lld", json_integer_value(json_object_get(p, "instance")));
        else
            cli_table_cell(table, "-");
        cli_table_cell(table, "%lld", json_integer_value(json_object_get(p, "pid")));
        cli_table_cell(table, "%s", json_string_value(json_object_get(p, "host")));
        cli_table_cell(table, "%s", json_string_value(json_object_get(p, "state")));
        cli_table_cell(table, "%lld", json_integer_value(json_object_get(p, "restarts")));
        cli_table_cell(table, "%.0f s", json_number_value(json_object_get(p, "uptime_s")));
        cli_table_cell(table, "%s", json_string_value(json_object_get(p, "last_exit")));
    }
    cli_table_print(table, stdout);
    json_array_foreach(json_object_get(ps, "unreached"), i, p)
        cli_fail("host %s: %s", json_string_value(json_object_get(p, "host")),
                 json_string_value(json_object_get(p, "words")));
    json_decref(ps);
    return CLI_OK;
}

/* ---- logs */

/* What is written from now on, until interrupted. */
static int follow(const char *path)
{
    char text[8192], drop[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
    int fd = open(path, O_RDONLY | O_CLOEXEC), watch = inotify_init1(IN_CLOEXEC);
    if (fd < 0 || watch < 0 || inotify_add_watch(watch, path, IN_MODIFY) < 0 || lseek(fd, 0, SEEK_END) < 0) {
        if (fd >= 0) close(fd);
        if (watch >= 0) close(watch);
        return cli_fail("%s: cannot be followed: %s", path, strerror(errno));
    }
    do {
        ssize_t got;
        while ((got = read(fd, text, sizeof text)) > 0) fwrite(text, 1, (size_t)got, stdout);
        fflush(stdout);
    } while (!interrupted && !ferror(stdout) && read(watch, drop, sizeof drop) > 0);
    close(fd);
    close(watch);
    return CLI_OK;
}

/* "attn/3", "attn-3" or "scheduler" to the file's name; 0 when it is none of these. */
static int log_name(const char *rank, char out[64])
{
    unsigned number;
    int end = 0;
    char role[8];
    if (!strcmp(rank, "scheduler") || !strcmp(rank, "supervisor")) return snprintf(out, 64, "%s.log", rank);
    if (sscanf(rank, "%4[a-z]%*1[/-]%4u%n", role, &number, &end) != 2 || rank[end]) return 0;
    return !strcmp(role, "attn") || !strcmp(role, "ffn") ? snprintf(out, 64, "%s-%u.log", role, number) : 0;
}

int cli_logs(const struct cli_command *self, int argc, char **argv)
{
    const char *rank = NULL, *state = NULL;
    uint64_t lines = 40;
    int following = 0, help;
    const struct cli_option options[] = {
        {"--state", 0, CLI_TEXT, &state,
         "state directory or name of the cluster (default: the one that runs)"},
        {"--follow", 'f', CLI_FLAG, &following, "go on with what is written"},
        {"--lines", 'n', CLI_COUNT, &lines, "how many of the last lines (default 40)"},
        {0}};
    int count = cli_parse(self, argc, argv, options, &rank, 1, &help);
    if (count < 0) return cli_parse_exit(help);
    char name[64], dir[AFD_PATH_BYTES], path[2 * AFD_PATH_BYTES];
    struct afd_error error;
    int is_known = count && log_name(rank, name);
    if (!count || (!is_known && strncmp(rank, "supervisor/", 11) != 0)) {
        cli_fail("logs: of whom? expected attn/N, ffn/N, scheduler or supervisor");
        return CLI_USAGE;
    }
    /* a directory that was named may be of a cluster that no longer runs */
    enum afd_status status =
        state ? afd_state_place(state, "", dir, &error) : afd_state_find(NULL, dir, &error);
    if (status) return cli_fail("%s", error.text);
    if (lines > 100000) lines = 100000;
    if (afd_state_is_remote(dir)) {
        struct cli_hosts *hosts = cli_hosts_open(dir, &error);
        int result =
            hosts ? cli_hosts_logs(hosts, rank, (uint32_t)lines, following) : cli_fail("%s", error.text);
        cli_hosts_close(hosts);
        return result;
    }
    if (!is_known) return cli_fail("logs: %s runs on this machine alone; expected supervisor", dir);
    snprintf(path, sizeof path, "%s/logs/%s", dir, name);
    if (access(path, R_OK)) return cli_fail("%s: %s", path, strerror(errno));
    cli_print_tail(path, (uint32_t)lines, stdout);
    if (!following) return CLI_OK;
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    return follow(path);
}
