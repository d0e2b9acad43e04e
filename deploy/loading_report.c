#include "deploy/loading_report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { CONNECT_MS = 5000 };

struct afd_loading_report {
    struct afd_loading_report_config config;
    char name[32];
    struct afd_channel *channel; /* NULL: none */
    int is_open, is_refused;
    Afd__Loading last;
};

static void send_last(struct afd_loading_report *r)
{
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_LOADING;
    e.loading = &r->last;
    afd_channel_send(r->channel, &e);
}

static void on_opened(struct afd_channel *channel, const char *peer_name, void *user)
{
    struct afd_loading_report *r = user;
    (void)channel, (void)peer_name;
    r->is_open = 1;
    send_last(r);
}

/* A scheduler that refuses is told nothing more; it will say so again, louder, when the rank joins. */
static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    struct afd_loading_report *r = user;
    afd_log_info("the scheduler at %s: %s; it does not hear how far the loading is", r->config.scheduler,
                 words);
    r->is_refused = status == AFD_ERR_REFUSED;
    r->is_open = 0;
    r->channel = NULL;
    afd_channel_close(channel);
}

struct afd_loading_report *afd_loading_report_create(const struct afd_loading_report_config *config)
{
    struct afd_loading_report *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->config = *config;
    snprintf(r->name, sizeof r->name, "%s/%u", afd_role_name(config->role), config->rank);
    afd__loading__init(&r->last);
    r->last.role = config->role == AFD_ROLE_FFN ? AFD__ROLE__FFN : AFD__ROLE__ATTN;
    r->last.rank = config->rank;
    return r;
}

void afd_loading_report_destroy(struct afd_loading_report *r)
{
    if (r && r->channel) {
        afd_channel_set_user(r->channel, (struct afd_channel_callbacks){NULL, NULL, NULL}, NULL);
        afd_channel_close(r->channel);
    }
    free(r);
}

void afd_loading_report_tell(struct afd_loading_report *r, uint64_t done, uint64_t total, afd_ns spent)
{
    struct afd_error error;
    r->last.bytes = done;
    r->last.total_bytes = total;
    r->last.ns = spent;
    if (r->is_open) send_last(r);
    if (r->channel || r->is_refused) return;
    struct afd_channel_config config = {.base = r->config.base,
                                        .name = r->name,
                                        .timeout_ms = CONNECT_MS,
                                        .callbacks = {on_opened, NULL, on_closed},
                                        .user = r};
    memcpy(config.secret, r->config.secret, sizeof config.secret);
    r->channel =
        afd_channel_connect(&config, r->config.scheduler, &error); /* NULL: its name may resolve later */
}
