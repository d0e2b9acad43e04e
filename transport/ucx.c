/* ucx.c: pairs over UCX: TCP and RDMA.
 *
 * One endpoint a pair. A message goes one of two ways:
 *
 *   parts   active messages that carry it; the receiver's handler checks each and copies it to its place in
 *           the region. TCP sends everything so: every write into a region is done by our own code in our own
 *           thread, so nothing of a pair reaches a region after its key is gone; fencing is one store.
 *   put     ucp_put straight into the region, ucp_ep_flush (it is there), then an active message without data
 *           as the notice. Over RDMA, and for device memory: nothing is copied and the receiver's CPU hears
 * of the notice alone. The regions are registered for their pair; fencing deregisters them, and the device
 * refuses what the peer still puts.
 *
 * Active messages of a pair leave in order, and pairs take turns part by part: a pair with large messages
 * delays another by one part.
 *
 * Endpoints are in PEER error mode, so that one can be closed by force. The hello socket's end is the death
 * of a peer; UCX's own errors come second. Whoever reaches UCX's port can write to our memory, because UCX
 * proves nobody: the data network belongs to the cluster alone. */
#include "transport/ucx.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum {
    MAX_OPS = 64,            /* messages of one pair that may be under way */
    PART_BYTES = 248 * 1024, /* one buffer of 256 KiB with UCX's own headers */
};
#define DRAIN_NS AFD_MS(200)

/* ---- requests */

static void path_release(struct ucx_path *path)
{
    if (path->pair || path->is_detaching || path->requests) return;
    path->worker->paths--;
    afd_ucx_path_forget(path);
    free(path->ops);
    free(path->peer_address);
    free(path);
}

static void request_begins(struct ucx_path *path)
{
    path->requests++;
    path->ucx->requests++;
}

/* Returns 0 when the pair is gone: then the path may be too. */
static int request_ends(struct ucx_path *path, void *request, ucs_status_t status)
{
    int is_live = path->pair != NULL;
    ucp_request_free(request);
    path->requests--;
    path->ucx->requests--;
    if (is_live && status != UCS_OK)
        afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s", ucs_status_string(status));
    path_release(path);
    return is_live && status == UCS_OK;
}

static enum afd_status refused(struct ucx_path *path, ucs_status_ptr_t request)
{
    afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s", ucs_status_string(UCS_PTR_STATUS(request)));
    return AFD_ERR_PEER;
}

/* ---- the queue of active messages */

static void make_ready(struct ucx_path *path)
{
    struct ucx *ucx = path->ucx;
    if (path->is_ready) return;
    path->is_ready = 1;
    path->next = NULL;
    if (ucx->ready_last)
        ucx->ready_last->next = path;
    else
        ucx->ready_first = path;
    ucx->ready_last = path;
}

static void unready(struct ucx_path *path)
{
    struct ucx *ucx = path->ucx;
    struct ucx_path *before = NULL, *p = ucx->ready_first;
    if (!path->is_ready) return;
    while (p != path) before = p, p = p->next;
    if (before)
        before->next = path->next;
    else
        ucx->ready_first = path->next;
    if (ucx->ready_last == path) ucx->ready_last = before;
    path->is_ready = 0;
}

static struct ucx_op *op_take(struct ucx_path *path)
{
    struct ucx_op *op = path->free;
    if (op) path->free = op->next;
    return op;
}

static void op_finish(struct ucx_op *op)
{
    op->next = op->path->free;
    op->path->free = op;
}

static void enqueue(struct ucx_op *op)
{
    struct ucx_path *path = op->path;
    op->next = NULL;
    if (path->last)
        path->last->next = op;
    else
        path->first = op;
    path->last = op;
}

/* The head's part is sent. */
static void advance(struct ucx_path *path)
{
    struct ucx_op *op = path->first;
    op->header.offset += op->part_bytes;
    if (op->header.kind == UCX_PART && op->header.offset < op->header.bytes) return;
    path->first = op->next;
    if (!path->first) path->last = NULL;
    op_finish(op);
}

static void on_sent(void *request, ucs_status_t status, void *user)
{
    struct ucx_path *path = user;
    path->is_sending = 0;
    if (!request_ends(path, request, status)) return;
    advance(path);
    if (path->first) make_ready(path);
}

/* Sends until the queue is empty or UCX keeps a part; then on_sent goes on. Notices leave in the order of
 * their messages, also those of puts that are under way at the same time. */
static enum afd_status send_queue(struct ucx_path *path)
{
    while (path->first && !path->is_sending) {
        struct ucx_op *op = path->first;
        if (op->header.kind == UCX_WRITTEN && !op->is_there) break; /* on_flushed goes on */
        uint32_t left = op->header.kind == UCX_PART ? op->header.bytes - op->header.offset : 0;
        op->part_bytes = left < PART_BYTES ? left : PART_BYTES;
        ucp_request_param_t param = {
            .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
            .cb.send = on_sent,
            .user_data = path,
        };
        const void *from = op->part_bytes ? op->from + op->header.offset : NULL;
        ucs_status_ptr_t request = ucp_am_send_nbx(path->ep, UCX_AM_ID, &op->header, sizeof op->header, from,
                                                   op->part_bytes, &param);
        if (UCS_PTR_IS_ERR(request)) return refused(path, request);
        path->is_sending = request != NULL;
        if (request)
            request_begins(path);
        else
            advance(path);
    }
    return AFD_OK;
}

/* ---- put */

static void on_put(void *request, ucs_status_t status, void *user)
{
    struct ucx_op *op = user;
    request_ends(op->path, request, status); /* the flush behind it tells when it is there */
}

static void on_flushed(void *request, ucs_status_t status, void *user)
{
    struct ucx_op *op = user;
    struct ucx_path *path = op->path;
    if (!request_ends(path, request, status)) return;
    op->is_there = 1;
    make_ready(path);
}

static enum afd_status put_there(struct ucx_op *op, const struct ucx_mapping *mapping)
{
    struct ucx_path *path = op->path;
    const struct ucx_target *target = &path->targets[op->header.region];
    op->header.kind = UCX_WRITTEN;
    op->is_there = 0;
    ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.send = on_put,
        .user_data = op,
        .memory_type = mapping->memory.is_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST,
    };
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
    param.memh = mapping->handle;
    ucs_status_ptr_t request = ucp_put_nbx(path->ep, op->from, op->header.bytes, target->address,
                                           path->runs[target->run].rkey, &param);
    if (UCS_PTR_IS_ERR(request)) return refused(path, request);
    if (request) request_begins(path);
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    param.cb.send = on_flushed;
    request = ucp_ep_flush_nbx(path->ep, &param);
    if (UCS_PTR_IS_ERR(request)) return refused(path, request);
    if (request)
        request_begins(path);
    else
        op->is_there = 1;
    return AFD_OK;
}

static enum afd_status ucx_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                               uint16_t sequence)
{
    struct ucx_path *path = pair->path[AFD_WAY_UCX];
    const struct ucx_mapping *mapping = NULL;
    struct ucx_op *op = op_take(path);
    if (!op) return AFD_AGAIN;
    op->from = from;
    op->header = (struct ucx_header){
        .index = pair->peer_index,
        .kind = UCX_PART,
        .key = pair->peer_key,
        .bytes = bytes,
        .region = region,
        .sequence = sequence,
    };
    if (bytes && path->targets) {
        mapping = afd_ucx_find_mapping(path->ucx, from);
        int is_device =
            mapping && (mapping->memory.is_device || path->runs[path->targets[region].run].is_device);
        if (bytes <= path->ucx->way->eager_bytes && !is_device) mapping = NULL;
    }
    if (mapping) {
        enum afd_status status = put_there(op, mapping);
        if (status) return status;
    }
    enqueue(op);
    return send_queue(path);
}

/* ---- receiving */

static void take_part(struct ucx_path *path, const struct ucx_header *h, const void *data, size_t part_bytes)
{
    struct afd_pair *pair = path->pair;
    struct ucx_header *m = &path->arriving;
    if (!afd_pair_check(pair, h->region, h->offset, part_bytes, h->bytes)) return;
    if (m->kind != UCX_PART) *m = *h, path->arrived = 0;
    int follows = m->bytes == h->bytes && m->sequence == h->sequence && m->region == h->region &&
                  h->offset == path->arrived && (part_bytes || !h->bytes);
    if (!follows) {
        afd_pair_fail(pair, AFD_ERR_PROTOCOL, "region %u: a message began before the one before it was whole",
                      h->region);
        return;
    }
    if (part_bytes) memcpy((unsigned char *)pair->regions[h->region].base + h->offset, data, part_bytes);
    path->arrived += (uint32_t)part_bytes;
    if (path->arrived < h->bytes) return;
    m->kind = UCX_OPEN;
    afd_pair_notice(pair, h->region, h->sequence, h->bytes);
}

static int is_for_cpu(const struct ucx_path *path, const struct ucx_header *h)
{
    const struct afd_pair *pair = path->pair;
    if (h->region >= pair->region_count || !h->bytes) return 1;
    const struct ucx_mapping *m = afd_ucx_find_mapping(path->ucx, pair->regions[h->region].base);
    return m && !m->memory.is_device;
}

static void take_message(struct ucx_path *path, const struct ucx_header *h, const void *data, size_t bytes,
                         int is_rendezvous)
{
    struct afd_pair *pair = path->pair;
    if (h->kind == UCX_WRITTEN && path->ucx->way->eager_bytes != UINT32_MAX && !bytes) {
        if (afd_pair_check(pair, h->region, 0, h->bytes, h->bytes))
            afd_pair_notice(pair, h->region, h->sequence, h->bytes);
    } else if (h->kind == UCX_PART && !is_rendezvous && is_for_cpu(path, h)) {
        take_part(path, h, data, bytes);
    } else {
        afd_pair_fail(pair, AFD_ERR_PROTOCOL, "a message of kind %u with %zu bytes to region %u", h->kind,
                      bytes, h->region);
    }
}

static ucs_status_t on_message(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                               const ucp_am_recv_param_t *param)
{
    struct afd_transport *t = arg;
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    struct ucx_header h;
    struct afd_pair *pair = NULL;
    if (header_bytes == sizeof h) {
        memcpy(&h, header, sizeof h);
        pair = afd_transport_find(t, h.index, h.key);
    }
    if (!pair || !pair->path[AFD_WAY_UCX]) {
        /* Of a pair that is closed, or of nobody we know: there is no pair to blame. */
        if (!ucx->has_complained)
            afd_log_info("dropped a message that names no pair of ours; more are not logged");
        ucx->has_complained = 1;
        return UCS_OK;
    }
    struct ucx_path *path = pair->path[AFD_WAY_UCX];
    if (h.kind == UCX_OPEN) {
        path->is_open_heard = 1;
        make_ready(path); /* an endpoint is not made inside of UCX's callback */
    } else if (afd_pair_path_works(pair)) {
        take_message(path, &h, data, bytes, !!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV));
    }
    return UCS_OK;
}

/* ---- a pair's path */

static enum afd_status ucx_prepare(struct afd_pair *pair, struct afd_error *error_out)
{
    struct ucx *ucx = pair->transport->back[AFD_WAY_UCX];
    enum afd_status status = ucx->is_miscounted ? afd_ucx_worker_replace(pair->transport, error_out) : AFD_OK;
    if (status) return status;
    struct ucx_path *path = calloc(1, sizeof *path);
    if (!path) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    path->pair = pair;
    path->ucx = ucx;
    path->worker = ucx->workers;
    path->worker->paths++;
    pair->path[AFD_WAY_UCX] = path; /* detach takes down what there is */
    return afd_ucx_path_offer(pair, path, error_out);
}

static const void *ucx_address(const struct afd_pair *pair, uint32_t *bytes_out)
{
    const struct ucx_path *path = pair->path[AFD_WAY_UCX];
    *bytes_out = path->address_bytes;
    return path->address;
}

static void on_endpoint_error(void *user, ucp_ep_h ep, ucs_status_t status)
{
    struct ucx_path *path = user;
    (void)ep;
    if (path->pair) afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s", ucs_status_string(status));
}

/* The endpoint, and the first message over it. */
static enum afd_status greet(struct ucx_path *path, const void *address, uint32_t bytes,
                             struct afd_error *error_out)
{
    struct afd_pair *pair = path->pair;
    enum afd_status status = afd_ucx_path_connect(pair, path, address, bytes, on_endpoint_error, error_out);
    if (status) return status;
    struct ucx_op *open = op_take(path);
    open->header = (struct ucx_header){.index = pair->peer_index, .kind = UCX_OPEN, .key = pair->peer_key};
    enqueue(open);
    if (send_queue(path)) return afd_fail(error_out, AFD_ERR_PEER, "%s", pair->words);
    return AFD_OK;
}

static enum afd_status ucx_attach(struct afd_pair *pair, const void *address, uint32_t bytes,
                                  struct afd_error *error_out)
{
    struct ucx_path *path = pair->path[AFD_WAY_UCX];
    uint32_t ops = pair->peer_region_count + 1 < MAX_OPS ? pair->peer_region_count + 1 : MAX_OPS;
    path->ops = calloc(ops, sizeof *path->ops);
    if (!path->ops) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    for (uint32_t i = 0; i < ops; i++) {
        path->ops[i].path = path;
        op_finish(&path->ops[i]);
    }
    if (pair->peer.is_connector) return greet(path, address, bytes, error_out);
    path->peer_address = malloc(bytes);
    if (!path->peer_address) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    memcpy(path->peer_address, address, bytes);
    path->peer_address_bytes = bytes;
    return AFD_OK;
}

/* The connector spoke: the acceptor answers on the connection that this made. If both connected at once, UCX
 * would have to give up one of two TCP connections, and now and then it gave up both. */
static void answer_open(struct ucx_path *path)
{
    struct afd_error error;
    struct afd_pair *pair = path->pair;
    path->is_open_heard = 0;
    path->was_heard = 1;
    if (!path->ep && path->peer_address) {
        enum afd_status status = greet(path, path->peer_address, path->peer_address_bytes, &error);
        if (status) {
            afd_pair_fail(pair, status, "%s", error.text);
            return;
        }
    }
    afd_pair_path_works(pair);
}

static void ucx_detach(struct afd_pair *pair)
{
    struct ucx_path *path = pair->path[AFD_WAY_UCX];
    if (!path) return;
    path->pair = NULL;
    path->is_detaching = 1;
    pair->path[AFD_WAY_UCX] = NULL;
    unready(path);
    if (pair->peer.is_connector && path->ep && !path->was_heard && path->worker == path->ucx->workers)
        path->ucx->is_miscounted = 1;
    if (path->ep) {
        ucp_request_param_t param = {
            .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
            .flags = UCP_EP_CLOSE_FLAG_FORCE,
        };
        ucs_status_ptr_t request = ucp_ep_close_nbx(path->ep, &param);
        if (UCS_PTR_IS_PTR(request)) ucp_request_free(request);
    }
    afd_ucx_path_withdraw(path);
    path->is_detaching = 0;
    path_release(path);
}

/* ---- the transport */

static enum afd_status ucx_open(struct afd_transport *t, struct afd_error *error_out)
{
    struct ucx *ucx = calloc(1, sizeof *ucx);
    if (!ucx) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    ucx->way = afd_ucx_choose(t);
    ucx->on_message = on_message;
    t->back[AFD_WAY_UCX] = ucx; /* close takes down what there is */
    return afd_ucx_worker_open(t, error_out);
}

static void ucx_close(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    afd_ucx_worker_close(t);
    free(ucx->mappings);
    free(ucx);
    t->back[AFD_WAY_UCX] = NULL;
}

/* What closed pairs have under way still reads this memory. */
static void ucx_remove_memory(struct afd_transport *t, void *base)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    afd_ns until = afd_now() + DRAIN_NS;
    while (ucx->requests && afd_now() < until)
        for (struct ucx_worker *w = ucx->workers; w; w = w->next) ucp_worker_progress(w->handle);
    afd_ucx_remove_memory(t, base);
}

static void ucx_progress(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    struct ucx_path *ready;
    afd_ucx_worker_progress(t);
    afd_ucx_worker_retire(t);
    for (struct ucx_path *last = ucx->ready_last; last && (ready = ucx->ready_first);) {
        unready(ready);
        if (ready->is_open_heard) answer_open(ready);
        send_queue(ready);
        if (ready == last) break;
    }
}

const struct afd_backend afd_backend_ucx = {
    .name = "ucx",
    .way = AFD_WAY_UCX,
    .open = ucx_open,
    .close = ucx_close,
    .add_memory = afd_ucx_add_memory,
    .remove_memory = ucx_remove_memory,
    .prepare = ucx_prepare,
    .address = ucx_address,
    .reaches = afd_ucx_reaches,
    .attach = ucx_attach,
    .put = ucx_put,
    .detach = ucx_detach,
    .progress = ucx_progress,
    .arm = afd_ucx_worker_arm,
};
