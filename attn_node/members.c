#include "attn_node/members.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "transport/nccl.h"

/* Unread batches of member 0: those in flight there and, at a member that is behind, as many more. */
enum { MAX_MESSAGES = 8, FIRST_RETRY_MS = 20, LAST_RETRY_MS = 1000 };

struct peer {
    struct afd_pair *pair; /* connecting or open */
    int is_open, is_listed;
    uint64_t incarnation;
    char address[AFD_ADDRESS_BYTES];
    uint32_t generation;
};

struct afd_members {
    struct afd_members_config config;
    uint32_t first; /* rank of member 0 */
    uint64_t epoch;
    struct afd_group *group;
    void *nccl; /* what was opened here */
    struct event *retry, *absent;
    uint32_t retry_ms;
    int was_complete, failed, failure_reported;
    uint32_t lost; /* the member that failed it */
    struct peer peers[AFD_MAX_TP];
};

uint32_t afd_members_list_rows(uint32_t hidden, uint64_t words)
{
    return (uint32_t)((words + hidden - 1) / hidden);
}

struct afd_group_config afd_members_group_of(const struct afd_topology *t, uint32_t rank, uint32_t hidden,
                                             uint32_t max_rows, uint64_t list_words)
{
    int is_nccl = t->transport.group == AFD_GROUP_NCCL && t->attn.device == AFD_DEVICE_CUDA;
    return (struct afd_group_config){.members = t->attn.tp,
                                     .self = rank % t->attn.tp,
                                     .max_rows = max_rows + afd_members_list_rows(hidden, list_words),
                                     .record_bytes = hidden * (uint32_t)sizeof(float),
                                     .columns = hidden,
                                     .max_messages = MAX_MESSAGES,
                                     .nccl = is_nccl ? &afd_nccl_calls : NULL,
                                     .timeout_ms = t->scheduler.lease_ms};
}

static void connect_all(struct afd_members *m);

static void on_retry(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    connect_all(user);
}

static void fail(struct afd_members *m, uint32_t member, const char *words)
{
    if (m->failed) return;
    afd_log_info("attn/%u, member %u of this group, is lost: %s", m->first + member, member, words);
    m->failed = 1;
    m->lost = member;
}

/* One that is connected and silent: its lease is over, and the scheduler has given it up. */
static void on_absent(evutil_socket_t fd, short what, void *user)
{
    struct afd_members *m = user;
    (void)fd, (void)what;
    for (uint32_t i = 0; i < m->config.group.members; i++)
        if (i != m->config.group.self && !m->peers[i].is_listed) fail(m, i, "the scheduler lists it no more");
}

struct afd_members *afd_members_create(const struct afd_members_config *config, struct afd_error *error_out)
{
    struct afd_members *m = calloc(1, sizeof *m);
    if (m) m->retry = evtimer_new(config->base, on_retry, m);
    if (m) m->absent = evtimer_new(config->base, on_absent, m);
    if (!m || !m->retry || !m->absent) {
        afd_members_destroy(m);
        afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
        return NULL;
    }
    m->config = *config;
    m->first = config->rank - config->group.self;
    m->retry_ms = FIRST_RETRY_MS;
    enum afd_status status = AFD_OK;
    if (config->group.nccl && !config->group.nccl_user) {
        status = afd_nccl_open(config->gpu, &m->nccl, error_out);
        m->config.group.nccl_user = m->nccl;
    }
    if (!status) m->group = afd_group_create(&m->config.group, config->memory, error_out);
    if (m->group) return m;
    afd_members_destroy(m);
    return NULL;
}

static void close_pairs(struct afd_members *m)
{
    for (uint32_t i = 0; i < AFD_MAX_TP; i++) {
        if (m->peers[i].pair) afd_pair_close(m->peers[i].pair);
        m->peers[i].pair = NULL;
        m->peers[i].is_open = 0;
    }
}

void afd_members_destroy(struct afd_members *m)
{
    if (!m) return;
    close_pairs(m);
    afd_group_destroy(m->group);
    afd_nccl_close(m->nccl);
    if (m->retry) event_free(m->retry);
    if (m->absent) event_free(m->absent);
    free(m);
}

static void retry_later(struct afd_members *m)
{
    struct timeval t = {.tv_usec = m->retry_ms % 1000 * 1000, .tv_sec = m->retry_ms / 1000};
    evtimer_add(m->retry, &t);
    m->retry_ms = m->retry_ms * 2 < LAST_RETRY_MS ? m->retry_ms * 2 : LAST_RETRY_MS;
}

/* An open pair is gone. A group that nothing was asked of yet forms anew, in the same memory. */
static void lose(struct afd_members *m, uint32_t member, const char *words)
{
    struct afd_error error;
    if (m->was_complete) {
        fail(m, member, words);
        return;
    }
    close_pairs(m);
    afd_group_destroy(m->group);
    m->group = afd_group_create(&m->config.group, m->config.memory, &error);
    if (m->group)
        retry_later(m);
    else
        fail(m, member, error.text);
}

/* The higher index connects to the lower. */
static void connect_all(struct afd_members *m)
{
    for (uint32_t i = 0; i < m->config.group.self && !m->failed; i++) {
        struct peer *peer = &m->peers[i];
        struct afd_region regions[AFD_MAX_REGIONS];
        struct afd_error error;
        if (peer->pair || !peer->is_listed) continue;
        struct afd_identity who = {AFD_ROLE_ATTN, m->first + i, peer->incarnation};
        uint32_t count = afd_group_regions(m->group, i, regions, AFD_MAX_REGIONS);
        peer->pair = afd_pair_connect(m->config.transport, peer->address, &who, ++peer->generation, m->epoch,
                                      regions, count, NULL, &error);
        if (peer->pair) continue;
        afd_log_warn("no pair with attn/%u at %s: %s; trying again", who.rank, peer->address, error.text);
        retry_later(m);
    }
}

static void follow(struct afd_members *m, uint32_t i, const Afd__Member *member)
{
    struct peer *peer = &m->peers[i];
    int is_other = peer->incarnation != member->incarnation;
    if (is_other && peer->pair) {
        int was_open = peer->is_open;
        afd_pair_close(peer->pair);
        peer->pair = NULL;
        peer->is_open = 0;
        if (was_open) lose(m, i, "another process has its rank");
    }
    peer->is_listed = strlen(member->data_address) < sizeof peer->address;
    peer->incarnation = member->incarnation;
    snprintf(peer->address, sizeof peer->address, "%s", member->data_address);
}

void afd_members_set(struct afd_members *m, const Afd__Peers *peers)
{
    const Afd__Member *listed[AFD_MAX_TP] = {NULL};
    struct timeval t = {.tv_sec = m->config.absent_ms / 1000, .tv_usec = m->config.absent_ms % 1000 * 1000};
    int all = 1;
    m->epoch = peers->epoch;
    for (size_t i = 0; i < peers->n_members; i++) {
        const Afd__Member *member = peers->members[i];
        uint32_t index = member->rank - m->first; /* of another group: beyond all members */
        if (member->role == AFD__ROLE__ATTN && index < m->config.group.members) listed[index] = member;
    }
    for (uint32_t i = 0; i < m->config.group.members; i++) {
        if (i == m->config.group.self) continue;
        if (listed[i]) {
            follow(m, i, listed[i]);
            continue;
        }
        m->peers[i].is_listed = all = 0;
    }
    if (all || !m->was_complete)
        event_del(m->absent);
    else if (!event_pending(m->absent, EV_TIMEOUT, NULL))
        evtimer_add(m->absent, &t);
    m->retry_ms = FIRST_RETRY_MS;
    connect_all(m);
}

static const char *why_not(const struct afd_members *m, const struct afd_identity *who, int *later_out)
{
    uint32_t index = who->rank - m->first;
    *later_out = 0;
    if (who->role != AFD_ROLE_ATTN || index >= m->config.group.members || index <= m->config.group.self)
        return "not a member of this group with a higher index";
    const struct peer *peer = &m->peers[index];
    *later_out = 1;
    if (m->was_complete || peer->pair) return "this group still has the process before it";
    if (!peer->is_listed || peer->incarnation != who->incarnation)
        return "the scheduler does not list this process yet";
    return NULL;
}

static void on_request(struct afd_members *m, struct afd_pair *pair)
{
    int later;
    const struct afd_identity *who = afd_pair_peer(pair);
    const char *words = why_not(m, who, &later);
    if (words) {
        afd_pair_refuse(pair, later, words);
        return;
    }
    struct afd_region regions[AFD_MAX_REGIONS];
    uint32_t index = who->rank - m->first;
    uint32_t count = afd_group_regions(m->group, index, regions, AFD_MAX_REGIONS);
    m->peers[index].pair = pair;
    afd_pair_accept(pair, regions, count, NULL); /* when it fails, LOST follows */
}

int afd_members_event(struct afd_members *m, const struct afd_transport_event *event)
{
    if (event->kind == AFD_EVENT_REQUEST) {
        if (afd_pair_peer(event->pair)->role != AFD_ROLE_ATTN) return 0;
        on_request(m, event->pair);
        return 1;
    }
    uint32_t i = 0;
    while (i < m->config.group.members && m->peers[i].pair != event->pair) i++;
    if (i == m->config.group.members) return 0;
    struct peer *peer = &m->peers[i];
    if (event->kind == AFD_EVENT_OPEN) {
        peer->is_open = 1;
        m->retry_ms = FIRST_RETRY_MS;
        afd_group_set_pair(m->group, i, peer->pair);
    } else if (event->kind == AFD_EVENT_NOTICE) {
        afd_group_feed(m->group, event);
    } else {
        int was_open = peer->is_open;
        afd_pair_close(peer->pair);
        peer->pair = NULL;
        peer->is_open = 0;
        if (was_open)
            lose(m, i, event->words ? event->words : "its pair ended");
        else
            retry_later(m);
    }
    return 1;
}

int afd_members_are_complete(const struct afd_members *m)
{
    return m->was_complete && !m->failed;
}

uint32_t afd_members_poll(struct afd_members *m, struct afd_group_event *events_out, uint32_t limit)
{
    uint32_t count = 0;
    if (!m->failed) {
        count = afd_group_poll(m->group, events_out, limit);
        if (!m->was_complete && afd_group_is_complete(m->group)) {
            m->was_complete = 1;
            afd_log_info("the group of %u members is complete", m->config.group.members);
        }
    }
    for (uint32_t i = 0; i < count; i++)
        if (events_out[i].kind == AFD_GROUP_FAILED) {
            fail(m, events_out[i].member, "the group failed");
            count = i; /* what came with it, and FAILED itself, give way to ours */
        }
    if (m->failed && !m->failure_reported && count < limit) {
        m->failure_reported = 1;
        events_out[count++] = (struct afd_group_event){.kind = AFD_GROUP_FAILED, .member = m->lost};
    }
    return count;
}

enum afd_status afd_members_arm(const struct afd_members *m)
{
    return m->failed ? AFD_OK : afd_group_arm(m->group);
}

uint32_t afd_members_size(const struct afd_members *m)
{
    return m->config.group.members;
}

struct afd_group *afd_members_group(const struct afd_members *m)
{
    return m->group;
}
