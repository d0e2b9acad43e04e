/* ffn.c: the shell of a simulated FFN rank: ffn_node/{serve,control,node}.c in virtual time. */
#include "sim/ffn.h"

#include <assert.h>
#include <string.h>

enum { ROOM_US = 20 };

/* ---- messages in */

static const char *find_fault(const struct sim_ffn *n, const struct sim_place *place,
                              const struct afd_a2f_header *h, uint32_t region, uint32_t sequence,
                              uint32_t bytes)
{
    if (h->magic != AFD_A2F_MAGIC || h->version != AFD_PROTOCOL_VERSION) return "no A2F header";
    if (h->flags & ~AFD_A2F_LAST) return "an unknown flag";
    if (h->slot != region || h->sequence != sequence) return "not the notice's";
    if (h->layer >= n->w->model->layer_count) return "a layer that the model does not have";
    if (h->rows > n->w->wire.shape.max_rows || bytes != sizeof *h + (uint64_t)h->rows * n->w->wire.a2f_stride)
        return "a size that does not fit its rows";
    if (!h->shards || (h->shards & ~n->held)) return "shards that are not held here";
    if (h->step < place->last_step) return "a step before the last one";
    if (place->is_busy) return "a message before the last one was answered";
    return NULL;
}

static void put_in_outbox(struct sim_ffn *n, struct sim_source *source, uint32_t slot)
{
    struct sim_place *place = &source->places[slot];
    if (place->in_outbox) return;
    place->in_outbox = 1;
    assert(n->outbox_count < n->outbox_room);
    n->outbox[(n->outbox_first + n->outbox_count++) % n->outbox_room] =
        (uint32_t)(source - n->sources) * n->slots + slot;
}

/* Takes over the rows. */
static void write_answer(struct sim_ffn *n, struct sim_place *place, uint32_t shard, struct sim_rows *rows,
                         const struct sim_run *run, afd_ns arrived)
{
    const struct afd_a2f_header *asked = &place->header;
    place->heads[shard] = (struct afd_f2a_header){.magic = AFD_F2A_MAGIC,
                                                  .version = AFD_PROTOCOL_VERSION,
                                                  .step = asked->step,
                                                  .rows = rows ? rows->count : 0,
                                                  .layer = asked->layer,
                                                  .slot = asked->slot,
                                                  .shard = (uint16_t)shard,
                                                  .sequence = asked->sequence};
    if (run) {
        place->heads[shard].queue_ns = run->formed - arrived;
        place->heads[shard].compute_ns = run->compute_ns;
    }
    sim_rows_drop(n->w, place->answers[shard]);
    place->answers[shard] = rows;
}

static void ffn_notice(struct sim_world *w, struct sim_node *node, struct sim_pair *pair, uint32_t region,
                       uint32_t sequence, uint32_t bytes)
{
    struct sim_ffn *n = sim_ffn_of(node);
    struct sim_source *source = pair->user[1];
    if (!source || source->pair != pair) return;
    struct sim_place *place = &source->places[region];
    struct afd_a2f_header h = place->region->head.a2f;
    const char *fault = find_fault(n, place, &h, region, sequence, bytes);
    if (fault) {
        sim_ffn_poison(n, source, fault);
        return;
    }
    struct afd_gather_message m = {.shards = h.shards,
                                   .rows = h.rows,
                                   .source = (uint16_t)source->rank,
                                   .slot = h.slot,
                                   .layer = h.layer,
                                   .flags = h.flags,
                                   .sequence = h.sequence};
    if (afd_ffn_group_arrive(n->core, &m, w->now)) {
        sim_ffn_poison(n, source, "a message that cannot be taken now");
        return;
    }
    place->header = h;
    place->last_step = h.step;
    place->is_busy = 1;
    if (h.rows) return;
    for (uint64_t left = h.shards; left; left &= left - 1)
        write_answer(n, place, (uint32_t)__builtin_ctzll(left), NULL, NULL, 0);
    place->unsent = h.shards;
    put_in_outbox(n, source, h.slot);
}

/* The NIC writes into a region; or another member of the group tells something. */
static void ffn_write(struct sim_world *w, struct sim_node *node, struct sim_message *m)
{
    struct sim_ffn *n = sim_ffn_of(node);
    if (m->tell_bytes) {
        sim_ffn_told(n, m);
        return;
    }
    struct sim_source *source = sim_source_of(n, m->pair->node[0]->rank);
    if (source->pair != m->pair)
        sim_fail(w, "ffn/%u: an old generation writes: pair %u into a region that belongs to pair %u",
                 node->rank, m->pair->id, source->pair ? source->pair->id : 0);
    struct sim_place *place = &source->places[m->region];
    if (place->is_busy || place->readers)
        sim_fail(w, "ffn/%u: the region of attn/%u, slot %u, is written while %s: it has two writers",
                 node->rank, source->rank, m->region,
                 place->readers ? "a batch reads it" : "its message is not answered");
    sim_message_free(w, place->region);
    place->region = m;
}

/* ---- answers out */

void sim_ffn_forget(struct sim_ffn *n, struct sim_source *source)
{
    for (uint32_t slot = 0; slot < n->slots; slot++) {
        struct sim_place *place = &source->places[slot];
        place->header = (struct afd_a2f_header){0};
        place->unsent = place->last_step = 0;
        place->is_busy = 0; /* the ring still names it; a batch may still read the region */
    }
}

static void on_room(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)w, (void)p, (void)a;
    sim_ffn_of(node)->room_due = 0;
}

static void wait_for_room(struct sim_ffn *n)
{
    sim_count(n->w, AFD_SIM_AGAIN);
    if (n->room_due) return;
    n->room_due = 1;
    sim_at(n->w, n->w->now + ROOM_US * 1000, n->node, on_room, NULL, 0);
}

static enum afd_status send_answers(struct sim_ffn *n, struct sim_source *source, uint32_t slot)
{
    struct sim_place *place = &source->places[slot];
    while (place->unsent) {
        uint32_t shard = (uint32_t)__builtin_ctzll(place->unsent);
        struct sim_rows *rows = place->answers[shard];
        uint32_t bytes = (uint32_t)(sizeof place->heads[shard] +
                                    (uint64_t)place->heads[shard].rows * n->w->wire.f2a_stride);
        sim_rows_hold(rows);
        enum afd_status status = sim_put(n->w, source->pair, 1, (uint16_t)(slot * n->w->t->ffn.ep + shard),
                                         &place->heads[shard], bytes, rows, place->header.sequence);
        if (status) sim_rows_drop(n->w, rows);
        if (status == AFD_AGAIN) return AFD_AGAIN;
        if (status) { /* its LOST event is on its way */
            place->unsent = 0;
            return AFD_OK;
        }
        place->unsent &= place->unsent - 1;
    }
    place->is_busy = 0;
    return AFD_OK;
}

static void flush_answers(struct sim_ffn *n)
{
    for (uint32_t count = n->outbox_count; count; count--) {
        uint32_t at = n->outbox[n->outbox_first], slot = at % n->slots;
        struct sim_source *source = &n->sources[at / n->slots];
        n->outbox_first = (n->outbox_first + 1) % n->outbox_room;
        n->outbox_count--;
        source->places[slot].in_outbox = 0;
        if (!source->pair || !source->places[slot].unsent) continue;
        if (send_answers(n, source, slot) != AFD_AGAIN) continue;
        put_in_outbox(n, source, slot);
        wait_for_room(n);
    }
}

/* ---- batches */

static int is_own(const struct sim_ffn *n, const struct afd_ffn_batch *b, uint32_t part)
{
    return b->parts[part].member == n->self;
}

static struct sim_run *run_of(struct sim_ffn *n, uint64_t batch)
{
    struct sim_run *run = &n->runs[batch % AFD_FFN_DEPTH];
    return run->step != SIM_RUN_IDLE && run->batch->number == batch ? run : NULL;
}

static const struct sim_run *run_before(const struct sim_ffn *n, const struct sim_run *run)
{
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++)
        if (n->runs[i].step != SIM_RUN_IDLE && n->runs[i].batch->number < run->batch->number)
            return &n->runs[i];
    return NULL;
}

/* Names a batch: what it is made of, in order. */
static uint64_t name_of(const struct afd_ffn_batch *b)
{
    uint64_t name = sim_mix(b->number, b->layer);
    for (uint32_t i = 0; i < b->part_count; i++) {
        const struct afd_gather_message *m = &b->parts[i].message;
        name = sim_mix(name, (uint64_t)m->source << 32 | (uint64_t)m->slot << 24 | m->sequence);
        name = sim_mix(name, m->shards << 16 | m->rows);
    }
    return name;
}

/* Reads the regions of own parts, as the device or the all-gather does. */
static void read_parts(struct sim_ffn *n, struct sim_run *run)
{
    for (uint32_t i = 0; i < run->batch->part_count; i++) {
        const struct afd_gather_message *m = &run->batch->parts[i].message;
        if (!is_own(n, run->batch, i)) continue;
        struct sim_place *place = &sim_source_of(n, m->source)->places[m->slot];
        assert(place->readers);
        place->readers--;
        run->rows[i] = place->region->rows;
        sim_rows_hold(run->rows[i]);
    }
}

static void drop_parts(struct sim_ffn *n, struct sim_run *run)
{
    for (uint32_t i = 0; i < run->batch->part_count; i++) {
        sim_rows_drop(n->w, run->rows[i]);
        run->rows[i] = NULL;
    }
}

static void on_device(struct sim_world *w, struct sim_node *node, void *p, uint64_t batch)
{
    struct sim_ffn *n = sim_ffn_of(node);
    (void)w;
    n->device_ops--;
    if ((uint64_t)(uintptr_t)p != n->group_serial) return; /* of a group that failed meanwhile */
    struct sim_run *run = run_of(n, batch);
    if (!run || run->step != SIM_RUN_COMPUTING) return;
    if (n->tp == 1) read_parts(n, run);
    run->step = n->tp > 1 ? SIM_RUN_REDUCE : SIM_RUN_FINISH;
    if (n->tp == 1) run->shares = sim_share(0);
}

static void start_compute(struct sim_ffn *n, struct sim_run *run)
{
    const struct afd_ffn_batch *b = run->batch;
    uint64_t asked = 0;
    for (uint32_t i = 0; i < b->part_count; i++)
        asked +=
            (uint64_t)b->parts[i].message.rows * (uint32_t)__builtin_popcountll(b->parts[i].message.shards);
    uint32_t load = (uint32_t)((asked + b->rows - 1) / b->rows);
    afd_ns begin = n->device_free > n->w->now ? n->device_free : n->w->now;
    run->compute_ns = sim_slowed(
        n->node, sim_ffn_ns(n->w, b->layer, b->rows, load, (uint32_t)__builtin_popcountll(n->held)));
    n->device_free = begin + run->compute_ns;
    n->device_ops++;
    /* the serial tells this group's batches from an earlier one's */
    sim_at(n->w, n->device_free, n->node, on_device, (void *)(uintptr_t)n->group_serial, b->number);
}

/* The rows of own parts that are active in a shard that is asked for, in each: their sums are reduced. */
static uint64_t active_rows(const struct sim_ffn *n, const struct sim_run *run)
{
    const struct afd_ffn_batch *b = run->batch;
    uint32_t picks = n->w->picks[b->layer], ep = n->w->t->ffn.ep;
    uint64_t count = 0;
    for (uint32_t i = 0; i < b->part_count; i++)
        for (uint32_t r = 0; run->rows[i] && r < run->rows[i]->count; r++)
            count += (uint32_t)__builtin_popcountll(sim_shards(run->rows[i]->words[r], b->layer, picks, ep) &
                                                    b->parts[i].message.shards);
    return count;
}

static void join(struct sim_ffn *n, struct sim_run *run, uint32_t phase)
{
    const struct afd_ffn_batch *b = run->batch;
    if (!phase) read_parts(n, run);
    uint64_t bytes = phase ? active_rows(n, run) * 4 * n->w->model->hidden
                           : (uint64_t)b->member_rows[n->self] * n->w->wire.a2f_stride;
    run->joined = n->w->now;
    sim_collective_join(n, b->number, phase, name_of(b), sim_share(n->self), bytes);
}

void sim_ffn_collected(struct sim_ffn *n, uint64_t batch, uint32_t phase, uint64_t shares)
{
    struct sim_run *run = run_of(n, batch);
    enum sim_run_step expected = phase ? SIM_RUN_REDUCING : SIM_RUN_GATHERING;
    if (!run || run->step != expected)
        sim_fail(n->w, "ffn/%u: a collective of batch %llu ends, which is not under way", n->node->rank,
                 (unsigned long long)batch);
    run->shares = shares;
    run->step = phase ? SIM_RUN_FINISH : SIM_RUN_COMPUTE;
}

/* The partial sums of a message's rows in one shard. */
static struct sim_rows *partials(struct sim_ffn *n, const struct sim_rows *rows, uint32_t layer,
                                 uint32_t shard, uint64_t shares)
{
    uint32_t ep = n->w->t->ffn.ep, picks = n->w->picks[layer], count = 0;
    struct sim_rows *out = sim_rows_make(n->w, rows->count);
    for (uint32_t r = 0; r < rows->count; r++) { /* what is not active is written over */
        out->words[count] = sim_partial(rows->words[r], layer, shard) * shares;
        count += sim_shards(rows->words[r], layer, picks, ep) >> shard & 1;
    }
    if (count && sim_bug(n->w, AFD_SIM_BUG_SKIPPED_EXPERT, 300))
        memset(out->words, 0, count * sizeof *out->words);
    if (count == rows->count) return out;
    struct sim_rows *fitting = sim_rows_make(n->w, count);
    memcpy(fitting->words, out->words, count * sizeof *out->words);
    sim_rows_drop(n->w, out);
    return fitting;
}

static void finish_run(struct sim_ffn *n, struct sim_run *run)
{
    const struct afd_ffn_batch *b = run->batch;
    for (uint32_t i = 0; i < b->part_count; i++) {
        const struct afd_gather_message *m = &b->parts[i].message;
        if (!is_own(n, b, i)) continue;
        struct sim_source *source = sim_source_of(n, m->source);
        struct sim_place *place = &source->places[m->slot];
        if (!source->pair || !place->is_busy)
            continue; /* its pair was lost: it sends again, here or elsewhere */
        for (uint64_t left = m->shards; left; left &= left - 1) {
            uint32_t shard = (uint32_t)__builtin_ctzll(left);
            if (!(n->held >> shard & 1))
                sim_fail(n->w, "ffn/%u computes shard %u, which it has dropped", n->node->rank, shard);
            struct sim_rows *rows = partials(n, run->rows[i], b->layer, shard, run->shares);
            write_answer(n, place, shard, rows, run, b->parts[i].arrived);
        }
        place->unsent = m->shards;
        put_in_outbox(n, source, m->slot);
    }
    drop_parts(n, run);
    run->step = SIM_RUN_IDLE;
    afd_members_worked(&n->members);
    afd_ffn_group_done(n->core, b->number, run->compute_ns, n->w->now);
}

static int advance(struct sim_ffn *n, struct sim_run *run)
{
    if (run->step == SIM_RUN_IDLE) return 0;
    const struct sim_run *before = run_before(n, run);
    if (before && before->step <= run->step) return 0;
    switch (run->step) {
    case SIM_RUN_GATHER:
        run->step = SIM_RUN_GATHERING;
        join(n, run, 0);
        return 1;
    case SIM_RUN_COMPUTE:
        run->step = SIM_RUN_COMPUTING;
        start_compute(n, run);
        return 1;
    case SIM_RUN_REDUCE:
        run->step = SIM_RUN_REDUCING;
        join(n, run, 1);
        return 1;
    case SIM_RUN_FINISH:
        if (before) return 0;
        finish_run(n, run);
        return 1;
    default:
        return 0;
    }
}

static void start_batches(struct sim_ffn *n)
{
    const struct afd_ffn_batch *b;
    while ((b = afd_ffn_group_next(n->core, n->w->now))) {
        struct sim_run *run = &n->runs[b->number % AFD_FFN_DEPTH];
        assert(run->step == SIM_RUN_IDLE);
        run->batch = b;
        run->step = n->tp > 1 ? SIM_RUN_GATHER : SIM_RUN_COMPUTE;
        run->formed = n->w->now;
        for (uint32_t i = 0; i < b->part_count; i++) {
            run->rows[i] = NULL;
            if (is_own(n, b, i))
                sim_source_of(n, b->parts[i].message.source)->places[b->parts[i].message.slot].readers++;
        }
    }
}

void sim_ffn_abandon(struct sim_ffn *n)
{
    for (uint32_t k = 0; k < AFD_FFN_DEPTH; k++) {
        struct sim_run *run = &n->runs[k];
        if (run->step == SIM_RUN_IDLE) continue;
        drop_parts(n, run);
        run->step = SIM_RUN_IDLE;
    }
    for (uint32_t i = 0; i < n->source_count; i++)
        for (uint32_t slot = 0; slot < n->slots; slot++) n->sources[i].places[slot].readers = 0;
}

static void on_window(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)w, (void)p, (void)a;
    sim_ffn_of(node)->timer_at = AFD_NEVER;
}

static void set_timer(struct sim_ffn *n)
{
    afd_ns at = afd_ffn_group_deadline(n->core);
    if (at >= n->timer_at) return;
    sim_count(n->w, AFD_SIM_HELD_BACK);
    n->timer_at = at > n->w->now ? at : n->w->now;
    sim_at(n->w, n->timer_at, n->node, on_window, NULL, 0);
}

static void send_ready(struct sim_ffn *n)
{
    struct sim_control *m = sim_control_make(n->w, SIM_READY);
    m->epoch = n->epoch;
    m->shards = sim_ffn_loaded(n->node);
    if (sim_control_send(n->w, n->node, m)) sim_control_free(n->w, m);
}

/* ---- more shards, or fewer, while it serves */

static void load_more(struct sim_ffn *n);

static void on_more(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_ffn *n = sim_ffn_of(node);
    (void)w, (void)p, (void)a;
    sim_count(w, AFD_SIM_LOADED_MORE);
    n->held |= n->loading;
    n->loading = 0;
    afd_ffn_group_set_shards(n->core, n->held);
    if (n->is_ready) send_ready(n);
    load_more(n);
}

static void load_more(struct sim_ffn *n)
{
    uint64_t more = n->wanted & ~n->held;
    if (!n->is_loaded || n->loading || !more) return;
    n->loading = more;
    sim_at(n->w, n->w->now + sim_load_ns(n->w), n->node, on_more, NULL, 0);
}

/* What nobody wants here goes once no message asks for it. */
static void drop_some(struct sim_ffn *n)
{
    uint64_t gone = n->held & ~n->wanted;
    if (!gone || !n->is_loaded) return;
    uint64_t used = afd_ffn_group_in_use(n->core);
    for (uint32_t i = 0; i < n->source_count; i++)
        for (uint32_t slot = 0; slot < n->slots; slot++)
            if (n->sources[i].places[slot].is_busy) used |= n->sources[i].places[slot].header.shards;
    if (n->w->config.bug == AFD_SIM_BUG_DROPPED_SHARD && gone & used) {
        n->w->bug_count++;
        n->held &= ~gone; /* the core goes on as if nothing had happened */
        return;
    }
    gone &= ~used;
    if (!gone) return;
    sim_count(n->w, AFD_SIM_DROPPED);
    n->held &= ~gone;
    afd_ffn_group_set_shards(n->core, n->held);
    if (n->is_ready) send_ready(n);
}

uint64_t sim_ffn_loaded(const struct sim_node *node)
{
    const struct sim_ffn *n = sim_ffn_of(node);
    return n->is_loaded ? n->held : 0;
}

static void ffn_after(struct sim_world *w, struct sim_node *node)
{
    struct sim_ffn *n = sim_ffn_of(node);
    (void)w;
    if (n->is_loaded) {
        sim_ffn_group_progress(n);
        for (int moved = 1; moved && n->group_state == SIM_GROUP_UP;) {
            moved = 0;
            start_batches(n);
            for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++) moved |= advance(n, &n->runs[i]);
        }
        sim_ffn_group_progress(n);
        flush_answers(n);
        if (n->group_state == SIM_GROUP_UP) set_timer(n);
    }
    drop_some(n);
    sim_ffn_check_drained(n);
}

/* ---- the scheduler */

void sim_ffn_set_ready(struct sim_ffn *n)
{
    n->is_ready = 1;
    send_ready(n);
}

static void end_stalled_group(struct sim_ffn *n)
{
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++) {
        const struct sim_run *run = &n->runs[i];
        if (run->step != SIM_RUN_GATHERING && run->step != SIM_RUN_REDUCING) continue;
        if (n->w->now - run->joined < AFD_MS(n->w->t->scheduler.lease_ms)) continue;
        uint32_t member = sim_collective_awaits(n, run->batch->number, run->step == SIM_RUN_REDUCING);
        sim_count(n->w, AFD_SIM_STALLED);
        afd_members_stalled(&n->members, member, n->w->now);
        sim_ffn_fail_group(n, member);
        return;
    }
}

static void on_heartbeat(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_ffn *n = sim_ffn_of(node);
    (void)p, (void)a;
    sim_at(w, w->now + AFD_MS(w->t->scheduler.heartbeat_ms), node, on_heartbeat, NULL, 0);
    end_stalled_group(n);
    if (!sim_is_connected(node) || (!n->core && !n->is_ready)) return;
    struct sim_control *m = sim_control_make(w, SIM_HEARTBEAT);
    m->unreachable = afd_members_lost(&n->members, AFD_MS(w->t->scheduler.lease_ms), w->now);
    if (m->unreachable) sim_count(w, AFD_SIM_TORN);
    sim_control_send(w, node, m);
}

static void create_places(struct sim_ffn *n)
{
    for (uint32_t i = 0; i < n->source_count; i++)
        for (uint32_t slot = 0; slot < n->slots; slot++) {
            struct sim_place *place = &n->sources[i].places[slot];
            place->answers = sim_zero(n->w, n->w->t->ffn.ep, sizeof(struct sim_rows *));
            place->heads = sim_zero(n->w, n->w->t->ffn.ep, sizeof *place->heads);
        }
    n->outbox_room = n->source_count * n->slots + 1;
    n->outbox = sim_zero(n->w, n->outbox_room, sizeof *n->outbox);
}

/* The weights are there. */
static void on_loaded(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_ffn *n = sim_ffn_of(node);
    const struct afd_topology *t = w->t;
    (void)p, (void)a;
    struct afd_ffn_group_config config = {.members = n->tp,
                                          .self = n->self,
                                          .shards = n->held,
                                          .max_message_rows = t->pipeline.max_rows,
                                          .gather = {.sources = n->attn_ranks,
                                                     .slots = n->slots,
                                                     .layers = w->model->layer_count,
                                                     .max_rows = n->max_batch_rows,
                                                     .window_auto = t->pipeline.gather_auto,
                                                     .window = (afd_ns)t->pipeline.gather_us * 1000}};
    create_places(n);
    n->core = afd_ffn_group_create(&config, n->arena);
    if (!n->core) sim_fail(w, "out of memory");
    uint32_t parts = afd_gather_max_parts(&config.gather);
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++)
        n->runs[i].rows = sim_zero(w, parts, sizeof(struct sim_rows *));
    n->is_loaded = 1;
    load_more(n);
    n->group_state = n->tp > 1 ? SIM_GROUP_DOWN : SIM_GROUP_UP;
    n->group_serial = ++w->group_serials;
    if (n->tp > 1) return;
    afd_ffn_group_ready(n->core);
    sim_ffn_set_ready(n);
}

static void on_assign(struct sim_ffn *n, const struct sim_control *m)
{
    n->epoch = m->epoch;
    n->wanted = m->shards;
    if (n->is_ready) send_ready(n);
    if (n->is_assigned) {
        load_more(n);
        return;
    }
    if (!m->shards) { /* a spare */
        if (n->is_ready) return;
        sim_ffn_set_ready(n);
        on_heartbeat(n->w, n->node, NULL, 0);
        return;
    }
    n->is_assigned = 1;
    n->held = m->shards;
    if (!n->is_ready) on_heartbeat(n->w, n->node, NULL, 0);
    sim_at(n->w, n->w->now + sim_load_ns(n->w), n->node, on_loaded, NULL, 0);
}

static void ffn_control(struct sim_world *w, struct sim_node *node, struct sim_control *m)
{
    struct sim_ffn *n = sim_ffn_of(node);
    if (m->kind == SIM_ASSIGN)
        on_assign(n, m);
    else if (m->kind == SIM_PEERS)
        sim_ffn_on_peers(n, m->peers);
    else if (m->kind == SIM_DRAIN)
        node->is_let_go = 1, node->shell->drain(w, node);
    else
        sim_fail(w, "ffn/%u was sent a message of kind %d", node->rank, m->kind);
}

static void ffn_connected(struct sim_world *w, struct sim_node *node)
{
    (void)w, (void)node; /* Assign follows, and with it Ready */
}

/* ---- the end */

static void leave(struct sim_ffn *n)
{
    struct sim_control *m = sim_control_make(n->w, SIM_LEAVE);
    if (sim_control_send(n->w, n->node, m)) sim_control_free(n->w, m);
    sim_count(n->w, AFD_SIM_DRAINED);
    sim_exit(n->w, n->node, 0);
}

void sim_ffn_check_drained(struct sim_ffn *n)
{
    if (!n->is_draining || n->open_pairs) return;
    if (n->tp > 1 && n->group_state == SIM_GROUP_UP && n->listed_sources && sim_is_connected(n->node)) return;
    leave(n);
}

static void on_drain_over(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)w, (void)p, (void)a;
    leave(sim_ffn_of(node));
}

static void ffn_drain(struct sim_world *w, struct sim_node *node)
{
    struct sim_ffn *n = sim_ffn_of(node);
    if (n->is_draining) return;
    n->is_draining = 1;
    sim_at(w, w->now + AFD_SECONDS(w->t->scheduler.drain_s), node, on_drain_over, NULL, 0);
}

/* Nothing waits here, nothing is under way. */
int sim_ffn_is_idle(const struct sim_node *node)
{
    const struct sim_ffn *n = sim_ffn_of(node);
    if (!n->core) return n->is_ready;                         /* a spare */
    if (!n->held && n->group_state != SIM_GROUP_UP) return 1; /* one again, without its group */
    if (n->group_state != SIM_GROUP_UP || n->device_ops || n->outbox_count) return 0;
    return !afd_ffn_group_queued(n->core);
}

/* ---- create and destroy */

static void ffn_start(struct sim_world *w, struct sim_node *node)
{
    const struct afd_topology *t = w->t;
    struct sim_ffn *n = sim_zero(w, 1, sizeof *n);
    node->body = n;
    n->w = w;
    n->node = node;
    n->slots = t->pipeline.microbatches;
    n->tp = t->ffn.tp;
    n->self = node->rank % n->tp;
    n->instance = node->rank / n->tp;
    n->attn_ranks = t->attn.max_instances * t->attn.ranks_per_instance;
    n->source_count = (n->attn_ranks + n->tp - 1 - n->self) / n->tp;
    n->max_batch_rows = afd_topology_batch_rows(t);
    n->arena = afd_arena_create(0);
    if (!n->arena) sim_fail(w, "out of memory");
    n->sources = sim_zero(w, n->source_count, sizeof *n->sources);
    for (uint32_t i = 0; i < n->source_count; i++) {
        n->sources[i].rank = i * n->tp + n->self;
        n->sources[i].places = sim_zero(w, n->slots, sizeof *n->sources[i].places);
    }
    n->timer_at = AFD_NEVER;
    sim_member_begin(w, node);
}

static void ffn_destroy(struct sim_node *node)
{
    afd_arena_destroy(sim_ffn_of(node)->arena);
}

const struct sim_shell sim_ffn_shell = {.start = ffn_start,
                                        .destroy = ffn_destroy,
                                        .connected = ffn_connected,
                                        .disconnected = ffn_connected,
                                        .told = ffn_control,
                                        .request = sim_ffn_request,
                                        .open = sim_ffn_open,
                                        .lost = sim_ffn_lost,
                                        .write = ffn_write,
                                        .notice = ffn_notice,
                                        .drain = ffn_drain,
                                        .after = ffn_after};
