/* bench_tools.c: the libraries' own tests, as processes: ucx_perftest of UCX, ib_* of perftest (linux-rdma).
 * Each is a pair of processes, one that listens and one that connects and prints the figures. What they do,
 * and so what is compared, is said in docs/SPEED.md. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench_transport.h"

enum { LISTEN_SECONDS = 10, RUN_SECONDS = 30, MAX_ARGUMENTS = 32, OUTPUT_BYTES = 16384 };
#define WARM_UP(iterations) ((iterations) / 10 + 5)

const char *const bt_wait_names[BT_WAITS] = {[BT_POLL] = "poll", [BT_SLEEP] = "sleep"};

enum { OVER_SHM = 1 << AFD_PATH_SHM, OVER_TCP = 1 << AFD_PATH_TCP, OVER_RDMA = 1 << AFD_PATH_RDMA };

static const struct tool {
    const char *name; /* of UCX: of the test in ucx_perftest, else of the program */
    enum bt_metric metric;
    int is_ucx;
    int polls_over, sleeps_over; /* sets of paths */
    int column;                  /* of the figure in its last line: us, or MiB per second */
    const char *why;             /* it cannot wait in the other way */
} tools[BT_TOOLS] = {
    {"ucp_put_lat", BT_LATENCY, 1, OVER_SHM | OVER_TCP | OVER_RDMA, OVER_TCP, 1,
     "a put wakes nobody: its receiver watches memory, and hangs if it sleeps"},
    {"ucp_am_lat", BT_LATENCY, 1, OVER_SHM | OVER_TCP | OVER_RDMA, OVER_SHM | OVER_TCP | OVER_RDMA, 1, NULL},
    {"ib_write_lat", BT_LATENCY, 0, OVER_RDMA, 0, 4, "it has no way to sleep"},
    {"ib_send_lat", BT_LATENCY, 0, 0, OVER_RDMA, 4, "ib_write_lat is there"},
    {"ucp_put_bw", BT_BANDWIDTH, 1, OVER_SHM | OVER_TCP | OVER_RDMA, OVER_TCP, 5,
     "a put wakes nobody: its receiver watches memory, and hangs if it sleeps"},
    {"ucp_am_bw", BT_BANDWIDTH, 1, OVER_SHM | OVER_TCP | OVER_RDMA, OVER_SHM | OVER_TCP | OVER_RDMA, 5, NULL},
    {"ib_write_bw", BT_BANDWIDTH, 0, OVER_RDMA, 0, 3, "it has no way to sleep"},
    {"ib_send_bw", BT_BANDWIDTH, 0, 0, OVER_RDMA, 3, "ib_write_bw is there"},
};

const char *bt_tool_name(uint32_t tool)
{
    return tools[tool].name;
}

enum bt_metric bt_tool_metric(uint32_t tool)
{
    return tools[tool].metric;
}

static const char *program_of(const struct tool *t)
{
    return t->is_ucx ? "ucx_perftest" : t->name;
}

static int is_installed(const char *program)
{
    const char *path = getenv("PATH");
    char file[512];
    while (path && *path) {
        size_t length = strcspn(path, ":");
        snprintf(file, sizeof file, "%.*s/%s", (int)length, path, program);
        if (!access(file, X_OK)) return 1;
        path += length + (path[length] == ':');
    }
    return 0;
}

const char *bt_tool_lacks(uint32_t tool, enum afd_data_path over, enum bt_wait wait)
{
    const struct tool *t = &tools[tool];
    int way = 1 << over;
    if (!((t->polls_over | t->sleeps_over) & way)) return "it has no such path";
    if (!((wait == BT_POLL ? t->polls_over : t->sleeps_over) & way)) return t->why;
    if (!is_installed(program_of(t)))
        return t->is_ucx ? "ucx_perftest is not installed" : "the program is not installed (perftest)";
    return NULL;
}

/* ---- one run, as JSON for the other host */

json_t *bt_tool_run_json(const struct bt_tool_run *run)
{
    return json_pack("{s:i, s:i, s:i, s:I, s:I, s:s}", "tool", (int)run->tool, "over", (int)run->over, "wait",
                     (int)run->wait, "bytes", (json_int_t)run->bytes, "iterations",
                     (json_int_t)run->iterations, "device", run->device);
}

enum afd_status bt_tool_run_read(struct bt_tool_run *run, const json_t *from, struct afd_error *error_out)
{
    json_int_t tool = json_integer_value(json_object_get(from, "tool"));
    json_int_t over = json_integer_value(json_object_get(from, "over"));
    json_int_t wait = json_integer_value(json_object_get(from, "wait"));
    json_int_t bytes = json_integer_value(json_object_get(from, "bytes"));
    json_int_t iterations = json_integer_value(json_object_get(from, "iterations"));
    const char *device = json_string_value(json_object_get(from, "device"));
    if (tool < 0 || tool >= BT_TOOLS || over < AFD_PATH_SHM || over > AFD_PATH_RDMA || wait < 0 ||
        wait >= BT_WAITS || bytes < 1 || bytes > (json_int_t)BT_MAX_BYTES || iterations < 1 ||
        iterations > 100000000 || !device || *device == '-' || strlen(device) >= sizeof run->device)
        return afd_fail(error_out, AFD_ERR_REQUEST, "not a run of a tool");
    *run = (struct bt_tool_run){.tool = (uint32_t)tool,
                                .over = (enum afd_data_path)over,
                                .wait = (enum bt_wait)wait,
                                .bytes = (uint64_t)bytes,
                                .iterations = (uint64_t)iterations};
    snprintf(run->device, sizeof run->device, "%s", device);
    const char *why = bt_tool_lacks(run->tool, run->over, run->wait);
    return why ? afd_fail(error_out, AFD_ERR_REQUEST, "%s: %s", tools[tool].name, why) : AFD_OK;
}

/* ---- the processes */

struct command {
    char *argv[MAX_ARGUMENTS], text[1024];
    size_t count, used;
};

static void add(struct command *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(struct command *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    c->argv[c->count++] = c->text + c->used;
    int length = vsnprintf(c->text + c->used, sizeof c->text - c->used, format, args);
    va_end(args);
    if (length < 0 || (size_t)length >= sizeof c->text - c->used || c->count == MAX_ARGUMENTS) abort();
    c->used += (size_t)length + 1;
}

/* `host` NULL: the side that listens. */
static void make_command(struct command *c, const struct bt_tool_run *run, const char *host, int port)
{
    const struct tool *t = &tools[run->tool];
    unsigned long long bytes = run->bytes, iterations = run->iterations;
    memset(c, 0, sizeof *c);
    add(c, "%s", program_of(t));
    if (t->is_ucx) {
        add(c, "-t"), add(c, "%s", t->name), add(c, "-s"), add(c, "%llu", bytes), add(c, "-n");
        add(c, "%llu", iterations), add(c, "-w"), add(c, "%llu", WARM_UP(iterations)), add(c, "-E");
        add(c, "%s", bt_wait_names[run->wait]), add(c, "-p"), add(c, "%d", port), add(c, "-f"), add(c, "-v");
    } else {
        const char *colon = strchr(run->device, ':');
        add(c, "-F"), add(c, "-s"), add(c, "%llu", bytes), add(c, "-n"), add(c, "%llu", iterations);
        add(c, "-p"), add(c, "%d", port);
        if (run->device[0]) add(c, "-d"), add(c, "%.*s", (int)strcspn(run->device, ":"), run->device);
        if (colon) add(c, "-i"), add(c, "%s", colon + 1);
        if (run->wait == BT_SLEEP) add(c, "-e");
    }
    if (host) add(c, "%s", host);
}

/* The interface that `host` is an address of: UCX would use all, and open a second lane over another. */
static void interface_of(const char *host, char out[64])
{
    struct ifaddrs *list;
    struct in6_addr six;
    struct in_addr four;
    char bare[BT_HOST_BYTES];
    snprintf(bare, sizeof bare, "%s", host + (*host == '['));
    bare[strcspn(bare, "]")] = 0;
    int is_four = inet_pton(AF_INET, bare, &four) == 1, is_six = inet_pton(AF_INET6, bare, &six) == 1;
    snprintf(out, 64, "all");
    if (getifaddrs(&list)) return;
    for (struct ifaddrs *i = list; i; i = i->ifa_next) {
        if (!i->ifa_addr) continue;
        const struct sockaddr_in *a = (void *)i->ifa_addr;
        const struct sockaddr_in6 *b = (void *)i->ifa_addr;
        if ((is_four && a->sin_family == AF_INET && a->sin_addr.s_addr == four.s_addr) ||
            (is_six && b->sin6_family == AF_INET6 && !memcmp(&b->sin6_addr, &six, sizeof six)))
            snprintf(out, 64, "%s", i->ifa_name);
    }
    freeifaddrs(list);
}

static void set_environment(const struct bt_tool_run *run, const char *host)
{
    char device[64];
    if (!tools[run->tool].is_ucx) return;
    setenv("UCX_TLS",
           run->over == AFD_PATH_SHM   ? "shm,self"
           : run->over == AFD_PATH_TCP ? "tcp,self"
                                       : "ib,self",
           0); /* the user's own choice is kept */
    interface_of(host, device);
    if (run->over != AFD_PATH_RDMA) setenv("UCX_NET_DEVICES", device, 0);
    if (run->over == AFD_PATH_RDMA && run->device[0]) setenv("UCX_NET_DEVICES", run->device, 0);
}

/* Starts it in a process group of its own; both outputs go to `output_fd`. `local`: our own address. */
static pid_t spawn(const struct bt_tool_run *run, const struct command *c, const char *local, int output_fd)
{
    pid_t self = getpid(), pid = fork();
    if (pid) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != self) _exit(1);
    setpgid(0, 0);
    dup2(output_fd, STDOUT_FILENO);
    dup2(output_fd, STDERR_FILENO);
    close_range(3, ~0u, 0);
    signal(SIGPIPE, SIG_DFL);
    set_environment(run, local);
    execvp(c->argv[0], c->argv);
    _exit(127);
}

static void stop(pid_t pid)
{
    if (pid <= 0) return;
    kill(-pid, SIGKILL);
    kill(pid, SIGKILL); /* it may not have made its group yet */
    waitpid(pid, NULL, 0);
}

/* Whether a TCP socket listens on the port, by looking: the tools take the first who connects as their peer.
 */
static int listens(int port)
{
    static const char *const tables[] = {"/proc/net/tcp", "/proc/net/tcp6"};
    int found = 0;
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(tables[i], "r");
        char line[512];
        while (f && fgets(line, sizeof line, f)) {
            char address[64];
            unsigned at, state;
            found |= sscanf(line, " %*d: %63[0-9A-F]:%x %*[0-9A-F]:%*x %x", address, &at, &state) == 3 &&
                     at == (unsigned)port && state == 0x0a;
        }
        if (f) fclose(f);
    }
    return found;
}

static int free_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t bytes = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;
    if (!bind(fd, (struct sockaddr *)&at, sizeof at) && !getsockname(fd, (struct sockaddr *)&at, &bytes))
        port = ntohs(at.sin_port);
    close(fd);
    return port;
}

struct bt_tool_server {
    pid_t pid;
    int null;
};

struct bt_tool_server *bt_tool_serve(const struct bt_tool_run *run, const char *host, int *port_out,
                                     struct afd_error *error_out)
{
    struct command c;
    struct bt_tool_server *s = calloc(1, sizeof *s);
    if (!s) abort();
    *port_out = free_port();
    make_command(&c, run, NULL, *port_out);
    s->null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    s->pid = spawn(run, &c, host, s->null);
    afd_ns until = afd_now() + AFD_SECONDS(LISTEN_SECONDS);
    int is_there = 1;
    while (is_there && !listens(*port_out) && afd_now() < until) {
        is_there = s->pid > 0 && waitpid(s->pid, NULL, WNOHANG) == 0;
        usleep(5000); /* another program's start: there is no event to wait for */
    }
    if (is_there && listens(*port_out)) return s;
    afd_fail(error_out, AFD_ERR_IO, "%s %s", c.argv[0],
             is_there ? "does not listen after 10 s" : "ended before it listened");
    if (!is_there) s->pid = 0;
    bt_tool_end(s);
    return NULL;
}

void bt_tool_end(struct bt_tool_server *s)
{
    if (!s) return;
    stop(s->pid);
    if (s->null >= 0) close(s->null);
    free(s);
}

/* Number `column` (from 0) of the last line that has that many and begins with a digit. */
static int parse(const char *text, int column, char separator, double *out)
{
    int found = 0;
    for (const char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL) {
        const char *at = line;
        double value = 0;
        int i = 0;
        while (*at == ' ') at++;
        if (*at < '0' || *at > '9') continue;
        for (; i <= column; i++) {
            char *end;
            value = strtod(at, &end);
            if (end == at) break;
            at = end;
            if (*at == separator) at++;
        }
        if (i <= column) continue;
        *out = value;
        found = 1;
    }
    return found;
}

/* Until its end: its output. */
static enum afd_status read_output(int fd, char text[OUTPUT_BYTES], struct afd_error *error_out)
{
    size_t used = 0;
    afd_ns until = afd_now() + AFD_SECONDS(RUN_SECONDS);
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        afd_ns now = afd_now();
        if (now >= until || poll(&p, 1, (int)((until - now) / 1000000) + 1) == 0)
            return afd_fail(error_out, AFD_ERR_DEADLINE, "not done after %d s", RUN_SECONDS);
        char more[4096];
        ssize_t n = read(fd, more, sizeof more);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        if (used + (size_t)n >= OUTPUT_BYTES) used = 0; /* the figures come last */
        memcpy(text + used, more, (size_t)n);
        used += (size_t)n;
        text[used] = 0;
    }
    return AFD_OK;
}

enum afd_status bt_tool_measure(const struct bt_tool_run *run, const char *local, const char *host, int port,
                                double *out, double *seconds_out, struct afd_error *error_out)
{
    const struct tool *t = &tools[run->tool];
    char text[OUTPUT_BYTES] = "", bare[4 * BT_HOST_BYTES];
    struct command c;
    int ends[2];
    snprintf(bare, sizeof bare, "%s", host + (*host == '['));
    bare[strcspn(bare, "]")] = 0;
    make_command(&c, run, bare, port);
    if (pipe2(ends, O_CLOEXEC)) return afd_fail(error_out, AFD_ERR_IO, "pipe: %s", strerror(errno));
    pid_t pid = spawn(run, &c, local, ends[1]);
    close(ends[1]);
    enum afd_status status = read_output(ends[0], text, error_out);
    close(ends[0]);
    stop(pid);
    if (status) return status;
    double value = 0, mean = 0;
    char separator = t->is_ucx ? ',' : ' ';
    if (!parse(text, t->column, separator, &value) || value <= 0)
        return afd_fail(error_out, AFD_ERR_IO, "no figures in its output: %.200s", text);
    /* UCX's third figure is the mean time of an iteration (half of one in the latency tests); perftest prints
       no such time in its bandwidth tests */
    if (t->is_ucx && parse(text, 3, separator, &mean))
        *seconds_out = mean * 1e-6;
    else
        *seconds_out = t->metric == BT_LATENCY ? value * 1e-6 : (double)run->bytes / (value * (1 << 20));
    *out = t->metric == BT_LATENCY ? value : value * (1 << 20);
    return AFD_OK;
}
