#include "deploy/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crypto.h"
#include "base/log.h"

/* REFUSED_MS: between attempts at a scheduler that does not want us, so that its log stays readable. */
enum { FIRST_RETRY_MS = 50, LAST_RETRY_MS = 2000, REFUSED_MS = 30000, CONNECT_MS = 5000 };

struct afd_agent {
    struct afd_agent_config config;
    char scheduler[2 * AFD_ADDRESS_BYTES], name[AFD_NAME_BYTES + 8];
    uint64_t incarnation, serial; /* serial: of the last HostRun */
    struct afd_channel *channel;  /* NULL between attempts */
    struct event *retry, *report;
    uint32_t retry_ms;
    int is_open; /* HostRegister was sent on `channel` */
    int is_told; /* the end of the connection was logged */
    struct afd_agent_rank *ranks;
    Afd__RankProcess *processes, **process_at;
};

static void arm(struct event *timer, uint32_t ms)
{
    struct timeval t = {.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};
    evtimer_add(timer, &t);
}

/* ---- what runs here */

static size_t list(struct afd_agent *a)
{
    uint32_t count = a->config.list(a->config.host, a->ranks, a->config.user);
    for (uint32_t i = 0; i < count; i++) {
        struct afd_agent_rank *from = &a->ranks[i];
        Afd__RankProcess *to = &a->processes[i];
        afd__rank_process__init(to);
        to->role = from->role == AFD_ROLE_FFN ? AFD__ROLE__FFN : AFD__ROLE__ATTN;
        to->rank = from->rank;
        to->start = from->start;
        to->pid = from->pid;
        to->restarts = from->restarts;
        to->state = (char *)from->state;
        to->words = from->words;
        a->process_at[i] = to;
    }
    return count;
}

static void send_register(struct afd_agent *a)
{
    Afd__HostRegister m = AFD__HOST_REGISTER__INIT;
    m.host = (char *)a->config.host;
    m.incarnation = a->incarnation;
    m.topology_hash = (ProtobufCBinaryData){AFD_HASH_BYTES, (uint8_t *)a->config.topology->hash};
    m.n_ranks = list(a);
    m.ranks = a->process_at;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_HOST_REGISTER;
    e.host_register = &m;
    a->is_open = afd_channel_send(a->channel, &e) == AFD_OK;
}

static void on_report(evutil_socket_t fd, short what, void *user)
{
    struct afd_agent *a = user;
    (void)fd, (void)what;
    if (!a->is_open) return; /* HostRegister says it all */
    Afd__HostReport m = AFD__HOST_REPORT__INIT;
    m.serial = a->serial;
    m.n_ranks = list(a);
    m.ranks = a->process_at;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_HOST_REPORT;
    e.host_report = &m;
    afd_channel_send(a->channel, &e);
}

void afd_agent_changed(struct afd_agent *a)
{
    event_active(a->report, 0, 0);
}

/* ---- what is to run here */

static int is_known(const struct afd_agent_rank *ranks, uint32_t count, const struct afd_agent_rank *r)
{
    for (uint32_t i = 0; i < count; i++)
        if (ranks[i].role == r->role && ranks[i].rank == r->rank) return 1;
    return 0;
}

static void on_run(struct afd_agent *a, const Afd__HostRun *m)
{
    const struct afd_topology *t = a->config.topology;
    uint32_t count = 0;
    for (size_t i = 0; i < m->n_ranks; i++) {
        const Afd__RankProcess *p = m->ranks[i];
        struct afd_agent_rank r = {.role = p->role == AFD__ROLE__FFN ? AFD_ROLE_FFN : AFD_ROLE_ATTN,
                                   .rank = p->rank,
                                   .start = p->start};
        const struct afd_pool *pool = r.role == AFD_ROLE_FFN ? &t->ffn : &t->attn;
        if (p->rank / pool->ranks_per_instance >= pool->max_instances ||
            strcmp(afd_rank_host(t, r.role, p->rank), a->config.host) != 0 || is_known(a->ranks, count, &r) ||
            count == a->config.limit)
            afd_log_warn("the scheduler asks for %s/%u, which is not one of %s", afd_role_name(r.role),
                         p->rank, a->config.host);
        else
            a->ranks[count++] = r;
    }
    a->serial = m->serial;
    a->config.run(a->config.host, a->ranks, count, a->config.user);
    afd_agent_changed(a); /* also when nothing did: the serial is the answer */
}

/* ---- the connection */

static void on_opened(struct afd_channel *channel, const char *peer_name, void *user)
{
    struct afd_agent *a = user;
    (void)channel, (void)peer_name;
    a->retry_ms = FIRST_RETRY_MS;
    a->is_told = 0;
    send_register(a);
}

static void on_message(struct afd_channel *channel, const Afd__Envelope *message, void *user)
{
    (void)channel;
    if (message->body_case == AFD__ENVELOPE__BODY_HOST_RUN) on_run(user, message->host_run);
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    struct afd_agent *a = user;
    int is_refused = status == AFD_ERR_REFUSED;
    if (!a->is_told) /* an end of the scheduler itself is the supervisor's or the operator's to tell */
        afd_log(is_refused ? AFD_LOG_WARN : AFD_LOG_INFO, "the scheduler at %s: %s; what runs here goes on",
                a->scheduler, words);
    a->is_told = 1;
    a->channel = NULL;
    a->is_open = 0;
    afd_channel_close(channel);
    arm(a->retry, is_refused ? REFUSED_MS : a->retry_ms);
    a->retry_ms = a->retry_ms * 2 < LAST_RETRY_MS ? a->retry_ms * 2 : LAST_RETRY_MS;
}

static void connect_now(struct afd_agent *a)
{
    struct afd_channel_config config = {.base = a->config.base,
                                        .name = a->name,
                                        .timeout_ms = CONNECT_MS,
                                        .callbacks = {on_opened, on_message, on_closed},
                                        .user = a};
    struct afd_error error;
    memcpy(config.secret, a->config.secret, sizeof config.secret);
    a->channel = afd_channel_connect(&config, a->scheduler, &error);
    if (a->channel) return;
    if (!a->is_told) afd_log_info("the scheduler: %s; trying again", error.text);
    a->is_told = 1;
    arm(a->retry, LAST_RETRY_MS); /* a name that does not resolve yet */
}

static void on_retry(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    connect_now(user);
}

static void disconnect(struct afd_agent *a)
{
    event_del(a->retry);
    if (a->channel) {
        afd_channel_set_user(a->channel, (struct afd_channel_callbacks){NULL, NULL, NULL}, NULL);
        afd_channel_close(a->channel);
    }
    a->channel = NULL;
    a->is_open = 0;
}

void afd_agent_connect(struct afd_agent *a, const char *scheduler)
{
    if (!strcmp(a->scheduler, scheduler)) return;
    snprintf(a->scheduler, sizeof a->scheduler, "%s", scheduler);
    disconnect(a);
    a->retry_ms = FIRST_RETRY_MS;
    connect_now(a);
}

struct afd_agent *afd_agent_create(const struct afd_agent_config *config)
{
    struct afd_agent *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->config = *config;
    afd_random_bytes(&a->incarnation, sizeof a->incarnation);
    snprintf(a->name, sizeof a->name, "host/%s", config->host);
    size_t room = config->limit ? config->limit : 1;
    a->ranks = calloc(room, sizeof *a->ranks);
    a->processes = calloc(room, sizeof *a->processes);
    a->process_at = calloc(room, sizeof(Afd__RankProcess *));
    a->retry = evtimer_new(config->base, on_retry, a);
    a->report = event_new(config->base, -1, 0, on_report, a);
    if (a->ranks && a->processes && a->process_at && a->retry && a->report) return a;
    afd_agent_destroy(a);
    return NULL;
}

void afd_agent_destroy(struct afd_agent *a)
{
    if (!a) return;
    if (a->retry) disconnect(a);
    if (a->retry) event_free(a->retry);
    if (a->report) event_free(a->report);
    free(a->ranks);
    free(a->processes);
    free(a->process_at);
    free(a);
}
