#include "attn_node/pipeline.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum state { FREE, READY, COMPUTING, OUT };

/* One source buffer of a slot, and the message it was last sent with. */
struct buffer {
    uint64_t unsent; /* shards of this layer that still have to be asked with it */
    /* in flight while `owed` is not 0 */
    uint64_t owed;   /* shards that have not answered */
    uint32_t target; /* instance */
    uint32_t layer;
    uint64_t step;
    uint16_t sequence;
    int told;    /* that it is late */
    int blocked; /* the transport had no room: wait for poll */
    afd_ns sent;
};

struct slot {
    enum state state;
    uint32_t layer;
    uint64_t step, ready_order;
    uint64_t waiting; /* shards with active rows that have not answered */
    uint64_t unsent;  /* buffers with unsent shards */
    uint64_t flying;  /* buffers in flight */
    uint64_t reached; /* instances whose region of this slot is in flight */
    uint16_t sequence;
    uint32_t active[AFD_MAX_SHARDS];
    uint8_t answered_by[AFD_MAX_SHARDS];
    uint64_t destinations[AFD_PIPELINE_MAX_INSTANCES];
    struct buffer buffers[AFD_PIPELINE_MAX_INSTANCES];
};

struct afd_pipeline {
    struct afd_pipeline_config config;
    uint64_t open; /* instances */
    uint32_t computing;
    int blocked; /* some buffer is */
    uint64_t ready_count;
    uint8_t placement[AFD_MAX_SHARDS][AFD_PIPELINE_MAX_INSTANCES];
    uint8_t copies[AFD_MAX_SHARDS];
    struct slot slots[AFD_MAX_SLOTS];
};

static uint64_t bit(uint32_t i)
{
    return (uint64_t)1 << i;
}

static uint32_t lowest(uint64_t set)
{
    return (uint32_t)__builtin_ctzll(set);
}

struct afd_pipeline *afd_pipeline_create(const struct afd_pipeline_config *c)
{
    if (!c->slots || c->slots > AFD_MAX_SLOTS || !c->layers || c->layers > AFD_MAX_LAYERS || !c->shards ||
        c->shards > AFD_MAX_SHARDS || !c->instances || c->instances > AFD_PIPELINE_MAX_INSTANCES || !c->depth)
        return NULL;
    struct afd_pipeline *p = calloc(1, sizeof *p);
    if (p) p->config = *c;
    return p;
}

void afd_pipeline_destroy(struct afd_pipeline *p)
{
    free(p);
}

/* ---- who is asked */

void afd_pipeline_place(struct afd_pipeline *p, uint32_t shard, const uint32_t *instances, uint32_t count)
{
    assert(shard < p->config.shards && count <= p->config.instances);
    for (uint32_t i = 0; i < count; i++) {
        assert(instances[i] < p->config.instances);
        p->placement[shard][i] = (uint8_t)instances[i];
    }
    p->copies[shard] = (uint8_t)count;
}

/* The instance to ask for a shard; with no open pair the preferred one, or nobody when it is not placed. */
static uint32_t choose(const struct afd_pipeline *p, uint32_t shard, int *open_out)
{
    uint32_t n = p->copies[shard];
    *open_out = 0;
    if (!n) return AFD_PIPELINE_NOBODY;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t instance = p->placement[shard][(p->config.rank + i) % n];
        if (p->open & bit(instance)) {
            *open_out = 1;
            return instance;
        }
    }
    return p->placement[shard][p->config.rank % n];
}

int afd_pipeline_is_connected(const struct afd_pipeline *p)
{
    int open;
    for (uint32_t s = 0; s < p->config.shards; s++) {
        choose(p, s, &open);
        if (!open) return 0;
    }
    return 1;
}

static int is_placed(const struct afd_pipeline *p, uint32_t shard, uint32_t instance)
{
    for (uint32_t i = 0; i < p->copies[shard]; i++)
        if (p->placement[shard][i] == instance) return 1;
    return 0;
}

int afd_pipeline_is_settled(const struct afd_pipeline *p)
{
    for (uint32_t i = 0; i < p->config.slots; i++)
        for (uint64_t left = p->slots[i].flying; left; left &= left - 1) {
            const struct buffer *b = &p->slots[i].buffers[lowest(left)];
            for (uint64_t owed = b->owed; owed; owed &= owed - 1)
                if (!is_placed(p, lowest(owed), b->target)) return 0;
        }
    return 1;
}

void afd_pipeline_open(struct afd_pipeline *p, uint32_t instance)
{
    assert(instance < p->config.instances);
    p->open |= bit(instance);
}

static void landed(struct slot *slot, uint32_t b)
{
    slot->flying &= ~bit(b);
    slot->reached &= ~bit(slot->buffers[b].target);
}

/* A message of this layer, and not of one whose unneeded answers are still owed. */
static int is_current(const struct slot *slot, const struct buffer *b)
{
    return slot->state == OUT && b->step == slot->step && b->layer == slot->layer;
}

void afd_pipeline_close(struct afd_pipeline *p, uint32_t instance)
{
    assert(instance < p->config.instances);
    p->open &= ~bit(instance);
    for (uint32_t i = 0; i < p->config.slots; i++) {
        struct slot *slot = &p->slots[i];
        for (uint64_t left = slot->flying; left; left &= left - 1) {
            uint32_t b = lowest(left);
            struct buffer *buffer = &slot->buffers[b];
            if (buffer->target != instance) continue;
            if (is_current(slot, buffer)) {
                buffer->unsent |= buffer->owed;
                slot->unsent |= bit(b);
            }
            buffer->owed = 0;
            landed(slot, b);
        }
    }
}

/* ---- a slot's life */

int afd_pipeline_is_free(const struct afd_pipeline *p, uint32_t slot)
{
    return p->slots[slot].state == FREE;
}

static void make_ready(struct afd_pipeline *p, struct slot *slot)
{
    slot->state = READY;
    slot->ready_order = p->ready_count++;
}

void afd_pipeline_begin(struct afd_pipeline *p, uint32_t i)
{
    struct slot *slot = &p->slots[i];
    assert(i < p->config.slots && slot->state == FREE);
    slot->step++;
    slot->layer = 0;
    memset(slot->answered_by, AFD_PIPELINE_NOBODY, sizeof slot->answered_by);
    make_ready(p, slot);
}

/* Decides which instance each shard of the coming layer goes to, so that route can sort the rows. */
static int set_destinations(struct afd_pipeline *p, struct slot *slot)
{
    memset(slot->destinations, 0, sizeof slot->destinations);
    int open;
    for (uint32_t s = 0; s < p->config.shards; s++) {
        uint32_t instance = choose(p, s, &open);
        if (instance == AFD_PIPELINE_NOBODY) return 0;
        slot->destinations[instance] |= bit(s);
    }
    return 1;
}

static int next_compute(struct afd_pipeline *p, struct afd_pipeline_action *action)
{
    if (p->computing >= p->config.depth) return 0;
    struct slot *best = NULL;
    for (uint32_t i = 0; i < p->config.slots; i++) {
        struct slot *slot = &p->slots[i];
        if (slot->state == READY && (!best || slot->ready_order < best->ready_order)) best = slot;
    }
    if (!best || (best->layer < p->config.layers && !set_destinations(p, best))) return 0;
    best->state = COMPUTING;
    p->computing++;
    *action = (struct afd_pipeline_action){.kind = AFD_PIPELINE_COMPUTE,
                                           .slot = (uint32_t)(best - p->slots),
                                           .layer = best->layer,
                                           .step = best->step};
    return 1;
}

const uint64_t *afd_pipeline_destinations(const struct afd_pipeline *p, uint32_t slot)
{
    return p->slots[slot].destinations;
}

uint32_t afd_pipeline_answered_by(const struct afd_pipeline *p, uint32_t slot, uint32_t shard)
{
    return p->slots[slot].answered_by[shard];
}

uint32_t afd_pipeline_layer(const struct afd_pipeline *p, uint32_t slot)
{
    return p->slots[slot].layer;
}

void afd_pipeline_computed(struct afd_pipeline *p, uint32_t i, const uint32_t *active)
{
    struct slot *slot = &p->slots[i];
    assert(slot->state == COMPUTING && p->computing);
    p->computing--;
    if (slot->layer == p->config.layers) {
        slot->state = FREE;
        return;
    }
    slot->state = OUT;
    slot->waiting = 0;
    for (uint32_t s = 0; s < p->config.shards; s++) {
        slot->active[s] = active[s];
        slot->answered_by[s] = AFD_PIPELINE_NOBODY;
        if (active[s]) slot->waiting |= bit(s);
    }
    slot->unsent = 0;
    for (uint32_t b = 0; b < p->config.instances; b++) {
        slot->buffers[b].unsent = slot->destinations[b];
        if (slot->destinations[b]) slot->unsent |= bit(b);
    }
    assert(slot->waiting); /* every row is active somewhere: its turn, if nothing else */
}

static void answered(struct afd_pipeline *p, struct slot *slot)
{
    if (slot->waiting) return;
    /* What is left unsent are notices that nobody waits for. */
    for (uint64_t left = slot->unsent; left; left &= left - 1) slot->buffers[lowest(left)].unsent = 0;
    slot->unsent = 0;
    slot->layer++;
    make_ready(p, slot);
}

/* ---- messages */

/* Asks one instance for those unsent shards of the buffer that are its own to answer. */
static int send_some(struct afd_pipeline *p, struct slot *slot, uint32_t b, afd_ns now,
                     struct afd_pipeline_action *action)
{
    struct buffer *buffer = &slot->buffers[b];
    if (buffer->owed || buffer->blocked) return 0;
    uint32_t target = AFD_PIPELINE_NOBODY;
    uint64_t shards = 0;
    int open, bare = 1;
    for (uint64_t left = buffer->unsent; left; left &= left - 1) {
        uint32_t s = lowest(left), instance = choose(p, s, &open);
        if (!open || slot->reached & bit(instance)) continue;
        if (target == AFD_PIPELINE_NOBODY) target = instance;
        if (instance != target) continue;
        shards |= bit(s);
        if (slot->active[s]) bare = 0;
    }
    if (!shards) return 0;
    buffer->unsent &= ~shards;
    if (!buffer->unsent) slot->unsent &= ~bit(b);
    buffer->owed = shards;
    buffer->target = target;
    buffer->layer = slot->layer;
    buffer->step = slot->step;
    buffer->sequence = slot->sequence++;
    buffer->told = 0;
    buffer->sent = now;
    slot->flying |= bit(b);
    slot->reached |= bit(target);
    *action = (struct afd_pipeline_action){.kind = AFD_PIPELINE_SEND,
                                           .slot = (uint32_t)(slot - p->slots),
                                           .layer = slot->layer,
                                           .step = slot->step,
                                           .instance = target,
                                           .buffer = b,
                                           .shards = shards,
                                           .sequence = buffer->sequence,
                                           .bare = bare};
    return 1;
}

static int next_send(struct afd_pipeline *p, afd_ns now, struct afd_pipeline_action *action)
{
    for (uint32_t i = 0; i < p->config.slots; i++) {
        struct slot *slot = &p->slots[i];
        if (slot->state != OUT) continue;
        for (uint64_t left = slot->unsent; left; left &= left - 1)
            if (send_some(p, slot, lowest(left), now, action)) return 1;
    }
    return 0;
}

uint32_t afd_pipeline_run(struct afd_pipeline *p, afd_ns now, struct afd_pipeline_action *actions,
                          uint32_t limit)
{
    uint32_t count = 0;
    /* Messages first: the other side can work while this device does. */
    while (count < limit && next_send(p, now, &actions[count])) count++;
    while (count < limit && next_compute(p, &actions[count])) count++;
    return count;
}

void afd_pipeline_unsent(struct afd_pipeline *p, uint32_t i, uint32_t b)
{
    struct slot *slot = &p->slots[i];
    struct buffer *buffer = &slot->buffers[b];
    assert(buffer->owed && is_current(slot, buffer));
    buffer->unsent |= buffer->owed;
    buffer->owed = 0;
    buffer->blocked = p->blocked = 1;
    slot->unsent |= bit(b);
    landed(slot, b);
}

void afd_pipeline_polled(struct afd_pipeline *p)
{
    if (!p->blocked) return;
    p->blocked = 0;
    for (uint32_t i = 0; i < p->config.slots; i++)
        for (uint32_t b = 0; b < p->config.instances; b++) p->slots[i].buffers[b].blocked = 0;
}

enum afd_status afd_pipeline_answer(struct afd_pipeline *p, uint32_t instance,
                                    const struct afd_pipeline_answer *a, afd_ns now, afd_ns *round_trip_out,
                                    struct afd_error *error)
{
    if (a->slot >= p->config.slots || a->shard >= p->config.shards)
        return afd_fail(error, AFD_ERR_PROTOCOL, "an answer for slot %u, shard %u; there are %u and %u",
                        a->slot, a->shard, p->config.slots, p->config.shards);
    struct slot *slot = &p->slots[a->slot];
    struct buffer *buffer = NULL;
    for (uint64_t left = slot->flying; left && !buffer; left &= left - 1)
        if (slot->buffers[lowest(left)].target == instance) buffer = &slot->buffers[lowest(left)];
    if (!buffer || !(buffer->owed & bit(a->shard)))
        return afd_fail(error, AFD_ERR_PROTOCOL, "an answer for slot %u, shard %u that nobody waits for",
                        a->slot, a->shard);
    if (a->step != buffer->step || a->layer != buffer->layer || a->sequence != buffer->sequence)
        return afd_fail(
            error, AFD_ERR_PROTOCOL,
            "slot %u, shard %u: an answer to step %llu layer %u message %u; asked was step %llu layer "
            "%u message %u",
            a->slot, a->shard, (unsigned long long)a->step, a->layer, a->sequence,
            (unsigned long long)buffer->step, buffer->layer, buffer->sequence);
    int current = is_current(slot, buffer);
    uint32_t rows = current ? slot->active[a->shard] : 0; /* what is owed from earlier layers has no rows */
    if (a->rows != rows)
        return afd_fail(error, AFD_ERR_PROTOCOL, "slot %u, shard %u, layer %u: an answer of %u rows, not %u",
                        a->slot, a->shard, a->layer, a->rows, rows);
    buffer->owed &= ~bit(a->shard);
    *round_trip_out = buffer->owed ? 0 : now - buffer->sent;
    if (!buffer->owed) landed(slot, (uint32_t)(buffer - slot->buffers));
    if (!rows) return AFD_OK;
    slot->waiting &= ~bit(a->shard);
    slot->answered_by[a->shard] = (uint8_t)instance;
    answered(p, slot);
    return AFD_OK;
}

uint32_t afd_pipeline_expire(struct afd_pipeline *p, afd_ns now, struct afd_pipeline_action *actions,
                             uint32_t limit)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < p->config.slots; i++)
        for (uint64_t left = p->slots[i].flying; left && count < limit; left &= left - 1) {
            struct buffer *b = &p->slots[i].buffers[lowest(left)];
            if (b->told || now - b->sent < p->config.deadline) continue;
            b->told = 1;
            actions[count++] = (struct afd_pipeline_action){.kind = AFD_PIPELINE_LATE,
                                                            .slot = i,
                                                            .layer = b->layer,
                                                            .step = b->step,
                                                            .instance = b->target,
                                                            .buffer = lowest(left),
                                                            .shards = b->owed,
                                                            .sequence = b->sequence,
                                                            .waited = now - b->sent};
        }
    return count;
}

enum afd_stage afd_pipeline_stage(const struct afd_pipeline *p)
{
    if (p->computing) return AFD_STAGE_COMPUTE;
    int out = 0, ready = 0;
    for (uint32_t i = 0; i < p->config.slots; i++) {
        out |= p->slots[i].state == OUT;
        ready |= p->slots[i].state == READY;
    }
    return p->blocked ? AFD_STAGE_SEND : ready ? AFD_STAGE_BUBBLE : out ? AFD_STAGE_WAIT : AFD_STAGE_IDLE;
}
