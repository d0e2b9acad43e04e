#include "cli/serve_stats.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- samples */

void serve_samples_add(struct serve_samples *l, double seconds)
{
    if (l->count == l->room) {
        l->room = l->room ? 2 * l->room : 1024;
        l->s = realloc(l->s, l->room * sizeof *l->s);
        if (!l->s) abort();
    }
    l->s[l->count++] = seconds;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void serve_samples_sort(struct serve_samples *l)
{
    if (l->count) qsort(l->s, l->count, sizeof *l->s, compare);
}

double serve_samples_at(const struct serve_samples *l, double rank)
{
    if (!l->count) return 0;
    double at = rank * (double)(l->count - 1);
    size_t below = (size_t)at;
    if (below + 1 >= l->count) return l->s[l->count - 1];
    return l->s[below] + (at - (double)below) * (l->s[below + 1] - l->s[below]);
}

double serve_samples_mean(const struct serve_samples *l)
{
    double sum = 0;
    for (size_t i = 0; i < l->count; i++) sum += l->s[i];
    return l->count ? sum / (double)l->count : 0;
}

/* ---- a stream */

void serve_stream_begin(struct serve_stream *s)
{
    *s = (struct serve_stream){.held = s->held, .room = s->room};
}

void serve_stream_free(struct serve_stream *s)
{
    free(s->held);
    *s = (struct serve_stream){0};
}

static void take_event(struct serve_stream *s, const char *text, afd_ns now, struct serve_samples *itl)
{
    if (!strcmp(text, "[DONE]")) {
        s->is_over = 1;
        return;
    }
    json_t *event = json_loads(text, 0, NULL);
    json_t *usage = json_object_get(event, "usage");
    json_int_t tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
    if (tokens > 0) s->tokens = (uint64_t)tokens;
    if (json_array_size(json_object_get(event, "choices"))) {
        if (!s->events++)
            s->first = now;
        else
            serve_samples_add(itl, (double)(now - s->last) / 1e9);
        s->last = now;
    }
    json_decref(event);
}

void serve_stream_take(struct serve_stream *s, const char *data, size_t bytes, afd_ns now,
                       struct serve_samples *itl)
{
    if (s->used + bytes + 1 > s->room) {
        s->room = 2 * (s->used + bytes + 1);
        s->held = realloc(s->held, s->room);
        if (!s->held) abort();
    }
    memcpy(s->held + s->used, data, bytes);
    s->used += bytes;
    s->held[s->used] = 0;
    char *begin = s->held, *end;
    while ((end = memchr(begin, '\n', s->used - (size_t)(begin - s->held)))) {
        *end = 0;
        if (end > begin && end[-1] == '\r') end[-1] = 0;
        if (!strncmp(begin, "data:", 5)) take_event(s, begin + (begin[5] == ' ' ? 6 : 5), now, itl);
        begin = end + 1;
    }
    s->used -= (size_t)(begin - s->held);
    memmove(s->held, begin, s->used + 1);
}

/* ---- all of them */

void serve_totals_add(struct serve_totals *t, const struct serve_stream *s, afd_ns scheduled, afd_ns began)
{
    uint64_t tokens = s->tokens ? s->tokens : s->events;
    double ttft = (double)(s->first - began) / 1e9, e2e = (double)(s->last - began) / 1e9;
    double waited = (double)(began - scheduled) / 1e9, tpot = 0;
    if (tokens > 1) {
        tpot = (double)(s->last - s->first) / 1e9 / (double)(tokens - 1);
        serve_samples_add(&t->tpot, tpot);
    }
    serve_samples_add(&t->ttft, ttft);
    serve_samples_add(&t->e2e, e2e);
    serve_samples_add(&t->scheduled_ttft, waited + ttft);
    serve_samples_add(&t->scheduled_e2e, waited + e2e);
    t->good++;
    t->tokens += tokens;
    t->kept += !(t->slo.ttft > 0 && ttft > t->slo.ttft) && !(t->slo.tpot > 0 && tpot > t->slo.tpot) &&
               !(t->slo.e2e > 0 && e2e > t->slo.e2e);
}

void serve_totals_free(struct serve_totals *t)
{
    struct serve_samples *all[] = {&t->ttft,           &t->itl,          &t->tpot, &t->e2e,
                                   &t->scheduled_ttft, &t->scheduled_e2e};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->s);
    *t = (struct serve_totals){.slo = t->slo};
}
