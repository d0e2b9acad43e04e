/* faults.c: what is done to the cluster. One fault at a time is drawn, its victim and its length with it;
 * faults overlap as they fall. */
#include <string.h>

#include "sim/world.h"

static const afd_ns FOREVER = (afd_ns)1 << 60;

static const char *const fault_names[AFD_SIM_FAULT_COUNT] = {
    "kill-attn", "kill-ffn", "kill-scheduler", "hang",    "slow",    "drop",      "delay",
    "duplicate", "busy",     "partition",      "flip",    "control", "disk-full", "disk-tear",
    "drain",     "scale",    "shrink",         "restart", "broken",  "sever",     "split"};

static const char *const path_names[AFD_SIM_PATH_COUNT] = {
    "resent",        "waited",       "fenced",       "poisoned",     "replaced",       "refused",
    "expired",       "lease",        "came-back",    "replayed",     "stale",          "kept",
    "cancelled",     "preempted",    "again",        "group-failed", "group-formed",   "restarted",
    "drained",       "held-back",    "journal-read", "journal-cut",  "journal-filled", "turned-away",
    "scaled",        "shrunk",       "rolled-on",    "repaired",     "balanced",       "rolled-back",
    "busy-changing", "cut",          "taken-back",   "loaded-more",  "dropped",        "sent-away",
    "hedged",        "late-answer",  "avoided",      "in-time",      "given-up",       "parked",
    "went-on",       "unreachable",  "restored",     "resumed",      "forgotten",      "reattached",
    "deserted",      "journal-gone", "torn",         "stalled",      "served-on",      "unserved"};

static const char *const bug_names[AFD_SIM_BUG_COUNT] = {
    "none",        "skipped-expert", "double-token",   "freed-block",   "old-generation",
    "two-writers", "lost-wake-up",   "early-delivery", "stale-partial", "dropped-shard",
    "quarantine",  "no-lease",       "wrong-position"};

const char *afd_sim_fault_name(enum afd_sim_fault fault)
{
    return fault_names[fault];
}

const char *afd_sim_path_name(enum afd_sim_path path)
{
    return path_names[path];
}

const char *afd_sim_bug_name(enum afd_sim_bug bug)
{
    return bug_names[bug];
}

static uint64_t bit(uint32_t i)
{
    return (uint64_t)1 << i;
}

enum afd_status afd_sim_faults_read(const char *text, uint64_t *out, struct afd_error *error)
{
    *out = 0;
    if (!strcmp(text, "none")) return AFD_OK;
    for (const char *at = text; *at;) {
        size_t bytes = strcspn(at, ",");
        int which = bytes == 3 && !strncmp(at, "all", 3) ? AFD_SIM_FAULT_COUNT : -1;
        for (int f = 0; f < AFD_SIM_FAULT_COUNT; f++)
            if (strlen(fault_names[f]) == bytes && !strncmp(at, fault_names[f], bytes)) which = f;
        if (which < 0)
            return afd_fail(
                error, AFD_ERR_CONFIG,
                "no fault \"%.*s\"; expected all, none or some of: kill-attn, "
                "kill-ffn, kill-scheduler, hang, slow, drop, delay, duplicate, busy, partition, flip, "
                "control, disk-full, disk-tear, drain, scale, shrink, restart, broken, sever, split",
                (int)bytes, at);
        *out |= which == AFD_SIM_FAULT_COUNT ? AFD_SIM_ALL_FAULTS : bit((uint32_t)which);
        at += bytes + (at[bytes] == ',');
    }
    return AFD_OK;
}

uint64_t afd_sim_faults_possible(const struct afd_topology *t)
{
    return t->ffn.tp == 1 ? ~bit(AFD_SIM_SEVER) : UINT64_MAX;
}

uint64_t afd_sim_paths_possible(const struct afd_topology *t)
{
    uint64_t paths = bit(AFD_SIM_SERVED_ON) - 1; /* the others need AFD_SIM_SPLIT */
    if (t->ffn.tp == 1)
        paths &= ~(bit(AFD_SIM_GROUP_FAILED) | bit(AFD_SIM_GROUP_FORMED) | bit(AFD_SIM_TORN) |
                   bit(AFD_SIM_STALLED));
    if (t->ffn.copies == 1) paths &= ~(bit(AFD_SIM_RESENT) | bit(AFD_SIM_HEDGED) | bit(AFD_SIM_LATE_ANSWER));
    if (t->ffn.copies >= t->ffn.max_instances) /* every instance has every shard */
        paths &= ~(bit(AFD_SIM_REPAIRED) | bit(AFD_SIM_BALANCED) | bit(AFD_SIM_LOADED_MORE) |
                   bit(AFD_SIM_DROPPED));
    if (!t->pipeline.gather_auto && !t->pipeline.gather_us) paths &= ~bit(AFD_SIM_HELD_BACK);
    return paths;
}

/* ---- one of each kind */

static uint64_t draw(struct sim_world *w, uint64_t limit)
{
    return sim_below(w, SIM_RANDOM_FAULTS, limit);
}

static struct sim_node *any_rank(struct sim_world *w)
{
    return &w->nodes[1 + draw(w, w->node_count - 1)];
}

/* Shorter than a lease, or longer. */
static afd_ns some_time(struct sim_world *w)
{
    afd_ns lease = AFD_MS(w->t->scheduler.lease_ms);
    return draw(w, 2) ? AFD_MS(1) + draw(w, lease / 2) : lease + draw(w, 2 * lease);
}

/* Without a restart the scheduler's death is the end of all (supervisor.h). */
static int kill(struct sim_world *w, struct sim_node *node)
{
    if (!node->alive || (node->kind == SIM_SCHEDULER && w->t->launch.never_restart)) return 0;
    sim_kill(w, node);
    return 1;
}

static void on_thaw(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t process)
{
    struct sim_node *node = p;
    (void)nobody;
    if (node->process == process) sim_thaw(w, node);
}

static int hang(struct sim_world *w)
{
    struct sim_node *node = &w->nodes[draw(w, w->node_count)];
    afd_ns length = some_time(w);
    if (!node->alive || node->frozen) return 0;
    sim_freeze(w, node);
    sim_at(w, w->now + length, NULL, on_thaw, node, node->process);
    return 1;
}

static void on_fast(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t a)
{
    struct sim_node *node = p;
    (void)w, (void)nobody, (void)a;
    node->slow = 1;
}

static int slow(struct sim_world *w)
{
    struct sim_node *node = any_rank(w);
    node->slow = 2 + (double)draw(w, 30);
    node->is_uneven = (int)draw(w, 2);
    sim_trace(w, node, "is %llu times as slow, now and then %llu", (uint64_t)node->slow,
              (uint64_t)node->is_uneven);
    sim_at(w, w->now + some_time(w), NULL, on_fast, node, 0);
    return 1;
}

static int partition(struct sim_world *w)
{
    if (w->now < w->partition_until) return 0;
    for (uint32_t i = 0; i < w->node_count; i++) w->nodes[i].side = (uint32_t)draw(w, 2);
    w->partition_until = w->now + some_time(w);
    w->partition_spares_scheduler = (int)draw(w, 2);
    sim_trace(w, NULL, "two groups of ranks are cut off from each other for %llu us",
              (w->partition_until - w->now) / 1000);
    return 1;
}

static int sever(struct sim_world *w)
{
    uint32_t tp = w->t->ffn.tp;
    if (w->now < w->severed_until) return 0;
    uint32_t first = (uint32_t)draw(w, w->ffn_count / tp) * tp, one = (uint32_t)draw(w, tp);
    uint32_t other = (one + 1 + (uint32_t)draw(w, tp - 1)) % tp;
    w->severed[0] = sim_rank(w, AFD_ROLE_FFN, first + one);
    w->severed[1] = sim_rank(w, AFD_ROLE_FFN, first + other);
    w->severed_until = w->now + some_time(w);
    sim_trace(w, w->severed[0], "and ffn/%llu of its instance are cut off from each other for %llu us",
              first + other, (w->severed_until - w->now) / 1000);
    return 1;
}

/* Two groups for ever: who is on which side is what they are left with. Or two members of an instance. */
static int split(struct sim_world *w)
{
    if (w->now < w->partition_until || w->is_split) return 0;
    uint64_t sides = 0;
    if (w->t->ffn.tp > 1 && draw(w, 2)) {
        w->is_split = sever(w);
        if (w->is_split) w->severed_until = FOREVER;
        return w->is_split;
    }
    partition(w);
    w->is_split = 1;
    w->partition_until = FOREVER;
    for (uint32_t i = 0; i < w->node_count && i < 64; i++) sides |= (uint64_t)w->nodes[i].side << i;
    sim_trace(w, NULL, ".. and that stays so: nodes %llx on one side, the scheduler reaches both: %llu",
              sides, w->partition_spares_scheduler);
    return 1;
}

static int cut_control(struct sim_world *w)
{
    struct sim_node *node = any_rank(w);
    if (!sim_is_connected(node)) return 0;
    sim_trace(w, node, "its connection to the scheduler breaks");
    sim_conn_break(w, node->conn);
    return 1;
}

static void on_space(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t a)
{
    (void)nobody, (void)p, (void)a;
    w->disk.is_full = 0;
}

static int fill_disk(struct sim_world *w)
{
    w->disk.is_full = 1;
    sim_trace(w, NULL, "the disk is full");
    sim_at(w, w->now + AFD_MS(1) + draw(w, AFD_MS(200)), NULL, on_space, NULL, 0);
    return 1;
}

/* The scheduler dies amid a write of what it has not acted on yet; or a bit of what it wrote is lost. */
static int tear(struct sim_world *w)
{
    struct sim_disk *d = &w->disk;
    struct sim_file *last = d->count ? &d->segments[d->count - 1] : NULL;
    if (!last || last->size < 64 || !kill(w, sim_scheduler(w))) return 0;
    size_t end = last->size < 256 ? last->size : 256, torn = 1 + draw(w, 24);
    if (draw(w, 2) && last->room - last->size > torn) {
        memcpy(last->bytes + last->size, last->bytes, torn); /* a head, not all of it */
        last->size += torn;
    } else {
        last->bytes[last->size - 1 - draw(w, end)] ^= (uint8_t)(1u << draw(w, 8));
        d->is_damaged = 1;
    }
    return 1;
}

static void on_drain(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)p, (void)a;
    node->shell->drain(w, node);
}

static int drain(struct sim_world *w)
{
    struct sim_node *node = any_rank(w);
    if (!node->alive || node->drains) return 0;
    node->drains = 1;
    sim_trace(w, node, "is told to leave");
    sim_at(w, w->now, node, on_drain, NULL, 0);
    return 1;
}

static int scale(struct sim_world *w)
{
    uint32_t attn = 1 + (uint32_t)draw(w, w->t->attn.max_instances),
             ffn = 1 + (uint32_t)draw(w, w->t->ffn.max_instances);
    int done = sim_sched_scale(w, attn, ffn);
    if (done) sim_trace(w, NULL, "an operator asks for %llu attention and %llu FFN instances", attn, ffn);
    return done;
}

static void on_mended(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t a)
{
    struct sim_node *node = p;
    (void)w, (void)nobody, (void)a;
    node->is_broken = 0;
}

static int spoil(struct sim_world *w)
{
    struct sim_node *node = any_rank(w);
    if (node->is_wanted || node->is_broken) return 0;
    node->is_broken = 1;
    sim_trace(w, node, "cannot be started for a while");
    sim_at(w, w->now + some_time(w), NULL, on_mended, node, 0);
    return 1;
}

static int strike(struct sim_world *w, enum afd_sim_fault fault)
{
    switch (fault) {
    case AFD_SIM_KILL_ATTN:
        return kill(w, sim_rank(w, AFD_ROLE_ATTN, (uint32_t)draw(w, w->attn_count)));
    case AFD_SIM_KILL_FFN:
        return kill(w, sim_rank(w, AFD_ROLE_FFN, (uint32_t)draw(w, w->ffn_count)));
    case AFD_SIM_KILL_SCHEDULER:
        return kill(w, sim_scheduler(w));
    case AFD_SIM_HANG:
        return hang(w);
    case AFD_SIM_SLOW:
        return slow(w);
    case AFD_SIM_DROP:
        *(draw(w, 2) ? &w->drops : &w->silent_drops) += 1 + (uint32_t)draw(w, 3);
        return 0; /* counted when it hits */
    case AFD_SIM_DUPLICATE:
        w->duplicates += 1 + (uint32_t)draw(w, 3);
        return 0;
    case AFD_SIM_FLIP:
        w->flips++;
        return 0;
    case AFD_SIM_DELAY:
        w->delay_until = w->now + AFD_MS(1) + draw(w, AFD_MS(100));
        return 1;
    case AFD_SIM_BUSY: {
        struct sim_node *node = any_rank(w);
        node->busy_until = w->now + AFD_MS(1) + draw(w, AFD_MS(30));
        return 1;
    }
    case AFD_SIM_PARTITION:
        return partition(w);
    case AFD_SIM_SEVER:
        return sever(w);
    case AFD_SIM_SPLIT:
        return split(w);
    case AFD_SIM_CONTROL:
        return cut_control(w);
    case AFD_SIM_DISK_FULL:
        return fill_disk(w);
    case AFD_SIM_DISK_TEAR:
        return tear(w);
    case AFD_SIM_DRAIN:
        return drain(w);
    case AFD_SIM_SCALE:
        return scale(w);
    case AFD_SIM_SHRINK:
        return sim_sched_drain(w, any_rank(w));
    case AFD_SIM_RESTART:
        return sim_sched_restart(w, draw(w, 2) ? any_rank(w) : NULL);
    case AFD_SIM_BROKEN:
        return spoil(w);
    case AFD_SIM_FAULT_COUNT:
        break;
    }
    return 0;
}

/* ---- when */

static void on_fault(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)node, (void)p, (void)a;
    if (w->faults_over) return;
    uint64_t set = w->config.faults & afd_sim_faults_possible(w->t);
    uint32_t which = (uint32_t)draw(w, (uint64_t)__builtin_popcountll(set));
    while (which--) set &= set - 1;
    enum afd_sim_fault fault = (enum afd_sim_fault)__builtin_ctzll(set);
    if (strike(w, fault)) w->result->faults[fault]++;
    sim_at(w, w->now + sim_interval(w, SIM_RANDOM_FAULTS, w->config.fault_every), NULL, on_fault, NULL, 0);
}

/* What left in order is started again, what is not wanted any more is ended. With restart: never what died
 * stays away until the faults are over. */
static void on_operator(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t a)
{
    (void)nobody, (void)p, (void)a;
    sim_run_wanted(w);
    if (!w->t->launch.never_restart || w->faults_over) sim_start_again(w);
    sim_at(w, w->now + AFD_MS(100), NULL, on_operator, NULL, 0);
}

void sim_faults_begin(struct sim_world *w)
{
    if (!(w->config.faults & afd_sim_faults_possible(w->t))) return;
    sim_at(w, sim_interval(w, SIM_RANDOM_FAULTS, w->config.fault_every), NULL, on_fault, NULL, 0);
    on_operator(w, NULL, NULL, 0);
}

void sim_faults_end(struct sim_world *w)
{
    w->delay_until = w->now;
    if (w->partition_until != FOREVER) w->partition_until = w->now;
    if (w->severed_until != FOREVER) w->severed_until = w->now;
    w->drops = w->silent_drops = w->duplicates = w->flips = 0;
    w->disk.is_full = 0;
    for (uint32_t i = 0; i < w->node_count; i++) {
        w->nodes[i].is_broken = 0;
        w->nodes[i].slow = 1;
        w->nodes[i].busy_until = 0;
        sim_thaw(w, &w->nodes[i]);
    }
}

static int is_on(const struct sim_world *w, const struct sim_node *node, uint32_t side)
{
    return w->partition_until != FOREVER || node->side == side;
}

int sim_can_serve(const struct sim_world *w)
{
    const struct sim_node *scheduler = &w->nodes[0], *attn = scheduler + 1, *ffn = attn + w->attn_count;
    uint32_t tp = w->t->ffn.tp;
    if (!w->is_split) return 1;
    if (!sim_sched_was_complete(scheduler)) return 0;
    for (uint32_t side = 0; side < 2; side++) {
        uint32_t ranks = 0, room = 0;
        if (!w->partition_spares_scheduler && !is_on(w, scheduler, side)) continue;
        for (uint32_t i = 0; i < w->attn_count; i++) ranks += attn[i].is_wanted && is_on(w, &attn[i], side);
        for (uint32_t i = 0; i < w->ffn_count; i += tp) {
            uint32_t here = 0;
            for (uint32_t k = 0; k < tp; k++) here += ffn[i + k].is_wanted && is_on(w, &ffn[i + k], side);
            int is_torn = w->severed_until == FOREVER && w->severed[0]->rank / tp == i / tp;
            if (here == tp && !is_torn) room += w->t->ffn.max_shards;
        }
        if (ranks && room >= w->t->ffn.ep) return 1;
    }
    return 0;
}
