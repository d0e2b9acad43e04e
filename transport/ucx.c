/* ucx.c: pairs over UCX: shared memory, TCP, RDMA.
 *
 * One UCP worker a transport, one endpoint a pair. A put is one or more active messages, each with the header
 * below; the receiver's handler checks it and copies the data to its place in the region.
 *
 *   shared memory, TCP   parts, each one eager fragment. UCX has copied a part when it
 *                        accepts it, and every write into a region is done by our own handler, in our own
 * thread. So nothing of a pair can reach a region after its key is gone: fencing is one store. A rendezvous
 * would save one copy, cost two more wake-ups of sleeping processes a message, and let the peer's kernel or
 * ours still move data of a pair that was closed. RDMA                 one message; above UCX's threshold a
 * rendezvous, received into the registered region. Detach then awaits (WAIT_NS at most) what is in flight
 * before it returns.
 *
 * Endpoints are in PEER error mode, so that one can be closed by force. Shared memory refuses that mode
 * unless told otherwise (*_ERROR_HANDLING). The hello socket's end is the death of a peer; UCX's own errors
 * come second.
 *
 * Known limit of UCX's shared memory: a receiver's FIFO is shared by its senders, so one that is killed
 * within the copy of a part (about a microsecond) leaves a hole that nobody fills, and the receiver hears
 * nothing more over shared memory. Its peers see it silent: the lease removes it. */
#include <assert.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <ucp/api/ucp.h>

#include "base/log.h"
#include "transport/backend.h"

enum {
    AM_ID = 0,
    MAX_OPS = 64, /* puts of one pair that may be under way */
    PROGRESS_ROUNDS = 32,
    SHM_PART_BYTES = 32 * 1024,  /* lengths in UCX's FIFO have 16 bits; its 64 entries carry 2 MiB */
    TCP_PART_BYTES = 248 * 1024, /* 1 MiB in parts of 32 KiB takes 1.7 times as long: a system call each */
    BOOT_ID_BYTES = 36,          /* tells whether a peer is on this host */
    HOST_BYTES = 40,             /* the same in an address, so that what follows is aligned */
    USES_SHM = 1,
    USES_TCP = 2,
};
#define SHM_SEGMENT "33K" /* a part, our header and UCX's */
#define TCP_SEGMENT "256K"
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

struct op { /* one put */
    struct path *path;
    struct header header;
    const unsigned char *from;
    uint32_t part_bytes; /* of the part in flight */
    int is_done;         /* the part in flight is the last */
    struct op *next;     /* in `free` or `resume` */
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
    ucp_ep_h ep;
    uint32_t part_bytes;
    uint32_t sends, receives; /* requests that UCX holds */
    struct op *ops, *free;
    struct arrival *arrivals; /* by region */
};

struct mapping {
    unsigned char *base;
    uint64_t bytes;
    ucp_mem_h handle;
};

struct ucx {
    ucp_context_h context;
    ucp_worker_h worker;
    char *address; /* what others attach to: HOST_BYTES, then the worker's address */
    uint32_t address_bytes;
    int event_fd;
    int is_rendezvous;
    uint32_t sends;    /* requests that UCX holds, of all pairs */
    struct op *resume; /* whose part was accepted: the next one can go */
    struct mapping *mappings;
    uint32_t mapping_count;
    int has_complained; /* one line in the log about messages that name no pair */
};

/* ---- open and close */

struct way { /* by enum afd_data_path */
    const char *name, *tls, *rendezvous_from;
    uint32_t part_bytes; /* 0: by whether the peer is on this host */
    int uses;
};

static const struct way ways[] = {
    [AFD_PATH_AUTO] = {"ucx auto", "posix,tcp,self", "inf", 0, USES_SHM | USES_TCP},
    [AFD_PATH_SHM] = {"ucx shm", "posix,self", "inf", SHM_PART_BYTES, USES_SHM},
    [AFD_PATH_TCP] = {"ucx tcp", "tcp,self", "inf", TCP_PART_BYTES, USES_TCP},
    [AFD_PATH_RDMA] = {"ucx rdma", "ib,self", "auto", UINT32_MAX, 0},
    [AFD_PATH_TCP_RENDEZVOUS] = {"ucx tcp rendezvous", "tcp,self", "16K", UINT32_MAX, USES_TCP},
};

static const struct way *way_of(const struct afd_transport *t)
{
    return &ways[t->config.path];
}

/* The interface that our hello address is on: UCX would take all, and open a second lane over another. */
static void net_device(const struct afd_transport *t, char *name_out, size_t limit)
{
    struct sockaddr_storage at;
    socklen_t bytes = sizeof at;
    struct ifaddrs *list;
    snprintf(name_out, limit, "all");
    if (getsockname(t->listen_fd, (struct sockaddr *)&at, &bytes) || getifaddrs(&list)) return;
    for (struct ifaddrs *i = list; i; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != at.ss_family) continue;
        const struct sockaddr_in *a4 = (void *)i->ifa_addr, *b4 = (void *)&at;
        const struct sockaddr_in6 *a6 = (void *)i->ifa_addr, *b6 = (void *)&at;
        int is_same = at.ss_family == AF_INET ? a4->sin_addr.s_addr == b4->sin_addr.s_addr
                      : at.ss_family == AF_INET6
                          ? !memcmp(&a6->sin6_addr, &b6->sin6_addr, sizeof a6->sin6_addr)
                          : 0;
        if (is_same) snprintf(name_out, limit, "%s", i->ifa_name);
    }
    freeifaddrs(list);
}

static ucs_status_t configure(const struct afd_transport *t, ucp_config_t *config)
{
    const struct way *way = way_of(t);
    char device[64];
    net_device(t, device, sizeof device);
    const struct {
        const char *name, *value;
        int is_for; /* 0: every path */
    } all[] = {
        {"TLS", way->tls, 0},
        {"RNDV_THRESH", way->rendezvous_from, 0},
        {"NET_DEVICES", way->uses & USES_TCP ? device : "all", 0},
        /* Options of a transport are named as in its own table, UCX_POSIX_FIFO_SIZE as MM_FIFO_SIZE; one that
           no transport in use knows is warned about. */
        {"MM_ERROR_HANDLING", "y", USES_SHM},
        {"MM_SEG_SIZE", SHM_SEGMENT, USES_SHM},
        {"MM_FIFO_SIZE", "64", USES_SHM},
        {"MM_RX_BUFS_GROW", "8", USES_SHM},
        {"TX_SEG_SIZE", TCP_SEGMENT, USES_TCP},
        {"RX_SEG_SIZE", TCP_SEGMENT, USES_TCP},
        {"CONN_NB", "y", USES_TCP},
        {"PUT_ENABLE", "n", USES_TCP},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].is_for && !(all[i].is_for & way->uses)) continue;
        ucs_status_t status = ucp_config_modify(config, all[i].name, all[i].value);
        if (status != UCS_OK) return status;
    }
    return UCS_OK;
}

static ucs_status_t on_message(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                               const ucp_am_recv_param_t *param);

static ucs_status_t make_address(struct ucx *ucx)
{
    ucp_address_t *address;
    size_t bytes;
    ucs_status_t status = ucp_worker_get_address(ucx->worker, &address, &bytes);
    if (status != UCS_OK) return status;
    ucx->address_bytes = (uint32_t)bytes + HOST_BYTES;
    ucx->address = calloc(1, ucx->address_bytes);
    if (ucx->address) {
        FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
        /* without it everybody seems to be on this host, which costs speed over TCP alone */
        if (file && fread(ucx->address, 1, HOST_BYTES, file) != HOST_BYTES)
            memset(ucx->address, 0, HOST_BYTES);
        if (file) fclose(file);
        memcpy(ucx->address + HOST_BYTES, address, bytes);
    }
    ucp_worker_release_address(ucx->worker, address);
    if (!ucx->address) return UCS_ERR_NO_MEMORY;
    return ucx->address_bytes > AFD_PATH_ADDRESS_BYTES ? UCS_ERR_EXCEEDS_LIMIT : UCS_OK;
}

static ucs_status_t open_worker(struct afd_transport *t, struct ucx *ucx)
{
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK) return status;
    status = configure(t, config);
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS,
        .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
        .estimated_num_eps = 1,
    };
    if (status == UCS_OK) status = ucp_init(&params, config, &ucx->context);
    ucp_config_release(config);
    if (status != UCS_OK) return status;
    ucp_worker_params_t worker_params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    status = ucp_worker_create(ucx->context, &worker_params, &ucx->worker);
    if (status != UCS_OK) return status;
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = AM_ID,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = on_message,
        .arg = t,
    };
    status = ucp_worker_set_am_recv_handler(ucx->worker, &handler);
    if (status == UCS_OK) status = ucp_worker_get_efd(ucx->worker, &ucx->event_fd);
    return status == UCS_OK ? make_address(ucx) : status;
}

static void ucx_close(struct afd_transport *t)
{
    struct ucx *ucx = t->back;
    if (ucx->worker) ucp_worker_destroy(ucx->worker);
    if (ucx->context) ucp_cleanup(ucx->context);
    free(ucx->mappings);
    free(ucx->address);
    free(ucx);
}

static enum afd_status ucx_open(struct afd_transport *t, struct afd_error *error_out)
{
    struct ucx *ucx = calloc(1, sizeof *ucx);
    if (!ucx) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    t->back = ucx;
    ucx->is_rendezvous = way_of(t)->part_bytes == UINT32_MAX;
    ucs_status_t status = open_worker(t, ucx);
    if (status == UCS_OK) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_IO, "UCX over %s: %s", way_of(t)->tls, ucs_status_string(status));
}

static enum afd_status ucx_add_memory(struct afd_transport *t, void *base, uint64_t bytes)
{
    struct ucx *ucx = t->back;
    if (!ucx->is_rendezvous) return AFD_OK;
    struct mapping *mappings = realloc(ucx->mappings, (ucx->mapping_count + 1) * sizeof *mappings);
    if (!mappings) return AFD_ERR_MEMORY;
    ucx->mappings = mappings;
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .address = base,
        .length = bytes,
    };
    struct mapping *m = &mappings[ucx->mapping_count];
    *m = (struct mapping){base, bytes, NULL};
    if (ucp_mem_map(ucx->context, &params, &m->handle) != UCS_OK) return AFD_ERR_MEMORY;
    ucx->mapping_count++;
    return AFD_OK;
}

static void ucx_remove_memory(struct afd_transport *t, void *base)
{
    struct ucx *ucx = t->back;
    for (uint32_t i = 0; i < ucx->mapping_count; i++)
        if (ucx->mappings[i].base == (unsigned char *)base) {
            ucp_mem_unmap(ucx->context, ucx->mappings[i].handle);
            ucx->mappings[i] = ucx->mappings[--ucx->mapping_count];
            return;
        }
}

static const void *ucx_address(const struct afd_transport *t, uint32_t *bytes_out)
{
    const struct ucx *ucx = t->back;
    *bytes_out = ucx->address_bytes;
    return ucx->address;
}

static void set_memory(const struct ucx *ucx, const void *base, ucp_request_param_t *param)
{
    for (uint32_t i = 0; i < ucx->mapping_count; i++) {
        const struct mapping *m = &ucx->mappings[i];
        if ((const unsigned char *)base < m->base || (const unsigned char *)base >= m->base + m->bytes)
            continue;
        param->op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
        param->memh = m->handle;
    }
}

/* ---- sending */

static void path_release(struct path *path)
{
    if (path->pair || path->sends || path->receives) return;
    free(path->ops);
    free(path->arrivals);
    free(path);
}

static void op_finish(struct op *op)
{
    op->next = op->path->free;
    op->path->free = op;
}

static void on_sent(void *request, ucs_status_t status, void *user)
{
    struct op *op = user;
    struct path *path = op->path;
    ucp_request_free(request);
    path->sends--;
    path->ucx->sends--;
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
static enum afd_status op_run(struct op *op)
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
            ucp_am_send_nbx(path->ep, AM_ID, &op->header, sizeof op->header,
                            op->from ? op->from + op->header.offset : NULL, op->part_bytes, &param);
        if (UCS_PTR_IS_ERR(request)) {
            op_finish(op);
            afd_pair_fail(path->pair, AFD_ERR_PEER, "data path: %s",
                          ucs_status_string(UCS_PTR_STATUS(request)));
            return AFD_ERR_PEER;
        }
        if (request) {
            path->sends++;
            path->ucx->sends++;
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
    struct op *op = path->free;
    if (!op) return AFD_AGAIN;
    path->free = op->next;
    op->header = *header;
    op->from = from;
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
    return start(pair->path, &header, from);
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
    ucs_status_ptr_t request = ucp_am_recv_data_nbx(path->ucx->worker, descriptor, to, a->bytes, &param);
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
    struct ucx *ucx = t->back;
    struct header h;
    struct afd_pair *pair = NULL;
    if (header_bytes == sizeof h) {
        memcpy(&h, header, sizeof h);
        pair = afd_transport_find(t, h.index, h.key);
    }
    if (!pair || !pair->path) {
        /* Of a pair that is closed, or of nobody we know: there is no pair to blame. */
        if (!ucx->has_complained)
            afd_log_info("dropped a message that names no pair of ours; more are not logged");
        ucx->has_complained = 1;
        return UCS_OK;
    }
    if (!afd_pair_path_works(pair) || h.is_open) return UCS_OK;
    receive(pair->path, &h, data, bytes, !!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV));
    return UCS_OK;
}

/* ---- a pair's path */

static enum afd_status ucx_prepare(struct afd_pair *pair)
{
    struct path *path = calloc(1, sizeof *path);
    if (path) path->arrivals = calloc(pair->region_count + 1u, sizeof *path->arrivals);
    if (!path || !path->arrivals) {
        free(path);
        return AFD_ERR_MEMORY;
    }
    path->pair = pair;
    path->ucx = pair->transport->back;
    pair->path = path;
    return AFD_OK;
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
    const struct way *way = way_of(pair->transport);
    struct path *path = pair->path;
    uint32_t ops = pair->peer_region_count + 1 < MAX_OPS ? pair->peer_region_count + 1 : MAX_OPS;
    if (bytes <= HOST_BYTES) return afd_fail(error_out, AFD_ERR_PROTOCOL, "a UCX address of %u bytes", bytes);
    int is_same_host = !memcmp(address, path->ucx->address, HOST_BYTES);
    path->part_bytes = way->part_bytes ? way->part_bytes : is_same_host ? SHM_PART_BYTES : TCP_PART_BYTES;
    path->ops = calloc(ops, sizeof *path->ops);
    if (!path->ops) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    for (uint32_t i = 0; i < ops; i++) {
        path->ops[i].path = path;
        op_finish(&path->ops[i]);
    }
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)((const char *)address + HOST_BYTES),
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {on_endpoint_error, path},
    };
    ucs_status_t status = ucp_ep_create(path->ucx->worker, &params, &path->ep);
    snprintf(pair->path_name, sizeof pair->path_name, "%s", way->name);
    if (status != UCS_OK) {
        path->ep = NULL;
        return afd_fail(error_out, AFD_ERR_PEER, "%s: no path to the other side: %s", pair->path_name,
                        ucs_status_string(status));
    }
    struct header open = {.index = pair->peer_index, .is_open = 1, .key = pair->peer_key};
    if (start(path, &open, NULL))
        return afd_fail(error_out, AFD_ERR_PEER, "%s: cannot send", pair->path_name);
    return AFD_OK;
}

static void drop_resumed(struct ucx *ucx, const struct path *path)
{
    struct op **at = &ucx->resume;
    while (*at)
        if ((*at)->path == path)
            *at = (*at)->next;
        else
            at = &(*at)->next;
}

static void ucx_detach(struct afd_pair *pair)
{
    struct path *path = pair->path;
    if (!path) return;
    struct ucx *ucx = path->ucx;
    path->pair = NULL;
    pair->path = NULL;
    drop_resumed(ucx, path);
    path->receives++; /* keeps the path: the close may complete its requests at once */
    if (path->ep) {
        ucp_request_param_t param = {
            .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
            .flags = UCP_EP_CLOSE_FLAG_FORCE,
        };
        ucs_status_ptr_t request = ucp_ep_close_nbx(path->ep, &param);
        if (UCS_PTR_IS_PTR(request)) ucp_request_free(request);
    }
    /* Parts are copied by our own handler, which now finds no pair. A rendezvous is UCX's until it ends. */
    afd_ns until = afd_now() + WAIT_NS;
    while (path->receives > 1 && afd_now() < until) ucp_worker_progress(ucx->worker);
    path->receives--;
    if (path->receives)
        afd_log_error(
            "a closed pair still receives %u messages after %llu ms: its regions must not be used again",
            path->receives, (unsigned long long)(WAIT_NS / 1000000u));
    path_release(path);
}

/* ---- progress and sleep */

static void ucx_progress(struct afd_transport *t)
{
    struct ucx *ucx = t->back;
    for (int i = 0; i < PROGRESS_ROUNDS && ucp_worker_progress(ucx->worker); i++) {
    }
    struct op *resume = ucx->resume;
    ucx->resume = NULL;
    while (resume) {
        struct op *op = resume;
        resume = op->next;
        op->header.offset += op->part_bytes;
        op_run(op);
    }
}

static int ucx_event_fd(const struct afd_transport *t)
{
    return ((struct ucx *)t->back)->event_fd;
}

static enum afd_status ucx_arm(struct afd_transport *t)
{
    struct ucx *ucx = t->back;
    if (ucx->resume) return AFD_AGAIN;
    if (ucp_worker_arm(ucx->worker) == UCS_OK) return AFD_OK;
    /* A full FIFO of the receiver has no event: UCX wants to be polled. On a machine with more ranks than
       cores the receiver may wait for the very core that we poll on; a message of 1 MiB then took 9 ms
       instead of 0.4. */
    if (ucx->sends) sched_yield();
    return AFD_AGAIN;
}

const struct afd_backend afd_backend_ucx = {
    .name = "ucx",
    .open = ucx_open,
    .close = ucx_close,
    .add_memory = ucx_add_memory,
    .remove_memory = ucx_remove_memory,
    .address = ucx_address,
    .prepare = ucx_prepare,
    .attach = ucx_attach,
    .put = ucx_put,
    .detach = ucx_detach,
    .progress = ucx_progress,
    .event_fd = ucx_event_fd,
    .arm = ucx_arm,
};
