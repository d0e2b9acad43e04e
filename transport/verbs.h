/* verbs.h: what is shared inside transport/verbs*.c.
 *
 *   verbs.c       the data path: put, progress, sleep, memory       verbs_port.c  which ports, with what
 *   verbs_path.c  queue pairs, regions and addresses of a pair
 *
 * A rail is one port; a transport has one or two. A pair has one queue pair a rail, all messages to one
 * region use the same one. */
#ifndef AFD_TRANSPORT_VERBS_H
#define AFD_TRANSPORT_VERBS_H

#include <infiniband/verbs.h>

#include "transport/backend.h"

enum {
    VERBS_SEND_SLOTS = 128,       /* of one queue pair */
    VERBS_SIGNAL_EVERY = 32,      /* one completion frees so many of them */
    VERBS_REFILL = 16,            /* receive entries that are posted at once */
    VERBS_CHAIN = 16,             /* sends that are posted at once.. */
    VERBS_CHAIN_BYTES = 64 << 10, /* ..or so many bytes: a device that has no work yet is idle */
    VERBS_MAX_INLINE = 128,
    VERBS_MAX_RUNS = 512,
    /* A larger message goes in parts: soft-RoCE takes no more, and a part of exactly this size says that
       more follows. */
    VERBS_PART_BYTES = 8 << 20,
    VERBS_ADDRESS_VERSION = 1,
};
/* The notice that opens a path; its region is none (AFD_MAX_REGIONS). */
#define VERBS_OPEN_NOTICE 0xffffffffu

/* ---- a rail of this transport */

/* What a port must have in common with its opposite; in the address. */
struct verbs_port_address {
    uint8_t gid[16];
    uint16_t lid;
    uint8_t link_layer; /* IBV_LINK_LAYER_ */
    uint8_t gid_type;   /* IBV_GID_TYPE_ */
    uint8_t mtu;        /* IBV_MTU_ */
    uint8_t reserved[3];
};

struct verbs_port {
    char name[48]; /* "mlx5_0:1" */
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    uint32_t cq_used;    /* entries that queue pairs may fill; never more than the queue has */
    uint32_t cq_retired; /* of those: of destroyed queue pairs, until the queue was seen empty */
    int is_armed, is_watched;
    int is_software; /* soft-RoCE: the device is a thread of this host's kernel */
    uint8_t number;
    int gid_index;
    struct verbs_port_address address;
};

struct verbs_mapping {
    struct afd_memory memory; /* with a dmabuf_fd of its own */
    struct ibv_mr *mr[AFD_MAX_RAILS];
};

struct verbs {
    struct verbs_port ports[AFD_MAX_RAILS];
    uint32_t port_count;
    struct verbs_mapping *mappings;
    uint32_t mapping_count;
    uint32_t serial;            /* of the last path */
    uint32_t turn;              /* counts polls */
    struct verbs_path *waiting; /* those that may have a chain */
};

/* ---- a pair's path */

/* Regions that lie one after the other: one registration. */
struct verbs_run {
    uint64_t base;
    uint32_t count;
    uint32_t rkey[AFD_MAX_RAILS];
    uint32_t reserved;
};

/* A path's address in a hello; little-endian, as all of the data plane. */
struct verbs_address {
    uint32_t version;
    uint32_t rail_count, run_count;
    uint32_t qpn[AFD_MAX_RAILS], psn[AFD_MAX_RAILS];
    uint32_t reserved;
    struct verbs_port_address ports[AFD_MAX_RAILS];
    struct verbs_run runs[];
};
_Static_assert(sizeof(struct verbs_address) == 80 && sizeof(struct verbs_run) == 24, "no padding");
_Static_assert(sizeof(struct verbs_address) + VERBS_MAX_RUNS * sizeof(struct verbs_run) <=
                   AFD_PATH_ADDRESS_BYTES,
               "the address fits a hello");

struct verbs_target { /* a region of the peer */
    uint64_t base;
    uint32_t rkey[AFD_MAX_RAILS];
};

struct verbs_queue {
    struct ibv_qp *qp;
    uint32_t posted, done; /* sends, ever; their difference is what may be in the send queue */
    uint32_t owed;         /* receive entries that were used and not posted again */
    uint32_t inline_bytes;
    int is_heard; /* the peer's open came */
    /* Sends that the device has not been told of yet; counted in `posted`. The first of a turn goes at once,
       those behind it together: telling the device costs a write to it, on soft-RoCE a system call. */
    struct ibv_send_wr chain[VERBS_CHAIN];
    struct ibv_sge chain_data[VERBS_CHAIN];
    uint32_t chained, chained_bytes;
    uint32_t turn; /* when the device was told last */
};

struct verbs_path {
    struct afd_pair *pair;
    uint32_t serial;     /* tells completions of this path from those of an earlier one with the same index */
    uint32_t rail_count; /* in common with the peer; set by attach */
    struct verbs_queue queues[AFD_MAX_RAILS];
    uint32_t receive_slots; /* of each queue pair */
    struct verbs_address *address;
    uint32_t address_bytes;
    struct ibv_mr **mrs; /* run by run, rail by rail */
    uint64_t *got;       /* by our region: of a message that comes in parts */
    struct verbs_target *targets;
    int is_failed;
    int is_waiting; /* in verbs->waiting */
    struct verbs_path *next_waiting;
};

/* What a completion belongs to: serial << 32 | is_send << 17 | rail << 16 | pair index. */
_Static_assert(AFD_MAX_PAIRS <= 1 << 16 && AFD_MAX_RAILS <= 2, "wr_id");
static inline uint64_t afd_verbs_wr_id(const struct verbs_path *path, uint32_t rail, int is_send)
{
    return (uint64_t)path->serial << 32 | (uint32_t)is_send << 17 | rail << 16 | path->pair->index;
}

/* ---- verbs_port.c */

/* AFD_ERR_REFUSED: no usable port; `error_out` says what was looked at. */
enum afd_status afd_verbs_ports_open(struct afd_transport *t, struct verbs *verbs,
                                     struct afd_error *error_out);
void afd_verbs_ports_close(struct afd_transport *t, struct verbs *verbs);
/* Room for `entries` more completions; AFD_ERR_MEMORY when the queue cannot grow. */
enum afd_status afd_verbs_port_reserve(struct verbs_port *port, uint32_t entries,
                                       struct afd_error *error_out);
/* "RoCE v2 (IPv4)", for words. */
const char *afd_verbs_port_kind(const struct verbs_port_address *port);

/* ---- verbs.c: memory */
const struct verbs_mapping *afd_verbs_find_mapping(const struct verbs *verbs, const void *base,
                                                   uint64_t bytes);
/* Registers `bytes` at `base` of `memory`. NULL with words. */
struct ibv_mr *afd_verbs_register(struct verbs_port *port, const struct afd_memory *memory, void *base,
                                  uint64_t bytes, int access, struct afd_error *error_out);

/* ---- verbs_path.c */
enum afd_status afd_verbs_prepare(struct afd_pair *pair, struct afd_error *error_out);
const void *afd_verbs_address(const struct afd_pair *pair, uint32_t *bytes_out);
int afd_verbs_reaches(struct afd_transport *t, const void *address, uint32_t bytes, char why_out[96]);
/* Moves the queue pairs to "ready to send"; sends nothing. */
enum afd_status afd_verbs_connect(struct afd_pair *pair, const void *address, uint32_t bytes,
                                  struct afd_error *error_out);
void afd_verbs_detach(struct afd_pair *pair);
/* Posts `count` receive entries. */
int afd_verbs_post_receives(struct verbs_path *path, uint32_t rail, uint32_t count);

#endif
