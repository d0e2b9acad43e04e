#include "deploy/health.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

struct afd_health {
    struct event *timer;
    int fd, is_ready, is_told;
    char path[];
};

/* One write of a fixed length: a probe never sees half of it. */
static void say(struct afd_health *h)
{
    const char *word = h->is_ready ? "ready\n" : "live \n";
    if (pwrite(h->fd, word, 6, 0) == 6 && !futimens(h->fd, NULL)) return;
    if (!h->is_told) afd_log_warn("%s: %s; probes will find this rank dead", h->path, strerror(errno));
    h->is_told = 1;
}

static void on_timer(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    say(user);
}

enum afd_status afd_health_open(struct event_base *base, const char *path, struct afd_health **out,
                                struct afd_error *error_out)
{
    *out = NULL;
    if (!path) return AFD_OK;
    struct afd_health *h = calloc(1, sizeof *h + strlen(path) + 1);
    if (!h) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    strcpy(h->path, path);
    h->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    h->timer = h->fd < 0 ? NULL : event_new(base, -1, EV_PERSIST, on_timer, h);
    if (!h->timer || event_add(h->timer, &(struct timeval){.tv_sec = 1})) {
        enum afd_status status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: %s", path, strerror(errno));
        afd_health_close(h);
        return status;
    }
    say(h);
    *out = h;
    return AFD_OK;
}

void afd_health_ready(struct afd_health *h)
{
    if (!h || h->is_ready) return;
    h->is_ready = 1;
    say(h);
}

void afd_health_close(struct afd_health *h)
{
    if (!h) return;
    if (h->timer) event_free(h->timer);
    if (h->fd >= 0) {
        unlink(h->path);
        close(h->fd);
    }
    free(h);
}

enum afd_status afd_health_check(const char *path, uint32_t max_age_s, int ready, struct afd_error *error_out)
{
    char text[8] = "";
    struct stat info;
    struct timespec now;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int failed = fd < 0 || fstat(fd, &info) || read(fd, text, 6) < 0;
    int cause = errno;
    if (fd >= 0) close(fd);
    if (failed) return afd_fail(error_out, AFD_AGAIN, "%s: %s", path, strerror(cause));
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec - info.st_mtim.tv_sec > (time_t)max_age_s)
        return afd_fail(error_out, AFD_AGAIN, "its loop does not turn: the last sign is %lld s old",
                        (long long)(now.tv_sec - info.st_mtim.tv_sec));
    if (ready && strcmp(text, "ready\n") != 0) return afd_fail(error_out, AFD_AGAIN, "it is not ready yet");
    return AFD_OK;
}
