/* tcp_connect.c: how a connection becomes a pair's.
 *
 *   connector                                     acceptor
 *       | TCP to the port that its hello named       |
 *       | greeting: the acceptor's index and key --->| finds the pair: its connection from here on
 *       |<--- greeting: the connector's index and key |
 *
 * The keys are random and crossed the authenticated hello connection alone: who greets with one was told it.
 * Nothing else is believed before. Driven by the event base; a guest has as long as a pair has to open. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/tcp.h"

struct tcp_guest {
    struct afd_transport *transport;
    struct tcp_guest *next, *before;
    struct event *event;
    int fd;
    struct tcp_greeting greeting;
    uint32_t bytes; /* of it */
};

static uint16_t *port_of(struct sockaddr_storage *at)
{
    return at->ss_family == AF_INET6 ? &((struct sockaddr_in6 *)at)->sin6_port
                                     : &((struct sockaddr_in *)at)->sin_port;
}

/* BBR sends by a clock. Within a host or a switch a message is over before that clock has found its rate:
 * each cost 2 to 14% more CPU on loopback, and came 5% later. It must go before there is a connection: the
 * kernel goes on sending by a clock on a socket where it once did, whatever comes after BBR. */
static void leave_bbr(int fd)
{
    char name[16] = "";
    socklen_t bytes = sizeof name - 1;
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes) || strncmp(name, "bbr", 3)) return;
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", strlen("cubic")))
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", strlen("reno")); /* every kernel has it */
}

/* ---- the acceptor */

/* The descriptor is the path's, or closed, when this returns. */
static void guest_leaves(struct tcp_guest *guest, struct tcp_path *to)
{
    struct tcp *tcp = guest->transport->back[AFD_WAY_TCP];
    if (guest->next) guest->next->before = guest->before;
    *(guest->before ? &guest->before->next : &tcp->guests) = guest->next;
    tcp->guest_count--;
    if (guest->event) event_free(guest->event);
    if (to)
        to->fd = guest->fd;
    else
        close(guest->fd);
    free(guest);
}

static void turn_away(struct tcp_guest *guest)
{
    struct tcp *tcp = guest->transport->back[AFD_WAY_TCP];
    if (!tcp->has_complained)
        afd_log_info("closed a data connection that names no pair of ours; more are not logged");
    tcp->has_complained = 1;
    guest_leaves(guest, NULL);
}

static struct tcp_path *path_of(const struct tcp_guest *guest)
{
    struct afd_pair *pair = afd_transport_find(guest->transport, guest->greeting.index, guest->greeting.key);
    struct tcp_path *path = pair ? pair->path[AFD_WAY_TCP] : NULL;
    int is_awaited = path && path->is_attached && path->fd < 0 && pair->peer.state <= AFD_PEER_OPEN &&
                     afd_tcp_is_greeting(pair, &guest->greeting);
    return is_awaited ? path : NULL;
}

static void on_guest(evutil_socket_t fd, short what, void *user)
{
    struct tcp_guest *guest = user;
    if (!(what & EV_READ)) {
        turn_away(guest); /* too late */
        return;
    }
    ssize_t n = recv(fd, (char *)&guest->greeting + guest->bytes, sizeof guest->greeting - guest->bytes, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0) guest->bytes += (uint32_t)n;
    if (n > 0 && guest->bytes < sizeof guest->greeting) return;
    struct tcp_path *path = n > 0 ? path_of(guest) : NULL;
    if (!path) {
        turn_away(guest);
        return;
    }
    guest_leaves(guest, path);
    path->is_heard = 1;
    if (afd_tcp_path_begin(path))
        afd_pair_path_works(path->pair);
    else
        afd_pair_fail(path->pair, AFD_ERR_PEER, "data connection: %s", strerror(errno));
}

static void on_connection(evutil_socket_t listen_fd, short what, void *user)
{
    struct afd_transport *t = user;
    struct tcp *tcp = t->back[AFD_WAY_TCP];
    const struct timeval limit = {.tv_sec = t->config.connect_timeout_ms / 1000,
                                  .tv_usec = t->config.connect_timeout_ms % 1000 * 1000};
    (void)what;
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return; /* it left again, or descriptors are out: the other side sees no answer */
    struct tcp_guest *guest = tcp->guest_count < AFD_MAX_UNPROVED ? calloc(1, sizeof *guest) : NULL;
    if (!guest) {
        close(fd);
        return;
    }
    guest->transport = t;
    guest->fd = fd;
    guest->next = tcp->guests;
    if (guest->next) guest->next->before = guest;
    tcp->guests = guest;
    tcp->guest_count++;
    guest->event = event_new(t->config.base, fd, EV_READ | EV_PERSIST, on_guest, guest);
    if (!guest->event || event_add(guest->event, &limit)) guest_leaves(guest, NULL);
}

enum afd_status afd_tcp_listen(struct afd_transport *t, struct afd_error *error_out)
{
    struct tcp *tcp = t->back[AFD_WAY_TCP];
    struct sockaddr_storage at;
    socklen_t bytes = sizeof at;
    enum { BACKLOG = 512 };
    int is_there = !getsockname(t->listen_fd, (struct sockaddr *)&at, &bytes);
    if (is_there) *port_of(&at) = 0;
    if (is_there) tcp->listen_fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (tcp->listen_fd >= 0) leave_bbr(tcp->listen_fd); /* the accepted ones inherit it */
    is_there = tcp->listen_fd >= 0 && !bind(tcp->listen_fd, (struct sockaddr *)&at, bytes) &&
               !listen(tcp->listen_fd, BACKLOG) &&
               !getsockname(tcp->listen_fd, (struct sockaddr *)&at, &bytes);
    if (!is_there)
        return afd_fail(error_out, AFD_ERR_IO, "listen at %s: %s", t->config.host, strerror(errno));
    tcp->address.port = *port_of(&at);
    tcp->listener = event_new(t->config.base, tcp->listen_fd, EV_READ | EV_PERSIST, on_connection, t);
    if (!tcp->listener || event_add(tcp->listener, NULL))
        return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    return AFD_OK;
}

void afd_tcp_unlisten(struct afd_transport *t)
{
    struct tcp *tcp = t->back[AFD_WAY_TCP];
    while (tcp->guests) guest_leaves(tcp->guests, NULL);
    if (tcp->listener) event_free(tcp->listener);
    if (tcp->listen_fd >= 0) close(tcp->listen_fd);
}

/* ---- the connector */

static void on_connected(evutil_socket_t fd, short what, void *user)
{
    struct tcp_path *path = user;
    int error = 0;
    socklen_t bytes = sizeof error;
    (void)what;
    if (path->pair->peer.state > AFD_PEER_OPEN) return;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes)) error = errno;
    if (!error && !afd_tcp_path_begin(path)) error = errno;
    if (error) afd_pair_fail(path->pair, AFD_ERR_PEER, "data connection: %s", strerror(error));
}

/* From the address that the hello came from to the one that it went to, and the port that it named. */
static int begin_connection(struct tcp_path *path, const struct tcp_address *to)
{
    struct sockaddr_storage local, remote;
    socklen_t local_bytes = sizeof local, remote_bytes = sizeof remote;
    int hello = afd_channel_fd(path->pair->channel), one = 1;
    if (getsockname(hello, (struct sockaddr *)&local, &local_bytes) ||
        getpeername(hello, (struct sockaddr *)&remote, &remote_bytes))
        return 0;
    *port_of(&local) = 0;
    *port_of(&remote) = to->port;
    path->fd = socket(local.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (path->fd < 0) return 0;
    leave_bbr(path->fd);
    setsockopt(path->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    return !bind(path->fd, (struct sockaddr *)&local, local_bytes) &&
           (!connect(path->fd, (struct sockaddr *)&remote, remote_bytes) || errno == EINPROGRESS);
}

enum afd_status afd_tcp_connect(struct tcp_path *path, const struct tcp_address *to,
                                struct afd_error *error_out)
{
    struct event_base *base = path->pair->transport->config.base;
    if (!begin_connection(path, to))
        return afd_fail(error_out, AFD_ERR_PEER, "data connection to port %u: %s", ntohs(to->port),
                        strerror(errno));
    event_assign(path->event, base, path->fd, EV_WRITE, on_connected, path);
    return event_add(path->event, NULL) ? afd_fail(error_out, AFD_ERR_MEMORY, "out of memory") : AFD_OK;
}
