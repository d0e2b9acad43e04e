#include "deploy/launcher.h"

#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "deploy/agent.h"
#include "deploy/supervisor.h"

enum { SCHEDULER = 0, REQUEST_BYTES = 4096, MAX_SIGNALS = 3 };
enum { KILL_AFTER_DRAIN_S = 5 }; /* ranks end by themselves after drain_s: only what hangs is killed */

struct process {
    char name[24], log_name[32]; /* "attn/3", "attn-3.log" */
    const char *role;
    uint32_t instance, rank;
    const char *host;
    pid_t pid; /* 0: none */
    afd_ns started;
    int status; /* of the last exit, as wait reports it; -1: none yet */
};

/* Who is connected to the socket. */
struct client {
    struct launcher *launcher;
    struct client *next;
    struct bufferevent *io;
};

struct launcher {
    struct afd_launch launch;
    struct event_base *base;
    struct event *signals[MAX_SIGNALS], *timer, *watch;
    struct evconnlistener *listener;
    struct client *clients;
    int watch_fd;
    struct afd_supervisor *supervisor;
    struct process *processes;
    uint32_t count;
    struct afd_agent *agents[AFD_MAX_CLUSTER_HOSTS]; /* one for each name of this machine */
    uint32_t agent_count;
    char http[AFD_ADDRESS_BYTES], control[AFD_ADDRESS_BYTES]; /* the scheduler's, once known */
    char reached[2 * AFD_ADDRESS_BYTES];                      /* its control address, from here */
    int is_stopping_said, scheduler_gave_up;
    int is_down; /* by `afd down`: the cluster is over. Without it this host is, and the journal goes on */
};

static enum afd_role role_of(const struct process *p)
{
    return strcmp(p->role, "ffn") != 0 ? AFD_ROLE_ATTN : AFD_ROLE_FFN;
}

/* ---- what can be started */

static int is_this_host(const char *host)
{
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    return !strcmp(host, "localhost") || !strcmp(host, "127.0.0.1") || !strcmp(host, name);
}

enum afd_status afd_launcher_check(const struct afd_topology *t, struct afd_error *error_out)
{
    const struct afd_pool *pools[] = {&t->attn, &t->ffn};
#ifndef AFD_HAS_CUDA
    if (t->attn.device == AFD_DEVICE_CUDA || t->ffn.device == AFD_DEVICE_CUDA)
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "%s: this build has no CUDA back end and cannot start device type cuda; `afd check` plans such a "
            "cluster, device type cpu runs here",
            t->file);
#endif
#ifndef AFD_HAS_NCCL
    if (t->transport.group == AFD_GROUP_NCCL)
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "%s: this build has no NCCL for transport.group: nccl; `afd check` plans such a cluster, "
            "p2p runs here",
            t->file);
#endif
    if (t->transport.data == AFD_DATA_LOOP)
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "%s: transport.data: loop joins threads of one process, and ranks are processes; expected auto",
            t->file);
    if (t->launch.by == AFD_LAUNCH_KUBERNETES)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "%s: Kubernetes starts its pods itself; `afd render kubernetes %s` writes the files",
                        t->file, t->file);
    for (int p = 0; t->launch.by == AFD_LAUNCH_LOCAL && p < 2; p++)
        for (uint32_t i = 0; i < pools[p]->host_count; i++)
            if (!is_this_host(pools[p]->hosts[i]))
                return afd_fail(
                    error_out, AFD_ERR_CONFIG,
                    "%s: host %s is not this machine, and launch.by is local; expected ssh or slurm", t->file,
                    pools[p]->hosts[i]);
    return AFD_OK;
}

enum afd_status afd_launcher_bin(char out[AFD_PATH_BYTES], struct afd_error *error_out)
{
    const char *set = getenv("AFD_BIN");
    char *self = realpath(set && *set ? set : "/proc/self/exe", NULL);
    char *slash = self && !(set && *set) ? strrchr(self, '/') : NULL;
    if (slash) *slash = 0;
    int good = self && strlen(self) < AFD_PATH_BYTES;
    if (good) strcpy(out, self);
    free(self);
    return good ? AFD_OK
                : afd_fail(error_out, AFD_ERR_CONFIG, "AFD_BIN: %s is no folder", set && *set ? set : "");
}

/* ---- starting one process */

/* Between fork and exec, signals being blocked: the standard streams are /dev/null and `log`, and the
 * supervisor's death is this one's. */
static void child_main(int log, char *const *argv, pid_t parent)
{
    sigset_t none;
    for (int s = 1; s < NSIG; s++) signal(s, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0);
    /* nothing survives a killed supervisor; if it died before this line, getppid tells */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent) _exit(126);
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0 || chdir("/")) _exit(126);
    if (null > 2) close(null);
    execv(argv[0], argv);
    dprintf(2, "%s: cannot be started: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static int spawn(struct launcher *l, struct process *p, char *const *argv)
{
    char path[2 * AFD_PATH_BYTES];
    pid_t self = getpid();
    /* here, not in the child: who sees a process running finds its log, and one that cannot be written is
     * told */
    snprintf(path, sizeof path, "%s/logs/%s", l->launch.state_dir, p->log_name);
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0) {
        afd_log_error("%s: %s: %s", p->name, path, strerror(errno));
        return -1;
    }
    fflush(NULL);
    /* In the child the supervisor's handlers would be in place at first, and write what was meant for it into
     * the descriptor that the two share: the supervisor would take it for its own. */
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    pid_t pid = fork();
    if (!pid) child_main(log, argv, self);
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(log);
    if (pid < 0) {
        afd_log_error("%s: fork: %s", p->name, strerror(errno));
        return -1;
    }
    setpgid(pid, pid); /* both sides: whoever comes first */
    p->pid = pid;
    p->started = afd_now();
    afd_log_info("%s started, pid %d", p->name, (int)pid);
    return 0;
}

static int port_is_any(const char *address)
{
    return !strcmp(strrchr(address, ':'), ":0");
}

static int start_scheduler(struct launcher *l, struct process *p)
{
    const struct afd_topology *t = l->launch.topology;
    char program[AFD_PATH_BYTES + 32], secret[AFD_PATH_BYTES + 32];
    snprintf(program, sizeof program, "%s/afd-scheduler", l->launch.bin_dir);
    snprintf(secret, sizeof secret, "%s/secret", l->launch.state_dir);
    char *argv[16] = {program,         "--topology", (char *)t->file, "--state", (char *)l->launch.state_dir,
                      "--secret-file", secret};
    int n = 7;
    /* ports that the kernel chose stay the same over a restart, so that ranks and clients find it again */
    if (*l->http && port_is_any(t->scheduler.http)) argv[n++] = "--http", argv[n++] = l->http;
    if (*l->control && port_is_any(t->scheduler.control)) argv[n++] = "--control", argv[n++] = l->control;
    argv[n] = NULL;
    return spawn(l, p, argv);
}

static int start_rank(struct launcher *l, struct process *p)
{
    char program[AFD_PATH_BYTES + 32], secret[AFD_PATH_BYTES + 32], rank[16];
    snprintf(program, sizeof program, "%s/afd-%s-node", l->launch.bin_dir, p->role);
    snprintf(secret, sizeof secret, "%s/secret", l->launch.state_dir);
    snprintf(rank, sizeof rank, "%u", p->rank);
    char *argv[] = {program,
                    "--topology",
                    (char *)l->launch.topology->file,
                    "--rank",
                    rank,
                    "--scheduler",
                    l->reached,
                    "--secret-file",
                    secret,
                    NULL};
    return spawn(l, p, argv);
}

/* ---- the core's actions */

static void carry_out(struct launcher *l);

static void set_timer(struct launcher *l)
{
    afd_ns due = afd_supervisor_deadline(l->supervisor), now = afd_now();
    if (due == UINT64_MAX) {
        event_del(l->timer);
        return;
    }
    afd_ns wait = due > now ? due - now : 0;
    struct timeval t = {.tv_sec = (time_t)(wait / AFD_SECONDS(1)),
                        .tv_usec = (suseconds_t)(wait % AFD_SECONDS(1) / 1000 + 1)};
    evtimer_add(l->timer, &t);
}

/* `status`: as wait reports it; -1 when the process could not even be made. */
static enum afd_child_end end_of(int status)
{
    if (status < 0 || !WIFEXITED(status)) return AFD_CHILD_CRASHED;
    return !WEXITSTATUS(status)                       ? AFD_CHILD_DONE
           : WEXITSTATUS(status) == AFD_EXIT_UNUSABLE ? AFD_CHILD_UNUSABLE
                                                      : AFD_CHILD_CRASHED;
}

static void tell_agents(struct launcher *l)
{
    for (uint32_t i = 0; i < l->agent_count; i++) afd_agent_changed(l->agents[i]);
}

static void act(struct launcher *l, const struct afd_supervisor_action *a)
{
    struct process *p = &l->processes[a->child];
    tell_agents(l);
    switch (a->kind) {
    case AFD_SUPERVISE_START:
        if (a->child == SCHEDULER ? start_scheduler(l, p) : start_rank(l, p))
            afd_supervisor_exited(l->supervisor, a->child, AFD_CHILD_CRASHED, afd_now());
        return;
    case AFD_SUPERVISE_TERM:
        kill(p->pid, SIGTERM);
        return;
    case AFD_SUPERVISE_KILL:
        afd_log_warn("%s (pid %d) did not stop in time: killed", p->name, (int)p->pid);
        kill(-p->pid, SIGKILL);
        return;
    case AFD_SUPERVISE_GIVE_UP:
        if (end_of(p->status) == AFD_CHILD_UNUSABLE)
            afd_log_error("%s cannot work and is not started again; see logs/%s", p->name, p->log_name);
        else
            afd_log_error("%s failed %d times in a short time: given up; see logs/%s", p->name,
                          AFD_SUPERVISOR_WINDOW_FAILURES, p->log_name);
        l->scheduler_gave_up |= a->child == SCHEDULER;
        return;
    case AFD_SUPERVISE_DONE:
        event_base_loopexit(l->base, NULL);
        return;
    }
}

static void carry_out(struct launcher *l)
{
    struct afd_supervisor_action a;
    while (afd_supervisor_next(l->supervisor, &a)) act(l, &a);
    set_timer(l);
}

static void stop(struct launcher *l, const char *why)
{
    if (!l->is_stopping_said) afd_log_info("stopping: %s", why);
    l->is_stopping_said = 1;
    afd_supervisor_stop(l->supervisor, afd_now());
    carry_out(l);
}

/* ---- events */

static const char *exit_words(int status, char words[64])
{
    if (WIFSIGNALED(status))
        snprintf(words, 64, "killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(words, 64, "exit status %d", WEXITSTATUS(status));
    return words;
}

static void on_child(evutil_socket_t fd, short what, void *user)
{
    struct launcher *l = user;
    int status;
    pid_t pid;
    (void)fd, (void)what;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        char words[64];
        uint32_t i = 0;
        while (i < l->count && l->processes[i].pid != pid) i++;
        if (i == l->count) continue;
        struct process *p = &l->processes[i];
        enum afd_child_end end = end_of(status);
        kill(-pid, SIGKILL); /* what it may have started */
        p->pid = 0;
        p->status = status;
        int is_asked = afd_supervisor_state(l->supervisor, i) == AFD_CHILD_STOPPING;
        if (end == AFD_CHILD_DONE || is_asked || afd_supervisor_is_stopping(l->supervisor))
            afd_log_info("%s ended: %s", p->name, exit_words(status, words));
        else
            afd_log_warn("%s ended: %s", p->name, exit_words(status, words));
        afd_supervisor_exited(l->supervisor, i, end, afd_now());
        tell_agents(l);
    }
    carry_out(l);
}

static void on_stop_signal(evutil_socket_t fd, short what, void *user)
{
    (void)what;
    stop(user, fd == SIGTERM ? "SIGTERM" : "SIGINT");
}

static void on_timer(evutil_socket_t fd, short what, void *user)
{
    struct launcher *l = user;
    (void)fd, (void)what;
    afd_supervisor_tick(l->supervisor, afd_now());
    carry_out(l);
}

/* Where the scheduler is reached from here is known: ranks can start. */
static void scheduler_is_at(struct launcher *l, const char *address)
{
    snprintf(l->reached, sizeof l->reached, "%s", address);
    for (uint32_t i = 0; i < l->agent_count; i++) afd_agent_connect(l->agents[i], address);
}

/* DIR changed: the scheduler may have written where it listens. */
static void on_watch(evutil_socket_t fd, short what, void *user)
{
    struct launcher *l = user;
    char drop[8192] __attribute__((aligned(__alignof__(struct inotify_event))));
    struct afd_error error;
    (void)what;
    while (read(fd, drop, sizeof drop) > 0) {
    }
    json_t *content = afd_state_read(l->launch.state_dir, "scheduler.json");
    pid_t pid = l->processes[SCHEDULER].pid; /* of one before it the file may still tell */
    if (!pid || json_integer_value(json_object_get(content, "pid")) != pid) {
        json_decref(content);
        return;
    }
    const char *http = json_string_value(json_object_get(content, "http"));
    const char *control = json_string_value(json_object_get(content, "control"));
    if (http && control && strlen(http) < sizeof l->http && strlen(control) < sizeof l->control) {
        char reached[AFD_ADDRESS_BYTES];
        strcpy(l->http, http);
        strcpy(l->control, control);
        if (!afd_state_address(l->launch.state_dir, "control", reached, &error)) {
            scheduler_is_at(l, reached);
            afd_supervisor_scheduler_up(l->supervisor, afd_now());
        }
        carry_out(l);
    }
    json_decref(content);
}

/* ---- the scheduler: what runs here, and what is to */

static uint32_t list_ranks(const char *host, struct afd_agent_rank *out, void *user)
{
    struct launcher *l = user;
    uint32_t count = 0;
    for (uint32_t i = SCHEDULER + 1; i < l->count; i++) {
        const struct process *p = &l->processes[i];
        enum afd_child_state state = afd_supervisor_state(l->supervisor, i);
        if (state == AFD_CHILD_ABSENT || strcmp(p->host, host) != 0) continue;
        struct afd_agent_rank *r = &out[count++];
        *r = (struct afd_agent_rank){.role = role_of(p),
                                     .rank = p->rank,
                                     .start = afd_supervisor_start(l->supervisor, i),
                                     .restarts = afd_supervisor_restarts(l->supervisor, i),
                                     .pid = (uint32_t)p->pid,
                                     .state = afd_child_state_name(state)};
        if (!p->pid && p->status >= 0) exit_words(p->status, r->words);
    }
    return count;
}

static void run_ranks(const char *host, const struct afd_agent_rank *ranks, uint32_t count, void *user)
{
    struct launcher *l = user;
    afd_ns now = afd_now();
    /* who says this is up, on a full disk too, where it cannot write its file */
    afd_supervisor_scheduler_up(l->supervisor, now);
    for (uint32_t i = SCHEDULER + 1; i < l->count; i++) {
        const struct process *p = &l->processes[i];
        uint32_t k = 0;
        if (strcmp(p->host, host) != 0) continue;
        while (k < count && (ranks[k].rank != p->rank || ranks[k].role != role_of(p))) k++;
        if (k < count)
            afd_supervisor_run(l->supervisor, i, ranks[k].start, now);
        else
            afd_supervisor_leave(l->supervisor, i, now);
    }
    carry_out(l);
}

/* ---- the socket */

static json_t *answer_ps(const struct launcher *l)
{
    json_t *list = json_array();
    afd_ns now = afd_now();
    for (uint32_t i = 0; i < l->count; i++) {
        const struct process *p = &l->processes[i];
        char words[64];
        if (afd_supervisor_state(l->supervisor, i) == AFD_CHILD_ABSENT) continue;
        json_t *one = json_pack("{s:s, s:i, s:i, s:i, s:s, s:s, s:i, s:f, s:s}", "role", p->role, "instance",
                                (int)p->instance, "rank", (int)p->rank, "pid", (int)p->pid, "host", p->host,
                                "state", afd_child_state_name(afd_supervisor_state(l->supervisor, i)),
                                "restarts", (int)afd_supervisor_restarts(l->supervisor, i), "uptime_s",
                                p->pid ? (double)(now - p->started) / 1e9 : 0.0, "last_exit",
                                p->status < 0 ? "" : exit_words(p->status, words));
        json_array_append_new(list, one);
    }
    return json_pack("{s:s, s:s, s:s, s:o}", "cluster", l->launch.topology->cluster, "topology",
                     l->launch.topology->file, "state",
                     afd_supervisor_is_stopping(l->supervisor) ? "stopping" : "running", "processes", list);
}

static void client_free(struct client *c)
{
    struct client **at = &c->launcher->clients;
    while (*at != c) at = &(*at)->next;
    *at = c->next;
    bufferevent_free(c->io);
    free(c);
}

static void on_request(struct bufferevent *b, void *user)
{
    struct client *c = user;
    struct launcher *l = c->launcher;
    struct evbuffer *in = bufferevent_get_input(b), *out = bufferevent_get_output(b);
    char *line = evbuffer_readln(in, NULL, EVBUFFER_EOL_LF);
    if (!line) {
        if (evbuffer_get_length(in) > REQUEST_BYTES) client_free(c);
        return;
    }
    json_t *request = json_loads(line, 0, NULL), *answer;
    const char *op = json_string_value(json_object_get(request, "op"));
    int is_down = op && !strcmp(op, "down");
    if (op && !strcmp(op, "ps"))
        answer = answer_ps(l);
    else if (is_down)
        answer = json_pack("{s:b}", "stopping", 1);
    else
        answer = json_pack("{s:s}", "error", "unknown op; expected ps or down");
    char *text = json_dumps(answer, JSON_COMPACT);
    evbuffer_add_printf(out, "%s\n", text ? text : "{}");
    free(text);
    free(line);
    json_decref(answer);
    json_decref(request);
    l->is_down |= is_down;
    if (is_down) stop(l, "afd down");
}

static void on_client_event(struct bufferevent *b, short what, void *user)
{
    (void)b;
    if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR | BEV_EVENT_TIMEOUT)) client_free(user);
}

static void on_client(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *from, int bytes,
                      void *user)
{
    struct launcher *l = user;
    (void)listener, (void)from, (void)bytes;
    struct client *c = calloc(1, sizeof *c);
    if (c) c->io = bufferevent_socket_new(l->base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!c || !c->io) {
        close(fd);
        free(c);
        return;
    }
    c->launcher = l;
    c->next = l->clients;
    l->clients = c;
    bufferevent_setcb(c->io, on_request, NULL, on_client_event, c);
    bufferevent_enable(c->io, EV_READ | EV_WRITE);
}

/* ---- opening and closing */

static enum afd_status open_socket(struct launcher *l, struct afd_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char path[AFD_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/supervisor.sock", l->launch.state_dir);
    if (strlen(path) >= sizeof address.sun_path)
        return afd_fail(error, AFD_ERR_CONFIG, "%s: too long for a socket", path);
    strcpy(address.sun_path, path);
    unlink(path);
    l->listener =
        evconnlistener_new_bind(l->base, on_client, l, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 16,
                                (struct sockaddr *)&address, sizeof address);
    if (!l->listener) return afd_fail(error, AFD_ERR_IO, "%s: cannot listen: %s", path, strerror(errno));
    chmod(path, 0600);
    return AFD_OK;
}

static enum afd_status open_events(struct launcher *l, struct afd_error *error)
{
    static const int numbers[MAX_SIGNALS] = {SIGCHLD, SIGTERM, SIGINT};
    l->watch_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (l->watch_fd < 0 ||
        inotify_add_watch(l->watch_fd, l->launch.state_dir, IN_MOVED_TO | IN_CLOSE_WRITE) < 0)
        return afd_fail(error, AFD_ERR_IO, "%s: cannot be watched: %s", l->launch.state_dir, strerror(errno));
    l->base = event_base_new();
    if (!l->base) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    for (int i = 0; i < MAX_SIGNALS; i++) {
        l->signals[i] = evsignal_new(l->base, numbers[i], i ? on_stop_signal : on_child, l);
        if (!l->signals[i] || evsignal_add(l->signals[i], NULL))
            return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    }
    l->timer = evtimer_new(l->base, on_timer, l);
    l->watch = event_new(l->base, l->watch_fd, EV_READ | EV_PERSIST, on_watch, l);
    if (!l->timer || !l->watch || event_add(l->watch, NULL))
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    return open_socket(l, error);
}

/* One for each name by which the topology calls this machine. */
static enum afd_status open_agents(struct launcher *l, struct afd_error *error)
{
    char secret[AFD_PATH_BYTES + 32];
    struct afd_agent_config config = {.base = l->base,
                                      .topology = l->launch.topology,
                                      .limit = l->count - 1,
                                      .list = list_ranks,
                                      .run = run_ranks,
                                      .user = l};
    snprintf(secret, sizeof secret, "%s/secret", l->launch.state_dir);
    enum afd_status status = afd_secret_read(secret, config.secret, error);
    if (status) return status;
    for (uint32_t i = SCHEDULER + 1; i < l->count; i++) {
        uint32_t k = SCHEDULER + 1;
        config.host = l->processes[i].host;
        while (strcmp(l->processes[k].host, config.host) != 0) k++;
        if (k < i) continue; /* it has one */
        l->agents[l->agent_count] = afd_agent_create(&config);
        if (!l->agents[l->agent_count++]) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    }
    return AFD_OK;
}

static void add_process(struct launcher *l, const char *role, uint32_t instance, uint32_t rank,
                        const char *host)
{
    struct process *p = &l->processes[l->count++];
    *p = (struct process){.role = role, .instance = instance, .rank = rank, .host = host, .status = -1};
    int is_rank = strcmp(role, "scheduler") != 0;
    if (is_rank) {
        snprintf(p->name, sizeof p->name, "%s/%u", role, rank);
        snprintf(p->log_name, sizeof p->log_name, "%s-%u.log", role, rank);
    } else {
        strcpy(p->name, "scheduler");
        strcpy(p->log_name, "scheduler.log");
    }
}

static enum afd_status create_processes(struct launcher *l, struct afd_error *error)
{
    const struct afd_topology *t = l->launch.topology;
    const struct afd_pool *pools[AFD_ROLE_COUNT] = {&t->attn, &t->ffn};
    const char *here = l->launch.host; /* NULL: all hosts are */
    uint32_t most = 1;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        most += pools[role]->max_instances * pools[role]->ranks_per_instance;
    l->processes = calloc(most, sizeof *l->processes);
    if (!l->processes) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    add_process(l, "scheduler", 0, 0, t->scheduler.host);
    for (uint32_t i = 0; i < most - 1; i++) {
        uint32_t attn = t->attn.max_instances * t->attn.ranks_per_instance;
        enum afd_role role = i < attn ? AFD_ROLE_ATTN : AFD_ROLE_FFN;
        uint32_t rank = i < attn ? i : i - attn;
        const char *host = afd_rank_host(t, role, rank);
        if (!here || !strcmp(host, here))
            add_process(l, afd_role_name(role), rank / pools[role]->ranks_per_instance, rank, host);
    }
    struct afd_supervisor_config config = {.children = l->count,
                                           .backoff_first = AFD_MS(200),
                                           .backoff_most = AFD_SECONDS(10),
                                           .window = AFD_SECONDS(60),
                                           .drain = AFD_SECONDS(t->scheduler.drain_s + KILL_AFTER_DRAIN_S),
                                           .is_remote = here && strcmp(here, t->scheduler.host) != 0,
                                           .never_restart = (int)t->launch.never_restart};
    l->supervisor = afd_supervisor_create(&config);
    if (!l->supervisor) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    for (uint32_t i = SCHEDULER + 1; i < l->count; i++) {
        enum afd_role role = role_of(&l->processes[i]);
        if (role == AFD_ROLE_FFN) afd_supervisor_set_stage(l->supervisor, i, 2);
        if (l->processes[i].rank >= afd_pool_ranks(pools[role])) /* of a scale that may come */
            afd_supervisor_leave(l->supervisor, i, afd_now());
    }
    return AFD_OK;
}

static void launcher_close(struct launcher *l)
{
    for (int i = 0; i < MAX_SIGNALS; i++)
        if (l->signals[i]) event_free(l->signals[i]);
    if (l->timer) event_free(l->timer);
    if (l->watch) event_free(l->watch);
    if (l->listener) evconnlistener_free(l->listener);
    while (l->clients) client_free(l->clients);
    for (uint32_t i = 0; i < l->agent_count; i++) afd_agent_destroy(l->agents[i]);
    if (l->base) {
        event_base_dispatch(l->base); /* what closed connections still write: a second at most */
        event_base_free(l->base);
    }
    if (l->watch_fd >= 0) close(l->watch_fd);
    afd_supervisor_destroy(l->supervisor);
    free(l->processes);
}

enum afd_status afd_launcher_run(const struct afd_launch *launch, struct afd_error *error_out)
{
    struct launcher l = {.launch = *launch, .watch_fd = -1};
    enum afd_status status = create_processes(&l, error_out);
    if (!status) status = open_events(&l, error_out);
    if (!status) status = open_agents(&l, error_out);
    if (!status) {
        json_t *cluster =
            json_pack("{s:s, s:s, s:i, s:I}", "cluster", launch->topology->cluster, "topology",
                      launch->topology->file, "pid", (int)getpid(), "started", (json_int_t)time(NULL));
        status = afd_state_write(launch->state_dir, "cluster.json", cluster, error_out);
        json_decref(cluster);
    }
    if (!status) {
        if (launch->ready_fd >= 0) {
            if (write(launch->ready_fd, "1", 1) != 1) afd_log_warn("who started the supervisor is gone");
            close(launch->ready_fd);
        }
        if (launch->host && strcmp(launch->host, launch->topology->scheduler.host) != 0) {
            char address[2 * AFD_ADDRESS_BYTES];
            afd_topology_reach(launch->topology, launch->topology->scheduler.control, address);
            scheduler_is_at(&l, address);
        }
        afd_supervisor_begin(l.supervisor, afd_now());
        carry_out(&l);
        event_base_dispatch(l.base);
        if (l.scheduler_gave_up)
            status = afd_fail(error_out, AFD_ERR_IO,
                              "the scheduler cannot be kept running; see logs/scheduler.log");
    }
    afd_state_clean(launch->state_dir);
    if (l.is_down) afd_state_clean_journal(launch->state_dir);
    launcher_close(&l);
    return status;
}

/* ---- leaving a daemon behind */

/* Runs in the grandchild: no terminal, no parent but init. */
static void exec_supervisor(const struct afd_topology *t, const char *host, const char *state_dir,
                            int lock_fd, int ready_fd)
{
    char log[AFD_PATH_BYTES + 32], lock[16], ready[16];
    snprintf(log, sizeof log, "%s/logs/supervisor.log", state_dir);
    snprintf(lock, sizeof lock, "%d", lock_fd);
    snprintf(ready, sizeof ready, "%d", ready_fd);
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600), null = open("/dev/null", O_RDONLY);
    if (out < 0 || null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0 || chdir("/"))
        _exit(126);
    fcntl(lock_fd, F_SETFD, 0); /* these two pass exec; the supervisor marks them again */
    fcntl(ready_fd, F_SETFD, 0);
    execl("/proc/self/exe", "afd", "supervise", "--topology", t->file, "--state", state_dir, "--lock-fd",
          lock, "--ready-fd", ready, host ? "--host" : NULL, host, NULL);
    dprintf(2, "afd supervise: %s\n", strerror(errno));
    _exit(127);
}

enum afd_status afd_launcher_start(const struct afd_topology *topology, const char *host,
                                   const char *state_dir, int lock_fd, struct afd_error *error_out)
{
    enum { START_MS = 20000 };
    int ready[2];
    char byte;
    if (pipe2(ready, O_CLOEXEC)) return afd_fail(error_out, AFD_ERR_IO, "pipe: %s", strerror(errno));
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        close(ready[0]);
        close(ready[1]);
        return afd_fail(error_out, AFD_ERR_IO, "fork: %s", strerror(errno));
    }
    if (!pid) {
        setsid();
        pid_t daemon = fork();
        if (daemon) _exit(daemon < 0);
        exec_supervisor(topology, host, state_dir, lock_fd, ready[1]);
    }
    close(ready[1]);
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    struct pollfd p = {.fd = ready[0], .events = POLLIN};
    int answered;
    while ((answered = poll(&p, 1, START_MS)) < 0 && errno == EINTR) {
    }
    int good = answered > 0 && read(ready[0], &byte, 1) == 1;
    close(ready[0]);
    if (good) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_IO, "the supervisor does not start; see %s/logs/supervisor.log",
                    state_dir);
}
