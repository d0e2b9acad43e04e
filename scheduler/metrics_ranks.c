/* metrics_ranks.c: the page's families with one sample a rank, or a rank and stage. */
#include <stdio.h>

#include "base/stages.h"
#include "proto/stage_cells.h"
#include "scheduler/exposition.h"
#include "scheduler/metrics_page.h"

enum { LABELS_BYTES = 192 };

static void label_rank(const struct metrics_page *p, uint32_t i, const char *more, char out[LABELS_BYTES])
{
    const struct afd_cluster_member *m = afd_cluster_at(p->cluster, i);
    snprintf(out, LABELS_BYTES, "role=\"%s\",rank=\"%u\"%s", afd_role_name(m->role), m->rank, more);
}

/* NULL: there is none, or it is not as long as it must be. */
static const uint64_t *stages_of(const Afd__Heartbeat *beat)
{
    return beat && beat->stages && beat->stages->n_ns == AFD_STAGE_COUNT ? beat->stages->ns : NULL;
}

static void print_stages(const struct metrics_page *p)
{
    char labels[LABELS_BYTES], more[64];
    afd_exposition_head(p->out, "afd_", "stage_seconds_total", "counter",
                        "Time of a rank's device, by stage.");
    for (uint32_t i = 0; i < p->size; i++) {
        const uint64_t *ns = stages_of(p->beats[i]);
        for (int s = 0; ns && s < AFD_STAGE_COUNT; s++) {
            snprintf(more, sizeof more, ",stage=\"%s\"", afd_stage_name((enum afd_stage)s));
            label_rank(p, i, more, labels);
            afd_exposition_sample(p->out, "afd_", "stage_seconds_total", labels, (double)ns[s] * 1e-9);
        }
    }
    afd_exposition_head(p->out, "afd_", "stage_utilization", "gauge",
                        "Share of a rank's time in which its device computes, since its start.");
    for (uint32_t i = 0; i < p->size; i++) {
        const uint64_t *ns = stages_of(p->beats[i]);
        double all = 0;
        for (int s = 0; ns && s < AFD_STAGE_COUNT; s++) all += (double)ns[s];
        label_rank(p, i, "", labels);
        if (ns)
            afd_exposition_sample(p->out, "afd_", "stage_utilization", labels,
                                  all > 0 ? (double)ns[AFD_STAGE_COMPUTE] / all : 0.0);
    }
}

/* "0-7", "60", or "head" for what follows the layers. */
static void name_bucket(const struct metrics_page *p, uint32_t bucket, char out[32])
{
    uint32_t first, end;
    if (!afd_stage_bucket_layers(bucket, afd_service_layers(p->service), &first, &end))
        snprintf(out, 32, "head");
    else if (end == first + 1)
        snprintf(out, 32, "%u", first);
    else
        snprintf(out, 32, "%u-%u", first, end - 1);
}

static void print_cells(const struct metrics_page *p, int by_slot)
{
    const char *name = by_slot ? "stage_microbatch_seconds_total" : "stage_layers_seconds_total";
    char labels[LABELS_BYTES], more[96], bucket[32];
    uint64_t ns[AFD_STAGE_COUNT];
    afd_exposition_head(p->out, "afd_", name, "counter",
                        by_slot ? "Of a rank's time what was one micro-batch's, by stage."
                                : "Of a rank's time what was spent on some layers, by stage.");
    for (uint32_t i = 0; i < p->size; i++)
        for (uint32_t k = 0; k < (by_slot ? AFD_STAGE_SLOTS : AFD_STAGE_BUCKETS); k++) {
            if (!p->beats[i] || !afd_stage_cells_sum(p->beats[i], by_slot, k, ns)) continue;
            if (by_slot)
                snprintf(bucket, sizeof bucket, "%u", k);
            else
                name_bucket(p, k, bucket);
            for (int s = 0; s < AFD_STAGE_COUNT; s++) {
                snprintf(more, sizeof more, ",%s=\"%s\",stage=\"%s\"", by_slot ? "microbatch" : "layers",
                         bucket, afd_stage_name((enum afd_stage)s));
                label_rank(p, i, more, labels);
                afd_exposition_sample(p->out, "afd_", name, labels, (double)ns[s] * 1e-9);
            }
        }
}

static void print_states(const struct metrics_page *p)
{
    char labels[LABELS_BYTES], more[64];
    afd_exposition_head(p->out, "afd_", "rank_state", "gauge", "1 for the state that a rank is in.");
    for (uint32_t i = 0; i < p->size; i++) {
        snprintf(more, sizeof more, ",state=\"%s\"",
                 afd_member_state_name(afd_cluster_at(p->cluster, i)->state));
        label_rank(p, i, more, labels);
        afd_exposition_count(p->out, "afd_", "rank_state", labels, 1);
    }
}

/* The families that are one number of the heartbeat. */
enum value { STEPS, ROWS, LATE, RUN_DELAY, RESIDENT, VALUE_COUNT };

static const struct {
    const char *name, *type, *help;
    double scale;
} values[VALUE_COUNT] = {
    [STEPS] = {"rank_steps_total", "counter", "Steps of an attention rank, batches of an FFN rank.", 1},
    [ROWS] = {"rank_rows_total", "counter", "Rows that a rank has computed.", 1},
    [LATE] = {"rank_late_seconds_total", "counter", "How much later than planned a rank's timers went off.",
              1e-9},
    [RUN_DELAY] = {"rank_run_delay_seconds_total", "counter",
                   "Time that a rank's threads were ready to run and had no core.", 1e-9},
    [RESIDENT] = {"rank_resident_bytes", "gauge", "Memory of a rank's process, or what its weights take.", 1},
};

static uint64_t value_of(const Afd__Heartbeat *b, enum value v)
{
    switch (v) {
    case STEPS:
        return b->steps;
    case ROWS:
        return b->rows;
    case LATE:
        return b->late_ns;
    case RUN_DELAY:
        return b->run_delay_ns;
    default:
        return b->resident_bytes;
    }
}

static void print_stragglers(const struct metrics_page *p)
{
    char labels[LABELS_BYTES];
    afd_exposition_head(
        p->out, "afd_", "straggler_score", "gauge",
        "How many times as long as the others of its role a rank's worst stage takes; 1: none.");
    for (uint32_t i = 0; i < p->size; i++) {
        const struct afd_cluster_member *m = afd_cluster_at(p->cluster, i);
        if (!p->beats[i]) continue;
        label_rank(p, i, "", labels);
        afd_exposition_sample(
            p->out, "afd_", "straggler_score", labels,
            afd_straggler_verdict(afd_service_straggler(p->service), m->role, m->rank)->score);
    }
    afd_exposition_head(p->out, "afd_", "straggler", "gauge",
                        "1 for a rank that holds the others up, and why.");
    for (uint32_t i = 0; i < p->size; i++) {
        const struct afd_cluster_member *m = afd_cluster_at(p->cluster, i);
        const struct afd_straggler_verdict *v =
            afd_straggler_verdict(afd_service_straggler(p->service), m->role, m->rank);
        char more[96];
        if (!v->is_accused) continue;
        snprintf(more, sizeof more, ",stage=\"%s\",cause=\"%s\"", afd_straggler_stage_name(v->stage),
                 afd_straggler_cause_name(v->cause));
        label_rank(p, i, more, labels);
        afd_exposition_count(p->out, "afd_", "straggler", labels, 1);
    }
}

static void print_loading(const struct metrics_page *p)
{
    static const char *const names[] = {"rank_loaded_bytes", "rank_loading_bytes"};
    static const char *const helps[] = {"Weights that a rank has loaded which still loads.",
                                        "Weights that a rank loads before it serves."};
    char labels[LABELS_BYTES];
    for (int n = 0; n < 2; n++) {
        afd_exposition_head(p->out, "afd_", names[n], "gauge", helps[n]);
        for (uint32_t i = 0; i < p->size; i++) {
            const struct afd_service_loading *l = afd_service_loading(p->service, i);
            if (!l) continue;
            label_rank(p, i, "", labels);
            afd_exposition_count(p->out, "afd_", names[n], labels, n ? l->total_bytes : l->bytes);
        }
    }
}

void metrics_print_ranks(const struct metrics_page *p)
{
    char labels[LABELS_BYTES];
    print_stages(p);
    print_cells(p, 0);
    print_cells(p, 1);
    print_states(p);
    print_loading(p);
    print_stragglers(p);
    for (int v = 0; v < VALUE_COUNT; v++) {
        afd_exposition_head(p->out, "afd_", values[v].name, values[v].type, values[v].help);
        for (uint32_t i = 0; i < p->size; i++) {
            if (!p->beats[i]) continue;
            label_rank(p, i, "", labels);
            afd_exposition_sample(p->out, "afd_", values[v].name, labels,
                                  (double)value_of(p->beats[i], (enum value)v) * values[v].scale);
        }
    }
}
