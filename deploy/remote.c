#include "deploy/remote.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "deploy/launcher.h"

/* ---- the command line */

static int add_text(struct afd_remote_command *c, const char *word, size_t bytes)
{
    if (c->used + bytes + 1 > sizeof c->text) return -1;
    memcpy(c->text + c->used, word, bytes);
    c->used += bytes;
    c->text[c->used] = 0;
    return 0;
}

static int add(struct afd_remote_command *c, const char *word)
{
    if (c->count + 1 >= AFD_REMOTE_WORDS) return -1;
    c->argv[c->count++] = c->text + c->used;
    c->argv[c->count] = NULL;
    int failed = add_text(c, word, strlen(word));
    c->used++;
    return failed;
}

/* 'a word', so that a POSIX shell gives it back as it was. */
static int add_quoted(struct afd_remote_command *c, const char *word)
{
    int failed = add_text(c, "'", 1);
    for (; *word; word++) failed |= *word == '\'' ? add_text(c, "'\\''", 4) : add_text(c, word, 1);
    return failed | add_text(c, "' ", 2);
}

/* ssh hands one line to the login shell of the other side. */
static int add_ssh(const struct afd_topology *t, const char *host, const char *const *words,
                   struct afd_remote_command *c)
{
    static const char *const options[] = {"-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--"};
    int failed = 0;
    for (uint32_t i = 0; i < t->launch.ssh_count; i++) failed |= add(c, t->launch.ssh[i]);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) failed |= add(c, options[i]);
    failed |= add(c, host);
    if (c->count + 1 >= AFD_REMOTE_WORDS) return -1;
    c->argv[c->count++] = c->text + c->used;
    c->argv[c->count] = NULL;
    failed |= add_text(c, "exec ", 5);
    for (; *words; words++) failed |= add_quoted(c, *words);
    return failed;
}

/* A step of its own beside the supervisors' (--overlap): it takes nothing of the allocation away. */
static int add_slurm(uint32_t job, const char *host, const char *const *words, struct afd_remote_command *c)
{
    static const char *const options[] = {"--overlap", "--quiet", "--nodes=1", "--ntasks=1", "--input=none"};
    char text[AFD_NAME_BYTES + 32];
    int failed = add(c, "srun");
    snprintf(text, sizeof text, "--jobid=%u", job);
    failed |= add(c, text);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) failed |= add(c, options[i]);
    snprintf(text, sizeof text, "--nodelist=%s", host);
    failed |= add(c, text);
    for (; *words; words++) failed |= add(c, *words);
    return failed;
}

enum afd_status afd_remote_command(const struct afd_topology *t, uint32_t job, const char *host,
                                   const char *const *words, struct afd_remote_command *out,
                                   struct afd_error *error_out)
{
    out->count = 0;
    out->used = 0;
    if (t->launch.by == AFD_LAUNCH_SLURM ? add_slurm(job, host, words, out) : add_ssh(t, host, words, out))
        return afd_fail(error_out, AFD_ERR_CONFIG, "the command for host %s is too long", host);
    return AFD_OK;
}

enum afd_status afd_remote_program(const struct afd_topology *t, char out[AFD_PATH_BYTES],
                                   struct afd_error *error_out)
{
    char dir[AFD_PATH_BYTES];
    enum afd_status status = AFD_OK;
    if (*t->launch.dir)
        strcpy(dir, t->launch.dir);
    else
        status = afd_launcher_bin(dir, error_out);
    if (!status && snprintf(out, AFD_PATH_BYTES, "%s/afd", dir) >= AFD_PATH_BYTES)
        status = afd_fail(error_out, AFD_ERR_CONFIG, "launch.dir is too long");
    return status;
}

enum afd_status afd_remote_state(const struct afd_topology *t, const char *dir, const char *host,
                                 char out[AFD_PATH_BYTES], struct afd_error *error_out)
{
    char state[AFD_PATH_BYTES];
    if (t->launch.by == AFD_LAUNCH_SLURM)
        snprintf(state, sizeof state, "%s", dir);
    else if (*t->launch.state)
        snprintf(state, sizeof state, "%s", t->launch.state);
    else
        snprintf(state, sizeof state, ".afd/%s", t->cluster);
    return snprintf(out, AFD_PATH_BYTES, "%s/host-%s", state, host) < AFD_PATH_BYTES
               ? AFD_OK
               : afd_fail(error_out, AFD_ERR_CONFIG, "the state directory of host %s: its path is too long",
                          host);
}

/* ---- running */

struct run {
    struct afd_remote_call *call;
    pid_t pid;
    int in, out, err; /* -1: closed */
    size_t written, used, err_used;
    char err_text[4096]; /* the end of it */
};

static int spawn(struct run *r, const struct afd_remote_command *c)
{
    int in[2], out[2], err[2];
    if (pipe2(in, O_CLOEXEC)) return -1;
    if (pipe2(out, O_CLOEXEC)) goto no_out;
    if (pipe2(err, O_CLOEXEC)) goto no_err;
    fflush(NULL);
    r->pid = fork();
    if (!r->pid) {
        setpgid(0, 0);
        if (dup2(in[0], 0) < 0 || dup2(out[1], 1) < 0 || dup2(err[1], 2) < 0) _exit(126);
        execvp(c->argv[0], c->argv);
        dprintf(2, "%s: %s\n", c->argv[0], strerror(errno));
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    if (r->pid > 0) {
        r->in = in[1];
        r->out = out[0];
        r->err = err[0];
        fcntl(r->in, F_SETFL, O_NONBLOCK);
        return 0;
    }
    close(err[0]);
    close(out[0]);
    close(in[1]);
    return -1;
no_err:
    close(out[0]);
    close(out[1]);
no_out:
    close(in[0]);
    close(in[1]);
    return -1;
}

static void shut(int *fd)
{
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void write_input(struct run *r)
{
    const struct afd_remote_call *c = r->call;
    ssize_t put = write(r->in, (const char *)c->input + r->written, c->input_bytes - r->written);
    if (put > 0) r->written += (size_t)put;
    if (r->written == c->input_bytes || (put < 0 && errno != EAGAIN && errno != EINTR)) shut(&r->in);
}

static void read_output(struct run *r)
{
    char drop[4096];
    size_t room = AFD_REMOTE_OUTPUT_BYTES - r->used;
    ssize_t got = room ? read(r->out, r->call->output + r->used, room) : read(r->out, drop, sizeof drop);
    if (got > 0 && room) r->used += (size_t)got;
    if (!got || (got < 0 && errno != EINTR)) shut(&r->out);
}

static void read_error(struct run *r)
{
    size_t half = sizeof r->err_text / 2;
    if (r->err_used > half) {
        memmove(r->err_text, r->err_text + r->err_used - half, half);
        r->err_used = half;
    }
    ssize_t got = read(r->err, r->err_text + r->err_used, sizeof r->err_text - r->err_used - 1);
    if (got > 0) r->err_used += (size_t)got;
    if (!got || (got < 0 && errno != EINTR)) shut(&r->err);
}

/* The last line that says something. */
static void last_words(struct run *r)
{
    char *text = r->err_text, *out = r->call->words_out;
    text[r->err_used] = 0;
    while (r->err_used && (text[r->err_used - 1] == '\n' || text[r->err_used - 1] == '\r'))
        text[--r->err_used] = 0;
    char *line = strrchr(text, '\n');
    snprintf(out, sizeof r->call->words_out, "%.500s", line ? line + 1 : text);
}

static void finish(const struct afd_topology *t, struct run *r, int is_late)
{
    int status = 0;
    struct afd_remote_call *c = r->call;
    if (is_late) kill(-r->pid, SIGKILL);
    while (waitpid(r->pid, &status, 0) < 0 && errno == EINTR) {
    }
    shut(&r->in);
    shut(&r->out);
    shut(&r->err);
    c->output[r->used] = 0;
    last_words(r);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    c->exit_status = code;
    char said[sizeof c->words_out];
    snprintf(said, sizeof said, "%s", *c->words_out ? c->words_out : "it said nothing");
    /* 255: ssh's own failure; 127: the other side's shell has no such program */
    if (is_late)
        snprintf(c->words_out, sizeof c->words_out, "no answer in time");
    else if (t->launch.by == AFD_LAUNCH_SSH && code == 255)
        snprintf(c->words_out, sizeof c->words_out, "cannot be reached by ssh: %.400s", said);
    else if (code == 127 || code == 126)
        snprintf(c->words_out, sizeof c->words_out, "%.200s cannot be run there (launch.dir): %.200s",
                 c->words[0], said);
    else
        return;
    c->exit_status = AFD_REMOTE_UNREACHED;
}

static int is_done(const struct run *r)
{
    return r->out < 0 && r->err < 0;
}

/* Moves bytes until all have ended or the time is over. */
static void attend(struct run *runs, uint32_t count, afd_ns deadline)
{
    struct pollfd *polls = calloc(3 * (size_t)count, sizeof *polls);
    for (afd_ns now; polls && (now = afd_now()) < deadline;) {
        uint32_t open = 0;
        for (uint32_t i = 0; i < count; i++) {
            struct run *r = &runs[i];
            polls[3 * i] = (struct pollfd){.fd = r->in, .events = POLLOUT};
            polls[3 * i + 1] = (struct pollfd){.fd = r->out, .events = POLLIN};
            polls[3 * i + 2] = (struct pollfd){.fd = r->err, .events = POLLIN};
            open += !is_done(r);
        }
        if (!open) break;
        if (poll(polls, 3 * count, (int)((deadline - now) / AFD_MS(1)) + 1) < 0) continue;
        for (uint32_t i = 0; i < count; i++) {
            if (polls[3 * i].revents) write_input(&runs[i]);
            if (polls[3 * i + 1].revents) read_output(&runs[i]);
            if (polls[3 * i + 2].revents) read_error(&runs[i]);
        }
    }
    free(polls);
}

enum afd_status afd_remote_run(const struct afd_topology *t, uint32_t job, struct afd_remote_call *calls,
                               uint32_t count, uint32_t timeout_ms)
{
    struct run *runs = calloc(count ? count : 1, sizeof *runs);
    struct afd_remote_command *command = malloc(sizeof *command);
    enum afd_status status = AFD_OK;
    afd_ns deadline = afd_now() + AFD_MS(timeout_ms);
    for (uint32_t i = 0; i < count; i++) {
        struct afd_remote_call *c = &calls[i];
        struct afd_error error = {"out of memory, or of processes"};
        c->exit_status = AFD_REMOTE_UNREACHED;
        c->output = runs && command ? malloc(AFD_REMOTE_OUTPUT_BYTES + 1) : NULL;
        if (runs) runs[i] = (struct run){.call = c, .in = -1, .out = -1, .err = -1};
        if (!c->output || afd_remote_command(t, job, c->host, c->words, command, &error) ||
            spawn(&runs[i], command)) {
            snprintf(c->words_out, sizeof c->words_out, "%.500s", error.text);
            free(c->output);
            c->output = NULL;
            continue;
        }
        if (!c->input_bytes) shut(&runs[i].in);
    }
    if (runs) attend(runs, count, deadline);
    for (uint32_t i = 0; i < count; i++) {
        if (calls[i].output) finish(t, &runs[i], !is_done(&runs[i]));
        if (calls[i].exit_status) status = AFD_ERR_PEER;
    }
    free(command);
    free(runs);
    return status;
}
