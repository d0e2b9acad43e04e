/* What is shared memory's own: the socket over which segments travel, and a peer that lies in what both can
 * write. The source is included, to lie in its own words. */
#include "transport/shm.c"

#include <dirent.h>

#include "tests/transport/node.h"

static const struct test_kind shm_kind = {.name = "shm", .kind = AFD_DATA_AUTO, .path = AFD_PATH_SHM};

static int open_descriptors(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

static struct path *path_of(struct afd_pair *pair)
{
    return pair->path[AFD_WAY_SHM];
}

/* Datagrams to a node's socket, with a descriptor each, until no more fit or `limit` is reached. */
static int send_junk(const struct node *to, const void *bytes, size_t count, int descriptors, int limit)
{
    const struct shm *shm = to->transport->back[AFD_WAY_SHM];
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), fds[4] = {fd, fd, fd, fd}, sent = 0;
    char control[CMSG_SPACE(sizeof fds)] = {0};
    struct sockaddr_un name;
    struct iovec data = {(void *)(uintptr_t)bytes, count};
    struct msghdr m = {.msg_name = &name,
                       .msg_namelen = socket_name(shm->address.socket, &name),
                       .msg_iov = &data,
                       .msg_iovlen = 1};
    if (descriptors) {
        m.msg_control = control;
        m.msg_controllen = CMSG_SPACE((size_t)descriptors * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)descriptors * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)descriptors * sizeof(int));
    }
    while (sent < limit && sendmsg(fd, &m, MSG_DONTWAIT) >= 0) sent++;
    close(fd);
    return sent;
}

/* Guards: descriptors that a stranger sends stay open in our process, or end it; a full socket that a peer's
 * segment does not get through. */
static void test_strangers(void **state)
{
    struct two t;
    struct greeting nobody = {.key = 1, .entries = MIN_ENTRIES};
    (void)state;
    two_open(&t, &shm_kind, 4096);
    node_regions(t.f, 0, 1, 4096);
    int before = open_descriptors();
    for (int descriptors = 0; descriptors <= 4; descriptors++) {
        assert_int_equal(send_junk(t.f, "junk", 4, descriptors, 1), 1);
        event_base_loop(t.net.base, EVLOOP_ONCE);
        assert_int_equal(send_junk(t.f, &nobody, sizeof nobody, descriptors, 1), 1);
        event_base_loop(t.net.base, EVLOOP_ONCE);
        assert_int_equal(open_descriptors(), before);
    }
    struct shm *shm = t.f->transport->back[AFD_WAY_SHM];
    event_del(shm->event);
    assert_true(send_junk(t.f, "junk", 4, 0, 100000) < 100000);
    struct afd_pair *pair = node_connect(t.a, t.f, 1);
    wait_for(&t.net, path_of(pair)->is_attached && evtimer_pending(path_of(pair)->retry, NULL));
    assert_int_equal(node_count_of(t.f, AFD_EVENT_OPEN), 0);
    event_add(shm->event, NULL);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_OPEN) && node_count_of(t.f, AFD_EVENT_OPEN));
    assert_int_equal(afd_pair_put(pair, 0, t.a->slab, 8, 1), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
    net_close(&t.net);
}

/* Guards: an address of another boot or network namespace, or one that is cut, taken for this host's. */
static void test_other_hosts(void **state)
{
    struct two t;
    struct address address;
    char why[96];
    (void)state;
    two_open(&t, &shm_kind, 4096);
    const struct shm *shm = t.f->transport->back[AFD_WAY_SHM];
    address = shm->address;
    assert_true(shm_reaches(t.a->transport, &address, sizeof address, why));
    assert_string_equal(why, "same host");
    assert_false(shm_reaches(t.a->transport, &address, sizeof address - 1, why));
    for (size_t i = 0; address.host[i]; i++) {
        address.host[i] ^= 1;
        assert_false(shm_reaches(t.a->transport, &address, sizeof address, why));
        assert_string_equal(why, "another host");
        address.host[i] ^= 1;
    }
    net_close(&t.net);
}

/* Guards: a peer that counts more messages as read than there were makes our ring run over. */
static void test_lying_reader(void **state)
{
    struct two t;
    struct afd_pair *other;
    (void)state;
    two_open(&t, &shm_kind, 4096);
    node_regions(t.f, 0, 1, 4096);
    struct afd_pair *pair = node_pair(t.a, t.f, &other);
    atomic_store(&path_of(other)->own->read, 77);
    enum afd_status status = AFD_OK;
    int puts = 0;
    for (; status == AFD_OK && puts < 1000; puts++) status = afd_pair_put(pair, 0, t.a->slab, 8, 1);
    assert_int_equal(status, AFD_ERR_PEER);
    assert_int_equal(puts, MIN_ENTRIES + 1);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1);
    assert_int_equal(node_last(t.a, AFD_EVENT_LOST)->status, AFD_ERR_PROTOCOL);
    net_close(&t.net);
}

/* Guards: memory or descriptors left behind by pairs that come and go; what lies beside regions on their
 * pages lost with them. */
static void test_comes_and_goes(void **state)
{
    enum { PAGES = 8 };
    struct two t;
    int before = 0;
    (void)state;
    two_open(&t, &shm_kind, PAGES * 4096);
    node_regions(t.a, 4096, 3, 5000);
    node_regions(t.f, 100, 2, 9000);
    memset(t.f->slab, 0x77, t.f->slab_bytes);
    for (int i = 0; i < 20; i++) {
        struct afd_pair *other, *pair = node_pair(t.a, t.f, &other);
        fill(t.a->slab, 4096, (uint32_t)i);
        assert_int_equal(afd_pair_put(pair, 1, t.a->slab, 4096, 1), AFD_OK);
        afd_pair_close(other);
        memset(t.f->slab + 9100, 0x77, 4096); /* what came last */
        for (uint64_t k = 0; k < t.f->slab_bytes; k++) assert_int_equal(t.f->slab[k], 0x77);
        wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == i + 1);
        afd_pair_close(pair);
        pump_awake(&t.net);
        if (i == 2) before = open_descriptors();
    }
    assert_int_equal(open_descriptors(), before);
    net_close(&t.net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_other_hosts),
        cmocka_unit_test(test_lying_reader),
        cmocka_unit_test(test_comes_and_goes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
