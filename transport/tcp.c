/* tcp.c: pairs over plain sockets.
 *
 * A pair has one connection for its messages, beside the one of its hello and over the same addresses, so the
 * interface that the hello address names carries both. Each direction is
 *
 *   | greeting | record | message | record | message | ..
 *
 * A record is 8 bytes: size, region, sequence. It is checked against the region before a byte of the message
 * is written, and what is written is written by our own recv: the rest of a long message goes from the socket
 * straight to its place; what comes between messages, records and short messages, many at a time, through one
 * buffer. Nothing of a pair reaches a region once its connection is closed, so fencing is to close it.
 *
 * A put sends from the slab itself: a source stays as it is until the answer came. The first put of a turn
 * goes at once, short ones behind it together, with the next poll or arm: each is a system call otherwise.
 *
 * No deadline ends a connection (TCP_USER_TIMEOUT would: it counts the time in which a peer that is stopped
 * opens no window). The hello socket tells of the death of a peer. When this connection alone ends, that
 * socket has half a second to say why before the pair is lost for it. */
#include "transport/tcp.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    GATHER = 16,             /* messages in one system call */
    GATHER_BYTES = 64 << 20, /* and none behind so many: no socket takes more */
    HOLD_BYTES = 64 << 10,   /* more than that is not held back */
    LARGE_BYTES = 32 << 10,  /* behind one such message another is expected: only its record is read ahead */
    LOOKS = 32,              /* sockets a look reports */
    END_DELAY_MS = 500,
};

/* ---- the end of a connection */

static int is_live(const struct tcp_path *path)
{
    return !path->is_over && path->pair->peer.state <= AFD_PEER_OPEN;
}

static void on_end(evutil_socket_t fd, short what, void *user)
{
    struct tcp_path *path = user;
    (void)fd, (void)what;
    if (path->pair->peer.state <= AFD_PEER_OPEN)
        afd_pair_fail(path->pair, AFD_ERR_PEER, "the other side closed the data connection");
}

static int was_closed(int error)
{
    return error == 0 || error == ECONNRESET || error == EPIPE;
}

/* `error` 0: closed. A peer that closes a pair, or dies, closes its hello socket too, which has better words.
 */
static void end(struct tcp_path *path, int error)
{
    const struct timeval delay = {.tv_usec = END_DELAY_MS * 1000};
    path->is_over = path->is_ending = 1;
    if (was_closed(error))
        evtimer_add(path->event, &delay);
    else
        afd_pair_fail(path->pair, AFD_ERR_PEER, "data connection: %s", strerror(error));
}

/* ---- sending */

/* What is left of `bytes` at `from` behind the first `*skipped`. */
static size_t add(struct iovec *part, const void *from, uint64_t bytes, uint64_t *skipped)
{
    uint64_t skip = *skipped < bytes ? *skipped : bytes;
    *skipped -= skip;
    *part = (struct iovec){(void *)((uintptr_t)from + skip), bytes - skip};
    return bytes - skip;
}

static void sent(struct tcp_path *path, size_t bytes)
{
    uint64_t done = path->op_sent + bytes;
    while (path->op_count) {
        uint64_t whole = sizeof(struct tcp_record) + path->ops[path->op_first].record.bytes;
        if (done < whole) break;
        done -= whole;
        path->op_first = (path->op_first + 1) & (TCP_OPS - 1);
        path->op_count--;
    }
    path->op_sent = done;
}

/* Until the queue is empty or the socket is full. */
static void send_queue(struct tcp_path *path)
{
    path->held_bytes = 0;
    while (path->op_count && !path->is_blocked && !path->is_ending) {
        struct iovec parts[2 * GATHER];
        struct msghdr message = {.msg_iov = parts};
        uint64_t skipped = path->op_sent;
        size_t asked = 0;
        for (uint32_t i = 0; i < path->op_count && i < GATHER && asked < GATHER_BYTES; i++) {
            const struct tcp_op *op = &path->ops[(path->op_first + i) & (TCP_OPS - 1)];
            asked += add(&parts[message.msg_iovlen++], &op->record, sizeof op->record, &skipped);
            asked += add(&parts[message.msg_iovlen++], op->from, op->record.bytes, &skipped);
        }
        ssize_t n = sendmsg(path->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) {
            path->is_ending = path->is_readable = 1; /* what came before is still to be read */
            if (!was_closed(errno)) end(path, errno);
            return;
        }
        if (n > 0) sent(path, (size_t)n);
        path->is_blocked = n < (ssize_t)asked;
    }
}

static enum afd_status tcp_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                               uint16_t sequence)
{
    struct tcp_path *path = pair->path[AFD_WAY_TCP];
    if (path->op_count == TCP_OPS) send_queue(path);
    if (path->is_ending) return AFD_ERR_PEER;
    if (path->op_count == TCP_OPS) {
        path->was_refused = 1;
        return AFD_AGAIN;
    }
    path->ops[(path->op_first + path->op_count++) & (TCP_OPS - 1)] =
        (struct tcp_op){{bytes, region, sequence}, from};
    path->held_bytes += bytes;
    if (!path->has_put || path->held_bytes > HOLD_BYTES) send_queue(path);
    path->has_put = 1;
    return AFD_OK;
}

/* ---- receiving */

int afd_tcp_is_greeting(const struct afd_pair *pair, const struct tcp_greeting *greeting)
{
    return greeting->magic == TCP_MAGIC && greeting->index == pair->index && greeting->key == pair->key;
}

static void hear(struct tcp_path *path)
{
    struct tcp_greeting greeting;
    memcpy(&greeting, path->head, sizeof greeting);
    path->is_heard = 1;
    if (afd_tcp_is_greeting(path->pair, &greeting))
        afd_pair_path_works(path->pair);
    else
        afd_pair_fail(path->pair, AFD_ERR_PROTOCOL,
                      "whoever answers the data connection has not this pair's key");
}

static void message_arrived(struct tcp_path *path)
{
    const struct tcp_record *r = &path->arriving;
    path->is_arriving = 0;
    afd_pair_notice(path->pair, r->region, r->sequence, r->bytes);
}

static void message_begins(struct tcp_path *path)
{
    struct tcp_record *r = &path->arriving;
    memcpy(r, path->head, sizeof *r);
    if (!afd_pair_check(path->pair, r->region, 0, r->bytes, r->bytes)) return;
    path->is_arriving = 1;
    path->is_large = r->bytes > LARGE_BYTES;
    path->arrived = 0;
    if (!r->bytes) message_arrived(path);
}

static unsigned char *place(const struct tcp_path *path)
{
    return (unsigned char *)path->pair->regions[path->arriving.region].base + path->arrived;
}

static void arrived(struct tcp_path *path, uint32_t bytes)
{
    path->arrived += bytes;
    if (path->arrived == path->arriving.bytes) message_arrived(path);
}

/* What came through the buffer; all of it, unless the pair ends. */
static void take(struct tcp_path *path, const unsigned char *at, size_t bytes)
{
    while (bytes && is_live(path)) {
        size_t want = path->is_arriving ? path->arriving.bytes - path->arrived
                                        : (path->is_heard ? sizeof(struct tcp_record) : sizeof path->head) -
                                              path->head_bytes;
        size_t part = want < bytes ? want : bytes;
        memcpy(path->is_arriving ? place(path) : path->head + path->head_bytes, at, part);
        at += part;
        bytes -= part;
        if (path->is_arriving) {
            arrived(path, (uint32_t)part);
            continue;
        }
        path->head_bytes += (uint32_t)part;
        if (part < want) return;
        path->head_bytes = 0;
        if (path->is_heard)
            message_begins(path);
        else
            hear(path);
    }
}

/* Until there is a notice to report or the socket is empty. Where a read returns less than it asked for, it
 * is: its event says when there is more. */
static void receive(struct tcp *tcp, struct tcp_path *path)
{
    uint32_t notices = path->pair->notice_count;
    while (path->is_readable && is_live(path) && path->pair->notice_count == notices) {
        struct iovec parts[2];
        int count = 0;
        size_t left = path->is_arriving ? path->arriving.bytes - path->arrived : 0;
        size_t ahead = path->is_large ? sizeof(struct tcp_record) : sizeof tcp->buffer;
        if (left) parts[count++] = (struct iovec){place(path), left};
        parts[count++] = (struct iovec){tcp->buffer, ahead};
        ssize_t n = readv(path->fd, parts, count);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            path->is_readable = 0;
            return;
        }
        if (n <= 0) {
            end(path, n ? errno : 0);
            return;
        }
        size_t direct = (size_t)n < left ? (size_t)n : left;
        path->is_readable = path->is_ending || (size_t)n == left + ahead;
        if (direct) arrived(path, (uint32_t)direct);
        take(path, tcp->buffer, (size_t)n - direct);
    }
}

/* ---- a pair's path */

static enum afd_status tcp_prepare(struct afd_pair *pair, struct afd_error *error_out)
{
    struct tcp_path *path = calloc(1, sizeof *path);
    if (!path) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    path->pair = pair;
    path->fd = -1;
    pair->path[AFD_WAY_TCP] = path; /* detach takes down what there is */
    path->event = evtimer_new(pair->transport->config.base, on_end, path);
    return path->event ? AFD_OK : afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
}

static const void *tcp_address(const struct afd_pair *pair, uint32_t *bytes_out)
{
    const struct tcp *tcp = pair->transport->back[AFD_WAY_TCP];
    *bytes_out = sizeof tcp->address;
    return &tcp->address;
}

static int is_address(const void *address, uint32_t bytes, struct tcp_address *out)
{
    if (bytes != sizeof *out) return 0;
    memcpy(out, address, sizeof *out);
    return out->port != 0;
}

static int tcp_reaches(struct afd_transport *t, const void *address, uint32_t bytes, char why_out[96])
{
    struct tcp_address peer;
    char interface[64];
    snprintf(why_out, 96, "no port");
    if (!is_address(address, bytes, &peer)) return 0;
    afd_paths_interface(t, interface, sizeof interface);
    snprintf(why_out, 96, "sockets over %s", interface);
    return 1;
}

static enum afd_status tcp_attach(struct afd_pair *pair, const void *address, uint32_t bytes,
                                  struct afd_error *error_out)
{
    struct tcp_path *path = pair->path[AFD_WAY_TCP];
    struct tcp_address peer;
    if (!is_address(address, bytes, &peer))
        return afd_fail(error_out, AFD_ERR_PROTOCOL, "tcp: an address of %u bytes without a port", bytes);
    path->is_attached = 1;
    return pair->peer.is_connector ? afd_tcp_connect(path, &peer, error_out) : AFD_OK;
}

/* All that the peer can have under way finds room at once: its messages, one a region. The kernel starts with
 * a small window and learns a larger one from how fast we read: where processes share cores, a pair whose
 * receiver did not run at the right moments stalled at a window of less than a message, once a turn of the
 * core, and those with a larger one got what it left. A low-water mark makes the buffer that large, and
 * leaves its size to the kernel from there on (SO_RCVBUF would fix it, and is limited lower). */
static void make_room(const struct tcp_path *path)
{
    const struct afd_pair *pair = path->pair;
    uint64_t bytes = 0;
    int one = 1;
    for (uint32_t i = 0; i < pair->region_count; i++)
        bytes += sizeof(struct tcp_record) + pair->regions[i].bytes;
    int mark = bytes < INT_MAX ? (int)bytes : INT_MAX; /* the kernel takes half of what tcp_rmem allows */
    if (!setsockopt(path->fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark))
        setsockopt(path->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
}

int afd_tcp_path_begin(struct tcp_path *path)
{
    struct afd_pair *pair = path->pair;
    struct tcp *tcp = pair->transport->back[AFD_WAY_TCP];
    const struct tcp_greeting greeting = {TCP_MAGIC, pair->peer_index, pair->peer_key};
    struct epoll_event on = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = path};
    afd_socket_options(path->fd);
    make_room(path);
    if (send(path->fd, &greeting, sizeof greeting, MSG_NOSIGNAL) != sizeof greeting) return 0;
    if (epoll_ctl(tcp->epoll_fd, EPOLL_CTL_ADD, path->fd, &on)) return 0;
    event_assign(path->event, pair->transport->config.base, -1, 0, on_end, path);
    path->is_listed = 1;
    path->next = tcp->first;
    if (path->next) path->next->before = path;
    tcp->first = path;
    tcp->path_count++;
    return 1;
}

static void unlist(struct tcp *tcp, struct tcp_path *path)
{
    if (!path->is_listed) return;
    if (path->next) path->next->before = path->before;
    *(path->before ? &path->before->next : &tcp->first) = path->next;
    tcp->path_count--;
}

static void tcp_detach(struct afd_pair *pair)
{
    struct tcp_path *path = pair->path[AFD_WAY_TCP];
    if (!path) return;
    if (path->is_listed) send_queue(path); /* the peer may still take what was put last */
    pair->path[AFD_WAY_TCP] = NULL;
    unlist(pair->transport->back[AFD_WAY_TCP], path);
    if (path->event) event_free(path->event);
    if (path->fd >= 0) close(path->fd);
    free(path);
}

/* ---- the transport */

static void tcp_close(struct afd_transport *t)
{
    struct tcp *tcp = t->back[AFD_WAY_TCP];
    afd_tcp_unlisten(t);
    if (tcp->epoll_fd >= 0) {
        afd_transport_unwatch(t, tcp->epoll_fd);
        close(tcp->epoll_fd);
    }
    free(tcp);
    t->back[AFD_WAY_TCP] = NULL;
}

static enum afd_status tcp_open(struct afd_transport *t, struct afd_error *error_out)
{
    struct tcp *tcp = calloc(1, sizeof *tcp);
    if (!tcp) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    t->back[AFD_WAY_TCP] = tcp; /* close takes down what there is */
    tcp->listen_fd = -1;
    tcp->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (tcp->epoll_fd < 0 || afd_transport_watch(t, tcp->epoll_fd))
        return afd_fail(error_out, AFD_ERR_IO, "epoll: %s", strerror(errno));
    return afd_tcp_listen(t, error_out);
}

static enum afd_status tcp_add_memory(struct afd_transport *t, const struct afd_memory *memory,
                                      struct afd_error *error_out)
{
    (void)t;
    if (!memory->is_device) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_REQUEST, "tcp copies with the CPU: it cannot reach device memory");
}

static void tcp_remove_memory(struct afd_transport *t, void *base)
{
    (void)t, (void)base;
}

/* Asks which sockets have something; returns how many. */
static int look(struct tcp *tcp)
{
    struct epoll_event events[LOOKS];
    int count = epoll_wait(tcp->epoll_fd, events, LOOKS, 0);
    for (int i = 0; i < count; i++) {
        struct tcp_path *path = events[i].data.ptr;
        if (events[i].events & ~(uint32_t)EPOLLOUT) path->is_readable = 1;
        if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) path->is_ending = 1;
        if (events[i].events & EPOLLOUT) path->is_blocked = 0;
    }
    return count;
}

/* The turn of those who put is over: what was held back goes. */
static void end_turn(struct tcp_path *path)
{
    path->has_put = 0;
    if (path->op_count && is_live(path)) send_queue(path);
}

static void tcp_progress(struct afd_transport *t)
{
    struct tcp *tcp = t->back[AFD_WAY_TCP];
    if (!tcp->first) return;
    look(tcp);
    for (struct tcp_path *path = tcp->first; path; path = path->next) {
        end_turn(path);
        receive(tcp, path);
    }
}

static enum afd_status tcp_arm(struct afd_transport *t)
{
    struct tcp *tcp = t->back[AFD_WAY_TCP];
    enum afd_status status = AFD_OK;
    for (struct tcp_path *path = tcp->first; path; path = path->next) {
        end_turn(path);
        if (!is_live(path)) continue;
        if (path->is_readable || (path->was_refused && path->op_count < TCP_OPS)) status = AFD_AGAIN;
        path->was_refused = path->was_refused && path->op_count == TCP_OPS;
    }
    return status;
}

const struct afd_backend afd_backend_tcp = {
    .name = "tcp",
    .way = AFD_WAY_TCP,
    .open = tcp_open,
    .close = tcp_close,
    .add_memory = tcp_add_memory,
    .remove_memory = tcp_remove_memory,
    .prepare = tcp_prepare,
    .address = tcp_address,
    .reaches = tcp_reaches,
    .attach = tcp_attach,
    .put = tcp_put,
    .detach = tcp_detach,
    .progress = tcp_progress,
    .arm = tcp_arm,
};
