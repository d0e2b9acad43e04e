#include "scheduler/hosts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

struct host {
    uint64_t connection; /* 0: none */
    struct afd_channel *channel;
    char name[AFD_NAME_BYTES];
    uint64_t serial;
};

struct afd_hosts {
    struct afd_cluster *cluster;
    struct host hosts[2 * AFD_MAX_HOSTS]; /* of both pools */
    Afd__RankProcess *ranks, **rank_at;   /* [cluster size] of the message that is being built */
};

struct afd_hosts *afd_hosts_create(struct afd_cluster *cluster)
{
    struct afd_hosts *h = cluster ? calloc(1, sizeof *h) : NULL;
    if (!h) return NULL;
    h->cluster = cluster;
    h->ranks = calloc(afd_cluster_size(cluster), sizeof *h->ranks);
    h->rank_at = calloc(afd_cluster_size(cluster), sizeof *h->rank_at);
    if (h->ranks && h->rank_at) return h;
    afd_hosts_destroy(h);
    return NULL;
}

void afd_hosts_destroy(struct afd_hosts *h)
{
    if (!h) return;
    free(h->ranks);
    free(h->rank_at);
    free(h);
}

static void tell(struct afd_hosts *h, struct host *host)
{
    const struct afd_topology *t = afd_cluster_topology(h->cluster);
    Afd__HostRun run = AFD__HOST_RUN__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    run.serial = ++host->serial;
    run.ranks = h->rank_at;
    for (uint32_t i = 0; i < afd_cluster_size(h->cluster); i++) {
        const struct afd_cluster_member *m = afd_cluster_at(h->cluster, i);
        if (!afd_cluster_runs(h->cluster, m->role, m->rank) ||
            strcmp(afd_rank_host(t, m->role, m->rank), host->name))
            continue;
        Afd__RankProcess *r = &h->ranks[run.n_ranks];
        afd__rank_process__init(r);
        r->role = m->role == AFD_ROLE_FFN ? AFD__ROLE__FFN : AFD__ROLE__ATTN;
        r->rank = m->rank;
        r->start = m->start;
        h->rank_at[run.n_ranks++] = r;
    }
    e.body_case = AFD__ENVELOPE__BODY_HOST_RUN;
    e.host_run = &run;
    afd_channel_send(host->channel, &e);
}

void afd_hosts_run(struct afd_hosts *h)
{
    for (size_t i = 0; i < sizeof h->hosts / sizeof *h->hosts; i++)
        if (h->hosts[i].connection) tell(h, &h->hosts[i]);
}

int afd_hosts_can_start(const struct afd_hosts *h, const char *host)
{
    int has_any = 0;
    for (size_t i = 0; i < sizeof h->hosts / sizeof *h->hosts; i++) {
        if (!h->hosts[i].connection) continue;
        if (!strcmp(h->hosts[i].name, host)) return 1;
        has_any = 1;
    }
    return !has_any;
}

static void take_processes(struct afd_hosts *h, Afd__RankProcess *const *ranks, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const Afd__RankProcess *p = ranks[i];
        enum afd_role role = p->role == AFD__ROLE__ATTN  ? AFD_ROLE_ATTN
                             : p->role == AFD__ROLE__FFN ? AFD_ROLE_FFN
                                                         : AFD_ROLE_COUNT;
        int gave_up = !strcmp(p->state, "failed"); /* afd_child_state_name: it is started no more */
        afd_cluster_process(h->cluster, role, p->rank, p->start, gave_up, p->words[0] ? p->words : p->state);
    }
}

static struct host *host_of(struct afd_hosts *h, uint64_t connection)
{
    for (size_t i = 0; i < sizeof h->hosts / sizeof *h->hosts; i++)
        if (h->hosts[i].connection == connection) return &h->hosts[i];
    return NULL;
}

/* The host's place, of which an older connection may know; NULL: the topology has no such host. */
static struct host *place_of(struct afd_hosts *h, const char *name)
{
    const struct afd_topology *t = afd_cluster_topology(h->cluster);
    const struct afd_pool *pools[] = {&t->attn, &t->ffn};
    int known = 0;
    for (int p = 0; p < 2; p++)
        for (uint32_t i = 0; i < pools[p]->host_count; i++) known |= !strcmp(pools[p]->hosts[i], name);
    for (size_t i = 0; known && i < sizeof h->hosts / sizeof *h->hosts; i++)
        if (h->hosts[i].connection && !strcmp(h->hosts[i].name, name)) return &h->hosts[i];
    return known ? host_of(h, 0) : NULL;
}

static void on_register(struct afd_hosts *h, uint64_t connection, struct afd_channel *channel,
                        const Afd__HostRegister *m)
{
    const struct afd_topology *t = afd_cluster_topology(h->cluster);
    struct host *host = place_of(h, m->host);
    int is_same =
        m->topology_hash.len == AFD_HASH_BYTES && !memcmp(m->topology_hash.data, t->hash, AFD_HASH_BYTES);
    if (!host || !is_same) {
        afd_log_warn("the supervisor of %.60s: %s; it is told nothing", m->host,
                     host ? "it has read another topology file" : "the topology has no such host");
        return;
    }
    host->connection = connection;
    host->channel = channel;
    snprintf(host->name, sizeof host->name, "%s", m->host);
    afd_log_info("the supervisor of %s is there", host->name);
    take_processes(h, m->ranks, m->n_ranks);
    tell(h, host);
}

int afd_hosts_message(struct afd_hosts *h, uint64_t connection, struct afd_channel *channel,
                      const Afd__Envelope *m)
{
    if (m->body_case == AFD__ENVELOPE__BODY_HOST_REGISTER) {
        on_register(h, connection, channel, m->host_register);
        return 1;
    }
    struct host *host = host_of(h, connection);
    if (!host) return 0;
    if (m->body_case == AFD__ENVELOPE__BODY_HOST_REPORT && m->host_report->serial == host->serial)
        take_processes(h, m->host_report->ranks, m->host_report->n_ranks);
    return 1;
}

void afd_hosts_closed(struct afd_hosts *h, uint64_t connection)
{
    struct host *host = host_of(h, connection);
    if (connection && host) *host = (struct host){0};
}
