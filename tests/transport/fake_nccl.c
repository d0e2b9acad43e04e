#include "tests/transport/fake_nccl.h"

#include <string.h>

#include "transport/group.h"

void fake_world_init(struct fake_world *world, uint32_t members)
{
    *world = (struct fake_world){.members = members};
    for (uint32_t m = 0; m < members; m++) world->of[m] = (struct fake_nccl){.world = world, .self = m};
}

static enum afd_status make_id(void *user, unsigned char id[AFD_NCCL_ID_BYTES])
{
    struct fake_nccl *n = user;
    memset(id, (int)++n->world->ids, AFD_NCCL_ID_BYTES);
    return n->fails ? AFD_ERR_DEVICE : AFD_OK;
}

static enum afd_status join(void *user, uint32_t comm, uint32_t members, uint32_t self,
                            const unsigned char id[AFD_NCCL_ID_BYTES])
{
    struct fake_nccl *n = user;
    if (members != n->world->members || self != n->self || n->is_joined[comm]) return AFD_ERR_PEER;
    memcpy(n->id[comm], id, AFD_NCCL_ID_BYTES);
    n->is_joined[comm] = 1;
    return AFD_OK;
}

/* All members have joined by the same id, which no other communicator has. */
static enum afd_status state(void *user, uint32_t comm)
{
    struct fake_nccl *n = user;
    if (n->fails || !memcmp(n->id[0], n->id[1], AFD_NCCL_ID_BYTES)) return AFD_ERR_PEER;
    if (n->takes_long) return n->takes_long--, AFD_AGAIN;
    for (uint32_t m = 0; m < n->world->members; m++) {
        const struct fake_nccl *other = &n->world->of[m];
        if (!other->is_joined[comm] || other->hangs ||
            memcmp(other->id[comm], n->id[comm], AFD_NCCL_ID_BYTES))
            return AFD_AGAIN;
    }
    return AFD_OK;
}

static enum afd_status begin(struct fake_nccl *n, uint32_t comm, uint32_t slot, const uint32_t *rows,
                             struct fake_op what)
{
    struct fake_op *op = &n->ops[comm][slot];
    if (op->is_begun && !op->is_over) return AFD_ERR_PEER; /* its slot is taken */
    *op = what;
    op->number = n->begun[comm]++;
    op->is_begun = 1;
    memcpy(op->rows, rows, n->world->members * sizeof *rows);
    return AFD_OK;
}

static enum afd_status gather(void *user, uint32_t slot, const uint32_t *rows, uint32_t row_bytes,
                              const struct afd_group_piece *pieces, uint32_t piece_count, void *to)
{
    return begin(
        user, AFD_NCCL_GATHER, slot, rows,
        (struct fake_op){.width = row_bytes, .pieces = pieces, .piece_count = piece_count, .to = to});
}

static enum afd_status reduce(void *user, uint32_t slot, const uint32_t *rows, uint32_t columns,
                              const float *from, float *to)
{
    return begin(user, AFD_NCCL_REDUCE, slot, rows,
                 (struct fake_op){.width = columns, .from = from, .to = to});
}

static void take(struct fake_op *op, const struct fake_op *other, uint32_t m, uint32_t comm, uint32_t self)
{
    uint64_t before = 0, own = 0;
    for (uint32_t i = 0; i < m; i++) before += op->rows[i];
    for (uint32_t i = 0; i < self; i++) own += op->rows[i];
    if (comm == AFD_NCCL_GATHER) {
        char *to = (char *)op->to + before * op->width;
        for (uint32_t i = 0; i < other->piece_count; to += other->pieces[i++].bytes)
            if (other->pieces[i].bytes) memcpy(to, other->pieces[i].from, other->pieces[i].bytes);
        return;
    }
    for (uint64_t i = 0; i < (uint64_t)op->rows[self] * op->width; i++) {
        float x = other->from[own * op->width + i];
        ((float *)op->to)[i] = m ? ((float *)op->to)[i] + x : x;
    }
}

/* A member reads the others' data when all have begun; theirs stays until they are over it themselves. */
static enum afd_status done(void *user, uint32_t comm, uint32_t slot)
{
    struct fake_nccl *n = user;
    struct fake_op *op = &n->ops[comm][slot];
    enum afd_status status = state(user, comm);
    if (status) return status;
    for (uint32_t m = 0; m < n->world->members; m++) {
        const struct fake_op *other = &n->world->of[m].ops[comm][slot];
        if (!other->is_begun || other->number < op->number) return AFD_AGAIN;
        if (other->number > op->number || memcmp(other->rows, op->rows, n->world->members * sizeof *op->rows))
            return AFD_ERR_PEER; /* members disagree about what this operation is */
    }
    for (uint32_t m = 0; m < n->world->members; m++)
        take(op, &n->world->of[m].ops[comm][slot], m, comm, n->self);
    op->is_over = 1;
    return AFD_OK;
}

static void abort_all(void *user)
{
    struct fake_nccl *n = user;
    n->aborts++;
    for (uint32_t c = 0; c < AFD_NCCL_COMMS; c++) n->is_joined[c] = 0, n->begun[c] = 0;
    memset(n->ops, 0, sizeof n->ops);
}

static const char *words(void *user)
{
    (void)user;
    return "as the test wanted";
}

const struct afd_nccl_calls fake_nccl_calls = {.make_id = make_id,
                                               .join = join,
                                               .state = state,
                                               .gather = gather,
                                               .reduce = reduce,
                                               .done = done,
                                               .abort = abort_all,
                                               .words = words};
