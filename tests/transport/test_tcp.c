/* Pairs over sockets: what the suite of all transports cannot see. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/transport/node.h"
#include "transport/tcp.h"

static const struct test_kind tcp_kind = {.name = "tcp", .kind = AFD_DATA_TCP, .path = AFD_PATH_TCP};

static struct tcp *tcp_of(const struct node *node)
{
    return node->transport->back[AFD_WAY_TCP];
}

/* Guards: a connection for messages that ends alone (a firewall that forgets it) leaves a pair that waits for
 * ever. The hello socket stays, so nothing else would tell. */
static void test_connection_ends_alone(void **state)
{
    struct two t;
    struct afd_pair *other;
    (void)state;
    two_open(&t, &tcp_kind, 8192);
    node_regions(t.f, 0, 1, 4096);
    struct afd_pair *pair = node_pair(t.a, t.f, &other);
    shutdown(((struct tcp_path *)pair->path[AFD_WAY_TCP])->fd, SHUT_RDWR);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1 && node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_non_null(strstr(t.a->words, "the other side closed the data connection"));
    assert_int_equal(node_last(t.f, AFD_EVENT_LOST)->status, AFD_ERR_PEER);
    net_close(&t.net);
}

static int stranger(const struct node *node, const struct tcp_greeting *greeting, size_t bytes)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = tcp_of(node)->address.port};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(send(fd, greeting, bytes, MSG_NOSIGNAL), bytes);
    return fd;
}

/* Guards: somebody who does not hold the pair's key gets into it, or gets at an answer; somebody who knows it
 * takes the place of a connection that is there. */
static void test_strangers(void **state)
{
    struct two t;
    struct afd_pair *other;
    char byte;
    (void)state;
    two_open(&t, &tcp_kind, 8192);
    node_regions(t.f, 0, 1, 4096);
    struct afd_pair *pair = node_pair(t.a, t.f, &other);
    const struct tcp_greeting right = {TCP_MAGIC, other->index, other->key};
    const struct tcp_greeting wrong[] = {{TCP_MAGIC, other->index, other->key + 1},
                                         {TCP_MAGIC, other->index + 1, other->key},
                                         {TCP_MAGIC, UINT32_MAX, other->key},
                                         {TCP_MAGIC + 1, other->index, other->key},
                                         right};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int fd = stranger(t.f, &wrong[i], sizeof wrong[i]);
        wait_for(&t.net, tcp_of(t.f)->guest_count == 1);
        wait_for(&t.net, tcp_of(t.f)->guest_count == 0);
        assert_int_equal(recv(fd, &byte, 1, 0), 0);
        close(fd);
    }
    int silent = stranger(t.f, &right, 7), gone = stranger(t.f, &right, 3);
    wait_for(&t.net, tcp_of(t.f)->guest_count == 2);
    close(gone);
    wait_for(&t.net, tcp_of(t.f)->guest_count == 1);
    assert_int_equal(afd_pair_put(pair, 0, t.a->slab, 100, 5), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
    assert_int_equal(node_count_of(t.f, AFD_EVENT_LOST), 0);
    net_close(&t.net); /* with a guest that has not greeted */
    close(silent);
}

/* Guards: a sender that stalls at a window smaller than what the pair may have under way, while its receiver
 * does not run: the kernel begins with 64 KiB, and takes some more into the sender's own buffer. */
static void test_room(void **state)
{
    enum { REGIONS = 4, BYTES = 1 << 20, PATIENCE_MS = 20000 };
    struct two t;
    struct afd_pair *other;
    struct afd_transport_event event;
    (void)state;
    two_open(&t, &tcp_kind, REGIONS * BYTES);
    node_regions(t.f, 0, REGIONS, BYTES);
    struct afd_pair *pair = node_pair(t.a, t.f, &other);
    const struct tcp_path *path = pair->path[AFD_WAY_TCP];
    struct pollfd wait = {.fd = afd_transport_event_fd(t.a->transport), .events = POLLIN};
    for (uint16_t i = 0; i < REGIONS; i++)
        assert_int_equal(afd_pair_put(pair, i, t.a->slab, BYTES, i), AFD_OK);
    while (path->op_count) { /* the sender alone */
        if (!afd_transport_poll(t.a->transport, &event, 1) && afd_transport_arm(t.a->transport) == AFD_OK &&
            path->op_count)
            assert_int_equal(poll(&wait, 1, PATIENCE_MS), 1);
    }
    assert_int_equal(node_count_of(t.f, AFD_EVENT_NOTICE), 0);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == REGIONS);
    net_close(&t.net);
}

/* Guards: a connection that sends by BBR's clock, which a socket keeps when BBR is left after it began. */
static void test_no_clock(void **state)
{
    struct two t;
    char name[16] = "";
    socklen_t bytes = sizeof name - 1;
    (void)state;
    two_open(&t, &tcp_kind, 8192);
    assert_int_equal(getsockopt(tcp_of(t.f)->listen_fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes), 0);
    assert_int_not_equal(strncmp(name, "bbr", 3), 0);
    net_close(&t.net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_connection_ends_alone),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_no_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
