/* scaling.c: changes of members and placement, one move at a time: cluster.h tells the order. Whose a move is
 * does not matter to it: an operator's (scale, drain, each half of a restart), or the core's own (a lost
 * shard is placed elsewhere; a rank that came back is given its part). */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "scheduler/cluster_state.h"

enum { UNEVEN_ROUNDS = 3 }; /* measurements before shards are moved */

/* The most loaded instance bears so many times the mean; and a new placement is worth its loads when that
 * falls so far. */
static const double uneven = 1.3, worth = 0.9;

const char *afd_change_kind_name(enum afd_change_kind kind)
{
    static const char *const names[] = {"scale", "drain", "restart", "repair", "balance"};
    return names[kind];
}

const char *afd_change_phase_name(enum afd_change_phase phase)
{
    static const char *const names[] = {"none", "prepare", "open", "journal", "drain", "done", "failed"};
    return names[phase];
}

const struct afd_cluster_change *afd_cluster_change(const struct afd_cluster *c)
{
    return &c->operators;
}

const struct afd_cluster_change *afd_cluster_own_change(const struct afd_cluster *c)
{
    return &c->own;
}

static int is_under_way(const struct afd_cluster_change *change)
{
    return change->phase != AFD_CHANGE_NONE && change->phase != AFD_CHANGE_DONE &&
           change->phase != AFD_CHANGE_FAILED;
}

/* Until a rank has said that a shard is gone nobody knows whether it has it: it is not asked to load it
 * again. One that is left out is asked for nothing, and perhaps cannot say it. */
static int is_dropping(const struct afd_cluster *c)
{
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_FFN]; i++) {
        const struct afd_cluster_member *m = afd_member_at(c, AFD_ROLE_FFN, i);
        if (m->dropping && !m->is_cut) return 1;
    }
    return 0;
}

int afd_cluster_is_changing(const struct afd_cluster *c)
{
    if (c->move.phase || c->settle_epoch || is_under_way(&c->operators) || is_dropping(c)) return 1;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++)
            if (c->places[role][i].state == AFD_INSTANCE_DRAINING) return 1;
    return 0;
}

/* ---- what there is */

static uint32_t active(const struct afd_cluster *c, enum afd_role role)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->instances[role]; i++)
        count += c->places[role][i].state == AFD_INSTANCE_ACTIVE;
    return count;
}

static uint64_t cut_instances(const struct afd_cluster *c)
{
    uint64_t set = 0;
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_FFN]; i++)
        if (afd_member_at(c, AFD_ROLE_FFN, i)->is_cut) set |= (uint64_t)1 << i / c->each[AFD_ROLE_FFN];
    return set;
}

/* Active FFN instances whose ranks are all there and in reach; `ready`: and have loaded. */
static uint64_t present(const struct afd_cluster *c, int ready)
{
    uint64_t set = 0;
    for (uint32_t i = 0; i < c->instances[AFD_ROLE_FFN]; i++)
        if (c->places[AFD_ROLE_FFN][i].state == AFD_INSTANCE_ACTIVE && !c->places[AFD_ROLE_FFN][i].leaves &&
            (ready ? afd_instance_holds(c, i, 0) : afd_instance_is_connected(c, AFD_ROLE_FFN, i)))
            set |= (uint64_t)1 << i;
    return set & ~cut_instances(c);
}

static uint64_t shards_of(const struct afd_cluster *c, const struct afd_placement *p, uint32_t instance)
{
    return afd_placement_shards(p, c->topology->ffn.ep, instance);
}

static enum afd_status make_plan(const struct afd_cluster *c, uint64_t usable, struct afd_placement *out,
                                 struct afd_error *error)
{
    const struct afd_pool *ffn = &c->topology->ffn;
    struct afd_placement_wish wish = {.shards = ffn->ep,
                                      .copies = ffn->copies,
                                      .max_shards = ffn->max_shards ? ffn->max_shards : ffn->ep,
                                      .spares = ffn->spares,
                                      .usable = usable,
                                      .load = c->has_load ? c->load : NULL};
    return afd_placement_plan(&wish, &c->placement, out, error);
}

/* A shard that no whole instance holds; UINT32_MAX: none. */
static uint32_t lost_shard(const struct afd_cluster *c)
{
    if (!c->was_complete || c->now < c->hold_until) return UINT32_MAX;
    for (uint32_t s = 0; s < c->topology->ffn.ep; s++) {
        int whole = 0;
        for (uint32_t i = 0; i < c->placement.count[s] && !whole; i++)
            whole = afd_instance_holds(c, c->placement.at[s][i], (uint64_t)1 << s);
        if (!whole) return s;
    }
    return UINT32_MAX;
}

/* The attention ranks that work have settled on an epoch; else `words` tell of one that has not. A rank that
 * settled without an instance of `needed`, which it cannot reach, has not either. */
static int have_settled(const struct afd_cluster *c, uint64_t epoch, uint64_t needed,
                        char words[AFD_CLUSTER_WORDS_BYTES])
{
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_ATTN]; i++) {
        const struct afd_cluster_member *m = &c->members[i];
        if (m->state != AFD_MEMBER_READY || m->is_cut) continue;
        snprintf(words, AFD_CLUSTER_WORDS_BYTES, "attn/%u opens its pairs", m->rank);
        if (m->settled < epoch) return 0;
        for (uint64_t left = needed; left; left &= left - 1)
            if (afd_member_misses(c, m, (uint32_t)__builtin_ctzll(left))) return 0;
    }
    return 1;
}

/* ---- a move */

static struct afd_cluster_change *begin_change(struct afd_cluster *c, struct afd_cluster_change *change,
                                               enum afd_change_kind kind)
{
    *change = (struct afd_cluster_change){
        .id = ++c->change_count, .kind = kind, .phase = AFD_CHANGE_PREPARE, .since = c->now};
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        change->from[role] = change->to[role] = active(c, (enum afd_role)role);
    return change;
}

static void begin_move(struct afd_cluster *c, struct afd_cluster_change *change,
                       const struct afd_placement *target)
{
    assert(!c->move.phase);
    c->move = (struct afd_cluster_move){.phase = AFD_MOVE_PREPARE,
                                        .change = change,
                                        .target = *target,
                                        .deadline = c->now + AFD_SECONDS(c->topology->scheduler.scale_s)};
    change->phase = AFD_CHANGE_PREPARE;
    for (uint32_t i = 0; i < c->instances[AFD_ROLE_FFN]; i++)
        afd_cluster_assign(c, i, c->places[AFD_ROLE_FFN][i].assigned | shards_of(c, target, i));
}

/* New processes, which load and connect before they are given work. */
static void begin_instance(struct afd_cluster *c, enum afd_role role, uint32_t i)
{
    struct afd_cluster_place *place = &c->places[role][i];
    assert(place->state == AFD_INSTANCE_ABSENT);
    *place = (struct afd_cluster_place){
        .state = AFD_INSTANCE_PREPARING, .restarts = place->restarts, .returns = place->returns};
    for (uint32_t k = 0; k < c->each[role]; k++) {
        struct afd_cluster_member *m = afd_member_of(c, role, i, k);
        m->start++;
        m->gave_up = 0;
        m->since = c->now;
    }
    c->run_due = 1;
}

/* A rank ends its drain by its own clock, which began when it was told, and leaves in order: it is sent away
 * only when it has not. */
static afd_ns drain_end(const struct afd_cluster *c)
{
    return c->now + AFD_SECONDS(c->topology->scheduler.drain_s) + c->lease / 2;
}

static void begin_draining(struct afd_cluster *c, enum afd_role role, uint32_t i)
{
    struct afd_cluster_place *place = &c->places[role][i];
    uint32_t drain_s = c->topology->scheduler.drain_s;
    place->state = AFD_INSTANCE_DRAINING;
    place->leaves = 0;
    place->drain_until = drain_end(c);
    for (uint32_t k = 0; k < c->each[role]; k++) {
        struct afd_cluster_member *m = afd_member_of(c, role, i, k);
        m->since = c->now;
        if (role == AFD_ROLE_ATTN && m->connection)
            afd_cluster_act(c, AFD_CLUSTER_DRAIN, m)->ms = drain_s * 1000;
    }
}

/* What is not in the placement is dropped, and what leaves is told so, when nobody asks for it any more. */
static void show(struct afd_cluster *c, const struct afd_placement *placement)
{
    c->shown = *placement;
    c->peers_due = 1;
    c->settle_epoch = c->epoch + 1;
    c->settle_until = c->now + AFD_SECONDS(c->topology->scheduler.drain_s);
}

/* Nothing of it is left: the next scheduler is not to go on with it either. */
static void forget_restart(struct afd_cluster *c)
{
    c->end = AFD_END_NONE;
    afd_cluster_act(c, AFD_CLUSTER_JOURNAL, NULL);
}

static void fail_restart(struct afd_cluster *c, const char *words)
{
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++)
            c->places[role][i].restarts = c->places[role][i].returns = 0;
    forget_restart(c);
    c->operators.phase = AFD_CHANGE_FAILED;
    snprintf(c->operators.words, sizeof c->operators.words, "%s", words);
    afd_cluster_say(c, 0, "restart: %s", words);
}

static void roll_back(struct afd_cluster *c, const char *words)
{
    struct afd_cluster_change *change = c->move.change;
    int is_operators = change == &c->operators;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++) {
            struct afd_cluster_place *place = &c->places[role][i];
            place->leaves = 0;
            if (is_operators) place->restarts = place->returns = 0;
            if (place->state == AFD_INSTANCE_PREPARING) begin_draining(c, (enum afd_role)role, i);
        }
    show(c, &c->placement);
    c->move.phase = AFD_MOVE_NONE;
    change->phase = AFD_CHANGE_FAILED;
    memcpy(change->to, change->from, sizeof change->to);
    snprintf(change->words, sizeof change->words, "%s", words);
    if (!is_operators) c->repair_after = c->now + c->lease;
    if (is_operators && change->kind == AFD_CHANGE_RESTART) forget_restart(c);
    afd_cluster_say(c, 0, "%s is rolled back: %.200s", afd_change_kind_name(change->kind), words);
}

void afd_scaling_gave_up(struct afd_cluster *c, const struct afd_cluster_member *m)
{
    char words[AFD_CLUSTER_WORDS_BYTES];
    if (c->move.phase != AFD_MOVE_PREPARE && c->move.phase != AFD_MOVE_OPEN) return;
    if (afd_place_of(c, m)->state != AFD_INSTANCE_PREPARING) return;
    snprintf(words, sizeof words, "%s/%u: %.220s", afd_role_name(m->role), m->rank, m->words);
    roll_back(c, words);
}

/* 1 when all that is to serve does; else `words` tell of one that does not. */
static int is_prepared(const struct afd_cluster *c, char words[AFD_CLUSTER_WORDS_BYTES])
{
    for (uint32_t n = 0; n < c->size; n++) {
        const struct afd_cluster_member *m = &c->members[n];
        const struct afd_cluster_place *place = afd_place_of(c, m);
        uint64_t wanted =
            m->role == AFD_ROLE_FFN ? shards_of(c, &c->move.target, m->rank / c->each[m->role]) : 0;
        if (place->state != AFD_INSTANCE_PREPARING && !wanted) continue;
        uint32_t other;
        const char *what = !m->connection             ? "is not there yet"
                           : m->role == AFD_ROLE_ATTN ? "opens its pairs"
                           : afd_instance_torn(c, m->rank / c->each[m->role], &other)
                               ? "cannot work with the others of its instance"
                           : m->state == AFD_MEMBER_READY && !m->is_cut ? "loads more shards"
                                                                        : "loads its weights";
        if (m->state == AFD_MEMBER_READY && !m->is_cut && !(wanted & ~(m->loaded & ~m->dropping))) continue;
        snprintf(words, AFD_CLUSTER_WORDS_BYTES, "%s/%u %s", afd_role_name(m->role), m->rank, what);
        return 0;
    }
    return 1;
}

static int is_same(const struct afd_cluster *c)
{
    return afd_placement_is_equal(&c->placement, &c->move.target, c->topology->ffn.ep);
}

/* Both placements together: what is new is behind what is there. */
static void show_both(struct afd_cluster *c)
{
    for (uint32_t s = 0; s < c->topology->ffn.ep; s++)
        for (uint32_t i = 0; i < c->move.target.count[s]; i++)
            afd_placement_add(&c->shown, s, c->move.target.at[s][i]);
    c->peers_due = 1;
    c->move.epoch = c->epoch + 1;
}

static void commit(struct afd_cluster *c)
{
    struct afd_cluster_change *change = c->move.change;
    c->placement = c->move.target;
    c->move.phase = AFD_MOVE_NONE;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++) {
            struct afd_cluster_place *place = &c->places[role][i];
            if (place->leaves) begin_draining(c, (enum afd_role)role, i);
            if (place->state != AFD_INSTANCE_PREPARING) continue;
            place->state = AFD_INSTANCE_ACTIVE;
            place->restarts = place->returns = 0;
            for (uint32_t k = 0; k < c->each[role]; k++) {
                struct afd_cluster_member *m = afd_member_of(c, (enum afd_role)role, i, k);
                if (role != AFD_ROLE_ATTN || m->state != AFD_MEMBER_READY) continue;
                m->was_ready = 1;
                afd_cluster_act(c, AFD_CLUSTER_UP, m);
            }
        }
    show(c, &c->placement);
    change->phase = change == &c->own ? AFD_CHANGE_DONE : AFD_CHANGE_DRAINING;
    change->words[0] = 0;
    afd_cluster_say(c, 1, "%s: committed, %uA%uF", afd_change_kind_name(change->kind),
                    active(c, AFD_ROLE_ATTN), active(c, AFD_ROLE_FFN));
}

/* The scheduler ends only when the next one knows as much. */
static void end_journaled(struct afd_cluster *c, int ok)
{
    c->end = ok ? AFD_END_SAID : AFD_END_NONE;
    if (ok)
        afd_cluster_act(c, AFD_CLUSTER_END, NULL);
    else
        fail_restart(c, "the journal cannot be written");
}

void afd_scaling_journaled(struct afd_cluster *c, int ok)
{
    if (c->end == AFD_END_JOURNAL) end_journaled(c, ok);
    if (c->move.phase != AFD_MOVE_JOURNAL) return; /* a plan that nothing waits for */
    if (ok)
        commit(c);
    else
        roll_back(c, "the journal cannot be written");
}

static int step_move(struct afd_cluster *c)
{
    struct afd_cluster_move *move = &c->move;
    struct afd_cluster_change *change = move->change;
    char words[AFD_CLUSTER_WORDS_BYTES] = "", why[AFD_CLUSTER_WORDS_BYTES];
    if (move->phase == AFD_MOVE_JOURNAL) return 0;
    uint32_t lost = lost_shard(c);
    if (change->kind == AFD_CHANGE_REPAIR ? lost == UINT32_MAX : lost != UINT32_MAX) {
        if (lost == UINT32_MAX)
            snprintf(why, sizeof why, "what was lost is back");
        else
            snprintf(why, sizeof why, "shard %u was lost meanwhile, and is placed elsewhere first", lost);
        roll_back(c, why);
        c->repair_after = c->now;
        return 1;
    }
    if (change == &c->own && afd_placement_instances(&move->target, c->topology->ffn.ep) & ~present(c, 0)) {
        roll_back(c, "an instance of the new placement was lost");
        c->repair_after = c->now;
        return 1;
    }
    /* An operator's change is not committed without a rank; the core's own serves who can be served. */
    uint64_t needed = change == &c->own
                          ? 0
                          : afd_placement_instances(&move->target, c->topology->ffn.ep) & ~cut_instances(c);
    int is_done =
        move->phase == AFD_MOVE_PREPARE ? is_prepared(c, words) : have_settled(c, move->epoch, needed, words);
    if (!is_done) {
        snprintf(change->words, sizeof change->words, "%s", words);
        if (c->now < move->deadline) return 0;
        snprintf(why, sizeof why, "after %u s %.180s still (scheduler.scale_s)",
                 c->topology->scheduler.scale_s, words);
        roll_back(c, why);
        return 1;
    }
    if (move->phase == AFD_MOVE_PREPARE && !is_same(c)) {
        move->phase = AFD_MOVE_OPEN;
        change->phase = AFD_CHANGE_OPEN;
        show_both(c);
        return 1;
    }
    move->phase = AFD_MOVE_JOURNAL;
    change->phase = AFD_CHANGE_JOURNALED;
    afd_cluster_act(c, AFD_CLUSTER_JOURNAL, NULL);
    return 1;
}

/* ---- behind a commit */

static int settle(struct afd_cluster *c)
{
    char words[AFD_CLUSTER_WORDS_BYTES];
    if (!c->settle_epoch || c->settle_epoch > c->epoch) return 0;
    if (!have_settled(c, c->settle_epoch, 0, words) && c->now < c->settle_until) return 0;
    c->settle_epoch = 0;
    for (uint32_t i = 0; i < c->instances[AFD_ROLE_FFN]; i++) {
        struct afd_cluster_place *place = &c->places[AFD_ROLE_FFN][i];
        if (place->state != AFD_INSTANCE_DRAINING) {
            uint64_t moved = c->move.phase ? shards_of(c, &c->move.target, i) : 0;
            afd_cluster_assign(c, i, shards_of(c, &c->placement, i) | moved);
            continue;
        }
        place->is_unlisted = 1;
        place->drain_until = drain_end(c);
        c->peers_due = 1;
        for (uint32_t k = 0; k < c->each[AFD_ROLE_FFN]; k++) {
            const struct afd_cluster_member *m = afd_member_of(c, AFD_ROLE_FFN, i, k);
            if (m->connection)
                afd_cluster_act(c, AFD_CLUSTER_DRAIN, m)->ms = c->topology->scheduler.drain_s * 1000;
        }
    }
    return 1;
}

static int end_draining(struct afd_cluster *c, enum afd_role role, uint32_t i)
{
    struct afd_cluster_place *place = &c->places[role][i];
    uint32_t left = 0;
    for (uint32_t k = 0; k < c->each[role]; k++) left += afd_member_of(c, role, i, k)->connection != 0;
    if (left && (c->now < place->drain_until || (role == AFD_ROLE_FFN && !place->is_unlisted))) return 0;
    for (uint32_t k = 0; k < c->each[role]; k++) {
        struct afd_cluster_member *m = afd_member_of(c, role, i, k);
        if (m->connection) afd_cluster_dismiss(c, m, "its time to drain is over");
        m->state = AFD_MEMBER_STARTING;
        m->was_ready = m->is_cut = 0;
        m->loaded = 0;
        m->since = c->now;
        m->words[0] = 0;
    }
    *place = (struct afd_cluster_place){.restarts = place->restarts, .returns = place->returns};
    c->run_due = 1;
    return 1;
}

static int drain(struct afd_cluster *c)
{
    int some = 0;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++)
            if (c->places[role][i].state == AFD_INSTANCE_DRAINING)
                some |= end_draining(c, (enum afd_role)role, i);
    return some;
}

/* ---- the core's own moves */

static int begin_repair(struct afd_cluster *c, uint32_t shard)
{
    struct afd_placement target;
    struct afd_error error;
    struct afd_cluster_change *change = begin_change(c, &c->own, AFD_CHANGE_REPAIR);
    if (make_plan(c, present(c, 1), &target, &error)) {
        change->phase = AFD_CHANGE_FAILED;
        snprintf(change->words, sizeof change->words, "shard %u has no whole instance: %.180s", shard,
                 error.text);
        c->repair_after = c->now + c->lease;
        return 1;
    }
    afd_cluster_say(c, 0, "shard %u has no whole instance any more: others load it", shard);
    begin_move(c, change, &target);
    return 1;
}

static int holds_the_same(const struct afd_cluster *c, const struct afd_placement *target)
{
    for (uint32_t i = 0; i < c->instances[AFD_ROLE_FFN]; i++)
        if (shards_of(c, target, i) != shards_of(c, &c->placement, i)) return 0;
    return 1;
}

double afd_cluster_imbalance(const struct afd_cluster *c)
{
    return afd_placement_imbalance(&c->placement, c->topology->ffn.ep, c->has_load ? c->load : NULL);
}

void afd_cluster_loads(struct afd_cluster *c, const double *load, afd_ns now)
{
    struct afd_placement target;
    struct afd_error error;
    uint32_t ep = c->topology->ffn.ep;
    c->now = now;
    if (!c->topology->ffn.rebalance) return;
    for (uint32_t s = 0; s < ep; s++) c->load[s] = c->has_load ? (c->load[s] + load[s]) / 2 : load[s];
    c->has_load = 1;
    c->uneven = afd_cluster_imbalance(c) > uneven ? c->uneven + 1 : 0;
    if (c->uneven < UNEVEN_ROUNDS || make_plan(c, present(c, 1), &target, &error)) return;
    if (afd_placement_imbalance(&target, ep, c->load) < worth * afd_cluster_imbalance(c)) c->balance_due = 1;
    c->uneven = 0;
}

static int begin_balance(struct afd_cluster *c)
{
    struct afd_placement target;
    struct afd_error error;
    c->balance_due = 0;
    uint64_t usable = present(c, 1);
    /* One that is away for a moment keeps what it has: its copies stand in. */
    usable |= afd_placement_instances(&c->placement, c->topology->ffn.ep);
    if (make_plan(c, usable, &target, &error) || holds_the_same(c, &target)) return 0;
    if (afd_placement_instances(&target, c->topology->ffn.ep) & ~present(c, 1)) return 0;
    afd_cluster_say(c, 1, "shards are spread over the FFN instances anew");
    begin_move(c, begin_change(c, &c->own, AFD_CHANGE_BALANCE), &target);
    return 1;
}

/* ---- restarts */

static void restart_in_place(struct afd_cluster *c, enum afd_role role, uint32_t i)
{
    for (uint32_t k = 0; k < c->each[role]; k++) {
        struct afd_cluster_member *m = afd_member_of(c, role, i, k);
        m->start++;
        m->gave_up = 0;
        if (!m->connection) continue;
        struct afd_cluster_action *a = afd_cluster_act(c, AFD_CLUSTER_REFUSE, m);
        snprintf(a->words, sizeof a->words, "it is restarted");
        afd_cluster_lose(c, m, 0, a->words);
    }
    c->places[role][i].restarts = AFD_RESTART_IN_PLACE;
    c->operators.since = c->now;
    c->run_due = 1;
}

/* Others take over before it goes, where there are any. */
static void restart_one(struct afd_cluster *c, enum afd_role role, uint32_t i)
{
    struct afd_placement target = c->placement;
    struct afd_error error;
    struct afd_cluster_place *place = &c->places[role][i];
    place->leaves = 1;
    int others = 0;
    for (uint32_t n = 0; n < c->ranks[AFD_ROLE_ATTN] && role == AFD_ROLE_ATTN; n++) {
        const struct afd_cluster_place *other = afd_place_of(c, &c->members[n]);
        others |=
            other->state == AFD_INSTANCE_ACTIVE && !other->leaves && c->members[n].state == AFD_MEMBER_READY;
    }
    if (role == AFD_ROLE_FFN) others = !make_plan(c, present(c, 1), &target, &error);
    place->leaves = others;
    place->returns = others;
    snprintf(c->operators.words, sizeof c->operators.words, "%s instance %u restarts", afd_role_name(role),
             i);
    if (others)
        begin_move(c, &c->operators, &target);
    else
        restart_in_place(c, role, i);
}

static int is_back(const struct afd_cluster *c, enum afd_role role, uint32_t i)
{
    for (uint32_t k = 0; k < c->each[role]; k++)
        if (afd_member_of(c, role, i, k)->state != AFD_MEMBER_READY) return 0;
    return 1;
}

static int return_one(struct afd_cluster *c, enum afd_role role, uint32_t i)
{
    struct afd_placement target = c->placement;
    struct afd_error error;
    uint64_t usable = present(c, 0) | (role == AFD_ROLE_FFN ? (uint64_t)1 << i : 0);
    if (role == AFD_ROLE_FFN && make_plan(c, usable, &target, &error)) {
        fail_restart(c, error.text);
        return 1;
    }
    begin_instance(c, role, i);
    begin_move(c, &c->operators, &target);
    return 1;
}

/* A scheduler that goes on with a restart waits for the ranks: who is not back yet can take nothing over. */
static int is_waited_for(const struct afd_cluster *c)
{
    if (c->now >= c->hold_until) return 0;
    for (uint32_t i = 0; i < c->size; i++)
        if (afd_place_of(c, &c->members[i])->state == AFD_INSTANCE_ACTIVE &&
            c->members[i].state != AFD_MEMBER_READY)
            return 1;
    return 0;
}

/* The next thing that a restart does; 0: it waits, or is over. */
static int step_restart(struct afd_cluster *c)
{
    if (is_waited_for(c)) return 0;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++) {
            struct afd_cluster_place *place = &c->places[role][i];
            if (place->state == AFD_INSTANCE_DRAINING) return 0;
            if (place->returns && place->state == AFD_INSTANCE_ABSENT)
                return return_one(c, (enum afd_role)role, i);
            if (place->restarts != AFD_RESTART_IN_PLACE) continue;
            if (is_back(c, (enum afd_role)role, i)) {
                place->restarts = 0;
                afd_cluster_act(c, AFD_CLUSTER_JOURNAL, NULL);
                return 1;
            }
            if (c->now - c->operators.since < AFD_SECONDS(c->topology->scheduler.scale_s)) return 0;
            fail_restart(c, "its process did not come back in time (scheduler.scale_s)");
            return 1;
        }
    for (int role = AFD_ROLE_COUNT; role-- > 0;)
        for (uint32_t i = 0; i < c->instances[role]; i++)
            if (c->places[role][i].restarts == AFD_RESTART_ASKED &&
                c->places[role][i].state == AFD_INSTANCE_ACTIVE) {
                restart_one(c, (enum afd_role)role, i);
                return 1;
            }
    return 0;
}

/* 1: it begins; 0: it waits for the end. */
static int begin_end(struct afd_cluster *c)
{
    if (c->end != AFD_END_ASKED) return 0;
    c->end = AFD_END_JOURNAL;
    snprintf(c->operators.words, sizeof c->operators.words, "the scheduler restarts");
    afd_cluster_act(c, AFD_CLUSTER_JOURNAL, NULL);
    return 1;
}

static int is_left(const struct afd_cluster *c)
{
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++) {
            const struct afd_cluster_place *place = &c->places[role][i];
            if (place->restarts || place->returns || place->state == AFD_INSTANCE_DRAINING) return 1;
        }
    return 0;
}

int afd_scaling_step(struct afd_cluster *c)
{
    if (c->plan_due) {
        c->plan_due = 0;
        afd_cluster_act(c, AFD_CLUSTER_JOURNAL, NULL);
        return 1;
    }
    if (settle(c) || drain(c)) return 1;
    if (c->move.phase) return step_move(c);
    if (is_dropping(c)) return 0;
    uint32_t lost = lost_shard(c);
    if (lost != UINT32_MAX && c->now >= c->repair_after) return begin_repair(c, lost);
    if (c->operators.kind == AFD_CHANGE_RESTART && is_under_way(&c->operators) && !c->settle_epoch &&
        step_restart(c))
        return 1;
    if (is_under_way(&c->operators) && !c->settle_epoch && !is_left(c)) {
        if (c->end) return begin_end(c);
        c->operators.phase = AFD_CHANGE_DONE;
        c->operators.words[0] = 0;
        afd_cluster_say(c, 1, "%s: done", afd_change_kind_name(c->operators.kind));
        return 1;
    }
    return c->balance_due && c->was_complete && !c->settle_epoch && !is_under_way(&c->operators) &&
           begin_balance(c);
}

/* ---- what an operator asks for */

static enum afd_status check_free(const struct afd_cluster *c, struct afd_error *error)
{
    if (!c->was_complete) return afd_fail(error, AFD_AGAIN, "the cluster is starting");
    if (is_under_way(&c->operators))
        return afd_fail(error, AFD_AGAIN, "a %s is under way (%s%s%s)",
                        afd_change_kind_name(c->operators.kind), afd_change_phase_name(c->operators.phase),
                        c->operators.words[0] ? ": " : "", c->operators.words);
    if (afd_cluster_is_changing(c))
        return afd_fail(error, AFD_AGAIN, "a %s is under way: shards are placed anew, or a rank drains",
                        c->own.id ? afd_change_kind_name(c->own.kind) : "change");
    uint32_t lost = lost_shard(c);
    if (lost != UINT32_MAX) return afd_fail(error, AFD_AGAIN, "shard %u has no whole instance now", lost);
    return AFD_OK;
}

/* The one to go: one that is not there, else the last. */
static uint32_t leaver(const struct afd_cluster *c, enum afd_role role)
{
    uint32_t best = UINT32_MAX;
    int best_is_there = 1;
    for (uint32_t i = c->instances[role]; i-- > 0;) {
        const struct afd_cluster_place *place = &c->places[role][i];
        if (place->state != AFD_INSTANCE_ACTIVE || place->leaves) continue;
        int is_there = afd_instance_is_connected(c, role, i);
        if (best == UINT32_MAX || is_there < best_is_there) best = i, best_is_there = is_there;
    }
    return best;
}

static void unmark(struct afd_cluster *c)
{
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++) c->places[role][i].leaves = 0;
}

/* The marked instances leave, `joins` more of each pool come. */
static enum afd_status begin_scale(struct afd_cluster *c, enum afd_change_kind kind,
                                   const uint32_t joins[AFD_ROLE_COUNT], struct afd_error *error)
{
    uint32_t chosen[AFD_ROLE_COUNT][AFD_MAX_RANKS], count[AFD_ROLE_COUNT] = {0}, leaves[AFD_ROLE_COUNT] = {0};
    uint64_t usable = present(c, 0);
    struct afd_placement target = c->placement;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < c->instances[role]; i++) {
            leaves[role] += c->places[role][i].leaves != 0;
            if (c->places[role][i].state != AFD_INSTANCE_ABSENT || count[role] == joins[role]) continue;
            chosen[role][count[role]++] = i;
            if (role == AFD_ROLE_FFN) usable |= (uint64_t)1 << i;
        }
    if (joins[AFD_ROLE_FFN] || leaves[AFD_ROLE_FFN]) {
        enum afd_status status = make_plan(c, usable, &target, error);
        if (status) {
            unmark(c);
            return AFD_ERR_REQUEST;
        }
    }
    struct afd_cluster_change *change = begin_change(c, &c->operators, kind);
    for (int role = 0; role < AFD_ROLE_COUNT; role++) {
        change->to[role] += joins[role] - leaves[role];
        for (uint32_t n = 0; n < joins[role]; n++) begin_instance(c, (enum afd_role)role, chosen[role][n]);
    }
    afd_cluster_say(c, 1, "%s: %uA%uF to %uA%uF", afd_change_kind_name(kind), change->from[AFD_ROLE_ATTN],
                    change->from[AFD_ROLE_FFN], change->to[AFD_ROLE_ATTN], change->to[AFD_ROLE_FFN]);
    begin_move(c, change, &target);
    return AFD_OK;
}

enum afd_status afd_cluster_scale(struct afd_cluster *c, uint32_t attn, uint32_t ffn, afd_ns now,
                                  struct afd_error *error)
{
    uint32_t wanted[AFD_ROLE_COUNT] = {attn, ffn}, joins[AFD_ROLE_COUNT] = {0};
    enum afd_status status = check_free(c, error);
    if (status) return status;
    c->now = now;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        if (!wanted[role] || wanted[role] > c->instances[role])
            return afd_fail(error, AFD_ERR_REQUEST,
                            "%u %s instances; expected 1 to %u (pools.%s.max_instances)", wanted[role],
                            afd_role_name((enum afd_role)role), c->instances[role],
                            afd_role_name((enum afd_role)role));
    for (int role = 0; role < AFD_ROLE_COUNT; role++) {
        uint32_t have = active(c, (enum afd_role)role);
        if (wanted[role] > have) joins[role] = wanted[role] - have;
        for (uint32_t n = wanted[role]; n < have; n++)
            c->places[role][leaver(c, (enum afd_role)role)].leaves = 1;
    }
    return begin_scale(c, AFD_CHANGE_SCALE, joins, error);
}

enum afd_status afd_cluster_drain(struct afd_cluster *c, enum afd_role role, uint32_t rank, afd_ns now,
                                  struct afd_error *error)
{
    static const uint32_t none[AFD_ROLE_COUNT];
    enum afd_status status = check_free(c, error);
    if (status) return status;
    c->now = now;
    if (rank >= c->ranks[role] || c->places[role][rank / c->each[role]].state != AFD_INSTANCE_ACTIVE)
        return afd_fail(error, AFD_ERR_REQUEST, "%s/%u is not in the cluster", afd_role_name(role), rank);
    if (active(c, role) == 1)
        return afd_fail(error, AFD_ERR_REQUEST, "%s/%u is in the last instance of its pool",
                        afd_role_name(role), rank);
    c->places[role][rank / c->each[role]].leaves = 1;
    return begin_scale(c, AFD_CHANGE_DRAIN, none, error);
}

enum afd_status afd_cluster_restart(struct afd_cluster *c, const struct afd_cluster_rank *ranks,
                                    uint32_t count, afd_ns now, struct afd_error *error)
{
    enum afd_status status = check_free(c, error);
    if (status) return status;
    c->now = now;
    for (uint32_t n = 0; n < count; n++)
        if (ranks[n].rank >= c->ranks[ranks[n].role] ||
            c->places[ranks[n].role][ranks[n].rank / c->each[ranks[n].role]].state != AFD_INSTANCE_ACTIVE)
            return afd_fail(error, AFD_ERR_REQUEST, "%s/%u is not in the cluster",
                            afd_role_name(ranks[n].role), ranks[n].rank);
    for (uint32_t n = 0; n < count; n++)
        c->places[ranks[n].role][ranks[n].rank / c->each[ranks[n].role]].restarts = AFD_RESTART_ASKED;
    begin_change(c, &c->operators, AFD_CHANGE_RESTART);
    afd_cluster_act(c, AFD_CLUSTER_JOURNAL, NULL); /* what is to be done; it begins all the same */
    return AFD_OK;
}

void afd_cluster_restart_scheduler(struct afd_cluster *c)
{
    assert(c->operators.kind == AFD_CHANGE_RESTART && is_under_way(&c->operators));
    c->end = AFD_END_ASKED;
}
