/* serve_stats.h: the figures of `afd bench serve`, by the definitions of `vllm bench serve`.
 *
 *   TTFT  from the request to its first token          ITL  between the events of one stream
 *   TPOT  (end - first) / (tokens - 1), one a request   E2E  from the request to its last token
 *
 * and the same from the scheduled arrival, which a client that cannot keep up does not hide. Percentiles
 * interpolate linearly between the two nearest samples. Goodput: requests a second that kept to every limit
 * of the SLO. Pure: no clock, no I/O; one thread. Out of memory ends the program, as in all of cli/. */
#ifndef AFD_CLI_SERVE_STATS_H
#define AFD_CLI_SERVE_STATS_H

#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"

struct serve_samples {
    double *s;
    size_t count, room;
};
void serve_samples_add(struct serve_samples *samples, double seconds);
void serve_samples_sort(struct serve_samples *samples);                    /* before _at */
double serve_samples_at(const struct serve_samples *samples, double rank); /* 0 to 1; 0 without samples */
double serve_samples_mean(const struct serve_samples *samples);

/* One stream's answer, event by event. */
struct serve_stream {
    char *held; /* a line that is not complete */
    size_t used, room;
    afd_ns first, last;
    uint64_t events, tokens; /* tokens: as the server counts them, 0 if it did not say */
    int is_over;             /* [DONE] came */
};
void serve_stream_begin(struct serve_stream *stream); /* keeps the buffer */
void serve_stream_free(struct serve_stream *stream);
/* Bytes as they came; intervals go to `itl`. */
void serve_stream_take(struct serve_stream *stream, const char *data, size_t bytes, afd_ns now,
                       struct serve_samples *itl);

struct serve_slo {
    double ttft, tpot, e2e; /* seconds; 0: no limit */
};
struct serve_totals {
    struct serve_slo slo;
    uint64_t good, kept, tokens; /* requests that ended well; of these, those within the SLO */
    struct serve_samples ttft, itl, tpot, e2e, scheduled_ttft, scheduled_e2e;
};
/* A stream that ended well. */
void serve_totals_add(struct serve_totals *totals, const struct serve_stream *stream, afd_ns scheduled,
                      afd_ns began);
void serve_totals_free(struct serve_totals *totals);

#endif
