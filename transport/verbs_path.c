/* verbs_path.c: queue pairs, registrations and addresses of a pair.
 *
 * The queue pairs and the registrations of the regions are the pair's own, made by prepare and destroyed by
 * detach: after it the device refuses whatever the peer still sends, because neither its queue pair nor its
 * keys exist any more.
 *
 * Retries end: a peer whose process is gone, or whose receive entries are used up because it was written to
 * against the rules, becomes an error of this pair within seconds. Honest peers never run out of entries
 * (there is one for every message that may be under way), so a rank that is stopped for a while is not an
 * error: its device goes on answering. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/verbs.h"

enum {
    TIMEOUT = 16,       /* 4.096 us * 2^16 = 268 ms without an acknowledgement */
    RETRIES = 6,        /* 7 is "for ever" on soft-RoCE */
    RNR_RETRIES = 6,    /* 7 is "for ever" everywhere */
    MIN_RNR_TIMER = 16, /* 2.56 ms */
    HOP_LIMIT = 64,
    PSN_MASK = 0xffffff,
};

/* ---- prepare */

/* Runs of regions that lie one after the other in one mapping; fills `runs` when it is not NULL. */
static uint32_t find_runs(const struct afd_pair *pair, struct verbs_run *runs)
{
    const struct verbs *verbs = pair->transport->back[AFD_WAY_VERBS];
    const struct verbs_mapping *mapping = NULL;
    const unsigned char *end = NULL;
    uint32_t count = 0;
    for (uint32_t i = 0; i < pair->region_count; i++) {
        const struct afd_region *r = &pair->regions[i];
        const struct verbs_mapping *m = afd_verbs_find_mapping(verbs, r->base, r->bytes);
        if (!count || m != mapping || r->base != end) {
            if (runs) runs[count] = (struct verbs_run){.base = (uintptr_t)r->base};
            count++;
        }
        if (runs) runs[count - 1].count++;
        mapping = m;
        end = (const unsigned char *)r->base + r->bytes;
    }
    return count;
}

static enum afd_status register_runs(struct afd_pair *pair, struct verbs_path *path,
                                     struct afd_error *error_out)
{
    struct verbs *verbs = pair->transport->back[AFD_WAY_VERBS];
    for (uint32_t i = 0, region = 0; i < path->address->run_count; i++) {
        struct verbs_run *run = &path->address->runs[i];
        uint64_t bytes = 0;
        for (uint32_t k = 0; k < run->count; k++) bytes += pair->regions[region++].bytes;
        if (!bytes) continue; /* bare notices need no key */
        void *base = (void *)(uintptr_t)run->base;
        const struct afd_memory *memory = &afd_verbs_find_mapping(verbs, base, bytes)->memory;
        for (uint32_t rail = 0; rail < verbs->port_count; rail++) {
            struct ibv_mr *mr =
                afd_verbs_register(&verbs->ports[rail], memory, base, bytes,
                                   IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, error_out);
            if (!mr) return AFD_ERR_MEMORY;
            path->mrs[i * AFD_MAX_RAILS + rail] = mr;
            run->rkey[rail] = mr->rkey;
        }
    }
    return AFD_OK;
}

int afd_verbs_post_receives(struct verbs_path *path, uint32_t rail, uint32_t count)
{
    struct ibv_recv_wr list[VERBS_REFILL], *bad;
    struct ibv_recv_wr entry = {.wr_id = afd_verbs_wr_id(path, rail, 0)};
    while (count) {
        uint32_t n = count < VERBS_REFILL ? count : VERBS_REFILL;
        for (uint32_t i = 0; i < n; i++) {
            list[i] = entry;
            list[i].next = i + 1 < n ? &list[i + 1] : NULL;
        }
        int error = ibv_post_recv(path->queues[rail].qp, list, &bad);
        if (error) return error;
        count -= n;
    }
    return 0;
}

static struct ibv_qp *create_qp(struct verbs_port *port, uint32_t receive_slots, uint32_t *inline_out)
{
    struct ibv_qp_init_attr init = {
        .send_cq = port->cq,
        .recv_cq = port->cq,
        .cap = {.max_send_wr = VERBS_SEND_SLOTS,
                .max_recv_wr = receive_slots,
                .max_send_sge = 1,
                .max_recv_sge = 1,
                .max_inline_data = VERBS_MAX_INLINE},
        .qp_type = IBV_QPT_RC,
    };
    struct ibv_qp *qp = ibv_create_qp(port->pd, &init);
    if (!qp) { /* a device without inline data */
        init.cap.max_inline_data = 0;
        qp = ibv_create_qp(port->pd, &init);
    }
    *inline_out = init.cap.max_inline_data;
    return qp;
}

static enum afd_status open_queue(struct afd_pair *pair, struct verbs_path *path, uint32_t rail,
                                  struct afd_error *error_out)
{
    struct verbs *verbs = pair->transport->back[AFD_WAY_VERBS];
    struct verbs_port *port = &verbs->ports[rail];
    struct verbs_queue *queue = &path->queues[rail];
    uint32_t entries = VERBS_SEND_SLOTS + path->receive_slots;
    enum afd_status status = afd_verbs_port_reserve(port, entries, error_out);
    if (status) return status;
    queue->qp = create_qp(port, path->receive_slots, &queue->inline_bytes);
    if (!queue->qp) {
        port->cq_used -= entries;
        return afd_fail(error_out, AFD_ERR_MEMORY, "%s: no queue pair with %u receive entries: %s",
                        port->name, path->receive_slots, strerror(errno));
    }
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT,
        .pkey_index = 0,
        .port_num = port->number,
        .qp_access_flags = IBV_ACCESS_REMOTE_WRITE,
    };
    int error =
        ibv_modify_qp(queue->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
    if (!error) error = afd_verbs_post_receives(path, rail, path->receive_slots);
    if (error)
        return afd_fail(error_out, AFD_ERR_IO, "%s: a queue pair cannot be initialized: %s", port->name,
                        strerror(error));
    path->address->qpn[rail] = queue->qp->qp_num;
    path->address->ports[rail] = port->address;
    return AFD_OK;
}

/* One entry for each message that an honest peer can have under way, for the open, for one too many, so that
 * it is read and named, and for those that wait to be posted again together. */
static uint32_t receive_slots(const struct afd_pair *pair)
{
    uint64_t slots = 2 + VERBS_REFILL;
    for (uint32_t i = 0; i < pair->region_count; i++) slots += pair->regions[i].bytes / VERBS_PART_BYTES + 1;
    return slots < UINT32_MAX / 2 ? (uint32_t)slots : UINT32_MAX / 2;
}

enum afd_status afd_verbs_prepare(struct afd_pair *pair, struct afd_error *error_out)
{
    struct verbs *verbs = pair->transport->back[AFD_WAY_VERBS];
    uint32_t runs = find_runs(pair, NULL);
    if (runs > VERBS_MAX_RUNS)
        return afd_fail(error_out, AFD_ERR_REQUEST, "verbs: the regions lie in %u places: at most %d", runs,
                        VERBS_MAX_RUNS);
    struct verbs_path *path = calloc(1, sizeof *path);
    if (!path) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    pair->path[AFD_WAY_VERBS] = path; /* detach takes down what there is */
    path->pair = pair;
    path->serial = ++verbs->serial;
    path->receive_slots = receive_slots(pair);
    path->address_bytes = (uint32_t)(sizeof *path->address + runs * sizeof *path->address->runs);
    path->address = calloc(1, path->address_bytes);
    path->mrs = calloc((runs + 1u) * AFD_MAX_RAILS, sizeof(struct ibv_mr *));
    path->got = calloc(pair->region_count + 1u, sizeof *path->got);
    if (!path->address || !path->mrs || !path->got)
        return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    path->address->version = VERBS_ADDRESS_VERSION;
    path->address->rail_count = verbs->port_count;
    path->address->run_count = find_runs(pair, path->address->runs);
    afd_random_bytes(path->address->psn, sizeof path->address->psn);
    enum afd_status status = register_runs(pair, path, error_out);
    for (uint32_t rail = 0; rail < verbs->port_count && !status; rail++) {
        path->address->psn[rail] &= PSN_MASK;
        status = open_queue(pair, path, rail, error_out);
    }
    return status;
}

const void *afd_verbs_address(const struct afd_pair *pair, uint32_t *bytes_out)
{
    const struct verbs_path *path = pair->path[AFD_WAY_VERBS];
    *bytes_out = path->address_bytes;
    return path->address;
}

/* ---- the peer's address: bytes from outside */

static const struct verbs_address *read_address(const void *bytes, uint32_t count)
{
    const struct verbs_address *a = bytes; /* from malloc or a protobuf's buffer: aligned */
    if (count < sizeof *a || a->version != VERBS_ADDRESS_VERSION) return NULL;
    if (a->rail_count < 1 || a->rail_count > AFD_MAX_RAILS || a->run_count > VERBS_MAX_RUNS) return NULL;
    return count == sizeof *a + a->run_count * sizeof *a->runs ? a : NULL;
}

static int ports_fit(const struct verbs_port_address *a, const struct verbs_port_address *b)
{
    return a->link_layer == b->link_layer && !strcmp(afd_verbs_port_kind(a), afd_verbs_port_kind(b));
}

/* How many rails the two sides can use: from the first on, as both see it. */
static uint32_t common_rails(const struct verbs *verbs, const struct verbs_address *other)
{
    uint32_t n = 0;
    while (n < verbs->port_count && n < other->rail_count &&
           ports_fit(&verbs->ports[n].address, &other->ports[n]))
        n++;
    return n;
}

int afd_verbs_reaches(struct afd_transport *t, const void *address, uint32_t bytes, char why_out[96])
{
    const struct verbs *verbs = t->back[AFD_WAY_VERBS];
    const struct verbs_address *other = read_address(address, bytes);
    uint32_t rails = other ? common_rails(verbs, other) : 0;
    const char *ours = afd_verbs_port_kind(&verbs->ports[0].address);
    if (!other)
        snprintf(why_out, 96, "a malformed address");
    else if (!rails)
        snprintf(why_out, 96, "%s here, %s there", ours, afd_verbs_port_kind(&other->ports[0]));
    else if (rails == 1)
        snprintf(why_out, 96, "%s, %s", ours, verbs->ports[0].name);
    else
        snprintf(why_out, 96, "%s, %.30s, %.30s", ours, verbs->ports[0].name, verbs->ports[1].name);
    return rails > 0;
}

static enum afd_status read_targets(const struct afd_pair *pair, struct verbs_path *path,
                                    const struct verbs_address *other, struct afd_error *error_out)
{
    uint32_t region = 0;
    path->targets = calloc(pair->peer_region_count + 1u, sizeof *path->targets);
    if (!path->targets) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    for (uint32_t i = 0; i < other->run_count; i++) {
        const struct verbs_run *run = &other->runs[i];
        uint64_t base = run->base;
        if (run->count > pair->peer_region_count - region) goto malformed;
        for (uint32_t k = 0; k < run->count; k++, region++) {
            struct verbs_target *target = &path->targets[region];
            target->base = base;
            memcpy(target->rkey, run->rkey, sizeof target->rkey);
            base += pair->peer_regions[region];
        }
    }
    if (region == pair->peer_region_count) return AFD_OK;
malformed:
    return afd_fail(error_out, AFD_ERR_PROTOCOL, "a verbs address of other regions than the hello's %u",
                    pair->peer_region_count);
}

/* ---- connect */

static struct ibv_ah_attr route_to(const struct afd_transport *t, const struct verbs_port *port,
                                   const struct verbs_port_address *other)
{
    const struct afd_network_options *options = &t->config.network;
    struct ibv_ah_attr route = {
        .dlid = other->lid,
        .sl = (uint8_t)options->service_level,
        .port_num = port->number,
        .grh = {.sgid_index = (uint8_t)port->gid_index,
                .hop_limit = HOP_LIMIT,
                .traffic_class = (uint8_t)options->traffic_class},
    };
    int is_other_subnet = memcmp(port->address.gid, other->gid, 8) != 0;
    route.is_global = port->address.link_layer == IBV_LINK_LAYER_ETHERNET || is_other_subnet;
    memcpy(route.grh.dgid.raw, other->gid, sizeof other->gid);
    return route;
}

static int make_ready(const struct afd_transport *t, const struct verbs_port *port, struct ibv_qp *qp,
                      const struct verbs_address *ours, const struct verbs_address *other, uint32_t rail)
{
    const struct verbs_port_address *to = &other->ports[rail];
    struct ibv_qp_attr receive = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = (enum ibv_mtu)(to->mtu < port->address.mtu ? to->mtu : port->address.mtu),
        .dest_qp_num = other->qpn[rail],
        .rq_psn = other->psn[rail],
        .max_dest_rd_atomic = 1,
        .min_rnr_timer = MIN_RNR_TIMER,
        .ah_attr = route_to(t, port, to),
    };
    struct ibv_qp_attr send = {
        .qp_state = IBV_QPS_RTS,
        .timeout = TIMEOUT,
        .retry_cnt = RETRIES,
        .rnr_retry = RNR_RETRIES,
        .sq_psn = ours->psn[rail],
        .max_rd_atomic = 1,
    };
    int error = ibv_modify_qp(qp, &receive,
                              IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                  IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    if (error) return error;
    return ibv_modify_qp(qp, &send,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                             IBV_QP_MAX_QP_RD_ATOMIC);
}

enum afd_status afd_verbs_connect(struct afd_pair *pair, const void *address, uint32_t bytes,
                                  struct afd_error *error_out)
{
    const struct afd_transport *t = pair->transport;
    const struct verbs *verbs = t->back[AFD_WAY_VERBS];
    struct verbs_path *path = pair->path[AFD_WAY_VERBS];
    const struct verbs_address *other = read_address(address, bytes);
    if (!other) return afd_fail(error_out, AFD_ERR_PROTOCOL, "a malformed verbs address of %u bytes", bytes);
    uint32_t rails = common_rails(verbs, other);
    if (!rails)
        return afd_fail(error_out, AFD_ERR_PROTOCOL, "verbs: %s here, %s there",
                        afd_verbs_port_kind(&verbs->ports[0].address), afd_verbs_port_kind(&other->ports[0]));
    enum afd_status status = read_targets(pair, path, other, error_out);
    for (uint32_t rail = 0; rail < rails && !status; rail++) {
        if (other->ports[rail].mtu < IBV_MTU_256 || other->ports[rail].mtu > IBV_MTU_4096 ||
            other->qpn[rail] > PSN_MASK || other->psn[rail] > PSN_MASK)
            return afd_fail(error_out, AFD_ERR_PROTOCOL, "a verbs address with queue pair %#x, MTU code %u",
                            other->qpn[rail], other->ports[rail].mtu);
        int error = make_ready(t, &verbs->ports[rail], path->queues[rail].qp, path->address, other, rail);
        if (error)
            status = afd_fail(error_out, AFD_ERR_PEER, "verbs: %s has no way to the other side's port: %s",
                              verbs->ports[rail].name, strerror(error));
    }
    path->rail_count = rails;
    return status;
}

/* ---- detach */

void afd_verbs_detach(struct afd_pair *pair)
{
    struct verbs *verbs = pair->transport->back[AFD_WAY_VERBS];
    struct verbs_path *path = pair->path[AFD_WAY_VERBS];
    if (!path) return;
    pair->path[AFD_WAY_VERBS] = NULL;
    struct verbs_path **at = &verbs->waiting;
    while (*at && *at != path) at = &(*at)->next_waiting;
    if (*at) *at = path->next_waiting;
    for (uint32_t rail = 0; rail < verbs->port_count; rail++) {
        if (!path->queues[rail].qp) continue;
        ibv_destroy_qp(path->queues[rail].qp);
        verbs->ports[rail].cq_retired += VERBS_SEND_SLOTS + path->receive_slots;
    }
    uint32_t mrs = path->mrs && path->address ? path->address->run_count * AFD_MAX_RAILS : 0;
    for (uint32_t i = 0; i < mrs; i++)
        if (path->mrs[i]) ibv_dereg_mr(path->mrs[i]);
    free(path->mrs);
    free(path->address);
    free(path->got);
    free(path->targets);
    free(path);
}
