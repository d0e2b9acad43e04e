/* topology.h: the one plain data model of a cluster.
 *
 * `afd_topology_load` reads a YAML file strictly: an unknown or repeated key, a wrong type, unit or range, or
 * an impossible plan is AFD_ERR_CONFIG with "file:line:column: what is wrong; expected ...". Every key has a
 * default but model.path. The result is read-only plain data, owned by the caller (afd_topology_destroy), any
 * thread may read it. Everything above this floor speaks this struct; nobody else reads YAML. The example
 * files in deploy/topologies/ are the manual of the keys.
 *
 * Numbering: a rank is counted within its role: rank = instance * ranks_per_instance + index. Attention rank
 * i has the rail i mod tp: it talks to member i mod tp of every FFN instance. With attention tp above 1 the
 * ranks g * tp .. g * tp + tp - 1 are one group, whose first stands for it. */
#ifndef AFD_DEPLOY_TOPOLOGY_H
#define AFD_DEPLOY_TOPOLOGY_H

#include <stdio.h>

#include "base/clock.h"
#include "base/crypto.h"
#include "base/error.h"
#include "proto/kv.h"
#include "proto/wire.h"

enum { AFD_MAX_HOSTS = 64, AFD_NAME_BYTES = 64, AFD_PATH_BYTES = 512, AFD_ADDRESS_BYTES = 128 };
enum { AFD_MAX_CLUSTER_HOSTS = 2 * AFD_MAX_HOSTS + 1, AFD_MAX_LAUNCH_WORDS = 16 };

enum afd_role { AFD_ROLE_ATTN, AFD_ROLE_FFN, AFD_ROLE_COUNT };

enum afd_device_type { AFD_DEVICE_CPU, AFD_DEVICE_REF, AFD_DEVICE_CUDA };
/* docs/NUMERICS.md: the same bits on every machine, or the device's own products (cuda: its tensor cores). */
enum afd_numerics { AFD_NUMERICS_PORTABLE, AFD_NUMERICS_NATIVE };
enum afd_dispatch { AFD_DISPATCH_BROADCAST, AFD_DISPATCH_ROUTED };
enum afd_data_transport { AFD_DATA_AUTO, AFD_DATA_LOOP, AFD_DATA_UCX, AFD_DATA_VERBS, AFD_DATA_TCP };
enum afd_data_path { AFD_PATH_AUTO, AFD_PATH_SHM, AFD_PATH_TCP, AFD_PATH_RDMA };
enum afd_group_kind { AFD_GROUP_P2P, AFD_GROUP_NCCL };
/* Of messages: rows behind their header in the host's memory; apart from it, in the GPU's where a rank has
 * one and its network reaches it (auto), or has to (gpu). */
enum afd_rows_where { AFD_ROWS_AUTO, AFD_ROWS_HOST, AFD_ROWS_GPU };

enum { AFD_MAX_RAILS = 2 };

/* How a rank uses its network: what it does not say is found by looking. */
struct afd_network_options {
    uint32_t device_count;           /* 0: the one nearest to the rank's device (deploy/nic.h) */
    char devices[AFD_MAX_RAILS][32]; /* RDMA devices, "mlx5_0:2" or "mlx5_0" (port 1): rails of one rank */
    int32_t gid_index;      /* -1: RoCE v2 with an IPv4 address before other RoCE v2, before RoCE v1 */
    uint32_t mtu;           /* bytes, 256 to 4096; 0: the port's active one */
    uint32_t traffic_class; /* RoCE: DSCP in its upper 6 bits */
    uint32_t service_level; /* InfiniBand: 0 to 15 */
    char ucx_tls[64];       /* UCX's transport list; "": ours */
};

enum afd_launch_by { AFD_LAUNCH_LOCAL, AFD_LAUNCH_SSH, AFD_LAUNCH_SLURM, AFD_LAUNCH_KUBERNETES };

/* How the processes are started; deploy/launcher.h, docs/DEPLOY.md. */
struct afd_launch_options {
    enum afd_launch_by by;
    uint32_t never_restart;
    int names_hosts; /* the file says where the ranks run; else Slurm's allocation does */
    uint32_t ssh_count, slurm_count;
    char ssh[AFD_MAX_LAUNCH_WORDS][AFD_NAME_BYTES];   /* the command, ["ssh"] */
    char slurm[AFD_MAX_LAUNCH_WORDS][AFD_NAME_BYTES]; /* more options of sbatch */
    char dir[AFD_PATH_BYTES];                         /* of the programs on each host; "": as here */
    char state[AFD_PATH_BYTES]; /* by ssh: on each host, relative to the home folder; "": .afd/CLUSTER */
};

struct afd_pool {
    uint32_t instances, ranks_per_instance;
    uint32_t max_instances; /* slabs are sized for it; default: instances */
    enum afd_device_type device;
    char device_class[AFD_NAME_BYTES]; /* "H800": a row of the table in deploy/hardware.h; "" for cpu */
    uint32_t threads;                  /* cpu: compute threads a rank; default 1 */
    char cores[AFD_NAME_BYTES];  /* cpu: "", or a list like "0-3,6": rank i is pinned to the i-th of them
                                    (threads consecutive ones) */
    uint32_t dp, ep, tp;         /* attn: dp groups of tp ranks an instance; ffn: ep, tp */
    uint32_t copies;             /* ffn: of every shard */
    uint32_t max_shards;         /* ffn: that an instance may hold: buffers are sized for it; default: what it
                                    would hold after the loss of another one */
    int rebalance;               /* ffn: shards are placed anew by measured load */
    char shards[AFD_PATH_BYTES]; /* ffn: the file that says which experts form a shard (model/shards.h), as
                                    written; "": ranges */
    uint32_t spares; /* ffn: instances that the scheduler leaves without shards; default: those that
                        the initial placement does */
    /* attn: KV cache */
    enum afd_kv_dtype kv_dtype;
    uint32_t kv_block_tokens;
    uint64_t kv_memory_bytes; /* a rank */
    uint32_t host_count;
    char hosts[AFD_MAX_HOSTS][AFD_NAME_BYTES]; /* instance i runs on hosts[i mod host_count]; default: those
                                                  of the file's `hosts`, dealt out */
};

/* Names of metrics besides our own. */
enum afd_metrics_compat { AFD_METRICS_OWN, AFD_METRICS_VLLM };

struct afd_topology {
    char file[AFD_PATH_BYTES];
    char cluster[AFD_NAME_BYTES];
    char model_path[AFD_PATH_BYTES];  /* as written; relative to the YAML file's folder */
    char model_dir[AFD_PATH_BYTES];   /* resolved */
    char shards_file[AFD_PATH_BYTES]; /* ffn.shards, resolved; "": none */
    uint32_t max_context;             /* 0: the model's */
    uint32_t tpot_ms;                 /* slo: 0 none */

    struct {
        char host[AFD_NAME_BYTES];
        char http[AFD_ADDRESS_BYTES], control[AFD_ADDRESS_BYTES]; /* host:port, port 0: any */
        uint32_t max_queue;                                       /* requests that wait; more get 429 */
        uint32_t max_body_bytes, max_tokens, max_streams;
        uint32_t request_timeout_s;
        uint32_t lease_ms, heartbeat_ms, drain_s, orphan_s;
        uint32_t send_threads; /* that write streams to clients; UINT32_MAX: by the cores of its host */
        enum afd_metrics_compat metrics_compat;
        uint32_t scale_s; /* for the preparation of a change: launch, load, connect */
    } scheduler;

    struct {
        uint32_t microbatches;           /* M: slots a rank */
        uint32_t max_rows, prefill_rows; /* of a micro-batch, a rank */
        uint32_t max_sequences;          /* a rank; default microbatches * max_rows */
        enum afd_dtype a2f, f2a;         /* `auto` is already resolved */
        enum afd_dispatch dispatch;
        enum afd_numerics numerics; /* `auto` is already resolved */
        int gather_auto;            /* gather_us: auto */
        uint32_t gather_us;
    } pipeline;

    struct {
        enum afd_data_transport data; /* library of the network path; auto: chosen when a rank starts */
        enum afd_data_path path;      /* auto: shared memory on one host, else the network */
        struct afd_network_options network;
        enum afd_group_kind group;
        enum afd_rows_where memory;
        uint32_t spin_us; /* polling before sleeping; 0: never; `auto` is UINT32_MAX: where there
                             are more cores than threads of this host's ranks, AFD_SPIN_US, else 0 */
    } transport;

    struct afd_pool attn, ffn;
    struct afd_launch_options launch;

    uint8_t hash[AFD_HASH_BYTES]; /* of the file's bytes: every daemon must have read the same */
};

enum afd_status afd_topology_load(const char *path, struct afd_topology **out, struct afd_error *error_out);
void afd_topology_destroy(struct afd_topology *topology); /* NULL is allowed */
/* As a file whose loading gives the same topology, but for the file's name and hash; each line behind
 * `indent` spaces. Out of memory: writes nothing. */
void afd_topology_write(const struct afd_topology *topology, uint32_t indent, FILE *to);

uint32_t afd_pool_ranks(const struct afd_pool *pool);     /* instances * ranks_per_instance */
uint32_t afd_pool_max_ranks(const struct afd_pool *pool); /* at its largest: those that have a number */
/* The most rows of one FFN batch: everything that can be in flight, AFD_BATCH_ROWS or one message at most. */
enum { AFD_BATCH_ROWS = 2048 };
uint32_t afd_topology_batch_rows(const struct afd_topology *topology);
/* Which member of its tensor-parallel group an attention rank is; and how many groups there are, at the
 * pool's largest `instances`. */
uint32_t afd_attn_member(const struct afd_topology *topology, uint32_t rank);
uint32_t afd_attn_groups(const struct afd_topology *topology, uint32_t instances);
const char *afd_role_name(enum afd_role role); /* "attn", "ffn" */
const char *afd_rank_host(const struct afd_topology *topology, enum afd_role role, uint32_t rank);
/* The machines of the cluster, each once, the scheduler's first; with those that only instances beyond the
 * initial ones use. Returns how many. */
uint32_t afd_topology_hosts(const struct afd_topology *topology,
                            char out[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES]);
/* "host:port" of the scheduler's `http` or `control` address, as the other hosts reach it. */
void afd_topology_reach(const struct afd_topology *topology, const char *address,
                        char out[2 * AFD_ADDRESS_BYTES]);
/* How many ranks of its host come before it, attention ranks first: the number of its device there, and what
 * spreads ranks over equal adapters. */
uint32_t afd_rank_local(const struct afd_topology *topology, enum afd_role role, uint32_t rank);
/* What a sleep and a wake-up cost: who polls for so long before it sleeps never pays more than twice what
 * knowing the future would cost. */
enum { AFD_SPIN_US = 50 };
/* Spin time of a rank on this machine, microseconds: resolves spin_us `auto`. */
uint32_t afd_topology_spin_us(const struct afd_topology *topology, uint32_t cores_online);
/* Compute threads of all ranks of a rank's host, per core of it, rounded up: above 1 they take turns. */
uint32_t afd_topology_crowding(const struct afd_topology *topology, enum afd_role role, uint32_t rank,
                               uint32_t cores_online);
/* The cores rank `rank` of `role` is pinned to: count 0 when it is not. */
uint32_t afd_rank_cores(const struct afd_topology *topology, enum afd_role role, uint32_t rank,
                        uint32_t limit, uint32_t *cores_out);

/* Messages are in two pieces: with memory gpu, and with auto where both pools are GPUs and the network may be
 * RDMA. */
int afd_topology_splits(const struct afd_topology *topology);

/* The initial placement: copy c of shard s is on instance (s + c * ceil(instances / copies)) mod instances;
 * as many copies as `copies`, at most one an instance. `out` takes ffn.copies entries; returns how many.
 * Order: preference of copy 0 first. */
uint32_t afd_topology_placement(const struct afd_topology *topology, uint32_t shard, uint32_t *instances_out);

#endif
