/* serve.c: messages in, batches over the device and the group, answers out. */
#include "ffn_node/shell.h"

/* ---- messages in */

/* NULL when the message may be used. Everything that comes later relies on these checks. */
static const char *find_fault(const struct afd_ffn_node *node, const struct ffn_place *place,
                              const struct afd_a2f_header *h, const struct afd_transport_event *event)
{
    if (h->magic != AFD_A2F_MAGIC) return "no A2F header";
    if (h->version != AFD_PROTOCOL_VERSION) return "another protocol version";
    if (h->flags & ~AFD_A2F_LAST) return "an unknown flag";
    if (h->slot != event->region) return "the slot is not the region's";
    if (h->sequence != event->sequence) return "the sequence is not the notice's";
    if (h->layer >= node->model->layer_count) return "a layer that the model does not have";
    if (h->rows > node->wire.shape.max_rows) return "more rows than a region has";
    if (event->bytes != sizeof *h + (uint64_t)h->rows * node->wire.a2f_stride)
        return "a size that does not fit its rows";
    if (!h->shards || (h->shards & ~node->held)) return "shards that are not held here";
    if (h->step < place->last_step) return "a step before the last one";
    if (place->is_busy) return "a message before the last one was answered";
    return NULL;
}

static void put_in_outbox(struct afd_ffn_node *node, struct ffn_source *source, uint32_t slot)
{
    struct ffn_place *place = &source->places[slot];
    if (place->in_outbox) return;
    place->in_outbox = 1;
    assert(node->outbox_count < node->outbox_capacity);
    uint32_t at = (node->outbox_first + node->outbox_count++) % node->outbox_capacity;
    node->outbox[at] = (uint32_t)(source - node->sources) * node->slots + slot;
}

/* Writes one answer's header; its rows, if any, are in the buffer behind it. */
static void write_answer(struct afd_ffn_node *node, struct ffn_source *source, uint32_t slot, uint32_t shard,
                         uint32_t rows, const struct ffn_run *run, afd_ns arrived)
{
    const struct afd_a2f_header *asked = &source->places[slot].header;
    struct afd_f2a_header h = {
        .magic = AFD_F2A_MAGIC,
        .version = AFD_PROTOCOL_VERSION,
        .step = asked->step,
        .rows = rows,
        .layer = asked->layer,
        .slot = asked->slot,
        .shard = (uint16_t)shard,
        .sequence = asked->sequence,
    };
    if (run) {
        h.queue_ns = run->formed > arrived ? run->formed - arrived : 0;
        h.group_ns = run->group_ns;
        h.compute_ns = run->compute_ns;
    }
    memcpy(ffn_f2a_header(node, source->rank, slot, node->held_at[shard]), &h, sizeof h);
}

/* The time since the last change of stage was this micro-batch's. */
static void account_at(struct afd_ffn_node *node, uint32_t slot, uint32_t layer, afd_ns now)
{
    afd_stages_at(&node->stages, slot, layer);
    afd_stages_enter(&node->stages, node->stages.now, now);
}

/* A batch of several micro-batches counts for that of its first message. */
static void at_batch(struct afd_ffn_node *node, const struct afd_ffn_batch *b)
{
    afd_stages_at(&node->stages, b->parts[0].message.slot, b->layer);
}

void ffn_on_message(struct afd_ffn_node *node, struct ffn_source *source,
                    const struct afd_transport_event *event, afd_ns now)
{
    struct afd_a2f_header h;
    struct ffn_place *place = &source->places[event->region];
    if (event->region >= node->slots || event->bytes < sizeof h) {
        ffn_poison(node, source, "a message without a header");
        return;
    }
    memcpy(&h, ffn_a2f_region(node, source->rank, event->region).base, sizeof h);
    const char *fault = find_fault(node, place, &h, event);
    if (fault) {
        ffn_poison(node, source, fault);
        return;
    }
    struct afd_gather_message m = {.shards = h.shards,
                                   .rows = h.rows,
                                   .source = (uint16_t)source->rank,
                                   .slot = h.slot,
                                   .layer = h.layer,
                                   .flags = h.flags,
                                   .sequence = h.sequence};
    if (afd_ffn_group_arrive(node->core, &m, now)) {
        ffn_poison(node, source, "a message that cannot be taken now");
        return;
    }
    if (node->stages.now == AFD_STAGE_WAIT) { /* until now the device waited for this one */
        source->waited_ns += now > node->stages.since ? now - node->stages.since : 0;
        account_at(node, h.slot, h.layer, now);
    }
    place->header = h;
    place->arrived = now;
    place->last_step = h.step;
    place->is_busy = 1;
    if (h.rows) return;
    for (uint64_t left = h.shards; left; left &= left - 1)
        write_answer(node, source, h.slot, (uint32_t)__builtin_ctzll(left), 0, NULL, now);
    place->unsent = h.shards;
    put_in_outbox(node, source, h.slot);
}

/* ---- answers out */

void ffn_forget_answers(struct afd_ffn_node *node, struct ffn_source *source)
{
    for (uint32_t slot = 0; slot < node->slots; slot++) {
        uint8_t in_outbox = source->places[slot].in_outbox; /* the ring still names it */
        source->places[slot] = (struct ffn_place){.in_outbox = in_outbox};
    }
}

/* AFD_AGAIN: some answers wait for the transport. */
static enum afd_status send_answers(struct afd_ffn_node *node, struct ffn_source *source, uint32_t slot)
{
    struct ffn_place *place = &source->places[slot];
    afd_ns began = afd_now(), here = began - place->arrived;
    while (place->unsent) {
        uint32_t shard = (uint32_t)__builtin_ctzll(place->unsent);
        uint32_t held_at = node->held_at[shard];
        unsigned char *from = ffn_f2a_header(node, source->rank, slot, held_at);
        struct afd_f2a_header h;
        memcpy(&h, from, sizeof h);
        if (h.compute_ns) {
            uint64_t told = h.queue_ns + h.group_ns + h.compute_ns;
            h.host_ns = here > told ? here - told : 0;
            memcpy(from, &h, sizeof h);
        }
        uint32_t rows_bytes = h.rows * node->wire.f2a_stride;
        uint16_t region = (uint16_t)(slot * node->topology->ffn.ep + shard);
        enum afd_status status = node->is_split
                                     ? afd_pair_put_split(source->pair, region, from, sizeof h,
                                                          ffn_f2a_rows(node, source->rank, slot, held_at),
                                                          rows_bytes, place->header.sequence)
                                     : afd_pair_put(source->pair, region, from,
                                                    (uint32_t)sizeof h + rows_bytes, place->header.sequence);
        if (status == AFD_AGAIN) return AFD_AGAIN;
        if (status == AFD_ERR_PEER) { /* its LOST event is on its way */
            place->unsent = 0;
            return AFD_OK;
        }
        if (status) {
            ffn_poison(node, source, "its regions do not take an answer");
            return AFD_OK;
        }
        place->unsent &= place->unsent - 1;
    }
    place->is_busy = 0;
    if (afd_trace_is_on(node->trace)) ffn_spans_answered(node, source, slot, began);
    return AFD_OK;
}

static uint32_t flush_answers(struct afd_ffn_node *node, afd_ns now)
{
    uint32_t count = node->outbox_count, sent = 0;
    if (!count) return 0;
    node->is_sending = 1;
    ffn_account(node, now);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = node->outbox[node->outbox_first], slot = at % node->slots;
        struct ffn_source *source = &node->sources[at / node->slots];
        node->outbox_first = (node->outbox_first + 1) % node->outbox_capacity;
        node->outbox_count--;
        source->places[slot].in_outbox = 0;
        if (!source->pair || !source->places[slot].unsent) continue; /* lost meanwhile */
        uint32_t layer = source->places[slot].header.layer;
        if (send_answers(node, source, slot) == AFD_AGAIN)
            put_in_outbox(node, source, slot);
        else
            sent++;
        if (node->stages.now == AFD_STAGE_SEND) account_at(node, slot, layer, afd_stages_clock(0));
    }
    node->is_sending = 0;
    ffn_account(node, afd_stages_clock(0));
    return sent;
}

/* ---- a batch */

/* The run of the batch before this one, if it is still in flight. */
static const struct ffn_run *run_before(const struct afd_ffn_node *node, const struct ffn_run *run)
{
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++)
        if (node->runs[i].step != RUN_IDLE && node->runs[i].batch->number < run->batch->number)
            return &node->runs[i];
    return NULL;
}

static int is_own_part(const struct afd_ffn_node *node, const struct ffn_run *run, uint32_t part)
{
    return run->batch->parts[part].member == node->self;
}

/* Our rows, from where the attention ranks wrote them. AFD_AGAIN: later. */
static enum afd_status start_gather(struct afd_ffn_node *node, struct ffn_run *run)
{
    const struct afd_ffn_batch *b = run->batch;
    uint32_t count = 0;
    for (uint32_t i = 0; i < b->part_count; i++) {
        const struct afd_gather_message *m = &b->parts[i].message;
        if (!is_own_part(node, run, i) || !m->rows) continue;
        run->pieces[count++] = (struct afd_group_piece){ffn_records(node, m->source, m->slot),
                                                        (uint64_t)m->rows * node->wire.a2f_stride};
    }
    return afd_group_allgather_pieces(node->group, b->number, b->member_rows, run->pieces, count);
}

/* The parts as the device takes them, without the bad ones. */
static void collect_parts(struct afd_ffn_node *node, struct ffn_run *run)
{
    const struct afd_ffn_batch *b = run->batch;
    const unsigned char *gathered = node->tp > 1 ? afd_group_gathered(node->group, b->number) : NULL;
    run->part_count = 0;
    for (uint32_t i = 0; i < b->part_count; i++) {
        const struct afd_gather_message *m = &b->parts[i].message;
        struct afd_ffn_part *part = &run->parts[run->part_count];
        const unsigned char *records = gathered;
        if (gathered)
            gathered += (uint64_t)m->rows * node->wire.a2f_stride;
        else
            records = ffn_records(node, m->source, m->slot);
        if (run->is_bad[i]) continue;
        part->records = records;
        part->active_out = run->active + (size_t)i * node->topology->ffn.ep;
        part->is_counted_elsewhere = !is_own_part(node, run, i); /* each row is counted by one member */
        part->rows = m->rows;
        part->shards = m->shards;
        for (uint64_t left = node->tp > 1 ? 0 : m->shards; left; left &= left - 1) {
            uint32_t shard = (uint32_t)__builtin_ctzll(left);
            part->out[shard] = ffn_f2a_rows(node, m->source, m->slot, node->held_at[shard]);
        }
        run->part_of[run->part_count++] = i;
    }
}

/* Rows active in each asked shard, and of each expert, as the device counted them. */
static void add_counts(struct afd_ffn_node *node, const struct ffn_run *run)
{
    uint32_t layer = run->batch->layer, ep = node->topology->ffn.ep;
    for (uint32_t k = 0; k < run->part_count; k++)
        for (uint32_t s = 0; s < ep; s++) node->work_rows += run->parts[k].active_out[s];
    if (!node->expert_rows[layer]) return;
    for (uint32_t e = 0; e < node->model->layers[layer].ffn.experts; e++)
        node->expert_rows[layer][e] += run->expert_rows[e];
}

static enum afd_status start_compute(struct afd_ffn_node *node, struct ffn_run *run)
{
    collect_parts(node, run);
    if (!run->part_count) { /* all were bad: nobody is answered; a group still ends every batch alike */
        run->step = node->tp > 1 ? RUN_REDUCE : RUN_FINISH;
        return AFD_OK;
    }
    struct afd_op op = {.kind = AFD_OP_FFN, .layer = run->batch->layer};
    op.ffn.parts = run->parts;
    op.ffn.part_count = run->part_count;
    op.ffn.bad_part_out = &run->bad_part;
    op.ffn.expert_rows_out = run->expert_rows;
    if (node->tp > 1) op.ffn.partials = afd_group_partials(node->group, run->batch->number);
    enum afd_status status = afd_device_submit(node->device, &op, &run->ticket);
    if (status) {
        run->part_count = 0;
        return status;
    }
    node->device_ops++;
    return AFD_OK;
}

static enum afd_status start_reduce(struct afd_ffn_node *node, struct ffn_run *run)
{
    uint32_t rows[AFD_MAX_TP] = {0};
    for (uint32_t k = 0; k < run->part_count; k++)
        for (uint32_t s = 0; s < node->topology->ffn.ep; s++)
            rows[run->batch->parts[run->part_of[k]].member] += run->parts[k].active_out[s];
    return afd_group_reduce_scatter(node->group, run->batch->number, rows,
                                    afd_group_partials(node->group, run->batch->number));
}

static uint32_t rows_to_pack(const struct afd_ffn_node *node, const struct ffn_run *run, uint32_t part,
                             uint32_t shard)
{
    if (run->is_bad[part] || !is_own_part(node, run, part)) return 0;
    if (!(run->batch->parts[part].message.shards >> shard & 1)) return 0;
    return run->active[part * node->topology->ffn.ep + shard];
}

static void begin_packs(struct afd_ffn_node *node, struct ffn_run *run)
{
    run->pack_part = run->pack_shard = 0;
    run->first_pack = 0;
    run->pack_row = run->packs_left = 0;
    for (uint32_t i = 0; i < run->batch->part_count; i++)
        for (uint32_t s = 0; s < node->topology->ffn.ep; s++)
            run->packs_left += rows_to_pack(node, run, i, s) > 0;
    run->step = run->packs_left ? RUN_PACK : RUN_FINISH;
}

/* One op for each (part, shard) with rows; shards ascending, as the device summed them. */
static enum afd_status start_packs(struct afd_ffn_node *node, struct ffn_run *run)
{
    const float *reduced = afd_group_reduced(node->group, run->batch->number);
    for (; run->packs_left; run->pack_shard++) {
        if (run->pack_shard == node->topology->ffn.ep) {
            run->pack_shard = 0;
            run->pack_part++;
        }
        uint32_t rows = rows_to_pack(node, run, run->pack_part, run->pack_shard);
        if (!rows) continue;
        const struct afd_gather_message *m = &run->batch->parts[run->pack_part].message;
        struct afd_op op = {.kind = AFD_OP_PACK};
        op.pack.from = reduced + run->pack_row * node->wire.shape.hidden;
        op.pack.to = ffn_f2a_rows(node, m->source, m->slot, node->held_at[run->pack_shard]);
        op.pack.rows = rows;
        enum afd_status status = afd_device_submit(node->device, &op, &run->ticket);
        if (status) return status;
        node->device_ops++;
        if (!run->first_pack) run->first_pack = run->ticket;
        run->pack_row += rows;
        run->packs_left--;
    }
    return AFD_OK;
}

static void finish_run(struct afd_ffn_node *node, struct ffn_run *run, afd_ns now)
{
    const struct afd_ffn_batch *b = run->batch;
    for (uint32_t i = 0; i < b->part_count; i++) {
        if (!is_own_part(node, run, i) || run->is_bad[i]) continue;
        const struct afd_gather_message *m = &b->parts[i].message;
        struct ffn_source *source = ffn_own_source(node, m->source);
        struct ffn_place *place = &source->places[m->slot];
        if (!source->pair || !place->is_busy)
            continue; /* its pair was lost: it sends again, here or elsewhere */
        for (uint64_t left = m->shards; left; left &= left - 1) {
            uint32_t shard = (uint32_t)__builtin_ctzll(left);
            write_answer(node, source, m->slot, shard, run->active[i * node->topology->ffn.ep + shard], run,
                         b->parts[i].arrived);
        }
        place->unsent = m->shards;
        put_in_outbox(node, source, m->slot);
        if (afd_trace_is_on(node->trace)) ffn_spans_part(node, run, source, m->slot, b->parts[i].arrived);
    }
    afd_members_worked(&node->members);
    node->batches_done++;
    node->rows_done += b->member_rows[node->self];
    run->step = RUN_IDLE;
    afd_ffn_group_done(node->core, b->number, run->compute_ns, now);
}

/* Takes one step of a run, if it can: 1, else 0. */
static int advance(struct afd_ffn_node *node, struct ffn_run *run, afd_ns now)
{
    enum ffn_run_step step = run->step;
    enum afd_status status = AFD_OK;
    if (step == RUN_IDLE) return 0;
    const struct ffn_run *before = run_before(node, run);
    if (before && before->step <= step) return 0;
    switch (step) {
    case RUN_GATHER:
        status = start_gather(node, run);
        break;
    case RUN_COMPUTE:
        status = start_compute(node, run);
        break;
    case RUN_REDUCE:
        status = start_reduce(node, run);
        break;
    case RUN_PACK:
        status = start_packs(node, run);
        break;
    case RUN_FINISH:
        if (!before) finish_run(node, run, now);
        return !before;
    default:
        return 0;
    }
    if (status == AFD_AGAIN || status == AFD_ERR_PEER)
        return 0; /* a lost member: FAILED comes from the group */
    if (status) {
        afd_log_error("batch %llu of layer %u: %s", (unsigned long long)run->batch->number, run->batch->layer,
                      afd_status_name(status));
        ffn_exit(node, 1);
        return 0;
    }
    run->step_began = now;
    if (run->step == step) run->step++; /* now under way */
    return 1;
}

static void start_batches(struct afd_ffn_node *node, afd_ns now)
{
    const struct afd_ffn_batch *b;
    while ((b = afd_ffn_group_next(node->core, now))) {
        struct ffn_run *run = &node->runs[b->number % AFD_FFN_DEPTH];
        assert(run->step == RUN_IDLE);
        if (node->stages.now == AFD_STAGE_BUBBLE) at_batch(node, b);
        run->batch = b;
        run->step = node->tp > 1 ? RUN_GATHER : RUN_COMPUTE;
        run->formed = now;
        run->part_count = 0;
        run->group_ns = run->compute_ns = 0;
        run->traced_begin = run->traced_end = 0;
        memset(run->is_bad, 0, b->part_count);
    }
}

/* ---- what the device and the group report */

static void drop_bad_part(struct afd_ffn_node *node, struct ffn_run *run)
{
    assert(run->bad_part < run->part_count);
    uint32_t i = run->part_of[run->bad_part];
    const struct afd_gather_message *m = &run->batch->parts[i].message;
    run->is_bad[i] = 1;
    run->step = RUN_COMPUTE;                /* again, without it */
    if (!is_own_part(node, run, i)) return; /* its own rank closes the pair */
    struct ffn_source *source = ffn_own_source(node, m->source);
    if (source->pair && source->places[m->slot].is_busy)
        ffn_poison(node, source, "a record with a turn or experts out of range");
}

static struct ffn_run *run_of_ticket(struct afd_ffn_node *node, uint64_t ticket)
{
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++) {
        struct ffn_run *run = &node->runs[i];
        if (run->step == RUN_COMPUTING && run->ticket == ticket) return run;
        if (run->step != RUN_PACK && run->step != RUN_PACKING) continue;
        if (run->first_pack && run->first_pack <= ticket && ticket <= run->ticket) return run;
    }
    return NULL; /* of a batch that was abandoned */
}

/* `event`: the first of those that came together. */
static void on_device_event(struct afd_ffn_node *node, const struct afd_device_event *event, uint32_t count,
                            afd_ns now)
{
    struct ffn_run *run = run_of_ticket(node, event->ticket);
    if (run && afd_trace_is_on(node->trace)) ffn_spans_computed(node, run, event, count);
    assert(node->device_ops);
    if (node->stages.now == AFD_STAGE_COMPUTE) {
        if (run) at_batch(node, run->batch);
        afd_stages_computed(&node->stages, event->busy_ns, now);
    }
    node->device_ops--;
    if (run) run->compute_ns += event->busy_ns;
    if (run && run->step == RUN_COMPUTING && event->status == AFD_ERR_PROTOCOL) {
        drop_bad_part(node, run);
    } else if (event->status != AFD_OK && (run || event->status == AFD_ERR_DEVICE)) {
        afd_log_error("the device failed: %s", afd_status_name(event->status));
        ffn_exit(node, 1);
    } else if (run && run->step == RUN_COMPUTING) {
        add_counts(node, run);
        run->step = node->tp > 1 ? RUN_REDUCE : RUN_FINISH;
    } else if (run && run->step == RUN_PACKING && run->ticket == event->ticket) {
        run->step = RUN_FINISH; /* the last of its packs */
    }
}

void ffn_on_group_event(struct afd_ffn_node *node, const struct afd_group_event *event, afd_ns now)
{
    struct ffn_run *run = &node->runs[event->batch % AFD_FFN_DEPTH];
    enum ffn_run_step expected = event->kind == AFD_GROUP_GATHERED ? RUN_GATHERING : RUN_REDUCING;
    assert(run->step == expected && run->batch->number == event->batch);
    if (node->stages.now == AFD_STAGE_GROUP) at_batch(node, run->batch);
    run->group_ns += now - run->step_began;
    if (event->kind == AFD_GROUP_GATHERED)
        run->step = RUN_COMPUTE;
    else
        begin_packs(node, run);
}

void ffn_abandon_runs(struct afd_ffn_node *node)
{
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++) node->runs[i].step = RUN_IDLE;
}

/* The oldest first, as RUN_FINISH waits for those before it. */
static uint32_t finish_runs(struct afd_ffn_node *node, afd_ns now)
{
    uint32_t done = 0;
    for (uint32_t moved = 1; moved; done += moved) {
        moved = 0;
        for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++)
            if (node->runs[i].step == RUN_FINISH) moved += (uint32_t)advance(node, &node->runs[i], now);
    }
    return done;
}

uint32_t ffn_serve(struct afd_ffn_node *node, afd_ns now)
{
    struct afd_device_event events[16];
    uint32_t count = afd_device_poll(node->device, events, 16), done = count;
    for (uint32_t i = 0; i < count; i++) on_device_event(node, &events[i], count - i, now);
    ffn_account(node, now); /* what came is ready from here on */
    if (node->group_state == FFN_GROUP_UP) {
        /* A device that has its next batch does not wait for us: the attention ranks do. */
        if (node->device_ops && finish_runs(node, now)) done += 1 + flush_answers(node, now);
        for (uint32_t moved = 1; moved && !node->is_exiting; done += moved) {
            moved = 0;
            start_batches(node, now);
            for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++)
                moved += (uint32_t)advance(node, &node->runs[i], now);
        }
    }
    ffn_account(node, now);
    return done + flush_answers(node, now); /* at the latest: the device has its next batch now */
}

/* ---- the device's time line */

static enum afd_stage stage_now(const struct afd_ffn_node *node)
{
    if (node->device_ops) return AFD_STAGE_COMPUTE;
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++)
        if (node->runs[i].step == RUN_GATHERING || node->runs[i].step == RUN_REDUCING) return AFD_STAGE_GROUP;
    if (node->is_sending) return AFD_STAGE_SEND;
    if (!node->core) return AFD_STAGE_IDLE;
    if (afd_ffn_group_queued(node->core)) return AFD_STAGE_BUBBLE;
    return afd_ffn_group_expected(node->core) ? AFD_STAGE_WAIT : AFD_STAGE_IDLE;
}

void ffn_account(struct afd_ffn_node *node, afd_ns now)
{
    enum afd_stage stage = stage_now(node), before = node->stages.now;
    if (stage == before) return;
    /* What this thread does itself takes its time: what comes before a submit, and puts. */
    if (before == AFD_STAGE_BUBBLE || before == AFD_STAGE_SEND) now = afd_stages_clock(now);
    if (afd_trace_is_on(node->trace)) ffn_spans_stage(node, before, now);
    node->stage_began = now;
    afd_stages_enter(&node->stages, stage, now);
}
