#include "plan/forecast.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "ffn_node/gather.h"

#define MIN_FACTOR 0.5 /* of an op's usual time, however far its size's times lie apart */

/* How far a thread that computes gets ahead of one that waits for the same core: a slice of Linux' scheduler
 * (EEVDF), 0.7 ms x (1 + log2 of the cores), on two of them. */
#define SLICE_S 1.4e-3

/* At a tick, 250 a second, a core that is free takes over one that waits for another core. */
#define TICK_S 4e-3

/* While it warms up, the gather core learns what a batch costs and when a slot comes back. */
enum { WARM_STEPS = 16, STEPS = 48, SLOTS = AFD_FORECAST_RANKS * AFD_MAX_SLOTS };

enum stage { ATTN, FFN, HEAD };

static const double *times_of(const struct afd_stage_sample *s, enum stage stage)
{
    return stage == ATTN ? s->attn : stage == FFN ? s->ffn : s->head;
}

/* The rows of a sample that a stage's time is a function of. */
static double rows_of(const struct afd_stage_sample *s, enum stage stage)
{
    return stage == FFN ? s->ffn_rows : s->rows;
}

/* On the line between the two sizes around it, or of the last two beyond them; returns the nearer one. */
static const struct afd_stage_sample *look_up(const struct afd_stage_table *t, enum stage stage, double rows,
                                              double out[2])
{
    uint32_t i = 1;
    while (i + 1 < t->count && rows_of(&t->samples[i], stage) < rows) i++;
    const struct afd_stage_sample *high = &t->samples[t->count > 1 ? i : 0],
                                  *low = &t->samples[t->count > 1 ? i - 1 : 0];
    double width = rows_of(high, stage) - rows_of(low, stage);
    double share = width > 0 ? (rows - rows_of(low, stage)) / width : 0;
    for (int k = 0; k < 2; k++) {
        double a = times_of(low, stage)[k], b = times_of(high, stage)[k];
        out[k] = fmax(a + (b - a) * share, 0.25 * a);
    }
    return share < 0.5 ? low : high;
}

/* ---- the pipeline in virtual time */

struct slot {
    uint32_t rank, rows, layer, steps;
    uint32_t answers; /* still to come */
    int is_queued;    /* at its attention device */
    double ready_s;
    /* Rows by FFN instance: of this step those whose turn is there, of this layer those that concern it. */
    uint32_t home[AFD_FORECAST_RANKS], active[AFD_FORECAST_RANKS];
};

struct message {
    uint32_t slot;
    double at_s; /* when it is there */
};

/* A batch that the gather core formed. */
struct run {
    uint64_t number;
    uint32_t active, count, slots[SLOTS];
};

struct device {
    int is_busy, is_on;   /* on: its thread has a core */
    int has_begun;        /* it had one since it is busy */
    uint32_t core;        /* that its thread runs on, waits for, or ran on last */
    double ran_s;         /* its virtual time beside the others of its core: who ran least goes first */
    double lag_s;         /* when it went to sleep: how much less than its part it had; below 0: more */
    double left, done_to; /* seconds alone; the share that another busy core leaves */
    double crowded;       /* as in the table */
    double busy_s, began_s;
    uint32_t slot; /* attention: of the op */
    /* FFN */
    struct afd_gather *gather;
    uint32_t under_way, runs; /* messages; batches, of which the first is computed */
    struct message inbox[SLOTS];
    struct run run[AFD_FFN_DEPTH];
};

struct model {
    const struct afd_forecast_input *in;
    struct afd_arena *arena; /* the gather cores' */
    uint32_t slots;
    double now, tick_s; /* tick: the next one */
    double chores;      /* CPU seconds of event loops and scheduler that are yet to be spent */
    struct slot slot[SLOTS];
    struct device device[2 * AFD_FORECAST_RANKS]; /* attention's first */
    struct afd_gather_part parts[SLOTS];
    uint64_t ops, draws, queued, batches, batch_rows;
};

static afd_ns ns_of(double s)
{
    return (afd_ns)llround(s * 1e9);
}

static int is_ffn(const struct model *m, const struct device *d)
{
    return d >= m->device + m->in->a;
}

/* 1 with this probability. */
static int draw(struct model *m, double probability)
{
    return (double)(afd_random(1, m->draws++, 0) >> 11) * 0x1p-53 < probability;
}

/* The device that has the core. */
static struct device *on_core(struct model *m, uint32_t core)
{
    for (uint32_t i = 0; i < m->in->a + m->in->f; i++)
        if (m->device[i].is_on && m->device[i].core == core) return &m->device[i];
    return NULL;
}

/* Who waits for the core and ran least. */
static struct device *next_of(const struct model *m, uint32_t core)
{
    const struct device *least = NULL;
    for (uint32_t i = 0; i < m->in->a + m->in->f; i++) {
        const struct device *d = &m->device[i];
        if (d->is_busy && !d->is_on && d->core == core && (!least || d->ran_s < least->ran_s)) least = d;
    }
    return (struct device *)least;
}

/* What the threads that run on a core or wait for it ran, on average; 0: there is none. */
static int average_of(const struct model *m, uint32_t core, const struct device *but, double *ran_out)
{
    uint32_t count = 0;
    *ran_out = 0;
    for (uint32_t i = 0; i < m->in->a + m->in->f; i++) {
        const struct device *d = &m->device[i];
        if (d == but || !d->is_busy || d->core != core) continue;
        *ran_out += d->ran_s;
        count++;
    }
    if (count) *ran_out /= count;
    return count > 0;
}

static void give(struct model *m, struct device *d)
{
    d->is_on = 1;
    if (!d->has_begun) d->began_s = m->now;
    d->has_begun = 1;
}

/* One that slept after more than its part of the core waits there until the others have caught up, though
 * another core be free: the kernel has not let it go yet (delayed dequeue). All others go to a free core if
 * there is one, keep what they were owed, and go before who ran more. */
static void wake(struct model *m, struct device *d)
{
    double average;
    int is_alone = !average_of(m, d->core, d, &average);
    if (!is_alone && d->lag_s < 0 && average < d->ran_s) return;
    for (uint32_t c = 0; !is_alone && c < m->in->cores; c++)
        if (!average_of(m, c, d, &average)) d->core = c, is_alone = 1;
    if (!is_alone && average_of(m, d->core, d, &average)) d->ran_s = average - fmax(d->lag_s, 0);
    struct device *there = on_core(m, d->core);
    if (there && there->ran_s <= d->ran_s) return;
    if (there) there->is_on = 0;
    give(m, d);
}

static void fall_asleep(const struct model *m, struct device *d)
{
    double average;
    d->is_on = 0;
    d->lag_s = average_of(m, d->core, d, &average) ? (average - d->ran_s) / 2 : 0;
    d->lag_s = fmin(d->lag_s, SLICE_S);
}

static void start(struct model *m, struct device *d, enum stage stage, double rows)
{
    double times[2];
    const struct afd_stage_sample *near = look_up(m->in->table, stage, rows, times);
    /* No two ops take the same time: without that, ranks would keep in step for ever, and their messages meet
     * in one batch. Even between the bounds that give it the spread. */
    double unit = (double)(afd_random(0, m->ops++, 0) >> 11) * 0x1p-53 - 0.5;
    double factor = fmax(1 + unit * sqrt(12) * near->spread, MIN_FACTOR);
    d->crowded = near->crowded;
    d->is_busy = 1;
    d->has_begun = d->is_on;
    d->began_s = m->now;
    d->left = times[0] * factor;
    d->done_to = fmin(times[0] / times[1], 1);
    if (!d->is_on) wake(m, d);
}

/* An attention device takes the slot that was ready first. */
static void start_attn(struct model *m, struct device *d, uint32_t rank)
{
    struct slot *first = NULL;
    for (uint32_t i = 0; i < m->slots; i++) {
        struct slot *s = &m->slot[i];
        if (s->rank == rank && s->is_queued && s->ready_s <= m->now &&
            (!first || s->ready_s < first->ready_s))
            first = s;
    }
    if (!first) return;
    first->is_queued = 0;
    d->slot = (uint32_t)(first - m->slot);
    start(m, d, first->layer < m->in->table->layers ? ATTN : HEAD, first->rows);
}

/* A slot's number within its rank, as the gather core knows it. */
static uint16_t place_of(const struct model *m, const struct slot *slot)
{
    uint16_t place = 0;
    for (const struct slot *s = m->slot; s < slot; s++) place = (uint16_t)(place + (s->rank == slot->rank));
    return place;
}

/* The messages that are there by now go to the gather core. */
static void take_messages(struct model *m, struct device *d)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < d->under_way; i++) {
        const struct slot *s = &m->slot[d->inbox[i].slot];
        if (d->inbox[i].at_s > m->now) {
            d->inbox[kept++] = d->inbox[i];
            continue;
        }
        uint32_t here = s->active[d - m->device - m->in->a];
        struct afd_gather_message message = {.shards = 1,
                                             .rows = here && !m->in->is_routed ? s->rows : here,
                                             .source = (uint16_t)s->rank,
                                             .slot = place_of(m, s),
                                             .layer = (uint16_t)s->layer,
                                             .sequence = (uint16_t)d->inbox[i].slot};
        enum afd_status status = afd_gather_arrive(d->gather, &message, ns_of(m->now));
        assert(!status);
        (void)status;
    }
    d->under_way = kept;
}

/* An FFN device computes the first batch; a second one is formed meanwhile, as the daemon does. */
static void start_ffn(struct model *m, struct device *d)
{
    struct afd_gather_batch batch = {.parts = m->parts};
    take_messages(m, d);
    while (afd_gather_next(d->gather, ns_of(m->now), &batch)) {
        struct run *r = &d->run[d->runs++];
        m->batches++;
        m->batch_rows += batch.rows;
        *r = (struct run){.number = batch.number, .count = batch.part_count};
        for (uint32_t i = 0; i < batch.part_count; i++) {
            r->slots[i] = m->parts[i].message.sequence;
            r->active += m->slot[r->slots[i]].active[d - m->device - m->in->a];
        }
    }
    if (d->runs && !d->is_busy) start(m, d, FFN, d->run[0].active);
}

/* Which FFN instances the rows of a layer concern. A row has its turn at one, the same in all layers of a
 * step; where more of them are at work for each row than one of all, the others are drawn by layer, as
 * experts are. */
static void draw_active(struct model *m, struct slot *s)
{
    uint32_t f = m->in->f;
    if (!s->layer) memset(s->home, 0, sizeof s->home);
    for (uint32_t r = 0; !s->layer && r < s->rows; r++) s->home[afd_random(2, m->draws++, 0) % f]++;
    double besides = f > 1 ? (m->in->table->ffn_share - 1.0 / f) / (1 - 1.0 / f) : 0;
    for (uint32_t i = 0; i < f; i++) {
        s->active[i] = s->home[i];
        for (uint32_t r = s->home[i]; r < s->rows; r++) s->active[i] += (uint32_t)draw(m, besides);
    }
}

/* A message to each FFN instance; where no row concerns it, it is a notice that nobody waits for. */
static void finish_attn(struct model *m, struct device *d)
{
    struct slot *s = &m->slot[d->slot];
    if (s->layer == m->in->table->layers) {
        s->layer = 0;
        s->steps++;
        s->is_queued = 1;
        s->ready_s = m->now;
        m->chores += m->in->step_s + s->rows * m->in->token_s;
        return;
    }
    draw_active(m, s);
    s->answers = 0;
    for (uint32_t i = 0; i < m->in->f; i++) {
        struct device *ffn = &m->device[m->in->a + i];
        ffn->inbox[ffn->under_way++] = (struct message){d->slot, m->now + m->in->hop_s / 2};
        m->chores += s->active[i] ? m->in->turn_s / 2 : m->in->turn_s;
        s->answers += s->active[i] > 0;
    }
}

static void finish_ffn(struct model *m, struct device *d)
{
    const struct run *r = &d->run[0];
    for (uint32_t i = 0; i < r->count; i++) {
        struct slot *s = &m->slot[r->slots[i]];
        m->chores += m->in->turn_s / 2;
        if (--s->answers) continue;
        s->layer++;
        s->is_queued = 1;
        s->ready_s = m->now + m->in->hop_s / 2;
    }
    afd_gather_done(d->gather, r->number, ns_of(m->now - d->began_s), ns_of(m->now));
    memmove(d->run, d->run + 1, --d->runs * sizeof *d->run);
}

static void give_cores(struct model *m)
{
    for (uint32_t i = 0; i < m->in->a + m->in->f; i++)
        if (m->device[i].is_on && !m->device[i].is_busy) fall_asleep(m, &m->device[i]);
    for (uint32_t c = 0; c < m->in->cores; c++) {
        struct device *next = next_of(m, c);
        for (uint32_t i = 0; !next && !on_core(m, c) && i < m->in->a + m->in->f; i++) {
            struct device *d = &m->device[i];
            if (!d->is_busy || d->is_on || m->tick_s > m->now) continue;
            next = d;
            d->core = c;
        }
        if (next && !on_core(m, c)) give(m, next);
    }
    while (m->tick_s <= m->now) m->tick_s += TICK_S;
}

/* Of the devices that are busy. */
struct load {
    uint32_t on, waiting;
};

static struct load load_of(const struct model *m)
{
    struct load load = {0};
    for (uint32_t i = 0; i < m->in->a + m->in->f; i++) {
        load.on += (uint32_t)m->device[i].is_on;
        load.waiting += (uint32_t)(m->device[i].is_busy && !m->device[i].is_on);
    }
    return load;
}

/* How fast a device that has a core works: 1 is as when it was measured alone. */
static double rate_of(const struct model *m, const struct device *d, struct load load)
{
    double all = m->in->cores, cores = all - (m->chores > 0);
    if (load.waiting && load.on == m->in->cores) return cores / all * (all + 1) / all / d->crowded;
    double share = load.on > cores ? cores / load.on : 1;
    return share * (load.on > 1 && all > 1 ? d->done_to : 1);
}

/* Seconds until something ends, arrives, or is held back no longer. */
static double time_to_next(const struct model *m, struct load load)
{
    double next = m->chores > 0 ? m->chores : INFINITY;
    for (uint32_t i = 0; i < m->in->a + m->in->f; i++) {
        const struct device *d = &m->device[i];
        double rate = rate_of(m, d, load);
        if (d->is_on && rate > 0) next = fmin(next, d->left / rate);
        const struct device *waits = d->is_on ? next_of(m, d->core) : NULL;
        if (waits) next = fmin(next, fmax(waits->ran_s + SLICE_S - d->ran_s, 0));
        if (d->is_busy && !d->is_on && load.on < m->in->cores) next = fmin(next, m->tick_s - m->now);
        if (!is_ffn(m, d)) continue;
        for (uint32_t q = 0; q < d->under_way; q++) next = fmin(next, d->inbox[q].at_s - m->now);
        afd_ns deadline = afd_gather_deadline(d->gather);
        if (deadline != AFD_NEVER) next = fmin(next, (double)deadline * 1e-9 - m->now);
    }
    for (uint32_t i = 0; i < m->slots; i++)
        if (m->slot[i].is_queued && m->slot[i].ready_s > m->now)
            next = fmin(next, m->slot[i].ready_s - m->now);
    return fmax(next, 1e-9); /* the gather core's clock */
}

/* To the next moment at which something happens; devices that have a core make progress. */
static void advance(struct model *m)
{
    uint32_t devices = m->in->a + m->in->f;
    struct load load = load_of(m);
    double next = time_to_next(m, load);
    assert(isfinite(next));
    m->now += next;
    for (uint32_t i = 0; i < devices; i++) {
        struct device *d = &m->device[i];
        if (!d->is_busy) continue;
        d->busy_s += next;
        if (!d->is_on) continue;
        d->left -= next * rate_of(m, d, load);
        d->ran_s += next;
    }
    m->chores = fmax(m->chores - next, 0);
    for (uint32_t i = 0; i < devices; i++) {
        struct device *d = &m->device[i];
        const struct device *waits = d->is_on ? next_of(m, d->core) : NULL;
        if (waits && d->ran_s >= waits->ran_s + SLICE_S) d->is_on = 0;
        if (!d->is_busy || d->left > 1e-12) continue;
        d->is_busy = 0;
        if (is_ffn(m, d))
            finish_ffn(m, d);
        else
            finish_attn(m, d);
    }
}

static void start_all(struct model *m)
{
    for (uint32_t i = 0; i < m->in->a + m->in->f; i++) {
        struct device *d = &m->device[i];
        if (is_ffn(m, d))
            start_ffn(m, d);
        else if (!d->is_busy)
            start_attn(m, d, i);
    }
    give_cores(m);
}

/* Sequences are spread over the ranks, and a rank's over its slots. */
static void fill(struct model *m, struct afd_forecast *out)
{
    const struct afd_forecast_input *in = m->in;
    for (uint32_t r = 0; r < in->a; r++) {
        uint32_t of_rank = in->batch / in->a + (r < in->batch % in->a);
        uint32_t slots = of_rank < in->slots ? of_rank : in->slots;
        for (uint32_t s = 0; s < slots; s++) {
            uint32_t rows = of_rank / slots + (s < of_rank % slots);
            m->slot[m->slots++] = (struct slot){.rank = r, .rows = rows, .is_queued = 1};
            if (rows > out->rows) out->rows = rows;
        }
    }
}

static enum afd_status make_gathers(struct model *m, struct afd_error *error)
{
    const struct afd_gather_config config = {.sources = m->in->a,
                                             .slots = m->in->slots,
                                             .layers = m->in->table->layers,
                                             .max_rows = m->in->max_rows,
                                             .window_auto = m->in->gather_auto,
                                             .window = m->in->gather_window};
    m->arena = afd_arena_create(0);
    for (uint32_t i = 0; m->arena && i < m->in->f; i++) {
        struct device *d = &m->device[m->in->a + i];
        d->gather = afd_gather_create(&config, m->arena);
        if (!d->gather) return afd_fail(error, AFD_ERR_MEMORY, "no memory for a forecast");
    }
    return m->arena ? AFD_OK : afd_fail(error, AFD_ERR_MEMORY, "no memory for a forecast");
}

static uint64_t tokens_of(const struct model *m, uint32_t *least_steps)
{
    uint64_t tokens = 0;
    *least_steps = UINT32_MAX;
    for (uint32_t i = 0; i < m->slots; i++) {
        tokens += (uint64_t)m->slot[i].steps * m->slot[i].rows;
        if (m->slot[i].steps < *least_steps) *least_steps = m->slot[i].steps;
    }
    return tokens;
}

static double busy_of(const struct model *m, uint32_t first, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = first; i < first + count; i++) sum += m->device[i].busy_s;
    return sum / count / m->now;
}

static enum afd_status check_input(const struct afd_forecast_input *in, struct afd_error *error)
{
    if (!in->a || in->a > AFD_FORECAST_RANKS || !in->f || in->f > AFD_FORECAST_RANKS || !in->batch ||
        !in->cores || !in->slots || in->slots > AFD_MAX_SLOTS)
        return afd_fail(error, AFD_ERR_CONFIG, "a forecast is of 1 to %d ranks a pool, sequences and cores",
                        AFD_FORECAST_RANKS);
    if (in->batch > (uint64_t)in->a * in->slots * AFD_MAX_ROWS || !in->max_rows)
        return afd_fail(error, AFD_ERR_CONFIG, "%u sequences are more than %u micro-batches of %d rows",
                        in->batch, in->a * in->slots, AFD_MAX_ROWS);
    return AFD_OK;
}

static void run(struct model *m, struct afd_forecast *out)
{
    uint32_t steps = 0;
    uint64_t warm_tokens = 0, tokens = 0;
    double warm_s = 0;
    while (steps < WARM_STEPS + STEPS) {
        start_all(m);
        advance(m);
        tokens = tokens_of(m, &steps);
        if (steps >= WARM_STEPS && !(warm_s > 0)) warm_s = m->now, warm_tokens = tokens;
    }
    out->tokens_per_s = (double)(tokens - warm_tokens) / (m->now - warm_s);
    out->attn_busy = busy_of(m, 0, m->in->a);
    out->ffn_rows = (double)m->batch_rows / (double)m->batches;
    out->ffn_busy = busy_of(m, m->in->a, m->in->f);
}

enum afd_status afd_forecast_make(const struct afd_forecast_input *in, struct afd_forecast *out,
                                  struct afd_error *error)
{
    *out = (struct afd_forecast){0};
    enum afd_status status = check_input(in, error);
    if (status) return status;
    struct model *m = calloc(1, sizeof *m);
    if (!m) return afd_fail(error, AFD_ERR_MEMORY, "no memory for a forecast");
    m->in = in;
    fill(m, out);
    if (out->rows > in->max_rows)
        status = afd_fail(error, AFD_ERR_CONFIG, "%u rows of a micro-batch are more than an FFN batch's %u",
                          out->rows, in->max_rows);
    else
        status = make_gathers(m, error);
    if (!status) run(m, out);
    afd_arena_destroy(m->arena);
    free(m);
    return status;
}
