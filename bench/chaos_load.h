/* chaos_load.h: streaming completions in a closed loop: a client that has its answer asks for the next one.
 *
 * The requests are a fixed list, drawn from a seed: short and long prompts, greedy and sampled with penalties
 * and stop strings. A load takes them in turn, beginning anywhere, until it is told to stop. It runs in a
 * thread of its own, which alone touches the streams until load_end has returned; the other functions may be
 * called meanwhile. A client whose connection breaks attaches to its request; one that was answered nothing
 * asks again. */
#ifndef AFD_BENCH_CHAOS_LOAD_H
#define AFD_BENCH_CHAOS_LOAD_H

#include "tests/e2e/streams.h"

struct load_request {
    char *body;
    size_t limit; /* tokens it may make */
};

struct load_requests {
    size_t count;
    struct load_request *at;
};

/* `scale` of the answers' lengths in percent: 100 is 120 to 320 tokens. */
struct load_requests load_requests_make(size_t count, uint64_t seed, unsigned scale);
void load_requests_free(struct load_requests *requests);

/* How one stream ended. */
struct load_answer {
    size_t request;   /* of the list */
    uint32_t *tokens; /* the answer's */
    size_t count;
    char *text, finish[16];
    char lost[300];  /* why it has no complete answer; "": it has */
    size_t attached; /* times that the client had to come back for it */
    afd_ns gap, gap_end,
        first; /* longest between two tokens, when that ended; from the request to the first token */
};

struct load_result {
    size_t count; /* streams */
    struct load_answer *answers;
    size_t asked_again; /* requests that were refused or not answered, and sent again */
    double gap_rate;    /* tokens a second of all streams during the longest gap: who else stood still? */
    afd_ns stall;       /* the longest time that the client itself got no processor */
};

struct load;

/* `streams` at one time, beginning with request `first`. */
struct load *load_begin(const char *url, const struct load_requests *requests, size_t streams, size_t first);
/* Every place has a stream that has had `tokens` tokens, or an earlier one was over. 0 after `limit`. */
int load_wait_begun(struct load *load, size_t tokens, afd_ns limit);
/* Streams that have ended, in whatever way. */
size_t load_ended(struct load *load);
/* Tokens a second from `from` on, over `window`; less than 0 when that is not over yet. */
double load_rate(struct load *load, afd_ns from, afd_ns window);
/* Asks for nothing more, waits until all is answered, or until `limit`: what is left then is lost. */
struct load_result load_end(struct load *load, afd_ns limit);
void load_result_free(struct load_result *result);

#endif
