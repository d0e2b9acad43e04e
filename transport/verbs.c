/* verbs.c: pairs over RDMA through libibverbs: InfiniBand and RoCE.
 *
 * A put is one RDMA_WRITE_WITH_IMM: data and notice are one operation, and the receiver's completion comes
 * after all of the data is visible. The immediate is region << 16 | sequence, the completion's byte count is
 * the message's size. Receive entries have no buffers: they only carry notices.
 *
 * The addresses of the queue pairs and the keys of the regions travel in the hello, over the connection that
 * is authenticated; no connection manager is needed. The connector speaks first, with a write of no bytes and
 * the open notice on each rail: by the time it may, the acceptor's queue pairs are ready. The acceptor
 * answers with the same, so nothing is sent to a queue pair that does not listen yet.
 *
 * Sleep: one completion channel a rail. A queue that was armed gives one event; `is_armed` stays until that
 * event was read. */
#include "transport/verbs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

enum { POLL_BATCH = 32, POLL_LIMIT = 256 };

/* ---- open and close */

static enum afd_status verbs_open(struct afd_transport *t, struct afd_error *error_out)
{
    struct verbs *verbs = calloc(1, sizeof *verbs);
    if (!verbs) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    enum afd_status status = afd_verbs_ports_open(t, verbs, error_out);
    /* A put waits until all of its parts fit beside what is in the send queue and not signaled yet. */
    uint64_t limit = (uint64_t)(VERBS_SEND_SLOTS - VERBS_SIGNAL_EVERY) * VERBS_PART_BYTES;
    if (!status && t->config.max_message_bytes >= limit)
        status = afd_fail(error_out, AFD_ERR_REFUSED, "messages of %llu bytes: less than %llu",
                          (unsigned long long)t->config.max_message_bytes, (unsigned long long)limit);
    if (!status) {
        verbs->turn = 1; /* in which no queue was rung */
        t->back[AFD_WAY_VERBS] = verbs;
        return AFD_OK;
    }
    afd_verbs_ports_close(t, verbs);
    free(verbs);
    return status;
}

static void verbs_close(struct afd_transport *t)
{
    struct verbs *verbs = t->back[AFD_WAY_VERBS];
    afd_verbs_ports_close(t, verbs);
    free(verbs->mappings);
    free(verbs);
    t->back[AFD_WAY_VERBS] = NULL;
}

/* ---- memory */

const struct verbs_mapping *afd_verbs_find_mapping(const struct verbs *verbs, const void *base,
                                                   uint64_t bytes)
{
    const unsigned char *at = base;
    for (uint32_t i = 0; i < verbs->mapping_count; i++) {
        const struct afd_memory *m = &verbs->mappings[i].memory;
        if (at >= m->base && (uint64_t)(at - m->base) <= m->bytes &&
            bytes <= m->bytes - (uint64_t)(at - m->base))
            return &verbs->mappings[i];
    }
    return NULL;
}

struct ibv_mr *afd_verbs_register(struct verbs_port *port, const struct afd_memory *memory, void *base,
                                  uint64_t bytes, int access, struct afd_error *error_out)
{
    uint64_t offset = (uint64_t)((unsigned char *)base - memory->base);
    char dmabuf[80] = "";
    if (memory->dmabuf_fd >= 0) {
        struct ibv_mr *mr = ibv_reg_dmabuf_mr(port->pd, memory->dmabuf_offset + offset, bytes,
                                              (uintptr_t)base, memory->dmabuf_fd, access);
        if (mr) return mr;
        snprintf(dmabuf, sizeof dmabuf, " as dma-buf: %s;", strerror(errno));
    }
    struct ibv_mr *mr = ibv_reg_mr(port->pd, base, bytes, access);
    if (mr) return mr;
    const char *hint = memory->is_device ? " (is the GPU's peer memory module loaded?)"
                       : errno == ENOMEM ? " (is the limit on locked memory, ulimit -l, large enough?)"
                                         : "";
    afd_fail(error_out, AFD_ERR_MEMORY, "%s cannot register %llu KiB%s:%s %s%s", port->name,
             (unsigned long long)bytes >> 10, memory->is_device ? " of device memory" : "", dmabuf,
             strerror(errno), hint);
    return NULL;
}

static void mapping_fini(struct verbs_mapping *mapping)
{
    for (uint32_t rail = 0; rail < AFD_MAX_RAILS; rail++)
        if (mapping->mr[rail]) ibv_dereg_mr(mapping->mr[rail]);
    if (mapping->memory.dmabuf_fd >= 0) close(mapping->memory.dmabuf_fd);
}

static enum afd_status verbs_add_memory(struct afd_transport *t, const struct afd_memory *memory,
                                        struct afd_error *error_out)
{
    struct verbs *verbs = t->back[AFD_WAY_VERBS];
    struct verbs_mapping added = {.memory = *memory};
    struct verbs_mapping *mappings = realloc(verbs->mappings, (verbs->mapping_count + 1) * sizeof *mappings);
    if (!mappings) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    verbs->mappings = mappings;
    if (memory->dmabuf_fd >= 0) {
        added.memory.dmabuf_fd = dup(memory->dmabuf_fd); /* the regions in it are registered pair by pair */
        if (added.memory.dmabuf_fd < 0) return afd_fail(error_out, AFD_ERR_IO, "out of descriptors");
    }
    for (uint32_t rail = 0; rail < verbs->port_count; rail++) {
        added.mr[rail] =
            afd_verbs_register(&verbs->ports[rail], &added.memory, memory->base, memory->bytes, 0, error_out);
        if (added.mr[rail]) continue;
        mapping_fini(&added);
        return memory->is_device ? AFD_ERR_REQUEST : AFD_ERR_MEMORY;
    }
    mappings[verbs->mapping_count++] = added;
    return AFD_OK;
}

static void verbs_remove_memory(struct afd_transport *t, void *base)
{
    struct verbs *verbs = t->back[AFD_WAY_VERBS];
    for (uint32_t i = 0; i < verbs->mapping_count; i++)
        if (verbs->mappings[i].memory.base == (unsigned char *)base) {
            mapping_fini(&verbs->mappings[i]);
            verbs->mappings[i] = verbs->mappings[--verbs->mapping_count];
            return;
        }
}

/* ---- sending */

struct part {
    const void *from;
    uint32_t bytes, lkey, rkey, notice;
    uint64_t to;
    int may_inline;
};

/* Tells the device of a queue's chain. */
static enum afd_status ring(struct verbs_path *path, uint32_t rail)
{
    struct verbs_queue *queue = &path->queues[rail];
    const struct verbs *verbs = path->pair->transport->back[AFD_WAY_VERBS];
    struct ibv_send_wr *bad;
    if (!queue->chained) return AFD_OK;
    queue->chain[queue->chained - 1].next = NULL;
    queue->chained = queue->chained_bytes = 0;
    queue->turn = verbs->turn;
    int error = ibv_post_send(queue->qp, queue->chain, &bad);
    if (!error) return AFD_OK;
    afd_pair_fail(path->pair, AFD_ERR_PEER, "data path verbs: cannot send: %s", strerror(error));
    return AFD_ERR_PEER;
}

/* Ends a turn. */
static void ring_all(struct verbs *verbs)
{
    for (struct verbs_path *path; (path = verbs->waiting);) {
        verbs->waiting = path->next_waiting;
        path->is_waiting = 0;
        for (uint32_t rail = 0; rail < path->rail_count; rail++) ring(path, rail);
    }
    verbs->turn++;
}

static enum afd_status post(struct verbs_path *path, uint32_t rail, const struct part *part)
{
    struct verbs *verbs = path->pair->transport->back[AFD_WAY_VERBS];
    struct verbs_queue *queue = &path->queues[rail];
    uint32_t i = queue->chained++;
    queue->chain_data[i] = (struct ibv_sge){(uintptr_t)part->from, part->bytes, part->lkey};
    queue->chain[i] = (struct ibv_send_wr){
        .wr_id = afd_verbs_wr_id(path, rail, 1),
        .next = &queue->chain[i + 1],
        .sg_list = &queue->chain_data[i],
        .num_sge = part->bytes ? 1 : 0,
        .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
        .imm_data = htonl(part->notice),
        .wr.rdma = {part->to, part->rkey},
    };
    if (part->bytes && part->bytes <= queue->inline_bytes && part->may_inline)
        queue->chain[i].send_flags |= IBV_SEND_INLINE;
    if (++queue->posted % VERBS_SIGNAL_EVERY == 0) queue->chain[i].send_flags |= IBV_SEND_SIGNALED;
    queue->chained_bytes += part->bytes;
    int may_wait = queue->turn == verbs->turn && queue->chained < VERBS_CHAIN &&
                   queue->chained_bytes < VERBS_CHAIN_BYTES;
    if (!may_wait) return ring(path, rail);
    if (!path->is_waiting) {
        path->is_waiting = 1;
        path->next_waiting = verbs->waiting;
        verbs->waiting = path;
    }
    return AFD_OK;
}

static enum afd_status verbs_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                                 uint16_t sequence)
{
    const struct verbs *verbs = pair->transport->back[AFD_WAY_VERBS];
    struct verbs_path *path = pair->path[AFD_WAY_VERBS];
    uint32_t rail = region % path->rail_count;
    const struct verbs_queue *queue = &path->queues[rail];
    const struct verbs_target *target = &path->targets[region];
    struct part part = {.from = from,
                        .rkey = target->rkey[rail],
                        .notice = (uint32_t)region << 16 | sequence,
                        .to = target->base};
    if (queue->posted - queue->done + bytes / VERBS_PART_BYTES + 1 > VERBS_SEND_SLOTS) return AFD_AGAIN;
    if (bytes) {
        const struct verbs_mapping *mapping = afd_verbs_find_mapping(verbs, from, bytes);
        if (!mapping) return AFD_ERR_REQUEST;
        part.lkey = mapping->mr[rail]->lkey;
        part.may_inline = !mapping->memory.is_device;
    }
    for (;;) {
        part.bytes = bytes < VERBS_PART_BYTES ? bytes : VERBS_PART_BYTES;
        enum afd_status status = post(path, rail, &part);
        if (status || part.bytes < VERBS_PART_BYTES) return status;
        bytes -= part.bytes;
        part.from = (const unsigned char *)part.from + part.bytes;
        part.to += part.bytes;
    }
}

static enum afd_status send_opens(struct verbs_path *path)
{
    const struct part open = {.notice = VERBS_OPEN_NOTICE};
    enum afd_status status = AFD_OK;
    for (uint32_t rail = 0; rail < path->rail_count && !status; rail++) {
        status = post(path, rail, &open);
        if (!status) status = ring(path, rail);
    }
    return status;
}

static enum afd_status verbs_attach(struct afd_pair *pair, const void *address, uint32_t bytes,
                                    struct afd_error *error_out)
{
    enum afd_status status = afd_verbs_connect(pair, address, bytes, error_out);
    if (status || !pair->peer.is_connector) return status;
    status = send_opens(pair->path[AFD_WAY_VERBS]);
    return status ? afd_fail(error_out, status, "verbs: cannot send the first message") : AFD_OK;
}

/* ---- completions */

static void heard_open(struct verbs_path *path, uint32_t rail)
{
    path->queues[rail].is_heard = 1;
    for (uint32_t i = 0; i < path->rail_count; i++)
        if (!path->queues[i].is_heard) return;
    if (!path->pair->peer.is_connector && send_opens(path)) return;
    afd_pair_path_works(path->pair);
}

static void received(struct verbs_path *path, uint32_t rail, uint32_t notice, uint32_t bytes)
{
    struct afd_pair *pair = path->pair;
    uint32_t region = notice >> 16;
    if (notice == VERBS_OPEN_NOTICE) {
        if (!path->queues[rail].is_heard) heard_open(path, rail);
        return;
    }
    if (!afd_pair_path_works(pair)) return;
    uint64_t offset = region < pair->region_count ? path->got[region] : 0;
    if (!afd_pair_check(pair, region, offset, bytes, offset + bytes)) return;
    if (bytes == VERBS_PART_BYTES) {
        path->got[region] += bytes;
        return;
    }
    path->got[region] = 0;
    afd_pair_notice(pair, (uint16_t)region, (uint16_t)notice, (uint32_t)(offset + bytes));
}

static const char *reason(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_RETRY_EXC_ERR:
        return "the other side's device does not answer";
    case IBV_WC_RNR_RETRY_EXC_ERR:
        return "the other side was written to before it answered";
    case IBV_WC_REM_ACCESS_ERR:
        return "the other side's device refused a write";
    default:
        return "the queue pair failed";
    }
}

/* The first failed completion of a queue pair names the cause; the others are its flush. Receive entries are
 * flushed without a cause of ours when this device refused what the peer sent. */
static void failed(struct verbs_path *path, const struct verbs_port *port, const struct ibv_wc *wc,
                   int is_send)
{
    if (path->is_failed) return;
    path->is_failed = 1;
    if (is_send)
        afd_pair_fail(path->pair, AFD_ERR_PEER, "data path verbs, %s: %s (%s, vendor error %#x)", port->name,
                      reason(wc->status), ibv_wc_status_str(wc->status), wc->vendor_err);
    else
        afd_pair_fail(path->pair, AFD_ERR_PROTOCOL,
                      "data path verbs, %s: the device refused a message of the peer: not to its regions, or "
                      "against the rules of a queue pair (%s, vendor error %#x)",
                      port->name, ibv_wc_status_str(wc->status), wc->vendor_err);
}

static void completed(struct afd_transport *t, const struct verbs_port *port, const struct ibv_wc *wc)
{
    uint32_t index = wc->wr_id & 0xffff, rail = wc->wr_id >> 16 & 1, is_send = wc->wr_id >> 17 & 1;
    struct afd_pair *pair = index < t->pair_limit ? t->pairs[index] : NULL;
    struct verbs_path *path = pair ? pair->path[AFD_WAY_VERBS] : NULL;
    if (!path || path->serial != wc->wr_id >> 32) return; /* of a pair that was detached */
    struct verbs_queue *queue = &path->queues[rail];
    if (wc->status != IBV_WC_SUCCESS) {
        failed(path, port, wc, (int)is_send);
    } else if (is_send) {
        queue->done += VERBS_SIGNAL_EVERY;
    } else if (wc->opcode != IBV_WC_RECV_RDMA_WITH_IMM) {
        afd_pair_fail(pair, AFD_ERR_PROTOCOL, "data path verbs: a message without a notice");
    } else {
        if (++queue->owed == VERBS_REFILL) {
            queue->owed = 0;
            int error = afd_verbs_post_receives(path, rail, VERBS_REFILL);
            if (error) {
                afd_pair_fail(pair, AFD_ERR_IO, "data path verbs: cannot receive: %s", strerror(error));
                return;
            }
        }
        received(path, rail, ntohl(wc->imm_data), wc->byte_len);
    }
}

static void fail_all(struct afd_transport *t, const char *why)
{
    for (uint32_t i = 0; i < t->pair_limit; i++)
        if (t->pairs[i] && t->pairs[i]->path[AFD_WAY_VERBS])
            afd_pair_fail(t->pairs[i], AFD_ERR_IO, "data path verbs: %s", why);
}

/* Returns how many completions there were. */
static uint32_t drain(struct afd_transport *t, struct verbs_port *port)
{
    struct ibv_wc wc[POLL_BATCH];
    uint32_t count = 0;
    int n;
    do {
        uint32_t retired = port->cq_retired;
        n = ibv_poll_cq(port->cq, POLL_BATCH, wc);
        if (n < 0) {
            fail_all(t, "the completion queue cannot be read");
            return count;
        }
        for (int i = 0; i < n; i++) completed(t, port, &wc[i]);
        if (n < POLL_BATCH && retired) { /* nothing of those queue pairs is left in it */
            port->cq_retired -= retired;
            port->cq_used -= retired;
        }
        count += (uint32_t)n;
    } while (n == POLL_BATCH && count < POLL_LIMIT);
    return count;
}

/* ---- progress and sleep */

/* Reads the event of an armed queue; returns 0 when it has not come. */
static int take_event(struct verbs_port *port)
{
    struct ibv_cq *cq;
    void *context;
    if (ibv_get_cq_event(port->channel, &cq, &context)) return 0;
    ibv_ack_cq_events(cq, 1);
    port->is_armed = 0;
    return 1;
}

/* What the device says about itself. What it says of a queue pair shows as a completion too. */
static void read_async_events(struct afd_transport *t, struct verbs_port *port)
{
    struct ibv_async_event event;
    while (!ibv_get_async_event(port->context, &event)) {
        enum ibv_event_type type = event.event_type;
        ibv_ack_async_event(&event);
        afd_log_info("%s: %s", port->name, ibv_event_type_str(type));
        if (type == IBV_EVENT_DEVICE_FATAL || type == IBV_EVENT_CQ_ERR) fail_all(t, ibv_event_type_str(type));
    }
}

static void verbs_progress(struct afd_transport *t)
{
    struct verbs *verbs = t->back[AFD_WAY_VERBS];
    ring_all(verbs);
    uint32_t count = 0, is_software = 0;
    for (uint32_t i = 0; i < verbs->port_count; i++) {
        struct verbs_port *port = &verbs->ports[i];
        uint32_t drained = drain(t, port);
        if (drained && port->is_armed) take_event(port);
        count += drained;
        is_software |= (uint32_t)port->is_software;
    }
    if (!count && is_software) sched_yield(); /* its work waits for the core that waits for it */
}

static enum afd_status verbs_arm(struct afd_transport *t)
{
    struct verbs *verbs = t->back[AFD_WAY_VERBS];
    enum afd_status status = AFD_OK;
    ring_all(verbs);
    for (uint32_t i = 0; i < verbs->port_count; i++) {
        struct verbs_port *port = &verbs->ports[i];
        read_async_events(t, port);
        if (port->is_armed && !take_event(port)) continue; /* what comes next raises the event */
        int error = ibv_req_notify_cq(port->cq, 0);
        port->is_armed = !error;
        if (error) fail_all(t, strerror(error));
        /* what came before the queue was armed raises nothing */
        if (drain(t, port)) status = AFD_AGAIN;
    }
    return status;
}

const struct afd_backend afd_backend_verbs = {
    .name = "verbs",
    .way = AFD_WAY_VERBS,
    .open = verbs_open,
    .close = verbs_close,
    .add_memory = verbs_add_memory,
    .remove_memory = verbs_remove_memory,
    .prepare = afd_verbs_prepare,
    .address = afd_verbs_address,
    .reaches = afd_verbs_reaches,
    .attach = verbs_attach,
    .put = verbs_put,
    .detach = afd_verbs_detach,
    .progress = verbs_progress,
    .arm = verbs_arm,
};
