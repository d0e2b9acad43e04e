/* ucx.c: pairs over UCX: shared memory, TCP, RDMA. Workers, options and sleep: ucx_worker.c.
 *
 * One endpoint a pair. A put is one or more active messages, each with the header below; the receiver's
 * handler checks it and copies the data to its place in the region.
 *
 *   shared memory, TCP   parts, each one eager fragment. UCX has copied a part when it accepts it, and every
 * write into a region is done by our own handler, in our own thread. So nothing of a pair can reach a region
 * after its key is gone: fencing is one store. A rendezvous would save one copy, cost two more wake-ups of
 * sleeping processes a message, and let the peer's kernel or ours still move data of a pair that was closed.
 *   RDMA                 one message; above UCX's threshold a rendezvous, received into the registered
 * region. Detach then awaits (WAIT_NS at most) what is in flight before it returns.
 *
 * Endpoints are in PEER error mode, so that one can be closed by force. The hello socket's end is the death
 * of a peer; UCX's own errors come second. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "transport/ucx_worker.h"

enum { MAX_OPS = 64 }; /* puts of one pair that may be under way */
#define WAIT_NS AFD_MS(200)

struct header {
    uint32_t index; /* of the receiver's pair, and its key */
    uint32_t is_open;
    uint64_t key;
    uint32_t offset, bytes; /* this part's place; the whole message */
    uint16_t region, sequence;
    uint32_t reserved;
};
_Static_assert(sizeof(struct header) == 32, "the active message header");

struct ucx_op { /* one put */
    struct path *path;
    struct header header;
    const unsigned char *from;
    uint32_t part_bytes; /* of the part in flight */
    int is_done;         /* the part in flight is the last */
    struct ucx_op *next; /* in `free` or `resume` */
};

struct arrival { /* the message that is coming into one region */
    struct path *path;
    uint32_t bytes, got;
    uint16_t region, sequence;
    uint8_t is_active;
};

/* A pair's half that outlives it while UCX still holds requests. */
struct path {
    struct afd_pair *pair; /* NULL once detached */
    struct ucx *ucx;
    struct ucx_worker *worker; /* the pair's own, or the shared one */
    ucp_ep_h ep;
    uint32_t part_bytes;
    uint32_t sends, receives; /* requests that UCX holds */
    int is_closing;
    struct ucx_op *ops, *free;
    struct arrival *arrivals; /* by region */
};

struct ucx_mapping {
    unsigned char *base;
    uint64_t bytes;
    ucp_mem_h handle;
};

/* ---- open and close */

static ucs_status_t on_message(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                               const ucp_am_recv_param_t *param);

static void ucx_close(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    afd_ucx_worker_destroy(t, ucx->shared);
    if (ucx->context) ucp_cleanup(ucx->context);
    free(ucx->mappings);
    free(ucx);
}

static enum afd_status ucx_open(struct afd_transport *t, struct afd_error *error_out)
{
    struct ucx *ucx = calloc(1, sizeof *ucx);
    if (!ucx) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    t->back[AFD_WAY_UCX] = ucx;
    ucs_status_t status = afd_ucx_context_open(t, &ucx->context);
    if (status == UCS_OK)
        status = afd_ucx_worker_create(t, on_message, &ucx->shared);
    if (status == UCS_OK) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_IO, "UCX over %s: %s", afd_ucx_way(t)->tls, ucs_status_string(status));
}

static enum afd_status ucx_add_memory(struct afd_transport *t, const struct afd_memory *memory,
                                      struct afd_error *error_out)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    if (afd_ucx_way(t)->part_bytes != UINT32_MAX) return AFD_OK;
    struct ucx_mapping *mappings = realloc(ucx->mappings, (ucx->mapping_count + 1) * sizeof *mappings);
    if (!mappings) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    ucx->mappings = mappings;
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .address = memory->base,
        .length = memory->bytes,
    };
    struct ucx_mapping *m = &mappings[ucx->mapping_count];
    *m = (struct ucx_mapping){memory->base, memory->bytes, NULL};
    ucs_status_t status = ucp_mem_map(ucx->context, &params, &m->handle);
    if (status != UCS_OK)
        return afd_fail(error_out, AFD_ERR_MEMORY, "UCX cannot register %llu MiB: %s",
                        (unsigned long long)memory->bytes >> 20, ucs_status_string(status));
    ucx->mapping_count++;
    return AFD_OK;
}

static void ucx_remove_memory(struct afd_transport *t, void *base)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    for (uint32_t i = 0; i < ucx->mapping_count; i++)
        if (ucx->mappings[i].base == (unsigned char *)base) {
            ucp_mem_unmap(ucx->context, ucx->mappings[i].handle);
            ucx->mappings[i] = ucx->mappings[--ucx->mapping_count];
            return;
        }
}

static void set_memory(const struct ucx *ucx, const void *base, ucp_request_param_t *param)
{
    for (uint32_t i = 0; i < ucx->mapping_count; i++) {
        const struct ucx_mapping *m = &ucx->mappings[i];
        if ((const unsigned char *)base < m->base || (const unsigned char *)base >= m->base + m->bytes)
            continue;
        param->op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
        param->memh = m->handle;
    }
}

/* ---- sending */

static void path_release(struct path *path)
{
    if (path->pair || path->is_closing || path->sends || path->receives) return;
    free(path->ops);
    free(path->arrivals);
    free(path);
}

static void op_finish(struct ucx_op *op)
{
    op->next = op->path->free;
    op->path->free = op;
}

static void on_sent(void *request, ucs_status_t status, void *user)
{
    struct ucx_op *op = user;
    struct path *path = op->path;
    ucp_request_free(request);
    path->sends--;
    path->worker->sends--;
    if (!path->pair) {
        path_release(path);
    } else if (status != UCS_OK) {
        op_finish(op);
        afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s", ucs_status_string(status));
    } else if (op->is_done) {
        op_finish(op);
    } else {
        op->next = path->ucx->resume;
        path->ucx->resume = op;
    }
}

/* Sends parts until all are accepted or UCX keeps one; then on_sent goes on. */
static enum afd_status op_run(struct ucx_op *op)
{
    struct path *path = op->path;
    for (;;) {
        uint32_t left = op->header.bytes - op->header.offset;
        op->part_bytes = left < path->part_bytes ? left : path->part_bytes;
        op->is_done = op->part_bytes == left;
        ucp_request_param_t param = {
            .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
            .cb.send = on_sent,
            .user_data = op,
        };
        set_memory(path->ucx, op->from, &param);
        ucs_status_ptr_t request =
            ucp_am_send_nbx(path->ep, UCX_AM_ID, &op->header, sizeof op->header,
                            op->from ? op->from + op->header.offset : NULL, op->part_bytes, &param);
        if (UCS_PTR_IS_ERR(request)) {
            op_finish(op);
            afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s",
                          ucs_status_string(UCS_PTR_STATUS(request)));
            return AFD_ERR_PEER;
        }
        if (request) {
            path->sends++;
            path->worker->sends++;
            return AFD_OK;
        }
        if (op->is_done) break;
        op->header.offset += op->part_bytes;
    }
    op_finish(op);
    return AFD_OK;
}

static enum afd_status start(struct path *path, const struct header *header, const void *from)
{
    struct ucx_op *op = path->free;
    if (!op) return AFD_AGAIN;
    path->free = op->next;
    op->header = *header;
    op->from = from;
    path->worker->is_armed = 0;
    return op_run(op);
}

static enum afd_status ucx_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                               uint16_t sequence)
{
    struct header header = {
        .index = pair->peer_index,
        .key = pair->peer_key,
        .bytes = bytes,
        .region = region,
        .sequence = sequence,
    };
    return start(pair->path[AFD_WAY_UCX], &header, from);
}

/* ---- receiving */

static void arrived(struct path *path, struct arrival *a)
{
    a->is_active = 0;
    if (path->pair) afd_pair_notice(path->pair, a->region, a->sequence, a->bytes);
}

static void on_received(void *request, ucs_status_t status, size_t bytes, void *user)
{
    struct arrival *a = user;
    struct path *path = a->path;
    (void)bytes;
    ucp_request_free(request);
    path->receives--;
    if (!path->pair)
        path_release(path);
    else if (status != UCS_OK)
        afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s", ucs_status_string(status));
    else
        arrived(path, a);
}

static void receive_rendezvous(struct path *path, struct arrival *a, void *descriptor)
{
    void *to = path->pair->regions[a->region].base;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb.recv_am = on_received,
        .user_data = a,
    };
    set_memory(path->ucx, to, &param);
    ucs_status_ptr_t request = ucp_am_recv_data_nbx(path->worker->handle, descriptor, to, a->bytes, &param);
    if (!request)
        arrived(path, a);
    else if (UCS_PTR_IS_PTR(request))
        path->receives++;
    else
        afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s", ucs_status_string(UCS_PTR_STATUS(request)));
}

static void receive(struct path *path, const struct header *h, void *data, size_t part_bytes,
                    int is_rendezvous)
{
    struct afd_pair *pair = path->pair;
    if (!afd_pair_check(pair, h->region, h->offset, part_bytes, h->bytes)) return;
    struct arrival *a = &path->arrivals[h->region];
    if (!a->is_active) *a = (struct arrival){path, h->bytes, 0, h->region, h->sequence, 1};
    int fits = a->bytes == h->bytes && a->sequence == h->sequence && part_bytes <= a->bytes - a->got;
    if (!fits || (is_rendezvous && (a->got || part_bytes != a->bytes))) {
        afd_pair_fail(pair, AFD_ERR_PROTOCOL, "region %u: a message began before the one before it was whole",
                      h->region);
        return;
    }
    a->got += (uint32_t)part_bytes;
    if (is_rendezvous) {
        receive_rendezvous(path, a, data);
        return;
    }
    if (part_bytes) memcpy((unsigned char *)pair->regions[h->region].base + h->offset, data, part_bytes);
    if (a->got == a->bytes) arrived(path, a);
}

static ucs_status_t on_message(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                               const ucp_am_recv_param_t *param)
{
    struct afd_transport *t = arg;
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    struct header h;
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
    if (!afd_pair_path_works(pair) || h.is_open) return UCS_OK;
    receive(pair->path[AFD_WAY_UCX], &h, data, bytes, !!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV));
    return UCS_OK;
}

/* ---- a pair's path */

static enum afd_status ucx_prepare(struct afd_pair *pair, struct afd_error *error_out)
{
    struct ucx *ucx = pair->transport->back[AFD_WAY_UCX];
    struct path *path = calloc(1, sizeof *path);
    if (!path) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    path->pair = pair;
    path->ucx = ucx;
    path->worker = ucx->shared;
    pair->path[AFD_WAY_UCX] = path; /* detach takes down what there is */
    path->arrivals = calloc(pair->region_count + 1u, sizeof *path->arrivals);
    return path->arrivals ? AFD_OK : afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
}

static int ucx_reaches(struct afd_transport *t, const void *address, uint32_t bytes, char why_out[96])
{
    (void)address, (void)bytes;
    snprintf(why_out, 96, "%s", afd_ucx_way(t)->name);
    return 1;
}

static const void *ucx_address(const struct afd_pair *pair, uint32_t *bytes_out)
{
    const struct path *path = pair->path[AFD_WAY_UCX];
    *bytes_out = path->worker->address_bytes;
    return path->worker->address;
}

static void on_endpoint_error(void *user, ucp_ep_h ep, ucs_status_t status)
{
    struct path *path = user;
    (void)ep;
    if (path->pair) afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s", ucs_status_string(status));
}

static enum afd_status ucx_attach(struct afd_pair *pair, const void *address, uint32_t bytes,
                                  struct afd_error *error_out)
{
    const struct ucx_way *way = afd_ucx_way(pair->transport);
    struct path *path = pair->path[AFD_WAY_UCX];
    uint32_t ops = pair->peer_region_count + 1 < MAX_OPS ? pair->peer_region_count + 1 : MAX_OPS;
    if (!bytes) return afd_fail(error_out, AFD_ERR_PROTOCOL, "an empty UCX address");
    path->part_bytes = way->part_bytes;
    path->ops = calloc(ops, sizeof *path->ops);
    if (!path->ops) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    for (uint32_t i = 0; i < ops; i++) {
        path->ops[i].path = path;
        op_finish(&path->ops[i]);
    }
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {on_endpoint_error, path},
    };
    ucs_status_t status = ucp_ep_create(path->worker->handle, &params, &path->ep);
    if (status != UCS_OK) {
        path->ep = NULL;
        return afd_fail(error_out, AFD_ERR_PEER, "%s: no path to the other side: %s", way->name,
                        ucs_status_string(status));
    }
    struct header open = {.index = pair->peer_index, .is_open = 1, .key = pair->peer_key};
    if (start(path, &open, NULL))
        return afd_fail(error_out, AFD_ERR_PEER, "%s: cannot send", way->name);
    return AFD_OK;
}

static void drop_resumed(struct ucx *ucx, const struct path *path)
{
    struct ucx_op **at = &ucx->resume;
    while (*at)
        if ((*at)->path == path)
            *at = (*at)->next;
        else
            at = &(*at)->next;
}

/* Parts that still come find no pair any more; a rendezvous, which UCX itself writes to the region, is waited
 * for. */
static void end_receives(struct path *path)
{
    afd_ns until = afd_now() + WAIT_NS;
    while (path->receives && afd_now() < until) ucp_worker_progress(path->worker->handle);
    if (path->receives)
        afd_log_error(
            "a closed pair still receives %u messages after %llu ms: its regions must not be used again",
            path->receives, (unsigned long long)(WAIT_NS / 1000000u));
}

static void ucx_detach(struct afd_pair *pair)
{
    struct path *path = pair->path[AFD_WAY_UCX];
    if (!path) return;
    path->pair = NULL;
    path->is_closing = 1; /* keeps the path: the close may complete its requests at once */
    pair->path[AFD_WAY_UCX] = NULL;
    drop_resumed(path->ucx, path);
    if (path->ep) {
        ucp_request_param_t param = {
            .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
            .flags = UCP_EP_CLOSE_FLAG_FORCE,
        };
        path->worker->is_armed = 0;
        ucs_status_ptr_t request = ucp_ep_close_nbx(path->ep, &param);
        if (UCS_PTR_IS_PTR(request)) ucp_request_free(request);
    }
    end_receives(path);
    path->is_closing = 0;
    path_release(path);
}

/* ---- progress */

static void ucx_progress(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    afd_ucx_workers_progress(t);
    struct ucx_op *resume = ucx->resume;
    ucx->resume = NULL;
    while (resume) {
        struct ucx_op *op = resume;
        resume = op->next;
        op->header.offset += op->part_bytes;
        op->path->worker->is_armed = 0;
        op_run(op);
    }
}

const struct afd_backend afd_backend_ucx = {
    .name = "ucx",
    .way = AFD_WAY_UCX,
    .open = ucx_open,
    .close = ucx_close,
    .add_memory = ucx_add_memory,
    .remove_memory = ucx_remove_memory,
    .address = ucx_address,
    .prepare = ucx_prepare,
    .reaches = ucx_reaches,
    .attach = ucx_attach,
    .put = ucx_put,
    .detach = ucx_detach,
    .progress = ucx_progress,
    .arm = afd_ucx_workers_arm,
};
