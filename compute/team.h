/* team.h: the threads of one device, and how they meet.
 *
 * A team of n threads: index 0 is the thread that called afd_team_start (the device's own thread), the others
 * are created by it and wait. `run` hands one function to all and returns when all have finished; inside it,
 * `barrier` lets all arrive before any goes on. Both spin briefly and then sleep, so that an idle team costs
 * nothing and a team on too few cores gives them back. With one thread neither does anything.
 * A run's writes before a barrier are seen by all after it. */
#ifndef AFD_COMPUTE_TEAM_H
#define AFD_COMPUTE_TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* A counter that threads wait on. */
struct afd_gate {
    _Alignas(64) _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
};

void afd_gate_advance(struct afd_gate *gate); /* adds one and wakes all */
/* Returns once the value differs from `seen`; spins `spins` times before it sleeps. */
void afd_gate_wait(struct afd_gate *gate, uint32_t seen, uint32_t spins);

typedef void (*afd_team_fn)(void *arg, uint32_t index);

struct afd_team {
    uint32_t threads, started;
    struct afd_gate fork, barrier;
    _Atomic uint32_t arrived;
    afd_team_fn fn; /* NULL: end */
    void *arg;
    struct afd_member {
        struct afd_team *team;
        uint32_t index;
        int32_t core; /* -1: not pinned */
        pthread_t thread;
    } * members; /* [threads], owned by who made the team */
};

/* 0, or -1 when a thread could not be created (then the team is stopped). Pins the caller as member 0. */
int afd_team_start(struct afd_team *team);
void afd_team_stop(struct afd_team *team);
void afd_team_run(struct afd_team *team, afd_team_fn fn, void *arg);
void afd_team_barrier(struct afd_team *team);

#endif
