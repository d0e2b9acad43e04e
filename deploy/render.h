/* render.h: a topology as files for another launcher: a Slurm batch script, systemd units, Kubernetes
 * objects.
 *
 * Pure text: the same topology gives the same bytes; nothing is asked, nothing secret is written. Owned by
 * the caller: the stream, whose errors he sees at fclose. docs/DEPLOY.md says how the files are used. */
#ifndef AFD_DEPLOY_RENDER_H
#define AFD_DEPLOY_RENDER_H

#include <stdio.h>

#include "deploy/topology.h"

/* A batch script that starts a supervisor on each node; what `afd up` submits. `program`: of afd on the
 * nodes; `file` and `dir`: topology and state directory, on a file system that all nodes share. */
void afd_render_slurm(const struct afd_topology *topology, const char *program, const char *file,
                      const char *dir, FILE *to);

/* The units of one host: afd-CLUSTER.target, which wants the host's ranks, -scheduler.service, and one
 * template for each role. They expect /etc/afd/CLUSTER/{topology.yaml,secret} and the programs in `bin_dir`.
 */
enum afd_systemd_unit { AFD_UNIT_TARGET, AFD_UNIT_SCHEDULER, AFD_UNIT_ATTN, AFD_UNIT_FFN, AFD_UNIT_COUNT };
void afd_render_systemd_name(const struct afd_topology *topology, enum afd_systemd_unit unit, char out[128]);
void afd_render_systemd(const struct afd_topology *topology, enum afd_systemd_unit unit, const char *host,
                        const char *bin_dir, FILE *to);

struct afd_kubernetes_options {
    const char *image;       /* holds the programs in its PATH */
    const char *gpu;         /* resource of a GPU: "nvidia.com/gpu" */
    const char *rdma;        /* resource of a network adapter; NULL: none is asked for */
    const char *model_claim; /* PersistentVolumeClaim that is mounted at model.path */
};
/* ConfigMap, Services, PodDisruptionBudgets and three StatefulSets: the scheduler, a pod for each attention
 * instance, one for each FFN instance. AFD_ERR_CONFIG with words: what pods cannot be. */
enum afd_status afd_render_kubernetes(const struct afd_topology *topology,
                                      const struct afd_kubernetes_options *options, FILE *to,
                                      struct afd_error *error_out);

#endif
