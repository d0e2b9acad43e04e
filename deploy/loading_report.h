/* loading_report.h: tells the scheduler how far a rank is that loads its weights before it joins, over a
 * connection of its own that ends with the loading.
 *
 * Connects when it is first told something, and again after the connection ended; nothing depends on it, so
 * that no failure is more than a line of the log. The owner turns the base now and then. One thread (the
 * base's); nothing blocks. */
#ifndef AFD_DEPLOY_LOADING_REPORT_H
#define AFD_DEPLOY_LOADING_REPORT_H

#include "base/clock.h"
#include "deploy/topology.h"
#include "proto/channel.h"

struct afd_loading_report;

struct afd_loading_report_config {
    struct event_base *base;
    const char *scheduler; /* host:port; lives longer than the report */
    uint8_t secret[AFD_SECRET_BYTES];
    enum afd_role role;
    uint32_t rank;
};

struct afd_loading_report *
afd_loading_report_create(const struct afd_loading_report_config *config); /* NULL: out of memory */
void afd_loading_report_destroy(struct afd_loading_report *report);        /* NULL is allowed */
/* `done` of `total` bytes after `spent`. The last word counts while the connection is being made. */
void afd_loading_report_tell(struct afd_loading_report *report, uint64_t done, uint64_t total, afd_ns spent);

#endif
