/* placement.h: which FFN instances hold which shard, and which should (pure functions).
 *
 * A placement is a table: for each shard its instances in order of preference (attention rank i asks copy
 * i mod n). afd_placement_plan makes the next one out of the present one: as many copies as wanted, each
 * instance within its room, the load spread, and of all such placements one that moves little, for a move is
 * a load of weights. More instances than shards and copies need get further copies of the most loaded shards,
 * which share their load. Deterministic: the same input gives the same table. No memory of its own; any
 * thread. */
#ifndef AFD_SCHEDULER_PLACEMENT_H
#define AFD_SCHEDULER_PLACEMENT_H

#include "deploy/topology.h"

struct afd_placement {
    uint8_t count[AFD_MAX_SHARDS];
    uint8_t at[AFD_MAX_SHARDS][AFD_MAX_FFN_INSTANCES];
};

struct afd_placement_wish {
    uint32_t shards, copies;
    uint32_t max_shards; /* that an instance has room for */
    uint32_t spares;     /* usable instances that are to hold nothing; as many as can be spared */
    uint64_t usable;     /* set of instances */
    const double *load;  /* [shards] relative; NULL: all alike */
};

void afd_placement_initial(const struct afd_topology *topology, struct afd_placement *out);
/* The shards that an instance holds. */
uint64_t afd_placement_shards(const struct afd_placement *placement, uint32_t shards, uint32_t instance);
/* The instances that hold any. */
uint64_t afd_placement_instances(const struct afd_placement *placement, uint32_t shards);
int afd_placement_has(const struct afd_placement *placement, uint32_t shard, uint32_t instance);
int afd_placement_is_equal(const struct afd_placement *a, const struct afd_placement *b, uint32_t shards);
/* Adds an instance behind the others; ignored when it is there. */
void afd_placement_add(struct afd_placement *placement, uint32_t shard, uint32_t instance);
void afd_placement_remove(struct afd_placement *placement, uint32_t shard, uint32_t instance);
/* The load of the most loaded of the instances that hold shards, over the mean. */
double afd_placement_imbalance(const struct afd_placement *placement, uint32_t shards, const double *load);

/* AFD_ERR_LIMIT with words: no instance is usable, or there is no room. `out` may be `from`. */
enum afd_status afd_placement_plan(const struct afd_placement_wish *wish, const struct afd_placement *from,
                                   struct afd_placement *out, struct afd_error *error_out);

#endif
