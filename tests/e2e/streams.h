/* streams.h: streaming completions that run while a test does something to the cluster.
 *
 * The client of all streams is the calling thread: nothing is read but within the two waits, each of which
 * ends the test when it takes longer than STREAMS_WAIT_S. */
#ifndef AFD_TESTS_E2E_STREAMS_H
#define AFD_TESTS_E2E_STREAMS_H

#include "cluster.h"
#include "prompts.h"

enum { STREAMS_WAIT_S = 180 };

struct stream {
    uint32_t *tokens;
    size_t count, limit;
    int is_over;      /* the exchange ended, in whatever way */
    int has_done;     /* [DONE] came */
    long status;      /* HTTP, once over; 0: no answer */
    long retry_after; /* seconds, once over; 0: the header was not there */
    char finish[16];  /* finish_reason, "" without one */
    char *text;       /* not parsed: of another status than 200, or an event with an error */
    size_t used;
};

struct streams {
    size_t count;
    struct stream *at;
    void *multi, **handles; /* of libcurl */
};

/* Starts one completion a prompt, with `max_tokens` tokens whatever they are, and seed `seed` + index. */
struct streams *streams_begin(const struct cluster *cluster, const struct prompts *prompts, size_t max_tokens,
                              int seed);
/* Until each stream has `tokens` tokens or is over. */
void streams_wait_tokens(struct streams *streams, size_t tokens);
void streams_wait_over(struct streams *streams);
size_t streams_running(struct streams *streams); /* not over, as far as is known without waiting */
/* The client leaves. */
void streams_drop(struct streams *streams, size_t index);
/* Each has all its tokens, a finish reason and [DONE]. */
void streams_expect_complete(const struct streams *streams, const char *title);
void streams_expect_equal(const struct streams *streams, const struct streams *expected, const char *title);
void streams_end(struct streams *streams);

#endif
