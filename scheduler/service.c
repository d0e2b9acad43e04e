#include "scheduler/service.h"

#include <assert.h>
#include <errno.h>
#include <event2/listener.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "scheduler/hosts.h"
#include "scheduler/journal_file.h"
#include "scheduler/loads.h"
#include "scheduler/rank_messages.h"
#include "scheduler/rank_reports.h"
#include "scheduler/straggler.h"

enum {
    TICK_MS = 100,
    HEARTBEAT_BYTES = 4 << 20,            /* of a kept heartbeat; the largest models need some 100 KB */
    EXTRA_LINKS = 64 + AFD_MAX_HOSTS * 2, /* beyond one a rank: hosts, those being superseded or refused */
    SEGMENT_BYTES = 32 << 20,             /* growth of the journal until it is written anew */
    KEEP_BYTES = 4 << 20,                 /* of it a tick */
};

/* One control connection. */
struct link {
    struct afd_service *service;
    struct link *next;
    struct afd_channel *channel;
    uint64_t id;
    uint32_t member; /* UINT32_MAX until it registered */
    uint32_t loads;  /* the member that it said to load, or UINT32_MAX */
};

struct heartbeat {
    uint8_t *bytes;
    size_t size, room;
};

struct afd_service {
    struct afd_service_config config;
    struct afd_arena *arena;
    struct afd_cluster *cluster;
    struct afd_requests *requests;
    struct afd_writer *writer;
    struct afd_journal_file *journal;
    const Afd__Tokens *message; /* whose tokens are being delivered */
    uint64_t *serials;          /* [cluster size] of the last Tokens; 0: acknowledged */
    struct afd_hosts *hosts;
    struct afd_loads loads;
    struct afd_straggler *straggler;
    uint8_t *is_slow; /* [cluster size] as was said in the log */
    struct afd_tracing *tracing;
    struct afd_trace *trace; /* the scheduler's own, of `tracing` */
    struct afd_event_log events;
    struct evconnlistener *listener;
    struct event *tick, *work;
    struct link *links;
    struct link **of_member;       /* [cluster size] the connection that holds the place, or NULL */
    struct afd_channel **channels; /* [cluster size] theirs, while all are told something */
    struct heartbeat *heartbeats;
    struct afd_service_loading *loading; /* [cluster size] total_bytes 0: it does not load */
    uint32_t link_count;
    uint64_t next_link;
    int is_serving, is_sealed;
};

/* What a link said of the loading of a rank counts until the rank is ready or the link ends. */
static void end_loading(struct link *l)
{
    if (l->loads != UINT32_MAX) l->service->loading[l->loads].total_bytes = 0;
    l->loads = UINT32_MAX;
}

static void link_free(struct link *l)
{
    struct afd_service *s = l->service;
    for (struct link **p = &s->links; *p; p = &(*p)->next)
        if (*p == l) {
            *p = l->next;
            break;
        }
    if (l->member != UINT32_MAX && s->of_member[l->member] == l) {
        s->of_member[l->member] = NULL;
        afd_tracing_lost(s->tracing, l->member);
    }
    end_loading(l);
    s->link_count--;
    free(l);
}

static struct link *link_find(const struct afd_service *s, uint64_t id)
{
    for (struct link *l = s->links; l; l = l->next)
        if (l->id == id) return l;
    return NULL;
}

static void record(struct afd_service *s, struct afd_trace_event event)
{
    if (!afd_trace_is_on(s->trace)) return;
    afd_ns now = afd_now();
    afd_trace_add(s->trace, event, now, now);
}

/* ---- messages to ranks */

static void broadcast_peers(struct afd_service *s)
{
    uint32_t size = afd_cluster_size(s->cluster), wanted = 0;
    uint64_t epoch = afd_cluster_epoch(s->cluster);
    size_t listed;
    for (uint32_t i = 0; i < size; i++) {
        const struct afd_cluster_member *m = afd_cluster_at(s->cluster, i);
        s->channels[i] = s->of_member[i] ? s->of_member[i]->channel : NULL;
        wanted += (uint32_t)afd_cluster_runs(s->cluster, m->role, m->rank); /* not those it may grow to */
    }
    if (afd_say_peers(s->channels, size, s->cluster, s->config.topology->ffn.ep, &listed) != AFD_OK) {
        afd_log_error("out of memory: the ranks are not told of epoch %llu", (unsigned long long)epoch);
        return;
    }
    afd_log_info("epoch %llu: %zu of %u ranks", (unsigned long long)epoch, listed, wanted);
    record(s, (struct afd_trace_event){.kind = AFD_TRACE_EPOCH, .id = epoch});
    afd_event_log_add(&s->events, afd_now(), 0, "epoch %llu: %zu of %u ranks", (unsigned long long)epoch,
                      listed, wanted);
}

static void send_submit(struct afd_service *s, const struct afd_requests_action *a)
{
    const struct afd_request *q = afd_requests_get(s->requests, a->id);
    struct link *l = s->of_member[a->rank];
    if (!l) return; /* its end is about to be reported, and brings the request back */
    struct afd_sequence *sequence = q->owner;
    if (!sequence->submitted) sequence->submitted = afd_now();
    enum afd_status status = afd_say_submit(l->channel, q);
    record(s, (struct afd_trace_event){.kind = AFD_TRACE_SUBMIT,
                                       .id = q->id,
                                       .peer = (uint16_t)a->rank,
                                       .rows = q->prompt_count + q->generated,
                                       .slot = q->generated > 0});
    if (status != AFD_OK)
        afd_log_warn("attn/%u: a sequence could not be sent: %s", a->rank, afd_status_name(status));
}

/* Once all that came is in the journal: a rank keeps what it sent until then. */
static void acknowledge(struct afd_service *s)
{
    if (!afd_writer_is_whole(s->writer)) return;
    for (uint32_t i = 0; i < afd_cluster_size(s->cluster); i++)
        if (s->serials[i] && s->of_member[i] &&
            afd_say_acknowledge(s->of_member[i]->channel, s->serials[i]) == AFD_OK)
            s->serials[i] = 0;
}

/* ---- carrying out what the cores decide */

static void deliver(struct afd_service *s, const struct afd_writer_accepted *a)
{
    struct afd_sequence *sequence = (struct afd_sequence *)a->sequence;
    sequence->accepted(sequence, s->message->sequences[a->index], a->first_prompt_logprob, a->finish);
}

/* Also from within a delivery: a client's next request may follow its last answer. */
static void work_on_journal(struct afd_service *s)
{
    struct afd_writer_action a;
    while (!s->is_sealed && afd_writer_next(s->writer, &a)) {
        switch (a.kind) {
        case AFD_WRITER_OPEN:
            afd_writer_done(s->writer, afd_journal_file_begin(s->journal, a.segment));
            break;
        case AFD_WRITER_WRITE:
            afd_writer_done(s->writer, afd_journal_file_write(s->journal, a.bytes, a.size));
            break;
        case AFD_WRITER_DROP:
            afd_journal_file_drop(s->journal, a.segment);
            break;
        case AFD_WRITER_DELIVER:
            deliver(s, &a.accepted);
            break;
        }
    }
}

static void make_room(struct afd_service *s)
{
    if (!afd_writer_has_room(s->writer)) work_on_journal(s);
}

static void work_on_requests(struct afd_service *s)
{
    struct afd_requests_action a;
    while (!s->is_sealed && afd_requests_next(s->requests, &a)) {
        struct afd_sequence *sequence = a.owner;
        struct link *l;
        switch (a.kind) {
        case AFD_REQUESTS_SUBMIT:
            send_submit(s, &a);
            break;
        case AFD_REQUESTS_CANCEL:
            if ((l = s->of_member[a.rank])) afd_say_cancel(l->channel, a.id, a.assignment);
            break;
        case AFD_REQUESTS_RESUME:
            if ((l = s->of_member[a.rank]))
                afd_say_resume(l->channel, a.id, a.assignment,
                               afd_requests_get(s->requests, a.id)->generated);
            break;
        case AFD_REQUESTS_ENDED:
            sequence->failed(sequence, a.status, a.words);
            break;
        }
    }
}

static void end_link(struct afd_service *s, const struct afd_cluster_action *a)
{
    struct link *l = link_find(s, a->connection);
    if (!l) return;
    struct afd_channel *channel = l->channel;
    afd_log(a->is_orderly ? AFD_LOG_INFO : AFD_LOG_WARN, "%s: %s", afd_channel_peer_name(channel), a->words);
    link_free(l);
    afd_hosts_closed(s->hosts, a->connection);
    afd_channel_set_user(channel, (struct afd_channel_callbacks){NULL, NULL, NULL}, NULL);
    afd_channel_refuse(channel, a->kind == AFD_CLUSTER_EVICT, "%s", a->words);
}

/* What the cluster is about to be: on the disk before it is. */
static void journal_plan(struct afd_service *s)
{
    uint8_t plan[AFD_CLUSTER_PLAN_BYTES];
    make_room(s);
    afd_writer_cluster(s->writer, plan, afd_cluster_encode(s->cluster, plan));
    work_on_journal(s);
    afd_cluster_journaled(s->cluster, afd_writer_is_open(s->writer));
}

static void tell_rank(struct afd_service *s, const struct afd_cluster_action *a, const char *state)
{
    int is_down = a->kind == AFD_CLUSTER_DOWN, is_bad = is_down && !a->is_orderly;
    afd_log(is_bad ? AFD_LOG_WARN : AFD_LOG_INFO, "%s/%u is %s", afd_role_name(a->role), a->rank, state);
    afd_event_log_add(&s->events, afd_now(), is_bad, "%s/%u is %s", afd_role_name(a->role), a->rank, state);
    record(s, (struct afd_trace_event){.kind = is_down ? AFD_TRACE_RANK_DOWN : AFD_TRACE_RANK_UP,
                                       .slot = (uint8_t)a->role,
                                       .peer = (uint16_t)a->rank,
                                       .rows = !is_bad});
}

static void work_on_cluster(struct afd_service *s)
{
    struct afd_cluster_action a;
    while (afd_cluster_next(s->cluster, &a)) {
        struct link *l;
        switch (a.kind) {
        case AFD_CLUSTER_REFUSE:
        case AFD_CLUSTER_EVICT:
            end_link(s, &a);
            break;
        case AFD_CLUSTER_ASSIGN:
            if ((l = link_find(s, a.connection)))
                afd_say_assign(l->channel, s->cluster, s->config.topology, a.role, a.rank);
            break;
        case AFD_CLUSTER_PEERS:
            broadcast_peers(s);
            break;
        case AFD_CLUSTER_UP:
            tell_rank(s, &a, "ready");
            if (a.role == AFD_ROLE_ATTN) afd_requests_rank_up(s->requests, a.rank);
            break;
        case AFD_CLUSTER_DOWN:
            tell_rank(s, &a, a.is_orderly ? "gone" : "lost");
            if (a.role == AFD_ROLE_ATTN) afd_requests_rank_down(s->requests, a.rank);
            afd_straggler_gone(s->straggler, a.role, a.rank);
            break;
        case AFD_CLUSTER_DRAIN:
            if (a.role == AFD_ROLE_ATTN) afd_requests_rank_draining(s->requests, a.rank);
            if ((l = link_find(s, a.connection))) afd_say_drain(l->channel, a.ms);
            break;
        case AFD_CLUSTER_RUN:
            afd_hosts_run(s->hosts);
            break;
        case AFD_CLUSTER_JOURNAL:
            journal_plan(s);
            break;
        case AFD_CLUSTER_SAY:
            afd_log(a.is_orderly ? AFD_LOG_INFO : AFD_LOG_WARN, "%s", a.words);
            afd_event_log_add(&s->events, afd_now(), !a.is_orderly, "%s", a.words);
            break;
        case AFD_CLUSTER_END:
            s->config.end(s->config.user);
            break;
        }
    }
    int serving = afd_cluster_serves(s->cluster);
    if (serving != s->is_serving) {
        const char *words = serving ? "requests can run" : "requests wait: ranks are missing";
        afd_log_info("%s", words);
        afd_event_log_add(&s->events, afd_now(), !serving, "%s", words);
    }
    s->is_serving = serving;
    afd_requests_set_serving(s->requests, serving);
}

static void work(struct afd_service *s)
{
    if (s->is_sealed) return;
    work_on_cluster(s);
    work_on_requests(s);
    work_on_journal(s);
}

static void on_work(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    work(user);
}

static void tell_stragglers(struct afd_service *s)
{
    for (uint32_t i = 0; i < afd_cluster_size(s->cluster); i++) {
        const struct afd_cluster_member *m = afd_cluster_at(s->cluster, i);
        const struct afd_straggler_verdict *v = afd_straggler_verdict(s->straggler, m->role, m->rank);
        if (v->is_accused == s->is_slow[i]) continue;
        s->is_slow[i] = (uint8_t)v->is_accused;
        char words[AFD_STRAGGLER_WORDS_BYTES + 64];
        if (v->is_accused)
            snprintf(words, sizeof words, "is a straggler (%s, by its %s): %s",
                     afd_straggler_stage_name(v->stage), afd_straggler_cause_name(v->cause), v->words);
        else
            snprintf(words, sizeof words, "is no straggler any more");
        afd_log_info("%s/%u %s", afd_role_name(m->role), m->rank, words);
        afd_event_log_add(&s->events, afd_now(), v->is_accused, "%s/%u %s", afd_role_name(m->role), m->rank,
                          words);
    }
}

static void on_tick(evutil_socket_t fd, short what, void *user)
{
    struct afd_service *s = user;
    (void)fd, (void)what;
    afd_ns now = afd_now();
    if (s->is_sealed) return;
    afd_cluster_tick(s->cluster, now);
    afd_loads_tick(&s->loads, s, s->cluster, s->config.model, now);
    afd_requests_tick(s->requests, now);
    if (afd_straggler_tick(s->straggler, now)) tell_stragglers(s);
    afd_writer_tick(s->writer);
    work(s);
    acknowledge(s);
}

/* ---- messages from ranks */

/* What a rank has: it goes on with what is wanted there, and drops the rest. */
static void take_held(struct afd_service *s, const struct link *l, const Afd__Register *m)
{
    uint64_t connection = l->id;
    uint32_t rank = l->member;
    work_on_cluster(s); /* what it had before it came again is given back first */
    if (!link_find(s, connection)) return;
    for (size_t i = 0; i < m->n_held; i++) {
        const Afd__Held *h = m->held[i];
        afd_requests_held(s->requests, rank, h->request, h->assignment, h->generated);
        work_on_requests(s);
    }
    if (afd_cluster_has_all(s->cluster, AFD_ROLE_ATTN)) afd_requests_held_all(s->requests);
}

static void on_register(struct afd_service *s, struct link *l, const Afd__Register *m)
{
    struct afd_cluster_registration r = afd_hear_register(m, l->id);
    afd_cluster_register(s->cluster, &r, afd_now());
    const struct afd_cluster_member *member = afd_cluster_of(s->cluster, l->id);
    if (!member) return;
    l->member = afd_cluster_index(s->cluster, member->role, member->rank);
    s->of_member[l->member] = l;
    s->heartbeats[l->member].size = 0;
    s->serials[l->member] = 0;
    afd_log_info("%s/%u registered from %s, pid %u, with %zu sequences", afd_role_name(member->role),
                 member->rank, member->host, member->pid, m->n_held);
    if (member->role == AFD_ROLE_ATTN) take_held(s, l, m);
}

/* Of a rank that has registered, or of one that says which it is. 0: there is none such. */
static int on_loading(struct afd_service *s, struct link *l, const Afd__Loading *m)
{
    uint32_t index = l->member, size = afd_cluster_size(s->cluster);
    for (uint32_t i = 0; index == UINT32_MAX && i < size; i++) {
        const struct afd_cluster_member *named = afd_cluster_at(s->cluster, i);
        if (named->role == afd_hear_role(m->role) && named->rank == m->rank) index = i;
    }
    if (index == UINT32_MAX) return 0;
    if (l->loads != index) end_loading(l);
    l->loads = index;
    s->loading[index] =
        (struct afd_service_loading){.bytes = m->bytes < m->total_bytes ? m->bytes : m->total_bytes,
                                     .total_bytes = m->total_bytes,
                                     .spent = m->ns};
    return 1;
}

static void on_heartbeat(struct afd_service *s, struct link *l, const Afd__Heartbeat *m)
{
    afd_cluster_heartbeat(s->cluster, l->id, afd_now());
    /* at once, before anything that takes time: the rank's lease runs from when it sent the heartbeat */
    if (m->serial && afd_cluster_of(s->cluster, l->id)) afd_say_alive(l->channel, m->serial);
    afd_cluster_unreachable(s->cluster, l->id, m->unreachable, m->n_unreachable);
    const struct afd_cluster_member *of = afd_cluster_of(s->cluster, l->id);
    if (of) afd_straggler_beat(s->straggler, of->role, of->rank, of->incarnation, m);
    struct heartbeat *keep = &s->heartbeats[l->member];
    size_t size = afd__heartbeat__get_packed_size(m);
    if (size > HEARTBEAT_BYTES) return;
    if (size > keep->room) {
        uint8_t *bytes = realloc(keep->bytes, 2 * size);
        if (!bytes) return; /* the one before stays */
        keep->bytes = bytes;
        keep->room = 2 * size;
    }
    keep->size = afd__heartbeat__pack(m, keep->bytes);
}

static void on_tokens(struct afd_service *s, struct link *l, const Afd__Tokens *m)
{
    uint32_t rank = l->member;
    s->message = m;
    s->serials[rank] = m->serial;
    for (size_t i = 0; i < m->n_sequences; i++) {
        const Afd__SequenceTokens *t = m->sequences[i];
        make_room(s);
        struct afd_requests_report report =
            afd_hear_tokens(t, afd_requests_get(s->requests, t->request), s->config.model->vocab);
        struct afd_requests_accepted a = afd_requests_tokens(s->requests, rank, &report);
        if (!a.request) continue;
        struct afd_sequence *sequence = a.request->owner;
        sequence->written.known.assignment = a.request->assignment;
        if (report.count && a.request->generated == report.count)
            record(s, (struct afd_trace_event){.kind = AFD_TRACE_FIRST, .id = a.request->id});
        if (a.finish)
            record(s, (struct afd_trace_event){
                          .kind = AFD_TRACE_END, .id = a.request->id, .slot = (uint8_t)a.finish});
        afd_writer_accept(s->writer,
                          &(struct afd_writer_accepted){.sequence = &sequence->written,
                                                        .index = (uint32_t)i,
                                                        .generated = a.request->generated,
                                                        .first_prompt_logprob = a.first_prompt_logprob,
                                                        .finish = a.finish});
    }
    work_on_journal(s);
    s->message = NULL;
}

static void on_message(struct afd_channel *channel, const Afd__Envelope *m, void *user)
{
    struct link *l = user;
    struct afd_service *s = l->service;
    int is_member = l->member != UINT32_MAX;
    if (s->is_sealed) return; /* it is said to the next one again */
    if (is_member && s->of_member[l->member] == l && afd_tracing_message(s->tracing, l->member, m)) return;
    if (m->body_case == AFD__ENVELOPE__BODY_REGISTER) {
        on_register(s, l, m->register_);
    } else if (m->body_case == AFD__ENVELOPE__BODY_LOADING && on_loading(s, l, m->loading)) {
        return;
    } else if (!is_member && afd_hosts_message(s->hosts, l->id, channel, m)) {
        work(s);
        return;
    } else if (!is_member) {
        afd_cluster_closed(s->cluster, l->id);
        struct afd_cluster_action a = {
            .kind = AFD_CLUSTER_REFUSE, .connection = l->id, .words = "Register comes first"};
        end_link(s, &a);
        return;
    } else if (m->body_case == AFD__ENVELOPE__BODY_READY) {
        end_loading(l);
        afd_cluster_ready(s->cluster, l->id, m->ready->epoch,
                          afd_hear_shards(m->ready->shards, m->ready->n_shards), m->ready->settled,
                          afd_now());
    } else if (m->body_case == AFD__ENVELOPE__BODY_HEARTBEAT) {
        on_heartbeat(s, l, m->heartbeat);
    } else if (m->body_case == AFD__ENVELOPE__BODY_TOKENS &&
               afd_cluster_at(s->cluster, l->member)->role == AFD_ROLE_ATTN) {
        on_tokens(s, l, m->tokens);
    } else if (m->body_case == AFD__ENVELOPE__BODY_DRAINED) {
        afd_cluster_draining(s->cluster, l->id);
        if (afd_cluster_at(s->cluster, l->member)->role == AFD_ROLE_ATTN)
            afd_requests_rank_draining(s->requests, l->member);
    } else if (m->body_case == AFD__ENVELOPE__BODY_LEAVE) {
        afd_cluster_leave(s->cluster, l->id, m->leave->why);
    }
    work(s);
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    struct link *l = user;
    struct afd_service *s = l->service;
    (void)status;
    afd_log_info("%s: %s",
                 afd_channel_peer_name(channel)[0] ? afd_channel_peer_name(channel) : "a connection", words);
    uint64_t id = l->id;
    link_free(l);
    afd_hosts_closed(s->hosts, id);
    afd_channel_close(channel);
    afd_cluster_closed(s->cluster, id);
    work(s);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *from, int bytes,
                      void *user)
{
    struct afd_service *s = user;
    (void)listener, (void)from, (void)bytes;
    if (s->link_count >= afd_cluster_size(s->cluster) + EXTRA_LINKS) {
        close(fd);
        return;
    }
    struct link *l = calloc(1, sizeof *l);
    if (!l) {
        close(fd);
        return;
    }
    struct afd_channel_config config = {
        .base = s->config.base,
        .name = "scheduler",
        .timeout_ms = 5000,
        .callbacks = {NULL, on_message, on_closed},
        .user = l,
    };
    memcpy(config.secret, s->config.secret, sizeof config.secret);
    l->service = s;
    l->id = ++s->next_link;
    l->member = l->loads = UINT32_MAX;
    l->channel = afd_channel_accept(&config, fd);
    if (!l->channel) {
        free(l);
        return;
    }
    l->next = s->links;
    s->links = l;
    s->link_count++;
}

static void on_accept_error(struct evconnlistener *listener, void *user)
{
    (void)listener, (void)user;
    afd_log_warn("cannot accept a rank's connection: %s", strerror(errno));
}

/* ---- the service */

static enum afd_status send_to_member(uint32_t member, const Afd__Envelope *message, void *user)
{
    struct afd_service *s = user;
    return s->of_member[member] ? afd_channel_send(s->of_member[member]->channel, message) : AFD_ERR_PEER;
}

static struct afd_tracing *create_tracing(struct afd_service *s)
{
    return afd_tracing_create(&(struct afd_tracing_config){.base = s->config.base,
                                                           .cluster = s->cluster,
                                                           .model = s->config.model->name,
                                                           .layers = s->config.model->layer_count,
                                                           .send = send_to_member,
                                                           .user = s});
}

static enum afd_status open_journal(struct afd_service *s, struct afd_error *error)
{
    const struct afd_topology *t = s->config.topology;
    struct afd_writer_config config = {.max_context =
                                           t->max_context ? t->max_context : s->config.model->max_context,
                                       .segment_bytes = SEGMENT_BYTES,
                                       .keep_bytes = KEEP_BYTES};
    struct afd_sha256 *hash = afd_sha256_create();
    afd_sha256_update(hash, s->config.model_hash, sizeof s->config.model_hash);
    afd_sha256_update(hash, t->hash, sizeof t->hash);
    afd_sha256_finish(hash, config.identity);
    s->journal = afd_journal_file_open(s->config.state, config.identity, error);
    if (!s->journal) return AFD_ERR_IO;
    config.first_segment = afd_journal_file_next(s->journal);
    s->writer = afd_writer_create(s->arena, &config);
    if (!s->writer) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    size_t bytes;
    const uint8_t *plan = afd_journal_file_cluster(s->journal, &bytes);
    if (!plan) return AFD_OK;
    /* A plan that is not understood is as good as none: the topology file has the first one. */
    struct afd_error words;
    if (afd_cluster_restore(s->cluster, plan, bytes, afd_now(), &words))
        afd_log_warn("journal: %s", words.text);
    else
        afd_writer_cluster(s->writer, plan, bytes);
    return AFD_OK;
}

struct afd_service *afd_service_create(const struct afd_service_config *config, int fd,
                                       struct afd_error *error_out)
{
    const struct afd_topology *t = config->topology;
    struct afd_service *s = calloc(1, sizeof *s);
    if (!s) {
        close(fd);
        goto out;
    }
    s->config = *config;
    s->arena = afd_arena_create(0);
    s->listener = evconnlistener_new(config->base, on_accept, s,
                                     LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_DISABLED, 0, fd);
    if (!s->listener) close(fd);
    if (!s->arena || !s->listener) goto out;
    evconnlistener_set_error_cb(s->listener, on_accept_error);
    uint32_t ranks = afd_pool_max_ranks(&t->attn);
    uint64_t capacity = (uint64_t)ranks * t->pipeline.max_sequences + t->scheduler.max_queue;
    struct afd_requests_config requests = {
        .capacity = capacity > 1 << 20 ? 1 << 20 : (uint32_t)capacity,
        .max_queue = t->scheduler.max_queue,
        .ranks = ranks,
        .tp = t->attn.tp,
        .rank_room = t->pipeline.max_sequences,
        .vocab = config->model->vocab,
        .patience = AFD_SECONDS(t->scheduler.request_timeout_s),
    };
    requests.grace = AFD_MS(t->scheduler.lease_ms);
    afd_random_bytes(&requests.first_id, sizeof requests.first_id);
    requests.first_id >>= 1; /* room to count */
    s->cluster = afd_cluster_create(s->arena, t, config->model_hash);
    s->requests = afd_requests_create(s->arena, &requests);
    s->hosts = afd_hosts_create(s->cluster);
    s->straggler = afd_straggler_create(t, afd_now());
    s->tracing = s->cluster ? create_tracing(s) : NULL;
    if (!s->cluster || !s->requests || !s->hosts || !s->tracing || !s->straggler) goto out;
    s->trace = afd_tracing_own(s->tracing);
    s->of_member = afd_arena_alloc(s->arena, afd_cluster_size(s->cluster), sizeof *s->of_member);
    s->channels = afd_arena_alloc(s->arena, afd_cluster_size(s->cluster), sizeof *s->channels);
    s->heartbeats = afd_arena_alloc(s->arena, afd_cluster_size(s->cluster), sizeof *s->heartbeats);
    s->loading = afd_arena_alloc(s->arena, afd_cluster_size(s->cluster), sizeof *s->loading);
    s->serials = afd_arena_alloc(s->arena, afd_cluster_size(s->cluster), sizeof *s->serials);
    s->is_slow = afd_arena_alloc(s->arena, afd_cluster_size(s->cluster), sizeof *s->is_slow);
    s->tick = event_new(config->base, -1, EV_PERSIST, on_tick, s);
    s->work = event_new(config->base, -1, 0, on_work, s);
    if (!s->of_member || !s->channels || !s->heartbeats || !s->loading || !s->serials || !s->is_slow ||
        !s->tick || !s->work)
        goto out;
    if (open_journal(s, error_out)) {
        afd_service_destroy(s);
        return NULL;
    }
    return s;
out:
    afd_service_destroy(s);
    afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    return NULL;
}

void afd_service_destroy(struct afd_service *s)
{
    if (!s) return;
    while (s->links) {
        struct afd_channel *channel = s->links->channel;
        link_free(s->links);
        afd_channel_set_user(channel, (struct afd_channel_callbacks){NULL, NULL, NULL}, NULL);
        afd_channel_refuse(channel, 1, "it goes down in order"); /* the rank need not take it for a loss */
    }
    if (s->listener) evconnlistener_free(s->listener);
    if (s->tick) event_free(s->tick);
    if (s->work) event_free(s->work);
    afd_journal_file_close(s->journal);
    for (uint32_t i = 0; s->heartbeats && i < afd_cluster_size(s->cluster); i++) free(s->heartbeats[i].bytes);
    afd_hosts_destroy(s->hosts);
    afd_straggler_destroy(s->straggler);
    afd_tracing_destroy(s->tracing);
    afd_arena_destroy(s->arena);
    free(s);
}

const struct afd_journal_entry *afd_service_journal(const struct afd_service *s, size_t *count_out)
{
    return afd_journal_file_entries(s->journal, count_out);
}

enum afd_status afd_service_restore(struct afd_service *s, struct afd_sequence *sequence, afd_ns until)
{
    const struct afd_journal_sequence *k = &sequence->written.known;
    struct afd_request request = {.id = k->id,
                                  .owner = sequence,
                                  .tokens = k->tokens,
                                  .prompt_count = k->prompt_count,
                                  .generated = k->generated,
                                  .sampling = k->sampling,
                                  .assignment = k->assignment};
    if (!k->finish) {
        enum afd_status status = afd_requests_restore(s->requests, &request, afd_now());
        if (status) return status;
        afd_requests_detach(s->requests, k->id, until);
    }
    afd_writer_restore(s->writer, &sequence->written);
    return AFD_OK;
}

void afd_service_start(struct afd_service *s)
{
    struct timeval each = {.tv_usec = TICK_MS * 1000};
    afd_journal_file_release(s->journal);
    work_on_journal(s);
    event_add(s->tick, &each);
    evconnlistener_enable(s->listener);
}

void afd_service_seal(struct afd_service *s)
{
    evconnlistener_disable(s->listener);
    work_on_journal(s);
    s->is_sealed = 1;
}

enum afd_status afd_service_submit(struct afd_service *s, struct afd_sequence *sequence)
{
    struct afd_journal_sequence *k = &sequence->written.known;
    enum afd_status status = afd_requests_admit(s->requests, sequence, k->tokens, k->prompt_count,
                                                &k->sampling, afd_now(), &k->id);
    if (status) return status;
    make_room(s);
    afd_writer_admit(s->writer, &sequence->written);
    return AFD_OK;
}

int afd_service_accepts(const struct afd_service *s)
{
    return afd_writer_is_open(s->writer);
}

enum afd_status afd_service_commit(struct afd_service *s)
{
    work_on_journal(s);
    return afd_service_accepts(s) ? AFD_OK : AFD_ERR_IO;
}

void afd_service_begin(struct afd_service *s, struct afd_sequence *sequence)
{
    afd_requests_begin(s->requests, sequence->written.known.id);
    event_active(s->work, 0, 0); /* from the loop: the caller may go on submitting */
}

void afd_service_end(struct afd_service *s, struct afd_sequence *sequence)
{
    if (sequence->written.known.finish || s->is_sealed) return;
    afd_requests_cancel(s->requests, sequence->written.known.id);
    afd_writer_end(s->writer, &sequence->written, AFD_FINISH_STOP);
    event_active(s->work, 0, 0);
}

void afd_service_forget(struct afd_service *s, struct afd_sequence *sequence)
{
    if (s->is_sealed) return;
    afd_requests_cancel(s->requests, sequence->written.known.id);
    afd_writer_forget(s->writer, &sequence->written);
    event_active(s->work, 0, 0);
}

void afd_service_detach(struct afd_service *s, struct afd_sequence *sequence, afd_ns until)
{
    afd_requests_detach(s->requests, sequence->written.known.id, until);
}

/* What it decided after its journal is closed would be nobody's. */
static enum afd_status check_open(const struct afd_service *s, struct afd_error *error)
{
    return s->is_sealed ? afd_fail(error, AFD_AGAIN, "this scheduler ends: ask the next one") : AFD_OK;
}

/* What nobody could start is refused at once, not when the time for it is over. */
static enum afd_status check_hosts(const struct afd_service *s, enum afd_role role, uint32_t wanted,
                                   struct afd_error *error)
{
    const struct afd_topology *t = s->config.topology;
    const struct afd_pool *pool = role == AFD_ROLE_ATTN ? &t->attn : &t->ffn;
    uint32_t have = 0;
    for (uint32_t i = 0; i < pool->max_instances; i++)
        have += afd_cluster_instance(s->cluster, role, i) == AFD_INSTANCE_ACTIVE;
    for (uint32_t i = 0; i < pool->max_instances && have < wanted; i++) {
        if (afd_cluster_instance(s->cluster, role, i) != AFD_INSTANCE_ABSENT) continue;
        const char *host = afd_rank_host(t, role, i * pool->ranks_per_instance);
        if (!afd_hosts_can_start(s->hosts, host))
            return afd_fail(
                error, AFD_AGAIN,
                "%s/%u would run on %s, and its supervisor is not there; by ssh `afd up` starts it, "
                "a Slurm job does not get another node",
                afd_role_name(role), i * pool->ranks_per_instance, host);
        have++;
    }
    return AFD_OK;
}

enum afd_status afd_service_scale(struct afd_service *s, uint32_t attn, uint32_t ffn, struct afd_error *error)
{
    enum afd_status status = check_open(s, error);
    if (!status) status = check_hosts(s, AFD_ROLE_ATTN, attn, error);
    if (!status) status = check_hosts(s, AFD_ROLE_FFN, ffn, error);
    if (!status) status = afd_cluster_scale(s->cluster, attn, ffn, afd_now(), error);
    event_active(s->work, 0, 0);
    return status;
}

enum afd_status afd_service_drain(struct afd_service *s, struct afd_cluster_rank rank,
                                  struct afd_error *error)
{
    enum afd_status status = check_open(s, error);
    if (!status) status = afd_cluster_drain(s->cluster, rank.role, rank.rank, afd_now(), error);
    event_active(s->work, 0, 0);
    return status;
}

enum afd_status afd_service_restart(struct afd_service *s, const struct afd_cluster_rank *ranks,
                                    uint32_t count, int with_scheduler, struct afd_error *error)
{
    enum afd_status status = check_open(s, error);
    if (!status) status = afd_cluster_restart(s->cluster, ranks, count, afd_now(), error);
    if (!status && with_scheduler) afd_cluster_restart_scheduler(s->cluster);
    event_active(s->work, 0, 0);
    return status;
}

const struct afd_straggler *afd_service_straggler(const struct afd_service *s)
{
    return s->straggler;
}

uint32_t afd_service_layers(const struct afd_service *s)
{
    return s->config.model->layer_count;
}

struct event_base *afd_service_base(const struct afd_service *s)
{
    return s->config.base;
}

const struct afd_cluster *afd_service_cluster(const struct afd_service *s)
{
    return s->cluster;
}

const struct afd_requests *afd_service_requests(const struct afd_service *s)
{
    return s->requests;
}

Afd__Heartbeat *afd_service_heartbeat(const struct afd_service *s, uint32_t member)
{
    const struct heartbeat *kept = &s->heartbeats[member];
    return kept->size ? afd__heartbeat__unpack(NULL, kept->size, kept->bytes) : NULL;
}

const struct afd_service_loading *afd_service_loading(const struct afd_service *s, uint32_t member)
{
    return s->loading[member].total_bytes ? &s->loading[member] : NULL;
}

struct afd_tracing *afd_service_tracing(struct afd_service *s)
{
    return s->tracing;
}

const struct afd_event_log *afd_service_events(const struct afd_service *s)
{
    return &s->events;
}
