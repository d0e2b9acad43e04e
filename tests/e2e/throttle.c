/* throttle: a device that slows itself down, as one does that is too hot: of the thread of a process that has
 * computed most (not the first one, which is the event loop) the clock is stopped and let go, again and
 * again. Neither the event loop nor the kernel's run queue shows anything of it.
 *
 *   throttle PID RUN_MS STOP_MS     until it is killed or the thread ends; 77: no right to do that */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum { SKIPPED = 77 };

static pid_t busiest_thread(pid_t process)
{
    char path[64];
    unsigned long long most = 0, ns;
    pid_t found = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)process);
    DIR *tasks = opendir(path);
    for (struct dirent *d; tasks && (d = readdir(tasks));) {
        pid_t thread = atoi(d->d_name);
        if (thread <= 0 || thread == process) continue;
        snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", (int)process, (int)thread);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%llu", &ns) == 1 && ns > most) most = ns, found = thread;
        if (f) fclose(f);
    }
    if (tasks) closedir(tasks);
    return found;
}

static void wait_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* The next stop of the thread; signals on their way to it are handed on. 0: it is no more. */
static int await_stop(pid_t thread)
{
    int status;
    while (waitpid(thread, &status, __WALL) == thread && WIFSTOPPED(status)) {
        if (status >> 16 == PTRACE_EVENT_STOP) return 1;
        ptrace(PTRACE_CONT, thread, NULL, WSTOPSIG(status));
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "throttle: expected PID RUN_MS STOP_MS\n");
        return 2;
    }
    long run_ms = atol(argv[2]), stop_ms = atol(argv[3]);
    pid_t thread = busiest_thread(atoi(argv[1]));
    if (!thread || ptrace(PTRACE_SEIZE, thread, NULL, NULL)) {
        perror("throttle");
        return SKIPPED;
    }
    for (;;) {
        wait_ms(run_ms);
        if (ptrace(PTRACE_INTERRUPT, thread, NULL, NULL) || !await_stop(thread)) return 0;
        wait_ms(stop_ms);
        if (ptrace(PTRACE_CONT, thread, NULL, NULL)) return 0;
    }
}
