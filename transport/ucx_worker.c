/* ucx_worker.c: the UCP context and the workers of a transport. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/ucx.h"

enum { PROGRESS_ROUNDS = 32 };

/* Over TCP UCX has no put of its own worth using (it makes messages of it), and a rendezvous was slower than
 * eager parts of 248 KiB although it saves a copy: docs/TRANSPORT.md. Over RDMA a message that fits one
 * buffer of UCX is copied; it saves the round trip between data and notice. */
static const struct ucx_way over_tcp = {"tcp", "tcp", UINT32_MAX, 0};
static const struct ucx_way over_tcp_put = {"tcp put", "tcp", 7680, 0};
/* "rc" is RC for all data and UD for UCX's own beginnings. Only RC has a put: of one over UD, as over TCP,
 * UCX makes messages, and nothing protects memory from those. */
#ifdef AFD_UCX_CUDA
static const struct ucx_way over_rdma = {"rdma", "rc,cuda", 7680, 1};
#else
static const struct ucx_way over_rdma = {"rdma", "rc", 7680, 1};
#endif

static int has_rdma_device(void)
{
    DIR *devices = opendir("/sys/class/infiniband");
    int count = 0;
    if (!devices) return 0;
    for (struct dirent *d; (d = readdir(devices));) count += d->d_name[0] != '.';
    closedir(devices);
    return count > 0;
}

const struct ucx_way *afd_ucx_choose(const struct afd_transport *t)
{
    enum afd_data_path path = t->config.path;
    const char *tls = t->config.network.ucx_tls;
    if (path == (enum afd_data_path)AFD_PATH_TCP_PUT) return &over_tcp_put;
    if (path == AFD_PATH_RDMA) return &over_rdma;
    if (path == AFD_PATH_TCP) return &over_tcp;
    /* Chosen among others it is for what sockets do not reach, unless it was told its transports. */
    if (t->config.kind == AFD_DATA_AUTO && !tls[0]) return &over_rdma;
    return (tls[0] ? !strstr(tls, "tcp") : has_rdma_device()) ? &over_rdma : &over_tcp;
}

/* ---- options */

/* "mlx5_0:1,mlx5_1:1": UCX takes no device without its port. */
static void rdma_devices(const struct afd_network_options *o, char *names_out, size_t limit)
{
    size_t used = 0;
    snprintf(names_out, limit, "all");
    for (uint32_t i = 0; i < o->device_count && used < limit; i++)
        used += (size_t)snprintf(names_out + used, limit - used, "%s%s%s", i ? "," : "", o->devices[i],
                                 strchr(o->devices[i], ':') ? "" : ":1");
}

struct option {
    const char *name, *value;
};

static ucs_status_t set_options(ucp_config_t *config, const struct option *options, size_t count)
{
    ucs_status_t status = UCS_OK;
    for (size_t i = 0; i < count && status == UCS_OK; i++)
        status = ucp_config_modify(config, options[i].name, options[i].value);
    return status;
}

/* Options of a transport are named as in its own table, UCX_TCP_TX_SEG_SIZE as TX_SEG_SIZE; one that no
 * transport in use knows is warned about. */
static ucs_status_t configure_tcp(const struct afd_transport *t, ucp_config_t *config)
{
    char device[64]; /* UCX would take all, and open a second lane over another */
    afd_paths_interface(t, device, sizeof device);
    const struct option options[] = {
        {"NET_DEVICES", device},
        {"TX_SEG_SIZE", "256K"},
        {"RX_SEG_SIZE", "256K"},
        {"CONN_NB", "y"},
        {"PUT_ENABLE", "n"},
        /* A host that is gone without a word; as on the hello socket. One that is only slow still answers. */
        {"KEEPIDLE", "5s"},
        {"KEEPINTVL", "2s"},
        {"KEEPCNT", "3"},
    };
    return set_options(config, options, sizeof options / sizeof *options);
}

static ucs_status_t configure_rdma(const struct afd_transport *t, ucp_config_t *config)
{
    const struct afd_network_options *o = &t->config.network;
    char devices[80], gid[16], class[16], level[16], mtu[16];
    rdma_devices(o, devices, sizeof devices);
    snprintf(gid, sizeof gid, "%d", o->gid_index);
    snprintf(class, sizeof class, "%u", o->traffic_class);
    snprintf(level, sizeof level, "%u", o->service_level);
    snprintf(mtu, sizeof mtu, "%u", o->mtu);
    struct option options[12] = {
        {"NET_DEVICES", devices},
        /* What is deregistered is out of reach at once: a cached registration would stay valid. */
        {"RCACHE_ENABLE", "n"},
        {"REG_METHODS", "direct"},
        /* Buffers of UCX's own messages, which are small and few here. By default there are 60 MiB of them,
           and registering those is what the first pair of a worker waits for. A sender that meets none left
           waits for the receiver's next. */
        {"IB_RX_QUEUE_LEN", "512"},
        {"IB_RX_BUFS_GROW", "512"},
        {"IB_TX_BUFS_GROW", "64"},
        /* UD, which sets up RC, would drop what soft-RoCE hands it from an IPv4 address. A queue pair's
           number is the device's own, so what comes for it is ours. */
        {"UD_ETH_DGID_CHECK", "n"},
    };
    size_t count = 7;
    if (o->gid_index >= 0) options[count++] = (struct option){"GID_INDEX", gid};
    if (o->traffic_class) options[count++] = (struct option){"IB_TRAFFIC_CLASS", class};
    if (o->service_level) options[count++] = (struct option){"IB_SL", level};
    if (o->mtu) options[count++] = (struct option){"IB_PATH_MTU", mtu};
    return set_options(config, options, count);
}

static ucs_status_t open_context(struct afd_transport *t, struct ucx *ucx)
{
    ucp_config_t *config;
    const struct option options[] = {
        {"TLS", t->config.network.ucx_tls[0] ? t->config.network.ucx_tls : ucx->way->tls},
        {"RNDV_THRESH", "inf"},
        {"KEEPALIVE_INTERVAL", "5s"},
    };
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS,
        .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
        .estimated_num_eps = 1,
    };
    if (ucx->way->eager_bytes != UINT32_MAX) params.features |= UCP_FEATURE_RMA;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK) return status;
    status = set_options(config, options, sizeof options / sizeof *options);
    if (status == UCS_OK) status = ucx->way->is_rdma ? configure_rdma(t, config) : configure_tcp(t, config);
    if (status == UCS_OK) status = ucp_init(&params, config, &ucx->context);
    ucp_config_release(config);
    return status;
}

/* ---- the worker */

static void close_worker(struct afd_transport *t, struct ucx_worker *w)
{
    /* before UCX closes it: the number may be another file's at once */
    if (w->event_fd >= 0) afd_transport_unwatch(t, w->event_fd);
    if (w->address) ucp_worker_release_address(w->handle, w->address);
    if (w->handle) ucp_worker_destroy(w->handle);
    free(w);
}

static ucs_status_t open_worker(struct afd_transport *t, struct ucx *ucx)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = UCX_AM_ID,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = ucx->on_message,
        .arg = t,
    };
    int event_fd;
    struct ucx_worker *w = calloc(1, sizeof *w);
    if (!w) return UCS_ERR_NO_MEMORY;
    w->event_fd = -1;
    ucs_status_t status = ucp_worker_create(ucx->context, &params, &w->handle);
    if (status != UCS_OK) w->handle = NULL;
    if (status == UCS_OK) status = ucp_worker_set_am_recv_handler(w->handle, &handler);
    if (status == UCS_OK) status = ucp_worker_get_address(w->handle, &w->address, &w->address_bytes);
    if (status == UCS_OK) status = ucp_worker_get_efd(w->handle, &event_fd);
    if (status == UCS_OK && afd_transport_watch(t, event_fd)) status = UCS_ERR_IO_ERROR;
    if (status != UCS_OK) {
        close_worker(t, w);
        return status;
    }
    w->event_fd = event_fd;
    w->next = ucx->workers;
    ucx->workers = w;
    ucx->is_miscounted = 0;
    return UCS_OK;
}

static enum afd_status fail(const struct afd_transport *t, ucs_status_t status, struct afd_error *error_out)
{
    const struct ucx *ucx = t->back[AFD_WAY_UCX];
    int goes_without = status == UCS_ERR_NO_DEVICE || t->config.kind == AFD_DATA_AUTO;
    return afd_fail(error_out, goes_without ? AFD_ERR_REFUSED : AFD_ERR_IO, "UCX over %s (transports %s): %s",
                    ucx->way->name, t->config.network.ucx_tls[0] ? t->config.network.ucx_tls : ucx->way->tls,
                    ucs_status_string(status));
}

enum afd_status afd_ucx_worker_open(struct afd_transport *t, struct afd_error *error_out)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    if (ucx->way->is_rdma && !has_rdma_device())
        return afd_fail(error_out, AFD_ERR_REFUSED, "no RDMA device in /sys/class/infiniband");
#ifndef AFD_UCX_CUDA
    /* All memory would be registered a second time, for the same ports. */
    if (t->config.kind == AFD_DATA_AUTO && t->back[AFD_WAY_VERBS])
        return afd_fail(error_out, AFD_ERR_REFUSED, "verbs has the RDMA ports, and this UCX no GPU memory");
#endif
    ucs_status_t status = open_context(t, ucx);
    if (status == UCS_OK) status = open_worker(t, ucx);
    return status == UCS_OK ? AFD_OK : fail(t, status, error_out);
}

enum afd_status afd_ucx_worker_replace(struct afd_transport *t, struct afd_error *error_out)
{
    ucs_status_t status = open_worker(t, t->back[AFD_WAY_UCX]);
    return status == UCS_OK ? AFD_OK : fail(t, status, error_out);
}

void afd_ucx_worker_retire(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    for (struct ucx_worker **at = &ucx->workers->next, *w; (w = *at);) {
        if (w->paths) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        close_worker(t, w);
    }
}

void afd_ucx_worker_close(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    for (struct ucx_worker *w; (w = ucx->workers);) {
        ucx->workers = w->next;
        close_worker(t, w);
    }
    if (ucx->context) ucp_cleanup(ucx->context);
}

void afd_ucx_worker_progress(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    /* A look at the sockets costs a system call: not one more before the owner may answer. */
    for (struct ucx_worker *w = ucx->workers; w; w = w->next)
        for (int i = 0; i < PROGRESS_ROUNDS && ucp_worker_progress(w->handle) && !t->ready_first; i++) {
        }
}

enum afd_status afd_ucx_worker_arm(struct afd_transport *t)
{
    struct ucx *ucx = t->back[AFD_WAY_UCX];
    if (ucx->ready_first) return AFD_AGAIN;
    for (struct ucx_worker *w = ucx->workers; w; w = w->next)
        if (ucp_worker_arm(w->handle) != UCS_OK) return AFD_AGAIN;
    return AFD_OK;
}
