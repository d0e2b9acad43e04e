#include "proto/member.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crypto.h"
#include "base/log.h"
#include "proto/limits.h"

enum { FIRST_RETRY_MS = 20, LAST_RETRY_MS = 1000, CONNECT_MS = 5000 };

struct afd_member {
    struct afd_member_config config;
    char scheduler[256], name[32];
    struct afd_channel *channel; /* NULL between attempts */
    struct event *retry, *orphan;
    uint32_t retry_ms;
    int is_connected; /* Register was sent on `channel` */
    int complained;   /* the first failure of a row is logged, the others are not */
};

/* Every function below ends with the owner's callback, and touches nothing after it: the owner may destroy
 * the member from within. */

static void arm(struct event *timer, uint32_t ms)
{
    struct timeval t = {.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};
    evtimer_add(timer, &t);
}

/* Half of the wait is random: the ranks of a cluster must not come back in one burst. */
static void retry_later(struct afd_member *m)
{
    uint16_t noise;
    afd_random_bytes(&noise, sizeof noise);
    arm(m->retry, m->retry_ms / 2 + noise % (m->retry_ms / 2 + 1));
    m->retry_ms = m->retry_ms * 2 < LAST_RETRY_MS ? m->retry_ms * 2 : LAST_RETRY_MS;
}

static void on_opened(struct afd_channel *channel, const char *peer_name, void *user)
{
    struct afd_member *m = user;
    (void)peer_name;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    if (m->config.registering) m->config.registering(m->config.user);
    e.body_case = AFD__ENVELOPE__BODY_REGISTER;
    e.register_ = (Afd__Register *)m->config.registration;
    if (afd_channel_send(channel, &e) != AFD_OK)
        return; /* out of memory: `closed` or the orphan timer follows */
    m->is_connected = 1;
    m->complained = 0;
    m->retry_ms = FIRST_RETRY_MS;
    event_del(m->orphan);
    if (m->config.connected) m->config.connected(m->config.user);
}

static void on_message(struct afd_channel *channel, const Afd__Envelope *message, void *user)
{
    struct afd_member *m = user;
    (void)channel;
    if (m->config.message) m->config.message(message, m->config.user);
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    struct afd_member *m = user;
    int was_connected = m->is_connected;
    char copy[512]; /* `words` may live in the channel */
    snprintf(copy, sizeof copy, "%s", words);
    m->channel = NULL;
    m->is_connected = 0;
    afd_channel_close(channel);
    if (status == AFD_ERR_REFUSED) {
        afd_log_error("the scheduler at %s: %s", m->scheduler, copy);
        event_del(m->orphan);
        if (m->config.refused) m->config.refused(copy, m->config.user);
        return;
    }
    if (!m->complained) /* AFD_AGAIN: the scheduler said that it goes away in order */
        afd_log(status == AFD_AGAIN ? AFD_LOG_INFO : AFD_LOG_WARN, "the scheduler at %s: %s; trying again",
                m->scheduler, copy);
    m->complained = 1;
    if (m->config.orphan_ms && !evtimer_pending(m->orphan, NULL)) arm(m->orphan, m->config.orphan_ms);
    retry_later(m);
    if (was_connected && m->config.disconnected) m->config.disconnected(copy, m->config.user);
}

static void connect_now(struct afd_member *m)
{
    struct afd_channel_config config = {
        .base = m->config.base,
        .name = m->name,
        .timeout_ms = CONNECT_MS,
        .callbacks = {on_opened, on_message, on_closed},
        .user = m,
    };
    struct afd_error error;
    memcpy(config.secret, m->config.secret, sizeof config.secret);
    m->channel = afd_channel_connect(&config, m->scheduler, &error);
    if (m->channel) return;
    /* A name that does not resolve yet, or no route: a scheduler that starts later cures both. */
    if (!m->complained) afd_log_warn("the scheduler: %s; trying again", error.text);
    m->complained = 1;
    retry_later(m);
}

static void on_retry(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    connect_now(user);
}

static void on_orphan(evutil_socket_t fd, short what, void *user)
{
    struct afd_member *m = user;
    (void)fd, (void)what;
    afd_log_error("no scheduler at %s for %u ms", m->scheduler, m->config.orphan_ms);
    event_del(m->retry);
    if (m->config.orphaned) m->config.orphaned(m->config.user);
}

struct afd_member *afd_member_create(const struct afd_member_config *config, struct afd_error *error_out)
{
    const char *colon = strrchr(config->scheduler, ':');
    if (!colon || colon == config->scheduler || !colon[1] ||
        strlen(config->scheduler) >= sizeof((struct afd_member *)0)->scheduler) {
        afd_fail(error_out, AFD_ERR_CONFIG, "scheduler '%s': expected host:port", config->scheduler);
        return NULL;
    }
    struct afd_member *m = calloc(1, sizeof *m);
    if (!m) goto out;
    m->config = *config;
    m->retry_ms = FIRST_RETRY_MS;
    snprintf(m->scheduler, sizeof m->scheduler, "%s", config->scheduler);
    snprintf(m->name, sizeof m->name, "%s/%u", config->registration->role == AFD__ROLE__FFN ? "ffn" : "attn",
             config->registration->rank);
    m->retry = evtimer_new(config->base, on_retry, m);
    m->orphan = evtimer_new(config->base, on_orphan, m);
    if (!m->retry || !m->orphan) goto out;
    if (config->orphan_ms) arm(m->orphan, config->orphan_ms);
    connect_now(m);
    return m;
out:
    afd_member_destroy(m);
    afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    return NULL;
}

void afd_member_destroy(struct afd_member *m)
{
    if (!m) return;
    if (m->retry) event_free(m->retry);
    if (m->orphan) event_free(m->orphan);
    if (m->channel) {
        /* what is queued may outlive us by a second */
        afd_channel_set_user(m->channel, (struct afd_channel_callbacks){NULL, NULL, NULL}, NULL);
        afd_channel_close(m->channel);
    }
    free(m);
}

int afd_member_is_connected(const struct afd_member *m)
{
    return m->is_connected;
}

enum afd_status afd_member_send(struct afd_member *m, const Afd__Envelope *message)
{
    if (!m->is_connected) return AFD_AGAIN;
    enum afd_status status = afd_channel_send(m->channel, message);
    return status == AFD_ERR_PEER ? AFD_AGAIN : status;
}

enum afd_status afd_assign_check(const Afd__Assign *a, struct afd_error *error_out)
{
    if (a->heartbeat_ms < AFD_MIN_HEARTBEAT_MS || a->heartbeat_ms > AFD_MAX_HEARTBEAT_MS ||
        a->lease_ms < AFD_MIN_LEASE_MS || a->lease_ms > AFD_MAX_LEASE_MS)
        return afd_fail(
            error_out, AFD_ERR_PROTOCOL,
            "epoch %llu: a heartbeat every %u ms and a lease of %u ms; expected %d to %d and %d to %d",
            (unsigned long long)a->epoch, a->heartbeat_ms, a->lease_ms, AFD_MIN_HEARTBEAT_MS,
            AFD_MAX_HEARTBEAT_MS, AFD_MIN_LEASE_MS, AFD_MAX_LEASE_MS);
    return AFD_OK;
}
