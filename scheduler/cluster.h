/* cluster.h: the cluster view: which ranks there are, in which state, and where the shards are (pure core).
 *
 * The shell reports registrations, Ready, heartbeats and ends of connections, each with the time; the core
 * answers with actions, which the shell takes with afd_cluster_next until there are none and carries out in
 * order. Members are numbered by role and rank as in the topology; a connection is the shell's own number,
 * never 0. Memory comes from the arena at creation. A rank that misbehaves loses its own place alone.
 *
 * A member's life:
 *
 *      starting --registered--> joining --ready--> ready --leave or drains--> draining
 *                                  ^                 |                          |
 *                                  |                 v    connection ended,     v
 *                                  +--registered--- lost <--lease passed--------+
 *
 * A rank that comes back with the incarnation that was ready before still holds its weights and is ready at
 * once; a new incarnation loads and joins anew. Peers go out first when every rank of the topology is
 * registered (epoch 1) and again, with the next epoch, whenever a member is lost or registered. */
#ifndef AFD_SCHEDULER_CLUSTER_H
#define AFD_SCHEDULER_CLUSTER_H

#include "base/arena.h"
#include "deploy/topology.h"

enum afd_member_state {
    AFD_MEMBER_STARTING,
    AFD_MEMBER_JOINING,
    AFD_MEMBER_READY,
    AFD_MEMBER_LOST,
    AFD_MEMBER_DRAINING,
};

enum { AFD_CLUSTER_HOST_BYTES = 128, AFD_CLUSTER_WORDS_BYTES = 256 };

struct afd_cluster_member {
    enum afd_role role;
    uint32_t rank;
    enum afd_member_state state;
    uint64_t connection; /* 0: none */
    uint64_t incarnation;
    int was_ready; /* this incarnation has been ready */
    afd_ns heard;  /* last sign of life */
    uint32_t pid;
    char host[AFD_CLUSTER_HOST_BYTES], data_address[AFD_CLUSTER_HOST_BYTES];
};

struct afd_cluster_registration {
    uint64_t connection;
    enum afd_role role;
    uint32_t rank;
    uint64_t incarnation;
    uint32_t pid;
    const char *host, *data_address;
    const uint8_t *model_hash, *topology_hash;
    size_t model_hash_bytes, topology_hash_bytes;
};

enum afd_cluster_action_kind {
    AFD_CLUSTER_REFUSE, /* send the words over `connection`, for good, and close it */
    AFD_CLUSTER_EVICT,  /* the same, but the rank may come back */
    AFD_CLUSTER_ASSIGN, /* send Assign over `connection`: afd_cluster_shards(rank) */
    AFD_CLUSTER_PEERS,  /* send the members that are connected, and the placement, to all of them */
    AFD_CLUSTER_UP,     /* the rank is ready */
    AFD_CLUSTER_DOWN,   /* the rank is lost, ready or not: what it had is to be repeated elsewhere */
};

struct afd_cluster_action {
    enum afd_cluster_action_kind kind;
    uint64_t connection;
    enum afd_role role;
    uint32_t rank;
    int is_orderly; /* EVICT, DOWN: it said that it leaves; nothing is wrong */
    char words[AFD_CLUSTER_WORDS_BYTES];
};

struct afd_cluster;

/* NULL when the arena is exhausted. `topology` is read as long as the cluster lives. */
struct afd_cluster *afd_cluster_create(struct afd_arena *arena, const struct afd_topology *topology,
                                       const uint8_t model_hash[AFD_HASH_BYTES]);

void afd_cluster_register(struct afd_cluster *cluster, const struct afd_cluster_registration *registration,
                          afd_ns now);
/* Of the rank that registered over `connection`; ignored when there is none (any more). */
void afd_cluster_ready(struct afd_cluster *cluster, uint64_t connection, afd_ns now);
void afd_cluster_heartbeat(struct afd_cluster *cluster, uint64_t connection, afd_ns now);
void afd_cluster_draining(struct afd_cluster *cluster, uint64_t connection);
void afd_cluster_leave(struct afd_cluster *cluster, uint64_t connection, const char *why);
void afd_cluster_closed(struct afd_cluster *cluster, uint64_t connection);
/* Enforces leases; call every heartbeat interval or so. */
void afd_cluster_tick(struct afd_cluster *cluster, afd_ns now);

/* Takes the next action; 0 when there is none. To be called after every event. */
int afd_cluster_next(struct afd_cluster *cluster, struct afd_cluster_action *out);

const struct afd_topology *afd_cluster_topology(const struct afd_cluster *cluster);
uint64_t afd_cluster_epoch(const struct afd_cluster *cluster); /* 0 before the first Peers */
uint32_t afd_cluster_size(const struct afd_cluster *cluster);
/* Attention ranks first, then FFN ranks. */
const struct afd_cluster_member *afd_cluster_at(const struct afd_cluster *cluster, uint32_t index);
/* NULL when nobody registered over it. */
const struct afd_cluster_member *afd_cluster_of(const struct afd_cluster *cluster, uint64_t connection);
/* The shards an FFN rank loads, ascending; returns how many. 0 for attention. */
uint32_t afd_cluster_shards(const struct afd_cluster *cluster, enum afd_role role, uint32_t rank,
                            uint32_t shards_out[AFD_MAX_SHARDS]);
/* Instances that hold a shard, in order of preference; `out` takes ffn.copies entries. */
uint32_t afd_cluster_placement(const struct afd_cluster *cluster, uint32_t shard, uint32_t *out);

/* Every rank of the topology has been ready at one time. */
int afd_cluster_was_complete(const struct afd_cluster *cluster);
/* Requests can run: complete once, and now an attention rank is ready and each shard has a whole instance. */
int afd_cluster_serves(const struct afd_cluster *cluster);

const char *afd_member_state_name(enum afd_member_state state);

#endif
