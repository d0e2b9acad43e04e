/* loads.h: what each shard bears, from the expert rows that attention ranks report in their heartbeats.
 *
 * Every so often the rows since the last time go to the cluster core, which decides whether shards are placed
 * anew. Layers count alike: a row of an expert costs the same in each. One thread. */
#ifndef AFD_SCHEDULER_LOADS_H
#define AFD_SCHEDULER_LOADS_H

#include "model/model.h"
#include "scheduler/cluster.h"

struct afd_service;

struct afd_loads {
    double before[AFD_MAX_SHARDS]; /* rows, when they were measured last */
    afd_ns next;
};

/* Called every tick: measures when it is time. */
void afd_loads_tick(struct afd_loads *loads, const struct afd_service *service, struct afd_cluster *cluster,
                    const struct afd_model *model, afd_ns now);

#endif
