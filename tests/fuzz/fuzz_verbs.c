/* Guards: a peer whose verbs address (ports, queue pairs, runs of regions and their keys) or whose messages
 * (the notice and its byte count) make us read past the address, set up a queue pair with what no device has,
 * write elsewhere than the address says, or report a message that does not fit its region. The device is
 * played here: no driver is asked.
 *
 *   | struct input | address_bytes of a verbs_address | messages, struct message each */
#include <arpa/inet.h>
#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/pair.h"
#include "transport/verbs.h"

enum {
    SLAB_BYTES = 48 << 20,
    SOURCE_BYTES = 20 << 20,
    REGIONS = 3,
    PEER_REGIONS = 4,
    NUMBER_MASK = 0xffffff
};

struct input {
    uint64_t peer_regions[PEER_REGIONS]; /* bytes, from the hello */
    uint16_t address_bytes;
    uint8_t peer_region_count, is_acceptor;
    uint32_t unused;
};

struct message {
    uint32_t notice, bytes;
    uint8_t rail, status, opcode, unused;
};

struct ibv_qp *__wrap_ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *init);
int __wrap_ibv_destroy_qp(struct ibv_qp *qp);
int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
struct ibv_mr *__wrap_ibv_reg_mr(struct ibv_pd *pd, void *base, size_t bytes, int access);
struct ibv_mr *__wrap_ibv_reg_mr_iova2(struct ibv_pd *pd, void *base, size_t bytes, uint64_t iova,
                                       unsigned access);
int __wrap_ibv_dereg_mr(struct ibv_mr *mr);

static struct afd_transport *transport;
static struct afd_pair *live;
static unsigned char *slab;
static int was_taken;

/* What the input says, for the device to compare with. */
static const struct verbs_address *stated;
static uint64_t stated_regions[PEER_REGIONS];
static uint32_t write_count;

/* ---- the device */

static struct ibv_context context;
static struct ibv_pd pd;
static struct ibv_cq cqs[AFD_MAX_RAILS];
static struct verbs_port ports[AFD_MAX_RAILS];
static const uint8_t *arriving; /* messages that poll_cq hands out */
static uint32_t arriving_count;

struct ibv_qp *__wrap_ibv_create_qp(struct ibv_pd *of, struct ibv_qp_init_attr *init)
{
    static uint32_t number;
    struct ibv_qp *qp = calloc(1, sizeof *qp);
    if (!qp) abort();
    qp->context = &context;
    qp->pd = of;
    qp->send_cq = init->send_cq;
    qp->qp_num = ++number & NUMBER_MASK;
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
    if (mask & IBV_QP_PATH_MTU) assert(attr->path_mtu >= IBV_MTU_256 && attr->path_mtu <= IBV_MTU_4096);
    if (mask & IBV_QP_DEST_QPN) assert(attr->dest_qp_num <= NUMBER_MASK);
    if (mask & IBV_QP_RQ_PSN) assert(attr->rq_psn <= NUMBER_MASK);
    if (mask & IBV_QP_AV) assert(attr->ah_attr.port_num == 1 && attr->ah_attr.is_global);
    return 0;
}

struct ibv_mr *__wrap_ibv_reg_mr(struct ibv_pd *of, void *base, size_t bytes, int access)
{
    struct ibv_mr *mr = calloc(1, sizeof *mr);
    (void)access;
    if (!mr) abort();
    *mr = (struct ibv_mr){.context = &context, .pd = of, .addr = base, .length = bytes, .rkey = 17};
    return mr;
}

struct ibv_mr *__wrap_ibv_reg_mr_iova2(struct ibv_pd *of, void *base, size_t bytes, uint64_t iova,
                                       unsigned access)
{
    assert(iova == (uintptr_t)base);
    return __wrap_ibv_reg_mr(of, base, bytes, (int)access);
}

int __wrap_ibv_dereg_mr(struct ibv_mr *mr)
{
    free(mr);
    return 0;
}

/* Where the address says that a region lies. */
static void find_stated(uint32_t region, uint64_t *base_out, const struct verbs_run **run_out)
{
    uint32_t first = 0;
    for (uint32_t i = 0; i < stated->run_count; first += stated->runs[i++].count) {
        const struct verbs_run *run = &stated->runs[i];
        if (region - first >= run->count) continue;
        *run_out = run;
        *base_out = run->base;
        for (uint32_t k = first; k < region; k++) *base_out += stated_regions[k];
        return;
    }
    assert(!"a write to a region that the address does not have");
}

static void take_write(const struct ibv_qp *qp, const struct ibv_send_wr *wr)
{
    uint32_t notice = ntohl(wr->imm_data), rail = qp->send_cq == &cqs[1];
    const struct verbs_run *run;
    uint64_t base, part = write_count * (uint64_t)VERBS_PART_BYTES;
    assert(wr->opcode == IBV_WR_RDMA_WRITE_WITH_IMM);
    if (!wr->num_sge) return; /* a notice alone: the device writes nothing */
    const unsigned char *from = (const unsigned char *)(uintptr_t)wr->sg_list[0].addr;
    uint32_t region = notice >> 16, bytes = wr->sg_list[0].length;
    assert(region < PEER_REGIONS && rail < stated->rail_count);
    find_stated(region, &base, &run);
    assert(from >= slab && from + bytes <= slab + SLAB_BYTES);
    assert(wr->wr.rdma.rkey == run->rkey[rail] && wr->wr.rdma.remote_addr == base + part);
    assert(part + bytes <= stated_regions[region]);
    write_count++;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    (void)bad;
    for (; wr; wr = wr->next) take_write(qp, wr);
    return 0;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    (void)qp, (void)wr, (void)bad;
    return 0;
}

static int poll_cq(struct ibv_cq *cq, int limit, struct ibv_wc *out)
{
    const struct verbs_path *path = live->path[AFD_WAY_VERBS];
    uint32_t rail = cq == &cqs[1];
    struct message m;
    if (!arriving_count || limit < 1) return 0;
    memcpy(&m, arriving, sizeof m);
    if (m.rail % 2 != rail) return 0;
    arriving += sizeof m;
    arriving_count--;
    *out = (struct ibv_wc){
        .wr_id = afd_verbs_wr_id(path, rail, 0),
        .status = m.status ? IBV_WC_WR_FLUSH_ERR : IBV_WC_SUCCESS,
        .opcode = m.opcode ? IBV_WC_RECV : IBV_WC_RECV_RDMA_WITH_IMM,
        .imm_data = htonl(m.notice),
        .byte_len = m.bytes,
    };
    return 1;
}

/* ---- a transport with two ports of it, and a pair */

static void open_transport(void)
{
    static struct verbs_mapping mapping;
    static struct ibv_mr mr = {.lkey = 5};
    static struct verbs verbs;
    struct afd_transport_config config = {.kind = AFD_DATA_LOOP,
                                          .host = "127.0.0.1",
                                          .connect_timeout_ms = 60000,
                                          .max_message_bytes = SOURCE_BYTES};
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    afd_log_init("fuzz", AFD_LOG_ERROR);
    config.base = event_base_new();
    config.self = (struct afd_identity){AFD_ROLE_FFN, 3, 77};
    slab = mmap(NULL, SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!config.base || slab == MAP_FAILED || afd_transport_open(&config, &transport, address, &error) ||
        afd_transport_register(transport, slab, SLAB_BYTES))
        abort();
    context.ops.post_send = post_send;
    context.ops.post_recv = post_recv;
    context.ops.poll_cq = poll_cq;
    mapping.memory = (struct afd_memory){.base = slab, .bytes = SLAB_BYTES, .dmabuf_fd = -1};
    for (uint32_t i = 0; i < AFD_MAX_RAILS; i++) {
        cqs[i] = (struct ibv_cq){.context = &context, .cqe = INT_MAX};
        ports[i] =
            (struct verbs_port){.name = "played",
                                .context = &context,
                                .pd = &pd,
                                .cq = &cqs[i],
                                .number = 1,
                                .address = {.gid = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = (uint8_t)i},
                                            .link_layer = IBV_LINK_LAYER_ETHERNET,
                                            .gid_type = IBV_GID_TYPE_ROCE_V2,
                                            .mtu = IBV_MTU_4096}};
        mapping.mr[i] = &mr;
    }
    verbs = (struct verbs){.port_count = AFD_MAX_RAILS, .mappings = &mapping, .mapping_count = 1};
    transport->back[AFD_WAY_VERBS] = &verbs;
    transport->pairs = &live;
    transport->pair_limit = 1;
}

static struct afd_pair *open_pair(int is_connector)
{
    const struct afd_region regions[REGIONS] = {
        {.base = slab, .bytes = 100}, {.base = slab + 100}, {.base = slab + SOURCE_BYTES, .bytes = 9 << 20}};
    struct verbs *verbs = transport->back[AFD_WAY_VERBS];
    struct afd_error error;
    struct afd_pair *pair = afd_fuzz_pair_make(transport, &afd_backend_verbs, is_connector, regions, REGIONS);
    memcpy(verbs->ports, ports, sizeof ports);
    live = pair;
    if (afd_backend_verbs.prepare(pair, &error)) abort();
    return pair;
}

static void close_pair(struct afd_pair *pair)
{
    afd_backend_verbs.detach(pair);
    afd_fuzz_pair_free(pair);
    live = NULL;
}

/* ---- what the peer says, and what we do then */

static enum afd_status attach(struct afd_pair *pair, const void *address, uint32_t bytes)
{
    struct afd_error error = {""};
    char why[96] = "";
    int reaches = afd_backend_verbs.reaches(transport, address, bytes, why);
    assert(*why && memchr(why, 0, sizeof why));
    enum afd_status status = afd_backend_verbs.attach(pair, address, bytes, &error);
    assert(reaches || status);
    assert(!status || (*error.text && memchr(error.text, 0, sizeof error.text)));
    return status;
}

static void write_to_peer(struct afd_pair *pair)
{
    for (uint32_t r = 0; r < pair->peer_region_count; r++) {
        uint64_t bytes = pair->peer_regions[r] < SOURCE_BYTES ? pair->peer_regions[r] : SOURCE_BYTES;
        write_count = 0;
        enum afd_status status = afd_pair_put(pair, (uint16_t)r, slab, (uint32_t)bytes, 7);
        afd_backend_verbs.progress(transport); /* what was chained goes */
        assert(!status && write_count == (bytes + VERBS_PART_BYTES - 1) / VERBS_PART_BYTES);
    }
}

static void take_messages(struct afd_pair *pair, const uint8_t *messages, size_t count)
{
    arriving = messages;
    arriving_count = (uint32_t)count;
    while (arriving_count) {
        afd_backend_verbs.progress(transport);
        afd_fuzz_take_notices(pair);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input in;
    was_taken = 0;
    if (!transport) open_transport();
    if (bytes < sizeof in) return 0;
    memcpy(&in, data, sizeof in);
    data += sizeof in;
    bytes -= sizeof in;
    if (in.address_bytes > bytes) in.address_bytes = (uint16_t)bytes;
    struct afd_pair *pair = open_pair(!in.is_acceptor);
    pair->peer_region_count = in.peer_region_count % (PEER_REGIONS + 1u);
    pair->peer_regions = calloc(PEER_REGIONS, sizeof *pair->peer_regions);
    void *address = malloc(in.address_bytes + !in.address_bytes); /* aligned, as the hello's is */
    if (!pair->peer_regions || !address) abort();
    memcpy(pair->peer_regions, in.peer_regions, sizeof in.peer_regions);
    memcpy(stated_regions, in.peer_regions, sizeof in.peer_regions);
    memcpy(address, data, in.address_bytes);
    stated = address;
    enum afd_status status = attach(pair, address, in.address_bytes);
    if (!status) write_to_peer(pair);
    if (!status)
        take_messages(pair, data + in.address_bytes, (bytes - in.address_bytes) / sizeof(struct message));
    was_taken = !status && pair->peer.state == AFD_PEER_OPEN;
    close_pair(pair);
    free(address);
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    static const struct message messages[] = {
        {.notice = VERBS_OPEN_NOTICE},
        {.notice = VERBS_OPEN_NOTICE, .rail = 1},
        {.notice = 5, .bytes = 100},
        {.notice = 1 << 16, .rail = 1},
        {.notice = 2 << 16 | 9, .bytes = VERBS_PART_BYTES},
        {.notice = 2 << 16 | 9, .bytes = 1 << 20},
    };
    struct input in = {.peer_regions = {100, 4096, 0, 18 << 20}, .peer_region_count = PEER_REGIONS};
    uint32_t bytes = sizeof(struct verbs_address) + 2 * sizeof(struct verbs_run);
    struct verbs_address *address = calloc(1, bytes);
    uint8_t *data = malloc(sizeof in + bytes + sizeof messages);
    if (!transport) open_transport();
    if (!address || !data) abort();
    *address = (struct verbs_address){.version = VERBS_ADDRESS_VERSION,
                                      .rail_count = AFD_MAX_RAILS,
                                      .run_count = 2,
                                      .qpn = {11, 12},
                                      .psn = {100, NUMBER_MASK},
                                      .ports = {ports[0].address, ports[1].address}};
    address->runs[0] = (struct verbs_run){.base = 0x7f0000001000, .count = 2, .rkey = {21, 22}};
    address->runs[1] = (struct verbs_run){.base = 0x7f0000800000, .count = 2, .rkey = {31, 32}};
    in.address_bytes = (uint16_t)bytes;
    memcpy(data, &in, sizeof in);
    memcpy(data + sizeof in, address, bytes);
    memcpy(data + sizeof in + bytes, messages, sizeof messages);
    free(address);
    *bytes_out = sizeof in + bytes + sizeof messages;
    return data;
}
