/* health.h: a file that says of a rank that its loop turns, for a container's probes (`afd probe FILE`).
 *
 * Rewritten every second from the rank's own loop: "live" until the rank serves, then "ready"; one that is
 * older than some seconds is of a rank that hangs or is gone. It goes with the rank's orderly end. What
 * cannot be written is logged once and costs nothing else. One thread (the base's). */
#ifndef AFD_DEPLOY_HEALTH_H
#define AFD_DEPLOY_HEALTH_H

#include <event2/event.h>

#include "base/error.h"

struct afd_health;

/* `path` NULL: no file, AFD_OK, and NULL, which the others allow. */
enum afd_status afd_health_open(struct event_base *base, const char *path, struct afd_health **out,
                                struct afd_error *error_out);
void afd_health_ready(struct afd_health *health); /* from now on */
void afd_health_close(struct afd_health *health); /* removes the file */

/* For the probe: AFD_OK when the file is at most `max_age_s` old and, with `ready`, says so; else words. */
enum afd_status afd_health_check(const char *path, uint32_t max_age_s, int ready,
                                 struct afd_error *error_out);

#endif
