/* fake_nccl.h: the table of transport/nccl.h among members of one process. An operation is done when all
 * members have begun it; sums are added in the order of members. A test says which member hangs, fails or
 * cannot join. */
#ifndef AFD_TESTS_TRANSPORT_FAKE_NCCL_H
#define AFD_TESTS_TRANSPORT_FAKE_NCCL_H

#include "transport/nccl.h"

enum { FAKE_MEMBERS = 4 };

struct fake_op {
    uint64_t number; /* how many of its communicator this member began before it */
    int is_begun, is_over;
    uint32_t rows[FAKE_MEMBERS], width;   /* bytes, or columns */
    const struct afd_group_piece *pieces; /* gather */
    uint32_t piece_count;
    const float *from; /* reduce */
    void *to;
};

struct fake_world;
struct fake_nccl {
    struct fake_world *world;
    uint32_t self;
    unsigned char id[AFD_NCCL_COMMS][AFD_NCCL_ID_BYTES];
    int is_joined[AFD_NCCL_COMMS], aborts, hangs, fails,
        takes_long; /* takes_long: state says so that often */
    uint64_t begun[AFD_NCCL_COMMS];
    struct fake_op ops[AFD_NCCL_COMMS][AFD_NCCL_SLOTS];
};

struct fake_world {
    uint32_t members, ids;
    struct fake_nccl of[FAKE_MEMBERS];
};

void fake_world_init(struct fake_world *world, uint32_t members);
extern const struct afd_nccl_calls fake_nccl_calls;

#endif
