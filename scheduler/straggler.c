#include "scheduler/straggler.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/stages.h"

enum { LEAST_STEPS = 20, LEAST_MESSAGES = 20 /* in a window: fewer tell nothing */ };

/* By host: of what a stage costs too much, so much at least is explained by it. */
#define EXPLAINED 0.3
/* And from there on it is to blame although no stage shows it. */
#define STOOD_STILL 0.15

/* What a heartbeat counts since the start of the rank. */
struct counters {
    uint64_t wall, compute, steps, rows, late, delay; /* delay: in the run queue */
};

struct link {
    uint64_t timed, network, program;
};

struct rank {
    uint64_t incarnation;            /* 0: not there */
    int is_whole;                    /* `before` is of this incarnation */
    struct counters now, before, in; /* in: the window */
    uint32_t hits, misses;
    double ratio[AFD_STRAGGLER_STAGES], share[AFD_STRAGGLER_STAGES]; /* share: of its time that is too much */
    double not_run; /* share of the window, more than the others */
    struct afd_straggler_verdict verdict;
};

struct afd_straggler {
    uint32_t count[AFD_ROLE_COUNT], instances, tp;
    struct rank *ranks[AFD_ROLE_COUNT];
    struct link *now, *before, *in; /* [attention ranks][instances] */
    double *scratch, *values;       /* [the larger count], [more] */
    afd_ns window_end;
};

const char *afd_straggler_stage_name(enum afd_straggler_stage stage)
{
    static const char *const names[] = {"compute", "network", "program"};
    return stage < AFD_STRAGGLER_STAGES ? names[stage] : "unknown";
}

const char *afd_straggler_cause_name(enum afd_straggler_cause cause)
{
    static const char *const names[] = {"device", "network", "host"};
    return cause <= AFD_STRAGGLER_BY_HOST ? names[cause] : "unknown";
}

struct afd_straggler *afd_straggler_create(const struct afd_topology *topology, afd_ns now)
{
    struct afd_straggler *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->tp = topology->ffn.tp;
    s->instances = topology->ffn.max_instances;
    s->count[AFD_ROLE_ATTN] = afd_pool_max_ranks(&topology->attn);
    s->count[AFD_ROLE_FFN] = afd_pool_max_ranks(&topology->ffn);
    s->window_end = now + AFD_STRAGGLER_WINDOW;
    size_t links = (size_t)s->count[AFD_ROLE_ATTN] * s->instances;
    size_t most =
        s->count[AFD_ROLE_ATTN] > s->count[AFD_ROLE_FFN] ? s->count[AFD_ROLE_ATTN] : s->count[AFD_ROLE_FFN];
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        s->ranks[role] = calloc(s->count[role], sizeof *s->ranks[role]);
    s->now = calloc(links, sizeof *s->now);
    s->before = calloc(links, sizeof *s->before);
    s->in = calloc(links, sizeof *s->in);
    s->scratch = calloc(most, sizeof *s->scratch);
    s->values = calloc(most, sizeof *s->values);
    if (s->ranks[0] && s->ranks[1] && s->now && s->before && s->in && s->scratch && s->values) {
        for (int role = 0; role < AFD_ROLE_COUNT; role++)
            for (uint32_t i = 0; i < s->count[role]; i++) s->ranks[role][i].verdict.score = 1;
        return s;
    }
    afd_straggler_destroy(s);
    return NULL;
}

void afd_straggler_destroy(struct afd_straggler *s)
{
    if (!s) return;
    for (int role = 0; role < AFD_ROLE_COUNT; role++) free(s->ranks[role]);
    free(s->now);
    free(s->before);
    free(s->in);
    free(s->scratch);
    free(s->values);
    free(s);
}

/* ---- what ranks report */

static struct link *links_of(const struct afd_straggler *s, struct link *of, uint32_t attn)
{
    return of + (size_t)attn * s->instances;
}

void afd_straggler_gone(struct afd_straggler *s, enum afd_role role, uint32_t rank)
{
    assert(rank < s->count[role]);
    s->ranks[role][rank] = (struct rank){.verdict.score = 1};
    if (role != AFD_ROLE_ATTN) return;
    memset(links_of(s, s->now, rank), 0, s->instances * sizeof *s->now);
    memset(links_of(s, s->before, rank), 0, s->instances * sizeof *s->before);
}

void afd_straggler_beat(struct afd_straggler *s, enum afd_role role, uint32_t rank, uint64_t incarnation,
                        const Afd__Heartbeat *h)
{
    assert(rank < s->count[role]);
    struct rank *r = &s->ranks[role][rank];
    if (!h->stages || h->stages->n_ns != AFD_STAGE_COUNT) return;
    if (r->incarnation != incarnation) afd_straggler_gone(s, role, rank);
    r->incarnation = incarnation;
    r->now = (struct counters){.compute = h->stages->ns[AFD_STAGE_COMPUTE],
                               .steps = h->steps,
                               .rows = h->work_rows,
                               .late = h->late_ns,
                               .delay = h->run_delay_ns};
    for (int i = 0; i < AFD_STAGE_COUNT; i++) r->now.wall += h->stages->ns[i];
    for (size_t i = 0; role == AFD_ROLE_ATTN && i < h->n_pairs; i++) {
        const Afd__PairCounters *p = h->pairs[i];
        if (p->ffn_rank / s->tp >= s->instances) continue;
        links_of(s, s->now, rank)[p->ffn_rank / s->tp] =
            (struct link){.timed = p->timed, .network = p->a2f_ns + p->f2a_ns, .program = p->host_ns};
    }
}

/* ---- a window */

/* A rank that counts backwards lies; it gains nothing by it. */
static uint64_t since(uint64_t before, uint64_t now)
{
    return now > before ? now - before : 0;
}

static void close_window(struct afd_straggler *s)
{
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < s->count[role]; i++) {
            struct rank *r = &s->ranks[role][i];
            r->in = (struct counters){0};
            if (r->is_whole)
                r->in = (struct counters){.wall = since(r->before.wall, r->now.wall),
                                          .compute = since(r->before.compute, r->now.compute),
                                          .steps = since(r->before.steps, r->now.steps),
                                          .rows = since(r->before.rows, r->now.rows),
                                          .late = since(r->before.late, r->now.late),
                                          .delay = since(r->before.delay, r->now.delay)};
            for (uint32_t k = 0; role == AFD_ROLE_ATTN && k < s->instances; k++) {
                const struct link *a = &links_of(s, s->before, i)[k], *b = &links_of(s, s->now, i)[k];
                links_of(s, s->in, i)[k] = r->is_whole
                                               ? (struct link){.timed = since(a->timed, b->timed),
                                                               .network = since(a->network, b->network),
                                                               .program = since(a->program, b->program)}
                                               : (struct link){0};
            }
            r->before = r->now;
            r->is_whole = r->incarnation != 0;
            memset(r->share, 0, sizeof r->share);
            for (int stage = 0; stage < AFD_STRAGGLER_STAGES; stage++) r->ratio[stage] = 1;
        }
    memcpy(s->before, s->now, (size_t)s->count[AFD_ROLE_ATTN] * s->instances * sizeof *s->now);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of values[count] but for values[but]; those below 0 are none. Of two the smaller one: a healthy rank must
 * not be measured by a slow one. -1: there is none. */
static double median_of_others(const struct afd_straggler *s, const double *values, uint32_t count,
                               uint32_t but)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++)
        if (i != but && values[i] >= 0) s->scratch[n++] = values[i];
    if (!n) return -1;
    qsort(s->scratch, n, sizeof *s->scratch, by_size);
    return s->scratch[(n - 1) / 2];
}

static double each(uint64_t sum, uint64_t count, uint64_t least)
{
    return count >= least ? (double)sum / (double)count : -1;
}

static double share_of(double ns, uint64_t wall)
{
    return wall ? ns / (double)wall : 0;
}

static void judge_compute(struct afd_straggler *s, enum afd_role role)
{
    uint32_t count = s->count[role];
    for (int by_row = 0; by_row < 2; by_row++) {
        for (uint32_t i = 0; i < count; i++) {
            const struct counters *in = &s->ranks[role][i].in;
            s->values[i] = each(in->compute, by_row ? in->rows : in->steps, LEAST_STEPS);
        }
        for (uint32_t i = 0; i < count; i++) {
            struct rank *r = &s->ranks[role][i];
            double others = median_of_others(s, s->values, count, i),
                   *ratio = &r->ratio[AFD_STRAGGLER_COMPUTE];
            double now = others > 0 && s->values[i] >= 0 ? s->values[i] / others : 1;
            *ratio = by_row && *ratio < now ? *ratio : now;
            if (by_row && *ratio > 1)
                r->share[AFD_STRAGGLER_COMPUTE] =
                    share_of((double)r->in.compute * (1 - 1 / *ratio), r->in.wall);
        }
    }
}

/* One value for each link of a line of the matrix: an attention rank's (to all instances), or an FFN rank's.
 */
static double value_of(const struct link *l, enum afd_straggler_stage stage)
{
    return each(stage == AFD_STRAGGLER_NETWORK ? l->network : l->program, l->timed, LEAST_MESSAGES);
}

static int has_rail(const struct afd_straggler *s, uint32_t attn, uint32_t ffn)
{
    return attn % s->tp == ffn % s->tp;
}

/* FFN rank f, as attention rank a sees it beside the others of a's rail; -1: not at all. */
static double beside_instances(const struct afd_straggler *s, uint32_t a, uint32_t instance,
                               enum afd_straggler_stage stage, double *excess_out)
{
    const struct link *line = links_of(s, s->in, a);
    double others, own = value_of(&line[instance], stage);
    for (uint32_t k = 0; k < s->instances; k++) s->values[k] = value_of(&line[k], stage);
    others = median_of_others(s, s->values, s->instances, instance);
    if (own < 0 || others <= 0) return -1;
    *excess_out = (own - others) * (double)line[instance].timed;
    return own / others;
}

/* Attention rank a beside the others, at one instance. */
static double beside_attention(const struct afd_straggler *s, uint32_t a, uint32_t instance,
                               double *excess_out)
{
    const struct link *own_link = &links_of(s, s->in, a)[instance];
    double others, own = value_of(own_link, AFD_STRAGGLER_NETWORK);
    for (uint32_t k = 0; k < s->count[AFD_ROLE_ATTN]; k++)
        s->values[k] =
            has_rail(s, k, a) ? value_of(&links_of(s, s->in, k)[instance], AFD_STRAGGLER_NETWORK) : -1;
    others = median_of_others(s, s->values, s->count[AFD_ROLE_ATTN], a);
    if (own < 0 || others <= 0) return -1;
    *excess_out = (own - others) * (double)own_link->timed;
    return own / others;
}

/* The least of the ratios that those who see it tell: what one alone sees is that one's. */
static void judge_ffn_links(struct afd_straggler *s, uint32_t f, enum afd_straggler_stage stage)
{
    struct rank *r = &s->ranks[AFD_ROLE_FFN][f];
    double least = -1, excess = 0, wall = 0;
    for (uint32_t a = 0; a < s->count[AFD_ROLE_ATTN]; a++) {
        double more = 0, ratio = has_rail(s, a, f) ? beside_instances(s, a, f / s->tp, stage, &more) : -1;
        if (ratio < 0) continue;
        if (least < 0 || ratio < least) least = ratio;
        excess += more;
        wall += (double)s->ranks[AFD_ROLE_ATTN][a].in.wall;
    }
    if (least <= 1 || excess <= 0 || wall <= 0) return;
    r->ratio[stage] = least;
    r->share[stage] = excess / wall;
}

static void judge_attention_links(struct afd_straggler *s, uint32_t a)
{
    struct rank *r = &s->ranks[AFD_ROLE_ATTN][a];
    double least = -1, excess = 0;
    for (uint32_t k = 0; k < s->instances; k++) {
        double more = 0, ratio = beside_attention(s, a, k, &more);
        if (ratio < 0) continue;
        if (least < 0 || ratio < least) least = ratio;
        excess += more;
    }
    if (least <= 1 || excess <= 0) return;
    r->ratio[AFD_STRAGGLER_NETWORK] = least;
    r->share[AFD_STRAGGLER_NETWORK] = share_of(excess, r->in.wall);
}

/* Each for itself: on a crowded machine all stand in the run queue, and one that was stopped does not. */
static void judge_host(struct afd_straggler *s, enum afd_role role)
{
    uint32_t count = s->count[role];
    for (uint32_t i = 0; i < count; i++) s->ranks[role][i].not_run = 0;
    for (int by_delay = 0; by_delay < 2; by_delay++) {
        for (uint32_t i = 0; i < count; i++) {
            const struct counters *in = &s->ranks[role][i].in;
            double ns = (double)(by_delay ? in->delay : in->late);
            s->values[i] = in->steps >= LEAST_STEPS ? share_of(ns, in->wall) : -1;
        }
        for (uint32_t i = 0; i < count; i++) {
            struct rank *r = &s->ranks[role][i];
            double others = median_of_others(s, s->values, count, i), more = s->values[i] - others;
            if (others >= 0 && more > others && more > r->not_run) r->not_run = more;
        }
    }
}

/* ---- the verdict */

static void say(struct rank *r)
{
    static const char *const what[] = {
        "its device computes %.1f times as long as the others' for the same work",
        "its messages are %.1f times as long on the way as the others'",
        "its program takes %.1f times as long for a message as the others'"};
    struct afd_straggler_verdict *v = &r->verdict;
    int used = snprintf(v->words, sizeof v->words, what[v->stage], v->score);
    size_t at = used > 0 && (size_t)used < sizeof v->words ? (size_t)used : 0;
    if (v->cause == AFD_STRAGGLER_BY_HOST)
        snprintf(v->words + at, sizeof v->words - at, "; for %.0f%% of the time it was late or had no core",
                 r->not_run < 1 ? 100 * r->not_run : 100); /* all threads of it together */
}

static void judge(struct rank *r)
{
    struct afd_straggler_verdict *v = &r->verdict;
    int worst = -1;
    for (int stage = 0; stage < AFD_STRAGGLER_STAGES; stage++)
        if (r->share[stage] >= AFD_STRAGGLER_SHARE && (worst < 0 || r->share[stage] > r->share[worst]))
            worst = stage;
    v->score = worst < 0 ? 1 : r->ratio[worst];
    double cost = worst < 0 ? 0 : r->share[worst];
    if (r->not_run >= STOOD_STILL && v->score < AFD_STRAGGLER_RATIO) {
        worst = AFD_STRAGGLER_PROGRAM;
        cost = r->not_run;
        v->score = r->not_run < 1 ? 1 / (1 - r->not_run) : 100;
        if (v->score < AFD_STRAGGLER_RATIO) v->score = AFD_STRAGGLER_RATIO;
    }
    if (v->score < AFD_STRAGGLER_RATIO) {
        r->hits = 0;
        if (++r->misses >= AFD_STRAGGLER_WINDOWS) v->is_accused = 0;
        return;
    }
    r->misses = 0;
    r->hits++;
    v->accused_score = v->score;
    v->stage = (enum afd_straggler_stage)worst;
    v->cause = worst == AFD_STRAGGLER_PROGRAM || r->not_run >= EXPLAINED * (cost < 1 ? cost : 1)
                   ? AFD_STRAGGLER_BY_HOST
               : worst == AFD_STRAGGLER_COMPUTE ? AFD_STRAGGLER_BY_DEVICE
                                                : AFD_STRAGGLER_BY_NETWORK;
    if (r->hits >= AFD_STRAGGLER_WINDOWS) v->is_accused = 1;
    say(r);
}

int afd_straggler_tick(struct afd_straggler *s, afd_ns now)
{
    if (now < s->window_end) return 0;
    s->window_end = now + AFD_STRAGGLER_WINDOW;
    close_window(s);
    for (int role = 0; role < AFD_ROLE_COUNT; role++) {
        judge_compute(s, (enum afd_role)role);
        judge_host(s, (enum afd_role)role);
    }
    for (uint32_t f = 0; f < s->count[AFD_ROLE_FFN]; f++) {
        judge_ffn_links(s, f, AFD_STRAGGLER_NETWORK);
        judge_ffn_links(s, f, AFD_STRAGGLER_PROGRAM);
    }
    for (uint32_t a = 0; a < s->count[AFD_ROLE_ATTN]; a++) judge_attention_links(s, a);
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < s->count[role]; i++)
            if (s->ranks[role][i].incarnation) judge(&s->ranks[role][i]);
    return 1;
}

const struct afd_straggler_verdict *afd_straggler_verdict(const struct afd_straggler *s, enum afd_role role,
                                                          uint32_t rank)
{
    assert(rank < s->count[role]);
    return &s->ranks[role][rank].verdict;
}
