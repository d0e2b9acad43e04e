/* ucx_worker.h: inside ucx.c's data path: the UCP context of a transport, its worker, progress and sleep. */
#ifndef AFD_TRANSPORT_UCX_WORKER_H
#define AFD_TRANSPORT_UCX_WORKER_H

#include <ucp/api/ucp.h>

#include "transport/backend.h"

enum {
    UCX_AM_ID = 0,
    UCX_TCP_PART_BYTES =
        248 * 1024,      /* 1 MiB in parts of 32 KiB takes 1.7 times as long: a system call each */
    UCX_USES_TCP = 1,
};

struct ucx_way { /* by enum afd_data_path */
    const char *name, *tls, *rendezvous_from;
    uint32_t part_bytes;
    int uses;
};
const struct ucx_way *afd_ucx_way(const struct afd_transport *transport);

struct ucx_worker {
    ucp_worker_h handle;
    int event_fd;
    char *address; /* what others attach to */
    uint32_t address_bytes;
    int is_armed;
    uint32_t sends; /* requests that UCX holds */
    struct ucx_worker *next;
};

struct ucx_op;
struct ucx_mapping;

struct ucx {
    ucp_context_h context;
    struct ucx_worker *shared; /* NULL where each pair has its own */
    struct ucx_worker *workers;
    struct ucx_op *resume; /* puts whose part was accepted: the next one can go */
    struct ucx_mapping *mappings;
    uint32_t mapping_count;
    int has_complained; /* one line in the log about messages that name no pair */
};

ucs_status_t afd_ucx_context_open(struct afd_transport *transport, ucp_context_h *context_out);
/* `on_message` is called with the transport. */
ucs_status_t afd_ucx_worker_create(struct afd_transport *transport, ucp_am_recv_callback_t on_message,
                                   struct ucx_worker **out);
void afd_ucx_worker_destroy(struct afd_transport *transport, struct ucx_worker *worker);
void afd_ucx_workers_progress(struct afd_transport *transport);
enum afd_status afd_ucx_workers_arm(struct afd_transport *transport);

#endif
