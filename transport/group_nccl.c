#include "transport/group_nccl.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum state { WAITS, TELLS, JOINS, READY, FAILED }; /* for the pairs and the ids; member 0 alone; ... */
enum progress { IDLE, WANTED, RUNNING, OVER };

_Static_assert((int)AFD_NCCL_SLOTS == (int)AFD_GROUP_DEPTH, "a slot for each batch that may be in flight");

struct operation {
    enum progress progress;
    struct afd_group_nccl_op op;
    afd_ns deadline;
};

struct afd_group_nccl {
    struct afd_group_config config;
    const struct afd_nccl_calls *calls;
    enum state state;
    unsigned char ids[AFD_NCCL_COMMS][AFD_NCCL_ID_BYTES];
    uint32_t told; /* members that were told, from member 1 on */
    int has_ids;
    afd_ns deadline; /* of joining */
    struct operation operations[AFD_NCCL_COMMS][AFD_NCCL_SLOTS];
    char words[160];
};

static const char *const comm_names[] = {"all-gather", "reduce-scatter"};

struct afd_group_nccl *afd_group_nccl_create(const struct afd_group_config *config)
{
    struct afd_group_nccl *n = calloc(1, sizeof *n);
    if (!n) return NULL;
    n->config = *config;
    n->calls = config->nccl;
    return n;
}

void afd_group_nccl_destroy(struct afd_group_nccl *n)
{
    if (!n) return;
    n->calls->abort(n->config.nccl_user);
    free(n);
}

static enum afd_status fail(struct afd_group_nccl *n, enum afd_status status, const char *what)
{
    n->state = FAILED;
    snprintf(n->words, sizeof n->words, "NCCL: %s: %s", what, n->calls->words(n->config.nccl_user));
    return status;
}

static enum afd_status fail_late(struct afd_group_nccl *n, const char *what)
{
    n->state = FAILED;
    snprintf(n->words, sizeof n->words, "NCCL: %s: no end within %u ms; a member hangs or is gone", what,
             n->config.timeout_ms);
    return AFD_ERR_PEER;
}

const char *afd_group_nccl_words(const struct afd_group_nccl *n)
{
    return n->words;
}

int afd_group_nccl_is_ready(const struct afd_group_nccl *n)
{
    return n->state == READY;
}

/* ---- ids */

const void *afd_group_nccl_message(struct afd_group_nccl *n, uint32_t *member_out, uint32_t *bytes_out)
{
    if (n->state != TELLS) return NULL;
    *member_out = n->told + 1;
    *bytes_out = sizeof n->ids;
    return n->ids;
}

void afd_group_nccl_told(struct afd_group_nccl *n)
{
    n->told++;
}

int afd_group_nccl_expects(const struct afd_group_nccl *n, uint32_t member)
{
    return member == 0 && n->config.self != 0 && !n->has_ids;
}

enum afd_status afd_group_nccl_take(struct afd_group_nccl *n, const void *message, uint32_t bytes)
{
    if (bytes != sizeof n->ids) return AFD_ERR_PROTOCOL;
    memcpy(n->ids, message, sizeof n->ids);
    n->has_ids = 1;
    return AFD_OK;
}

/* ---- joining */

static enum afd_status make_ids(struct afd_group_nccl *n)
{
    for (uint32_t c = 0; c < AFD_NCCL_COMMS; c++) {
        enum afd_status status = n->calls->make_id(n->config.nccl_user, n->ids[c]);
        if (status) return fail(n, status, "no id");
    }
    n->has_ids = 1;
    n->state = TELLS;
    return AFD_AGAIN;
}

static enum afd_status begin_to_join(struct afd_group_nccl *n, afd_ns now)
{
    for (uint32_t c = 0; c < AFD_NCCL_COMMS; c++) {
        enum afd_status status =
            n->calls->join(n->config.nccl_user, c, n->config.members, n->config.self, n->ids[c]);
        if (status) return fail(n, status, "cannot join");
    }
    n->state = JOINS;
    n->deadline = now + AFD_MS(n->config.timeout_ms);
    return AFD_AGAIN;
}

static enum afd_status join(struct afd_group_nccl *n, afd_ns now)
{
    enum afd_status all = AFD_OK;
    for (uint32_t c = 0; c < AFD_NCCL_COMMS; c++) {
        enum afd_status status = n->calls->state(n->config.nccl_user, c);
        if (status < 0) return fail(n, status, "joining");
        if (status) all = status;
    }
    if (all && now >= n->deadline) return fail_late(n, "joining");
    if (!all) n->state = READY;
    return all;
}

/* ---- operations */

static enum afd_status begin(struct afd_group_nccl *n, uint32_t comm, uint32_t slot)
{
    const struct afd_group_nccl_op *op = &n->operations[comm][slot].op;
    void *user = n->config.nccl_user;
    if (comm == AFD_NCCL_GATHER)
        return n->calls->gather(user, slot, op->rows, n->config.record_bytes, op->pieces, op->piece_count,
                                op->to);
    return n->calls->reduce(user, slot, op->rows, n->config.columns, op->from, op->to);
}

static enum afd_status advance(struct afd_group_nccl *n, uint32_t comm, uint32_t slot, afd_ns now)
{
    struct operation *o = &n->operations[comm][slot];
    if (o->progress == WANTED) {
        enum afd_status status = n->calls->state(n->config.nccl_user, comm);
        if (!status) status = begin(n, comm, slot);
        if (status < 0) return fail(n, status, comm_names[comm]);
        if (!status) o->progress = RUNNING;
    } else if (o->progress == RUNNING) {
        enum afd_status status = n->calls->done(n->config.nccl_user, comm, slot);
        if (status < 0) return fail(n, status, comm_names[comm]);
        if (!status) o->progress = OVER;
    }
    if (o->progress != WANTED && o->progress != RUNNING) return AFD_OK;
    return now < o->deadline ? AFD_AGAIN : fail_late(n, comm_names[comm]);
}

/* The older batch first: an operation begins when those before it have. */
static enum afd_status advance_comm(struct afd_group_nccl *n, uint32_t comm, afd_ns now)
{
    const struct operation *o = n->operations[comm];
    enum afd_status all = AFD_OK;
    uint32_t older = o[0].op.batch > o[1].op.batch;
    for (uint32_t i = 0; i < AFD_NCCL_SLOTS; i++) {
        uint32_t slot = (older + i) % AFD_NCCL_SLOTS;
        if (i && o[older].progress == WANTED) break;
        enum afd_status status = advance(n, comm, slot, now);
        if (status < 0) return status;
        if (status) all = status;
    }
    return all;
}

enum afd_status afd_group_nccl_poll(struct afd_group_nccl *n, int is_complete, afd_ns now)
{
    enum afd_status status = AFD_OK;
    switch (n->state) {
    case WAITS:
        if (!is_complete) return AFD_OK;
        if (n->config.self == 0) return make_ids(n);
        return n->has_ids ? begin_to_join(n, now) : AFD_OK;
    case TELLS:
        return n->told + 1 == n->config.members ? begin_to_join(n, now) : AFD_AGAIN;
    case JOINS:
        return join(n, now);
    case FAILED:
        return AFD_ERR_PEER;
    case READY:
        for (uint32_t c = 0; c < AFD_NCCL_COMMS && status >= 0; c++) {
            enum afd_status one = advance_comm(n, c, now);
            if (one) status = one;
        }
    }
    return status;
}

void afd_group_nccl_start(struct afd_group_nccl *n, uint32_t comm, struct afd_group_nccl_op op, afd_ns now)
{
    struct operation *o = &n->operations[comm][op.batch % AFD_NCCL_SLOTS];
    assert(o->progress == IDLE || o->progress == OVER);
    *o = (struct operation){WANTED, op, now + AFD_MS(n->config.timeout_ms)};
}

int afd_group_nccl_done(struct afd_group_nccl *n, uint32_t comm, uint64_t batch)
{
    const struct operation *o = &n->operations[comm][batch % AFD_NCCL_SLOTS];
    return o->progress == OVER && o->op.batch == batch;
}
