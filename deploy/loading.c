#include "deploy/loading.h"

#include <stdio.h>

struct afd_loading afd_loading_begin(afd_ns now)
{
    return (struct afd_loading){.begin = now, .next = now + AFD_SECONDS(AFD_LOADING_SECONDS)};
}

void afd_loading_line(uint64_t done, uint64_t total, afd_ns spent, char line[AFD_LOADING_LINE_BYTES])
{
    double seconds = (double)spent / 1e9, rate = spent ? (double)done / seconds : 0;
    int n = snprintf(line, AFD_LOADING_LINE_BYTES, "weights: %.1f of %.1f MiB (%.0f%%), %.1f MB/s",
                     (double)done / 1048576, (double)total / 1048576,
                     total ? 100.0 * (double)done / (double)total : 0.0, rate / 1e6);
    if (n < 0 || n >= AFD_LOADING_LINE_BYTES || rate <= 0) return;
    if (done < total)
        snprintf(line + n, (size_t)(AFD_LOADING_LINE_BYTES - n), ", %.0f s left",
                 (double)(total - done) / rate);
    else
        snprintf(line + n, (size_t)(AFD_LOADING_LINE_BYTES - n), ", %.1f s", seconds);
}

int afd_loading_step(struct afd_loading *loading, uint64_t done, uint64_t total, afd_ns now,
                     char line[AFD_LOADING_LINE_BYTES])
{
    if (now < loading->next || !total || now == loading->begin) return 0;
    loading->next = now + AFD_SECONDS(AFD_LOADING_SECONDS);
    afd_loading_line(done, total, now - loading->begin, line);
    return 1;
}
