#include "cli/serve_plot.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "plan/chart.h"

enum { MEDIAN = 10, P95 = 19, CHARTS = 6 };

static void take(const struct serve_samples *samples, double out[SERVE_PLOT_PERCENTILES])
{
    for (int i = 0; i < SERVE_PLOT_PERCENTILES; i++)
        out[i] = serve_samples_at(samples, (double)i / (SERVE_PLOT_PERCENTILES - 1));
}

void serve_plot_add(struct serve_plot *p, const struct serve_totals *t, uint64_t concurrency, double seconds)
{
    assert(p->runs < SERVE_PLOT_RUNS);
    struct serve_plot_run *r = &p->run[p->runs++];
    *r = (struct serve_plot_run){.concurrency = concurrency,
                                 .tokens_per_s = (double)t->tokens / seconds,
                                 .goodput = (double)t->kept / seconds};
    p->has_slo |= t->slo.ttft > 0 || t->slo.tpot > 0 || t->slo.e2e > 0;
    take(&t->ttft, r->ttft);
    take(&t->tpot, r->tpot);
    take(&t->itl, r->itl);
}

/* ---- by percentile, of one run */

/* The first token apart from the later ones, which take a small part of its time. */
static uint32_t by_percentile(const struct serve_plot_run *r, char title[64], struct afd_chart *c)
{
    const double *lines[] = {r->ttft, r->tpot, r->itl};
    static const char *const names[] = {"TTFT", "TPOT", "ITL"};
    snprintf(title, 64, "Latency, %llu requests at a time", (unsigned long long)r->concurrency);
    for (uint32_t chart = 0, l = 0; chart < 2; chart++) {
        c[chart] = (struct afd_chart){.title = title,
                                      .x_label = "percentile",
                                      .y_label = chart ? "milliseconds a token" : "milliseconds",
                                      .points = SERVE_PLOT_PERCENTILES};
        for (uint32_t i = 0; i < SERVE_PLOT_PERCENTILES; i++) {
            c[chart].x[i] = 100.0 * i / (SERVE_PLOT_PERCENTILES - 1);
            if (i % 2 == 0) snprintf(c[chart].x_names[i], sizeof c[chart].x_names[i], "%.0f", c[chart].x[i]);
        }
        for (; l <= 2 * chart; l++) {
            uint32_t line = c[chart].lines++;
            snprintf(c[chart].names[line], sizeof c[chart].names[line], "%s", names[l]);
            for (uint32_t i = 0; i < SERVE_PLOT_PERCENTILES; i++) c[chart].y[line][i] = 1e3 * lines[l][i];
        }
    }
    return 2;
}

/* ---- by concurrency */

static struct afd_chart sweep(const struct serve_plot *p, const char *title, const char *y_label)
{
    struct afd_chart c = {.title = title,
                          .x_label = "requests at a time",
                          .y_label = y_label,
                          .x_is_log = 1,
                          .points = p->runs};
    for (uint32_t i = 0; i < p->runs; i++) {
        c.x[i] = (double)p->run[i].concurrency;
        snprintf(c.x_names[i], sizeof c.x_names[i], "%.0f", c.x[i]);
    }
    return c;
}

static void add_line(struct afd_chart *c, const struct serve_plot *p, const char *name, size_t offset,
                     double factor)
{
    snprintf(c->names[c->lines], sizeof c->names[0], "%s", name);
    for (uint32_t i = 0; i < p->runs; i++)
        memcpy(&c->y[c->lines][i], (const char *)&p->run[i] + offset, sizeof(double)),
            c->y[c->lines][i] *= factor;
    c->lines++;
}

#define FIELD(name) offsetof(struct serve_plot_run, name)

static uint32_t by_concurrency(const struct serve_plot *p, struct afd_chart *c)
{
    uint32_t n = 0;
    c[n] = sweep(p, "Throughput", "tokens/s");
    add_line(&c[n++], p, "generated tokens", FIELD(tokens_per_s), 1);
    if (p->has_slo) {
        c[n] = sweep(p, "Goodput", "requests/s within the SLO");
        add_line(&c[n++], p, "goodput", FIELD(goodput), 1);
    }
    c[n] = sweep(p, "Time to the first token", "milliseconds");
    add_line(&c[n], p, "p50", FIELD(ttft[MEDIAN]), 1e3);
    add_line(&c[n++], p, "p95", FIELD(ttft[P95]), 1e3);
    c[n] = sweep(p, "Time per output token", "milliseconds");
    add_line(&c[n], p, "p50", FIELD(tpot[MEDIAN]), 1e3);
    add_line(&c[n++], p, "p95", FIELD(tpot[P95]), 1e3);
    return n;
}

int serve_plot_write(const struct serve_plot *plot, const char *file)
{
    char title[64];
    struct afd_chart *charts = calloc(CHARTS, sizeof *charts);
    if (!charts) return cli_fail("bench serve: out of memory");
    uint32_t count = plot->runs > 1 ? by_concurrency(plot, charts) : 0;
    count += by_percentile(&plot->run[plot->runs - 1], title, &charts[count]);
    FILE *to = fopen(file, "w");
    if (to) afd_chart_write(charts, count, to);
    int is_bad = !to || ferror(to);
    if (to && fclose(to)) is_bad = 1;
    free(charts);
    return is_bad ? cli_fail("%s: cannot be written: %s", file, strerror(errno)) : CLI_OK;
}
