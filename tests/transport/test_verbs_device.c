/* What verbs ask of a device, which is played here: no driver is asked, so it runs without RDMA. What a
 * device answers is tested in tests/rdma. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/pair.h"
#include "transport/verbs.h"

#include <setjmp.h>
#include <stddef.h>

#include <cmocka.h>

enum { SLAB_BYTES = 1 << 20, REGION_BYTES = 64 << 10, REGIONS = 4, MAX_SENDS = 512, MAX_RINGS = 64 };

struct ibv_qp *__wrap_ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *init);
int __wrap_ibv_destroy_qp(struct ibv_qp *qp);
int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
struct ibv_mr *__wrap_ibv_reg_mr(struct ibv_pd *pd, void *base, size_t bytes, int access);
struct ibv_mr *__wrap_ibv_reg_mr_iova2(struct ibv_pd *pd, void *base, size_t bytes, uint64_t iova,
                                       unsigned access);
struct ibv_mr *__wrap_ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t bytes, uint64_t iova,
                                        int fd, int access);
int __wrap_ibv_dereg_mr(struct ibv_mr *mr);
int __wrap_ibv_get_async_event(struct ibv_context *of, struct ibv_async_event *out);

/* ---- the device: what it can, and what it was asked */

static struct {
    int has_inline, has_dmabuf, has_peer_memory;
    struct {
        uint64_t offset, bytes, iova;
        int fd, access;
    } dmabuf[8], plain[8];
    uint32_t dmabuf_count, plain_count, registered;
    struct ibv_qp_init_attr init;
    struct ibv_qp_attr begin, receive, send; /* of the transitions to INIT, RTR, RTS */
    struct {
        uint64_t to;
        uint32_t bytes, rkey, flags;
        enum ibv_wr_opcode opcode;
    } sends[MAX_SENDS];
    uint32_t send_count, rings[MAX_RINGS], ring_count; /* a ring: how many sends it was told of at once */
    int refuses;                                       /* sends, with ENOMEM */
} device;

static struct ibv_context context;
static struct ibv_pd pd;
static struct ibv_cq cq = {.context = &context, .cqe = INT_MAX};

struct ibv_qp *__wrap_ibv_create_qp(struct ibv_pd *of, struct ibv_qp_init_attr *init)
{
    if (init->cap.max_inline_data && !device.has_inline) {
        errno = EINVAL;
        return NULL;
    }
    struct ibv_qp *qp = calloc(1, sizeof *qp);
    assert_non_null(qp);
    device.init = *init;
    qp->context = &context;
    qp->pd = of;
    qp->send_cq = init->send_cq;
    qp->qp_num = 77;
    return qp;
}

int __wrap_ibv_destroy_qp(struct ibv_qp *qp)
{
    free(qp);
    return 0;
}

int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
    (void)qp;
    assert_true(mask & IBV_QP_STATE);
    if (attr->qp_state == IBV_QPS_INIT) device.begin = *attr;
    if (attr->qp_state == IBV_QPS_RTR) device.receive = *attr;
    if (attr->qp_state == IBV_QPS_RTS) device.send = *attr;
    return 0;
}

static struct ibv_mr *registered(void *base, size_t bytes)
{
    struct ibv_mr *mr = calloc(1, sizeof *mr);
    assert_non_null(mr);
    *mr =
        (struct ibv_mr){.context = &context, .pd = &pd, .addr = base, .length = bytes, .lkey = 5, .rkey = 17};
    device.registered++;
    return mr;
}

struct ibv_mr *__wrap_ibv_reg_mr(struct ibv_pd *of, void *base, size_t bytes, int access)
{
    return __wrap_ibv_reg_mr_iova2(of, base, bytes, (uintptr_t)base, (unsigned)access);
}

struct ibv_mr *__wrap_ibv_reg_mr_iova2(struct ibv_pd *of, void *base, size_t bytes, uint64_t iova,
                                       unsigned access)
{
    (void)of;
    assert_true(device.plain_count < 8);
    device.plain[device.plain_count].bytes = bytes;
    device.plain[device.plain_count].iova = iova;
    device.plain[device.plain_count++].access = (int)access;
    if (device.has_peer_memory) return registered(base, bytes);
    errno = EFAULT;
    return NULL;
}

struct ibv_mr *__wrap_ibv_reg_dmabuf_mr(struct ibv_pd *of, uint64_t offset, size_t bytes, uint64_t iova,
                                        int fd, int access)
{
    (void)of;
    assert_true(device.dmabuf_count < 8);
    device.dmabuf[device.dmabuf_count].offset = offset;
    device.dmabuf[device.dmabuf_count].bytes = bytes;
    device.dmabuf[device.dmabuf_count].iova = iova;
    device.dmabuf[device.dmabuf_count].fd = fd;
    device.dmabuf[device.dmabuf_count++].access = access;
    if (device.has_dmabuf) return registered((void *)(uintptr_t)iova, bytes);
    errno = EOPNOTSUPP;
    return NULL;
}

int __wrap_ibv_dereg_mr(struct ibv_mr *mr)
{
    device.registered--;
    free(mr);
    return 0;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    (void)qp;
    *bad = wr;
    if (device.refuses) return ENOMEM;
    assert_true(device.ring_count < MAX_RINGS);
    uint32_t *told = &device.rings[device.ring_count++];
    for (*told = 0; wr; wr = wr->next, ++*told) {
        assert_true(device.send_count < MAX_SENDS);
        device.sends[device.send_count].to = wr->wr.rdma.remote_addr;
        device.sends[device.send_count].bytes = wr->num_sge ? wr->sg_list[0].length : 0;
        device.sends[device.send_count].rkey = wr->wr.rdma.rkey;
        device.sends[device.send_count].flags = wr->send_flags;
        device.sends[device.send_count++].opcode = wr->opcode;
    }
    return 0;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    (void)qp, (void)wr, (void)bad;
    return 0;
}

static int poll_cq(struct ibv_cq *of, int limit, struct ibv_wc *out)
{
    (void)of, (void)limit, (void)out;
    return 0;
}

static int req_notify_cq(struct ibv_cq *of, int solicited_only)
{
    (void)of, (void)solicited_only;
    return 0;
}

int __wrap_ibv_get_async_event(struct ibv_context *of, struct ibv_async_event *out)
{
    (void)of, (void)out;
    errno = EAGAIN;
    return -1;
}

/* ---- a transport with one port of it */

struct rank {
    struct afd_transport *transport;
    struct event_base *base;
    struct verbs verbs;
    struct afd_pair *pair;
    unsigned char *slab;
};

static void rank_open(struct rank *r)
{
    struct afd_transport_config config = {
        .kind = AFD_DATA_LOOP,
        .host = "127.0.0.1",
        .connect_timeout_ms = 60000,
        .max_message_bytes = REGION_BYTES,
        .network = {.gid_index = -1, .traffic_class = 104, .service_level = 3},
    };
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    memset(&device, 0, sizeof device);
    device.has_inline = device.has_peer_memory = 1;
    context.ops.post_send = post_send;
    context.ops.post_recv = post_recv;
    context.ops.poll_cq = poll_cq;
    context.ops.req_notify_cq = req_notify_cq;
    memset(r, 0, sizeof *r);
    config.base = r->base = event_base_new();
    assert_int_equal(afd_transport_open(&config, &r->transport, address, &error), AFD_OK);
    r->slab = aligned_alloc(4096, SLAB_BYTES);
    assert_int_equal(afd_transport_register(r->transport, r->slab, SLAB_BYTES), AFD_OK);
    r->verbs.port_count = 1;
    r->verbs.turn = 1;
    r->verbs.ports[0] =
        (struct verbs_port){.name = "played:1",
                            .context = &context,
                            .pd = &pd,
                            .cq = &cq,
                            .number = 1,
                            .gid_index = 3,
                            .address = {.gid = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1},
                                        .link_layer = IBV_LINK_LAYER_ETHERNET,
                                        .gid_type = IBV_GID_TYPE_ROCE_V2,
                                        .mtu = IBV_MTU_4096}};
    r->transport->back[AFD_WAY_VERBS] = &r->verbs;
}

static enum afd_status add_memory(struct rank *r, int is_device, int dmabuf_fd, struct afd_error *error)
{
    const struct afd_memory memory = {.base = r->slab,
                                      .bytes = SLAB_BYTES,
                                      .is_device = is_device,
                                      .dmabuf_fd = dmabuf_fd,
                                      .dmabuf_offset = 8192};
    return afd_backend_verbs.add_memory(r->transport, &memory, error);
}

/* A pair whose peer has the same regions. */
static void pair_open(struct rank *r)
{
    struct afd_region regions[REGIONS];
    struct afd_error error;
    uint32_t bytes;
    for (uint32_t i = 0; i < REGIONS; i++)
        regions[i] = (struct afd_region){.base = r->slab + 4096 + i * REGION_BYTES, .bytes = REGION_BYTES};
    r->pair = afd_fuzz_pair_make(r->transport, &afd_backend_verbs, 0, regions, REGIONS);
    r->pair->peer_region_count = REGIONS;
    r->pair->peer_regions = malloc(REGIONS * sizeof *r->pair->peer_regions);
    for (uint32_t i = 0; i < REGIONS; i++) r->pair->peer_regions[i] = REGION_BYTES;
    assert_int_equal(afd_backend_verbs.prepare(r->pair, &error), AFD_OK);
    const void *ours = afd_backend_verbs.address(r->pair, &bytes);
    struct verbs_address *theirs = malloc(bytes);
    memcpy(theirs, ours, bytes);
    theirs->ports[0].mtu = IBV_MTU_1024;
    theirs->ports[0].gid[15] = 2;
    theirs->qpn[0] = 0x1234;
    theirs->psn[0] = 0x4321;
    assert_int_equal(afd_backend_verbs.attach(r->pair, theirs, bytes, &error), AFD_OK);
    free(theirs);
}

static void rank_close(struct rank *r)
{
    if (r->pair) {
        afd_backend_verbs.detach(r->pair);
        afd_fuzz_pair_free(r->pair);
    }
    while (r->verbs.mapping_count) afd_backend_verbs.remove_memory(r->transport, r->slab);
    free(r->verbs.mappings);
    assert_int_equal(device.registered, 0);
    r->transport->back[AFD_WAY_VERBS] = NULL;
    afd_transport_close(r->transport);
    event_base_free(r->base);
    free(r->slab);
}

/* ---- memory */

/* Guards: a GPU's memory registered by address although there is a dma-buf, at another place of the buffer
 * than where it lies, for a peer that then writes elsewhere; a descriptor that is used after its owner closed
 * it, or is never closed. */
static void test_dmabuf(void **state)
{
    struct rank r;
    struct afd_error error;
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    (void)state;
    rank_open(&r);
    device.has_dmabuf = 1;
    assert_int_equal(add_memory(&r, 1, fd, &error), AFD_OK);
    close(fd);
    pair_open(&r);
    assert_int_equal(device.plain_count, 0);
    assert_int_equal(device.dmabuf_count, 2);
    assert_int_equal(device.dmabuf[0].offset, 8192);
    assert_int_equal(device.dmabuf[0].iova, (uintptr_t)r.slab);
    assert_int_equal(device.dmabuf[0].bytes, SLAB_BYTES);
    assert_int_equal(device.dmabuf[0].access, 0); /* nobody writes there: put reads from it */
    int own = device.dmabuf[1].fd;
    assert_int_equal(device.dmabuf[1].offset, 8192 + 4096);
    assert_int_equal(device.dmabuf[1].iova, (uintptr_t)r.slab + 4096);
    assert_int_equal(device.dmabuf[1].bytes, REGIONS * REGION_BYTES);
    assert_int_equal(device.dmabuf[1].access, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    assert_int_not_equal(fcntl(own, F_GETFD), -1);
    rank_close(&r);
    assert_int_equal(fcntl(own, F_GETFD), -1);
}

/* Guards: a driver without dma-buf that could reach the memory by its address, and is not asked to; one that
 * cannot, and of which the words name one attempt alone. */
static void test_peer_memory(void **state)
{
    struct rank r;
    struct afd_error error = {""};
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    (void)state;
    rank_open(&r);
    assert_int_equal(add_memory(&r, 1, fd, &error), AFD_OK);
    assert_int_equal(device.dmabuf_count, 1);
    assert_int_equal(device.plain_count, 1);
    assert_int_equal(device.plain[0].iova, (uintptr_t)r.slab);
    rank_close(&r);

    rank_open(&r);
    device.has_peer_memory = 0;
    assert_int_equal(add_memory(&r, 1, fd, &error), AFD_ERR_REQUEST); /* the transport's other ways may */
    assert_non_null(strstr(error.text, "played:1 cannot register 1024 KiB of device memory"));
    assert_non_null(strstr(error.text, "as dma-buf: Operation not supported; Bad address"));
    assert_non_null(strstr(error.text, "peer memory module"));
    rank_close(&r);
    close(fd);
}

/* ---- queue pairs */

/* Guards: options of the topology that do not reach the device; a path wider than the narrower port; retries
 * that never end (7 on soft-RoCE, and of RNR everywhere), so that a peer that is gone is waited for for ever.
 */
static void test_attributes(void **state)
{
    struct rank r;
    struct afd_error error;
    (void)state;
    rank_open(&r);
    assert_int_equal(add_memory(&r, 0, -1, &error), AFD_OK);
    pair_open(&r);
    assert_int_equal(device.init.qp_type, IBV_QPT_RC);
    assert_int_equal(device.init.sq_sig_all, 0);
    assert_int_equal(device.begin.qp_access_flags, IBV_ACCESS_REMOTE_WRITE);
    assert_int_equal(device.receive.path_mtu, IBV_MTU_1024);
    assert_int_equal(device.receive.dest_qp_num, 0x1234);
    assert_int_equal(device.receive.rq_psn, 0x4321);
    assert_int_equal(device.receive.ah_attr.sl, 3);
    assert_int_equal(device.receive.ah_attr.grh.traffic_class, 104);
    assert_int_equal(device.receive.ah_attr.grh.sgid_index, 3);
    assert_int_equal(device.receive.ah_attr.grh.dgid.raw[15], 2);
    assert_in_range(device.send.timeout, 1, 20);
    assert_in_range(device.send.retry_cnt, 1, 6);
    assert_in_range(device.send.rnr_retry, 1, 6);
    rank_close(&r);
}

static void put(struct rank *r, uint16_t region, uint32_t bytes, uint16_t sequence)
{
    assert_int_equal(afd_backend_verbs.put(r->pair, region, r->slab, bytes, sequence), AFD_OK);
}

/* Guards: small messages that the device has to fetch; large ones, or a GPU's, that the CPU copies, which
 * cannot; a device without inline data that gets no queue pair. */
static void test_inline(void **state)
{
    struct rank r;
    struct afd_error error;
    (void)state;
    for (int way = 0; way < 3; way++) { /* host memory, device memory, a device that cannot */
        rank_open(&r);
        device.has_inline = way != 2;
        assert_int_equal(add_memory(&r, way == 1, -1, &error), AFD_OK);
        pair_open(&r);
        put(&r, 0, VERBS_MAX_INLINE, 1);
        put(&r, 1, VERBS_MAX_INLINE + 1, 1);
        put(&r, 2, 0, 1);
        afd_backend_verbs.progress(r.transport);
        assert_int_equal(device.send_count, 3);
        assert_int_equal(!!(device.sends[0].flags & IBV_SEND_INLINE), way == 0);
        assert_false(device.sends[1].flags & IBV_SEND_INLINE);
        for (int i = 0; i < 3; i++) assert_int_equal(device.sends[i].opcode, IBV_WR_RDMA_WRITE_WITH_IMM);
        assert_int_equal(device.sends[1].to, (uintptr_t)r.slab + 4096 + REGION_BYTES);
        assert_int_equal(device.sends[1].rkey, 17);
        rank_close(&r);
    }
}

/* Guards: a completion for each send, which costs as much again; none at all, which fills the queue for ever;
 * a write to the device for each of many small sends, or one that comes only when the next message does. */
static void test_batches(void **state)
{
    enum { TURNS = 8, SENDS = 12 };
    struct rank r;
    struct afd_error error;
    (void)state;
    rank_open(&r);
    assert_int_equal(add_memory(&r, 0, -1, &error), AFD_OK);
    pair_open(&r);
    for (int turn = 0; turn < TURNS; turn++) {
        for (int i = 0; i < SENDS; i++) put(&r, (uint16_t)(i % REGIONS), 1000, (uint16_t)i);
        assert_int_equal(device.send_count, turn * SENDS + 1); /* the first does not wait */
        if (turn == TURNS - 1)
            assert_int_equal(afd_backend_verbs.arm(r.transport), AFD_OK);
        else
            afd_backend_verbs.progress(r.transport);
        assert_int_equal(device.send_count, (turn + 1) * SENDS);
        assert_int_equal(device.ring_count, 2 * (turn + 1));
    }
    for (uint32_t i = 0; i < device.send_count; i++)
        assert_int_equal(!!(device.sends[i].flags & IBV_SEND_SIGNALED), (i + 1) % VERBS_SIGNAL_EVERY == 0);
    rank_close(&r);
}

/* Guards: a device that takes no more ends another pair, or is not noticed; a closed pair's sends that are
 * rung after it is gone. */
static void test_refused_send(void **state)
{
    struct rank r;
    struct afd_error error;
    (void)state;
    rank_open(&r);
    assert_int_equal(add_memory(&r, 0, -1, &error), AFD_OK);
    pair_open(&r);
    put(&r, 0, 100, 1);
    put(&r, 1, 100, 1);
    device.refuses = 1;
    afd_backend_verbs.progress(r.transport);
    assert_int_equal(r.pair->status, AFD_ERR_PEER);
    assert_non_null(strstr(r.pair->words, "data path verbs: cannot send: Cannot allocate memory"));
    rank_close(&r);

    rank_open(&r);
    assert_int_equal(add_memory(&r, 0, -1, &error), AFD_OK);
    pair_open(&r);
    put(&r, 0, 100, 1);
    put(&r, 1, 100, 1);
    afd_backend_verbs.detach(r.pair);
    afd_backend_verbs.progress(r.transport);
    assert_int_equal(device.send_count, 1);
    rank_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dmabuf),     cmocka_unit_test(test_peer_memory),
        cmocka_unit_test(test_attributes), cmocka_unit_test(test_inline),
        cmocka_unit_test(test_batches),    cmocka_unit_test(test_refused_send),
    };
    return cmocka_run_group_tests_name("verbs, a device that is played", tests, NULL, NULL);
}
