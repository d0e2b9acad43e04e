/* sched.h: the simulated scheduler: what sched.c (cluster and ranks) and sched_streams.c (journal and
 * clients) share. */
#ifndef AFD_SIM_SCHED_H
#define AFD_SIM_SCHED_H

#include "scheduler/cluster.h"
#include "scheduler/journal_writer.h"
#include "sim/world.h"

/* A request as the scheduler has it, from its admission until nobody may ask for it any more. */
struct sim_request {
    struct afd_written written; /* first */
    struct sim_request *next, *previous;
    struct sim_client *client; /* NULL: it left, or has not come back yet */
    uint32_t shown_from;       /* tokens before that the client has already */
    afd_ns kept_until;         /* 0: it runs */
    uint32_t stops[SIM_STOPS];
    uint32_t tokens[];
};

struct sim_sched {
    struct sim_world *w;
    struct sim_node *node;
    struct afd_arena *arena;
    struct afd_cluster *cluster;
    struct afd_requests *requests;
    struct afd_writer *writer;
    struct sim_conn **conns; /* open ones, in no order */
    uint32_t conn_count, conn_room;
    struct sim_conn **of_member; /* [cluster size] */
    uint64_t *serials;           /* [cluster size] of the last Tokens; 0: acknowledged */
    struct sim_request *streams;
    struct afd_requests_counters seen;
    uint64_t filled;
};

/* ---- sched_streams.c */

void sim_streams_open(struct sim_sched *s); /* reads the journal, takes up what it has */
/* 1: it is on the disk. */
int sim_streams_write_plan(struct sim_sched *s, const uint8_t *plan, size_t bytes);
void sim_streams_tick(struct sim_sched *s);
/* What a rank sent, accepted by the requests core, into the journal and then to the clients. */
void sim_streams_take(struct sim_sched *s, uint32_t rank, const struct sim_control *tokens);
void sim_streams_failed(struct sim_sched *s, struct sim_request *stream, enum afd_status status,
                        const char *words);

#endif
