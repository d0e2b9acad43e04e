/* throttle: a device that slows itself down, as one does that is too hot. Of a process the thread that has
 * computed most (not the first one, which is the event loop) is held for a while whenever it is found
 * computing. Neither the event loop nor the kernel's run queue shows anything of it.
 *
 *   throttle PID STOP_MS     until it is killed or the thread ends; 77: no right to do that */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum { SKIPPED = 77, LOOK_US = 300 };

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

/* 1: it runs, or would if it had a core. */
static int is_computing(pid_t process, pid_t thread)
{
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", (int)process, (int)thread);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = 0;
    fclose(f);
    return state == 'R';
}

static void wait_us(long us)
{
    nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000}, NULL);
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
    if (argc != 3) {
        fprintf(stderr, "throttle: expected PID STOP_MS\n");
        return 2;
    }
    pid_t process = atoi(argv[1]), thread = busiest_thread(process);
    if (!thread || ptrace(PTRACE_SEIZE, thread, NULL, NULL)) {
        perror("throttle");
        return SKIPPED;
    }
    for (;; wait_us(LOOK_US)) {
        if (!is_computing(process, thread)) {
            if (kill(process, 0)) return 0;
            continue;
        }
        if (ptrace(PTRACE_INTERRUPT, thread, NULL, NULL) || !await_stop(thread)) return 0;
        wait_us(atol(argv[2]) * 1000);
        if (ptrace(PTRACE_CONT, thread, NULL, NULL)) return 0;
    }
}
