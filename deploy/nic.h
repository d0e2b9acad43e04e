/* nic.h: the network adapter of a rank: the RDMA ports nearest to its device, its rails.
 *
 * The device of a CUDA rank is a GPU: the n-th of its host in the order of PCI addresses, n being
 * afd_rank_local mod their count. That of a CPU rank is the cores it is pinned to; a rank that is not pinned
 * has all adapters equally near. Near means: behind one PCI switch, on one root complex, on one NUMA node, in
 * one socket. Of several adapters equally near, the ranks of a host take one each in turn; both ports of the
 * chosen one are rails.
 *
 * What is there is read with hwloc, on the machine that the caller runs on; the choice is a pure function.
 * Blocks for some milliseconds while it looks: for start-up and `afd check` alone. */
#ifndef AFD_DEPLOY_NIC_H
#define AFD_DEPLOY_NIC_H

#include "deploy/topology.h"

struct hwloc_topology;

enum { AFD_MAX_NICS = 64 };

enum afd_nic_distance {
    AFD_NIC_SWITCH,   /* behind the same PCI switch */
    AFD_NIC_ROOT,     /* on the same root complex */
    AFD_NIC_NODE,     /* on the same NUMA node */
    AFD_NIC_PACKAGE,  /* in the same socket */
    AFD_NIC_MACHINE,  /* somewhere */
    AFD_NIC_SOFTWARE, /* no PCI device: soft-RoCE */
    AFD_NIC_DISTANCES
};

/* One RDMA port. */
struct afd_nic {
    char name[32]; /* as in transport.network.devices: "mlx5_0:1" */
    uint64_t card; /* ports of one adapter have the same */
    enum afd_nic_distance distance;
    int is_active;
};

struct afd_nic_rails {
    uint32_t count; /* 0: no RDMA port that is up */
    char devices[AFD_MAX_RAILS][32];
    char why[256];
};

/* Pure. `local`: of the rank on its host. `place`: words for the rank's device, "GPU 1 (0000:1b:00.0)". */
void afd_nic_choose(const struct afd_nic *nics, uint32_t count, uint32_t local, const char *place,
                    struct afd_nic_rails *out);

/* This machine as hwloc sees it, with its PCI devices; NULL: it cannot be read. Changes the environment while
 * it looks: no other thread may read that meanwhile. */
struct hwloc_topology *afd_nic_machine_open(void);
void afd_nic_machine_close(struct hwloc_topology *machine); /* NULL is allowed */

/* The RDMA ports of `machine`, by PCI address, seen from the rank's device there. Returns how many. */
uint32_t afd_nic_survey(struct hwloc_topology *machine, const struct afd_topology *topology,
                        enum afd_role role, uint32_t rank, struct afd_nic out[AFD_MAX_NICS],
                        char place_out[96]);
/* afd_nic_survey and afd_nic_choose. */
void afd_nic_of_rank(struct hwloc_topology *machine, const struct afd_topology *topology, enum afd_role role,
                     uint32_t rank, struct afd_nic_rails *out);

/* Does this topology's data plane use RDMA where there is any? */
int afd_nic_is_wanted(const struct afd_topology *topology);
/* The network interface of this machine that has the address `host`; 0: none has. Names are "localhost" and
 * the machine's own. */
int afd_nic_interface(const char *host, char name_out[32]);

/* What a rank does at its start: the topology's options, with the rails that this machine has for it where
 * the topology names none. Logs what it found and why. */
void afd_nic_options(const struct afd_topology *topology, enum afd_role role, uint32_t rank,
                     struct afd_network_options *out);

#endif
