#include "transport/ucx_worker.h"

#include <ifaddrs.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { PROGRESS_ROUNDS = 32 };
#define TCP_SEGMENT "256K"

static const struct ucx_way ways[] = {
    [AFD_PATH_AUTO] = {"tcp", "tcp,self", "inf", UCX_TCP_PART_BYTES, UCX_USES_TCP},
    [AFD_PATH_TCP] = {"tcp", "tcp,self", "inf", UCX_TCP_PART_BYTES, UCX_USES_TCP},
    [AFD_PATH_RDMA] = {"rdma", "ib,self", "auto", UINT32_MAX, 0},
    [AFD_PATH_TCP_RENDEZVOUS] = {"tcp rendezvous", "tcp,self", "16K", UINT32_MAX, UCX_USES_TCP},
};

const struct ucx_way *afd_ucx_way(const struct afd_transport *t)
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
    const struct ucx_way *way = afd_ucx_way(t);
    char device[64];
    net_device(t, device, sizeof device);
    const struct {
        const char *name, *value;
        int is_for; /* 0: every path */
    } all[] = {
        {"TLS", way->tls, 0},
        {"RNDV_THRESH", way->rendezvous_from, 0},
        {"NET_DEVICES", way->uses & UCX_USES_TCP ? device : "all", 0},
        /* Options of a transport are named as in its own table, UCX_POSIX_FIFO_SIZE as MM_FIFO_SIZE; one that
           no transport in use knows is warned about. */
        {"TX_SEG_SIZE", TCP_SEGMENT, UCX_USES_TCP},
        {"RX_SEG_SIZE", TCP_SEGMENT, UCX_USES_TCP},
        {"CONN_NB", "y", UCX_USES_TCP},
        {"PUT_ENABLE", "n", UCX_USES_TCP},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].is_for && !(all[i].is_for & way->uses)) continue;
        ucs_status_t status = ucp_config_modify(config, all[i].name, all[i].value);
        if (status != UCS_OK) return status;
    }
    return UCS_OK;
}

ucs_status_t afd_ucx_context_open(struct afd_transport *t, ucp_context_h *context_out)
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
    if (status == UCS_OK) status = ucp_init(&params, config, context_out);
    ucp_config_release(config);
    return status;
}

static ucs_status_t make_address(struct ucx_worker *w)
{
    ucp_address_t *address;
    size_t bytes;
    ucs_status_t status = ucp_worker_get_address(w->handle, &address, &bytes);
    if (status != UCS_OK) return status;
    w->address_bytes = (uint32_t)bytes;
    w->address = malloc(bytes);
    if (w->address) memcpy(w->address, address, bytes);
    ucp_worker_release_address(w->handle, address);
    if (!w->address) return UCS_ERR_NO_MEMORY;
    return w->address_bytes > AFD_PATH_ADDRESS_BYTES ? UCS_ERR_EXCEEDS_LIMIT : UCS_OK;
}

static ucs_status_t set_up(struct afd_transport *t, struct ucx_worker *w, ucp_am_recv_callback_t on_message)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = UCX_AM_ID,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = on_message,
        .arg = t,
    };
    ucs_status_t status = ucp_worker_create(ucx->context, &params, &w->handle);
    if (status == UCS_OK) status = ucp_worker_set_am_recv_handler(w->handle, &handler);
    if (status == UCS_OK) status = ucp_worker_get_efd(w->handle, &w->event_fd);
    if (status == UCS_OK) status = make_address(w);
    if (status == UCS_OK && afd_transport_watch(t, w->event_fd)) status = UCS_ERR_IO_ERROR;
    return status;
}

ucs_status_t afd_ucx_worker_create(struct afd_transport *t, ucp_am_recv_callback_t on_message,
                                   struct ucx_worker **out)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    struct ucx_worker *w = calloc(1, sizeof *w);
    if (!w) return UCS_ERR_NO_MEMORY;
    w->event_fd = -1;
    w->next = ucx->workers;
    ucx->workers = w;
    ucs_status_t status = set_up(t, w, on_message);
    if (status == UCS_OK)
        *out = w;
    else
        afd_ucx_worker_destroy(t, w);
    return status;
}

void afd_ucx_worker_destroy(struct afd_transport *t, struct ucx_worker *w)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    struct ucx_worker **at = &ucx->workers;
    if (!w) return;
    while (*at != w) at = &(*at)->next;
    *at = w->next;
    /* before UCX closes it: the number may be another file's at once */
    if (w->event_fd >= 0) afd_transport_unwatch(t, w->event_fd);
    if (w->handle) ucp_worker_destroy(w->handle);
    free(w->address);
    free(w);
}

void afd_ucx_workers_progress(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    for (struct ucx_worker *w = ucx->workers; w; w = w->next) {
        w->is_armed = 0;
        for (int i = 0; i < PROGRESS_ROUNDS && ucp_worker_progress(w->handle); i++) {
        }
    }
}

enum afd_status afd_ucx_workers_arm(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    if (ucx->resume) return AFD_AGAIN;
    for (struct ucx_worker *w = ucx->workers; w; w = w->next) {
        if (w->is_armed) continue;
        w->is_armed = ucp_worker_arm(w->handle) == UCS_OK;
        if (w->is_armed) continue;
        /* A full FIFO of the receiver has no event: UCX wants to be polled. On a machine with more ranks than
           cores the receiver may wait for the very core that we poll on; a message of 1 MiB then took 9 ms
           instead of 0.4. */
        if (w->sends) sched_yield();
        return AFD_AGAIN;
    }
    return AFD_OK;
}
