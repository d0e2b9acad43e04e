#include "transport/transport.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/backend.h"

enum { DEFAULT_TIMEOUT_MS = 5000 };

/* ---- the queue of what poll reports */

static void wake(struct afd_transport *t)
{
    if (t->is_woken || t->is_polling) return;
    t->is_woken = 1;
    eventfd_write(t->wake_fd, 1);
}

static void make_ready(struct afd_pair *pair)
{
    struct afd_transport *t = pair->transport;
    if (pair->is_ready) return;
    pair->is_ready = 1;
    pair->next_ready = NULL;
    if (t->ready_last)
        t->ready_last->next_ready = pair;
    else
        t->ready_first = pair;
    t->ready_last = pair;
    wake(t);
}

static void unready(struct afd_pair *pair)
{
    struct afd_transport *t = pair->transport;
    struct afd_pair *before = NULL, *p = t->ready_first;
    if (!pair->is_ready) return;
    while (p != pair) before = p, p = p->next_ready;
    if (before)
        before->next_ready = pair->next_ready;
    else
        t->ready_first = pair->next_ready;
    if (t->ready_last == pair) t->ready_last = before;
    pair->is_ready = 0;
}

static int has_event(const struct afd_pair *pair)
{
    return pair->request_waits || pair->open_waits || pair->notice_count || pair->lost_waits;
}

static struct afd_transport_event take_event(struct afd_pair *pair)
{
    struct afd_transport_event event = {.pair = pair};
    if (pair->request_waits) {
        pair->request_waits = 0;
        pair->request_reported = 1;
        event.kind = AFD_EVENT_REQUEST;
    } else if (pair->open_waits) {
        pair->open_waits = 0;
        event.kind = AFD_EVENT_OPEN;
    } else if (pair->notice_count) {
        const struct afd_notice_event *n = &pair->notices[pair->notice_first];
        event.kind = AFD_EVENT_NOTICE;
        event.region = n->region;
        event.sequence = n->sequence;
        event.bytes = n->bytes;
        if (++pair->notice_first > pair->region_count) pair->notice_first = 0;
        pair->notice_count--;
    } else {
        pair->lost_waits = 0;
        event.kind = AFD_EVENT_LOST;
        event.status = pair->status;
        event.words = pair->words;
    }
    return event;
}

/* ---- a pair's memory */

static void pair_free(struct afd_pair *pair)
{
    if (pair->deadline) event_free(pair->deadline);
    free(pair->regions);
    free(pair->split);
    free(pair->pages);
    free(pair->peer_regions);
    free(pair->peer_address);
    free(pair->notices);
    free(pair);
}

static void free_closed(struct afd_transport *t)
{
    while (t->closed) {
        struct afd_pair *pair = t->closed;
        t->closed = pair->next_closed;
        pair_free(pair);
    }
}

static void proved(struct afd_pair *pair)
{
    if (pair->peer.is_connector || !pair->is_unproved) return;
    pair->is_unproved = 0;
    pair->transport->unproved_count--;
}

void afd_pair_close(struct afd_pair *pair)
{
    if (!pair) return;
    assert(!pair->is_closed);
    struct afd_transport *t = pair->transport;
    afd_peer_on(&pair->peer, AFD_PEER_CLOSE);
    afd_paths_detach(pair);
    afd_channel_close(pair->channel);
    pair->channel = NULL;
    event_del(pair->deadline);
    if (!pair->peer.is_connector && pair->peer.is_accepted)
        afd_peer_book_leave(&t->book, &pair->peer.other, pair->index);
    proved(pair);
    unready(pair);
    t->pairs[pair->index] = NULL;
    pair->user = NULL;
    pair->is_closed = 1;
    pair->next_closed = t->closed;
    t->closed = pair;
}

static int claim_index(struct afd_transport *t, uint32_t *index_out)
{
    uint32_t i = 0;
    while (i < t->pair_limit && t->pairs[i]) i++;
    if (i == t->pair_limit) {
        uint32_t limit = t->pair_limit ? 2 * t->pair_limit : 16;
        if (limit > AFD_MAX_PAIRS) return 0;
        struct afd_pair **pairs = realloc(t->pairs, limit * sizeof *pairs);
        if (!pairs) return 0;
        memset(pairs + t->pair_limit, 0, (limit - t->pair_limit) * sizeof *pairs);
        t->pairs = pairs;
        t->pair_limit = limit;
    }
    *index_out = i;
    return 1;
}

static void on_deadline(evutil_socket_t fd, short what, void *user);

static struct afd_pair *pair_create(struct afd_transport *t, int is_connector)
{
    uint32_t index;
    struct afd_pair *pair = calloc(1, sizeof *pair);
    if (!pair || !claim_index(t, &index)) goto fail;
    pair->transport = t;
    pair->deadline = evtimer_new(t->config.base, on_deadline, pair);
    if (!pair->deadline) goto fail;
    pair->index = index;
    afd_random_bytes(&pair->key, sizeof pair->key);
    afd_ns limit = AFD_MS(t->config.connect_timeout_ms);
    afd_peer_init(&pair->peer, is_connector, &t->config.self, afd_now(), limit);
    struct timeval timeout = {.tv_sec = t->config.connect_timeout_ms / 1000,
                              .tv_usec = t->config.connect_timeout_ms % 1000 * 1000};
    evtimer_add(pair->deadline, &timeout);
    t->pairs[index] = pair;
    return pair;
fail:
    free(pair);
    return NULL;
}

/* ---- the end of a pair */

static void end(struct afd_pair *pair, enum afd_status status, const char *words)
{
    enum afd_peer_action action = afd_peer_on(&pair->peer, AFD_PEER_END);
    if (action != AFD_PEER_REPORT_LOST && action != AFD_PEER_FORGET) return;
    char other[24];
    int is_known = pair->peer.is_connector || pair->peer.other.incarnation;
    const char *who = is_known ? afd_identity_text(&pair->peer.other, other) : "a connection";
    int is_quiet = status == AFD_AGAIN || status == AFD_ERR_PEER;
    afd_log(is_quiet ? AFD_LOG_INFO : AFD_LOG_WARN, "pair with %s, generation %u: %s", who,
            pair->peer.generation, words);
    pair->status = status;
    snprintf(pair->words, sizeof pair->words, "%s", words);
    afd_channel_close(pair->channel);
    pair->channel = NULL;
    event_del(pair->deadline);
    int is_unheard = !pair->peer.is_connector && !pair->request_reported;
    if (action == AFD_PEER_FORGET || is_unheard) {
        afd_pair_close(pair);
        return;
    }
    pair->lost_waits = 1;
    make_ready(pair);
}

void afd_pair_fail(struct afd_pair *pair, enum afd_status status, const char *format, ...)
{
    char words[512];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    if (pair->channel) {
        afd_channel_refuse(pair->channel, 0, "%s", words);
        pair->channel = NULL;
    }
    end(pair, status, words);
}

static void on_deadline(evutil_socket_t fd, short what, void *user)
{
    struct afd_pair *pair = user;
    struct afd_error error;
    (void)fd, (void)what;
    /* libevent may call a little before time by our clock */
    afd_ns now = afd_now() > pair->peer.deadline ? afd_now() : pair->peer.deadline;
    enum afd_status status = afd_peer_expire(&pair->peer, now, &error);
    if (status) afd_pair_fail(pair, status, "%s", error.text);
}

/* ---- hello */

static void report_open(struct afd_pair *pair)
{
    char other[24];
    event_del(pair->deadline);
    pair->open_waits = 1;
    afd_log_info("pair with %s, generation %u, is open over %s", afd_identity_text(&pair->peer.other, other),
                 pair->peer.generation, pair->path_name);
    make_ready(pair);
}

static void act(struct afd_pair *pair, enum afd_peer_action action)
{
    struct afd_error error;
    enum afd_status status = AFD_OK;
    switch (action) {
    case AFD_PEER_SEND_HELLO:
        status = afd_hello_send(pair);
        if (status) afd_pair_fail(pair, status, "the hello cannot be sent: %s", afd_status_name(status));
        return;
    case AFD_PEER_ASK_OWNER:
        proved(pair);
        pair->request_waits = 1;
        make_ready(pair);
        return;
    case AFD_PEER_ATTACH:
    case AFD_PEER_ATTACH_OPEN:
        status = pair->backend->attach(pair, pair->peer_address, pair->peer_address_bytes, &error);
        free(pair->peer_address);
        pair->peer_address = NULL;
        if (status)
            afd_pair_fail(pair, status, "%s", error.text);
        else if (action == AFD_PEER_ATTACH_OPEN)
            report_open(pair);
        return;
    case AFD_PEER_REPORT_OPEN:
        report_open(pair);
        return;
    case AFD_PEER_VIOLATED:
        afd_pair_fail(pair, AFD_ERR_PROTOCOL, "a message of the hello out of turn");
        return;
    case AFD_PEER_NOTHING:
    case AFD_PEER_REPORT_LOST:
    case AFD_PEER_FORGET:
        return;
    }
}

static void on_opened(struct afd_channel *channel, const char *peer_name, void *user)
{
    struct afd_pair *pair = user;
    (void)channel, (void)peer_name;
    act(pair, afd_peer_on(&pair->peer, AFD_PEER_PROVED));
}

static void on_message(struct afd_channel *channel, const Afd__Envelope *message, void *user)
{
    struct afd_pair *pair = user;
    struct afd_error error;
    enum afd_status status;
    (void)channel;
    int is_hello = message->body_case == AFD__ENVELOPE__BODY_PAIR_HELLO;
    int is_accept = message->body_case == AFD__ENVELOPE__BODY_PAIR_ACCEPT;
    if (pair->peer.state != AFD_PEER_CHALLENGED || (pair->peer.is_connector ? !is_accept : !is_hello)) {
        act(pair, AFD_PEER_VIOLATED);
        return;
    }
    if (is_hello)
        status = afd_hello_read(pair, message->pair_hello, &error);
    else
        status = afd_hello_read_accept(pair, message->pair_accept, &error);
    if (status)
        afd_pair_fail(pair, status, "%s", error.text);
    else
        act(pair, afd_peer_on(&pair->peer, is_hello ? AFD_PEER_HELLO : AFD_PEER_ACCEPTED));
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    (void)channel;
    end(user, status, words);
}

static struct afd_channel_config channel_config(struct afd_pair *pair)
{
    struct afd_transport *t = pair->transport;
    struct afd_channel_config config = {
        .base = t->config.base,
        .name = t->name,
        .timeout_ms =
            t->config.connect_timeout_ms + 1000, /* the pair's own deadline speaks first: it knows more */
        .callbacks = {on_opened, on_message, on_closed},
        .user = pair,
    };
    memcpy(config.secret, t->config.secret, sizeof config.secret);
    return config;
}

static void on_connection(evutil_socket_t fd, short what, void *user)
{
    struct afd_transport *t = user;
    (void)what;
    int socket = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (socket < 0) return; /* it left again, or descriptors are out: the other side sees no answer */
    struct afd_pair *pair = t->unproved_count < AFD_MAX_UNPROVED ? pair_create(t, 0) : NULL;
    if (!pair) {
        close(socket);
        return;
    }
    pair->is_unproved = 1;
    t->unproved_count++;
    struct afd_channel_config config = channel_config(pair);
    pair->channel = afd_channel_accept(&config, socket);
    if (!pair->channel) afd_pair_close(pair);
}

struct afd_pair *afd_pair_connect(struct afd_transport *t, const char *address,
                                  const struct afd_identity *peer, uint32_t generation, uint64_t epoch,
                                  const struct afd_region *regions, uint32_t region_count, void *user,
                                  struct afd_error *error_out)
{
    struct afd_pair *pair = pair_create(t, 1);
    if (!pair) {
        afd_fail(error_out, AFD_ERR_MEMORY, "no more pairs: at most %d, or out of memory", AFD_MAX_PAIRS);
        return NULL;
    }
    pair->peer.other = *peer;
    pair->peer.generation = generation;
    pair->peer.epoch = epoch;
    pair->user = user;
    struct afd_channel_config config = channel_config(pair);
    if (afd_regions_set(pair, regions, region_count, error_out)) goto fail;
    if (afd_paths_prepare(pair, error_out)) goto fail;
    pair->channel = afd_channel_connect(&config, address, error_out);
    if (pair->channel) return pair;
fail:
    afd_pair_close(pair);
    return NULL;
}

enum afd_status afd_pair_accept(struct afd_pair *pair, const struct afd_region *regions,
                                uint32_t region_count, void *user)
{
    struct afd_transport *t = pair->transport;
    struct afd_error error;
    enum afd_status status;
    assert(!pair->peer.is_connector && pair->request_reported && !pair->peer.is_accepted);
    pair->user = user;
    if (pair->peer.state == AFD_PEER_LOST) return AFD_ERR_PEER;
    status = afd_peer_book_check(&t->book, &pair->peer.other, pair->peer.generation, &error);
    if (!status) status = afd_regions_set(pair, regions, region_count, &error);
    if (status) {
        afd_pair_fail(pair, status, "%s", error.text);
        return status;
    }
    uint32_t old = afd_peer_book_accept(&t->book, &pair->peer.other, pair->peer.generation, pair->index);
    if (old) {
        struct afd_pair *replaced = t->pairs[old - 1];
        afd_pair_fail(replaced, AFD_ERR_PEER, "replaced by generation %u", pair->peer.generation);
        afd_paths_detach(replaced); /* before the new one is prepared: it may be given the same regions */
    }
    status = afd_paths_prepare(pair, &error);
    if (status) {
        afd_pair_fail(pair, status, "%s", error.text);
        return status;
    }
    status = afd_hello_send_accept(pair);
    if (status) {
        afd_pair_fail(pair, status, "the accept cannot be sent: %s", afd_status_name(status));
        return status;
    }
    act(pair, afd_peer_on(&pair->peer, AFD_PEER_ACCEPTED));
    return AFD_OK;
}

void afd_pair_refuse(struct afd_pair *pair, int later, const char *words)
{
    char other[24];
    assert(!pair->peer.is_connector && pair->request_reported && !pair->peer.is_accepted);
    if (pair->channel) {
        afd_log_info("refused %s, generation %u: %s", afd_identity_text(&pair->peer.other, other),
                     pair->peer.generation, words);
        afd_channel_refuse(pair->channel, later, "%s", words);
        pair->channel = NULL;
    }
    afd_pair_close(pair);
}

/* ---- the data path */

struct afd_pair *afd_transport_find(struct afd_transport *t, uint32_t index, uint64_t key)
{
    struct afd_pair *pair = index < t->pair_limit ? t->pairs[index] : NULL;
    return pair && pair->key == key ? pair : NULL;
}

int afd_pair_path_works(struct afd_pair *pair)
{
    if (pair->peer.state >= AFD_PEER_OPEN) return pair->peer.state == AFD_PEER_OPEN;
    act(pair, afd_peer_on(&pair->peer, AFD_PEER_PATH));
    return pair->peer.state <= AFD_PEER_OPEN;
}

int afd_pair_check(struct afd_pair *pair, uint32_t region, uint64_t offset, uint64_t part_bytes,
                   uint64_t bytes)
{
    if (region >= pair->region_count) {
        afd_pair_fail(pair, AFD_ERR_PROTOCOL, "a message to region %u: there are %u", region,
                      pair->region_count);
        return 0;
    }
    if (bytes > pair->regions[region].bytes || offset > bytes || part_bytes > bytes - offset) {
        afd_pair_fail(pair, AFD_ERR_PROTOCOL,
                      "a message of %llu bytes, %llu of them at %llu, to region %u of %llu bytes",
                      (unsigned long long)bytes, (unsigned long long)part_bytes, (unsigned long long)offset,
                      region, (unsigned long long)pair->regions[region].bytes);
        return 0;
    }
    return 1;
}

void afd_pair_notice(struct afd_pair *pair, uint16_t region, uint16_t sequence, uint32_t bytes)
{
    uint32_t limit = pair->region_count + 1;
    struct afd_notice_event event = {region, sequence, bytes};
    if (pair->peer.state != AFD_PEER_OPEN) return;
    if (pair->split && !afd_split_join(pair, &event)) return;
    if (pair->notice_count == limit) {
        afd_pair_fail(pair, AFD_ERR_PROTOCOL,
                      "more than %u messages unread: a region was written before its answer", limit);
        return;
    }
    uint32_t at = pair->notice_first + pair->notice_count++;
    pair->notices[at < limit ? at : at - limit] = event;
    make_ready(pair);
}

enum afd_status afd_pair_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                             uint16_t sequence)
{
    if (pair->peer.state != AFD_PEER_OPEN) return AFD_ERR_PEER;
    if (region >= pair->peer_region_count || bytes > pair->peer_regions[region] ||
        bytes > pair->transport->config.max_message_bytes)
        return AFD_ERR_REQUEST;
    return pair->backend->put(pair, region, from, bytes, sequence);
}

uint32_t afd_transport_poll(struct afd_transport *t, struct afd_transport_event *events_out, uint32_t limit)
{
    uint32_t count = 0;
    free_closed(t);
    if (t->is_woken) {
        eventfd_t ignored;
        eventfd_read(t->wake_fd, &ignored);
        t->is_woken = 0;
    }
    t->is_polling = 1;
    for (uint32_t i = 0; i < t->backend_count; i++) t->backends[i]->progress(t);
    t->is_polling = 0;
    while (count < limit && t->ready_first) {
        struct afd_pair *pair = t->ready_first;
        unready(pair);
        if (!has_event(pair)) continue;
        events_out[count++] = take_event(pair);
        if (has_event(pair)) {
            t->is_polling = 1;
            make_ready(pair); /* at the end: the others come first */
            t->is_polling = 0;
        }
    }
    return count;
}

int afd_transport_event_fd(const struct afd_transport *t)
{
    return t->epoll_fd;
}

enum afd_status afd_transport_arm(struct afd_transport *t)
{
    if (t->ready_first) return AFD_AGAIN;
    for (uint32_t i = 0; i < t->backend_count; i++)
        if (t->backends[i]->arm(t)) return AFD_AGAIN;
    return AFD_OK;
}

/* ---- the transport */

static enum afd_status add_memory(struct afd_transport *t, const struct afd_memory *added)
{
    struct afd_error error = {""};
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if ((uintptr_t)added->base % page || added->bytes % page || !added->bytes) return AFD_ERR_REQUEST;
    struct afd_memory *memory = realloc(t->memory, (t->memory_count + 1) * sizeof *memory);
    if (!memory) return AFD_ERR_MEMORY;
    t->memory = memory;
    enum afd_status status = afd_paths_add_memory(t, added, &error);
    if (!status)
        memory[t->memory_count++] = *added;
    else
        afd_log_error("memory cannot be registered: %s", error.text);
    return status;
}

enum afd_status afd_transport_register(struct afd_transport *t, void *base, uint64_t bytes)
{
    return add_memory(t, &(struct afd_memory){.base = base, .bytes = bytes, .dmabuf_fd = -1});
}

enum afd_status afd_transport_register_device(struct afd_transport *t, void *base, uint64_t bytes,
                                              int dmabuf_fd, uint64_t offset)
{
    return add_memory(t, &(struct afd_memory){base, bytes, 1, dmabuf_fd, offset});
}

void afd_transport_deregister(struct afd_transport *t, void *base)
{
    for (uint32_t i = 0; i < t->memory_count; i++)
        if (t->memory[i].base == (unsigned char *)base) {
            afd_paths_remove_memory(t, base);
            t->memory[i] = t->memory[--t->memory_count];
            return;
        }
}

enum afd_status afd_transport_watch(struct afd_transport *t, int fd)
{
    struct epoll_event on = {.events = EPOLLIN};
    return epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, fd, &on) ? AFD_ERR_IO : AFD_OK;
}

void afd_transport_unwatch(struct afd_transport *t, int fd)
{
    epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

enum afd_status afd_transport_open(const struct afd_transport_config *config, struct afd_transport **out,
                                   char address_out[AFD_ADDRESS_BYTES], struct afd_error *error_out)
{
    char at[AFD_ADDRESS_BYTES];
    int port;
    enum afd_status status;
    struct afd_transport *t = calloc(1, sizeof *t);
    if (!t) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    t->config = *config;
    t->listen_fd = t->epoll_fd = t->wake_fd = -1;
    if (!t->config.connect_timeout_ms) t->config.connect_timeout_ms = DEFAULT_TIMEOUT_MS;
    afd_identity_text(&config->self, t->name);
    assert(config->path <= (enum afd_data_path)AFD_PATH_TCP_PUT);
    status = AFD_ERR_IO;
    snprintf(at, sizeof at, "%s:0", config->host);
    t->listen_fd = afd_listen(at, &port, error_out);
    if (t->listen_fd < 0) goto fail;
    snprintf(t->address, sizeof t->address, "%s:%d", config->host, port);
    status = afd_fail(error_out, AFD_ERR_IO, "out of descriptors or memory");
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    t->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    t->listener = event_new(config->base, t->listen_fd, EV_READ | EV_PERSIST, on_connection, t);
    if (t->epoll_fd < 0 || t->wake_fd < 0 || !t->listener) goto fail;
    if (afd_transport_watch(t, t->wake_fd)) goto fail;
    status = afd_paths_open(t, error_out);
    if (status) goto fail;
    status = AFD_ERR_IO;
    if (event_add(t->listener, NULL)) goto fail;
    snprintf(address_out, AFD_ADDRESS_BYTES, "%s", t->address);
    *out = t;
    return AFD_OK;
fail:
    afd_transport_close(t);
    return status;
}

void afd_transport_close(struct afd_transport *t)
{
    if (!t) return;
    for (uint32_t i = 0; i < t->pair_limit; i++)
        if (t->pairs[i]) afd_pair_close(t->pairs[i]);
    free_closed(t);
    while (t->memory_count) afd_transport_deregister(t, t->memory[0].base);
    afd_paths_close(t);
    if (t->listener) event_free(t->listener);
    if (t->listen_fd >= 0) close(t->listen_fd);
    if (t->epoll_fd >= 0) close(t->epoll_fd);
    if (t->wake_fd >= 0) close(t->wake_fd);
    free(t->pairs);
    free(t->memory);
    free(t);
}

const struct afd_identity *afd_pair_peer(const struct afd_pair *pair)
{
    return &pair->peer.other;
}
uint32_t afd_pair_generation(const struct afd_pair *pair)
{
    return pair->peer.generation;
}
uint64_t afd_pair_epoch(const struct afd_pair *pair)
{
    return pair->peer.epoch;
}
void *afd_pair_user(const struct afd_pair *pair)
{
    return pair->user;
}
const char *afd_pair_path(const struct afd_pair *pair)
{
    return pair->path_name;
}
