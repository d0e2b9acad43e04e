/* world.h: an attention node in a thread of its own, and all that it talks to in the test's: a scheduler, and
 * FFN ranks over the loop transport that compute with the reference device. For tests. */
#ifndef AFD_TESTS_ATTN_NODE_WORLD_H
#define AFD_TESTS_ATTN_NODE_WORLD_H

#include <pthread.h>

#include "attn_node/node.h"
#include "tests/compute/machine.h"
#include "transport/transport.h"

enum { WORLD_MAX_FFN = 3, WORLD_MAX_REQUESTS = 16, WORLD_MAX_TOKENS = 128 };

/* One FFN rank (tp 1). */
struct world_ffn {
    struct world *world;
    uint32_t instance;
    struct afd_transport *transport;
    struct event *event;
    char address[AFD_ADDRESS_BYTES];
    unsigned char *memory; /* A2F regions [slots], then F2A sources [slots][shards] */
    uint64_t incarnation;
    uint32_t messages;   /* seen */
    uint32_t fail_after; /* messages; then it closes its transport without a word; 0: never */
    uint32_t lie_after;  /* messages; then one answer names another step; 0: never */
    uint32_t stop_after; /* messages; then it leaves everything where it is until this is 0; 0: never */
    int is_dead;
};

/* A request, and what came back. */
struct world_request {
    uint32_t prompt_count, tokens[WORLD_MAX_TOKENS]; /* prompt; then what came */
    struct afd_sampling sampling;
    uint32_t generated, prompt_logprob_count;
    float logprobs[WORLD_MAX_TOKENS], prompt_logprobs[WORLD_MAX_TOKENS];
    Afd__Finish finish;
    char words[256];
};

struct world {
    struct machine machine; /* the model by itself; its FFN device serves all FFN ranks */
    struct afd_topology *topology;
    struct event_base *base, *node_base;
    char dir[64], scheduler_address[64];
    uint8_t secret[AFD_SECRET_BYTES], model_hash[AFD_HASH_BYTES];
    uint32_t copies;
    struct world_ffn ffn[WORLD_MAX_FFN];
    uint32_t ffn_count;
    int is_paused; /* FFN ranks leave what comes unanswered for a while */

    int listen_fd, accepts; /* accepts: take connections of the node */
    struct event *accept_event;
    uint32_t lease_ms; /* as Assign says */
    int is_silent;     /* heartbeats get no Alive */
    struct afd_channel *channel;
    uint32_t registrations, readies, heartbeats, leaves;
    uint32_t resumes; /* sequences that the node held when it registered */
    int forgets;      /* nothing is acknowledged, and the last message before a connection ends is unknown */
    /* of the last heartbeat */
    uint64_t rows, steps, expert_rows, answers, messages, hedges, late_answers;
    uint32_t running, waiting, kv_blocks_used, expert_layers;
    uint64_t incarnation; /* of the node */

    struct world_request requests[WORLD_MAX_REQUESTS];
    uint32_t request_count, finished;

    pthread_t thread;
    struct afd_attn_node *node;
    int stop_pipe[2], exit_status;
};

/* `yaml`: pipeline and pools lines of the topology; ep and copies must agree with it. */
struct world *world_open(const struct afd_tiny_model *tiny, const char *yaml, uint32_t ffn_count, uint32_t ep,
                         uint32_t copies);
struct world *world_open_leased(const struct afd_tiny_model *tiny, const char *yaml, uint32_t ffn_count,
                                uint32_t ep, uint32_t copies, uint32_t lease_ms);
int world_close(struct world *world); /* drains the node; its exit status */

/* Runs the test's side until *value reaches `least`; nothing is timed: a test that hangs is ended by ctest.
 */
void world_run_until(struct world *world, const uint32_t *value, uint32_t least);
void world_turn(struct world *world); /* sleeps until something comes, and handles it */

/* Sends a request; returns its index. */
uint32_t world_submit(struct world *world, const uint32_t *prompt, uint32_t prompt_count,
                      const struct afd_sampling *sampling);
void world_cancel(struct world *world, uint32_t request);
/* Ends the test with words unless the request got exactly what the model by itself generates. */
void world_check(struct world *world, uint32_t request);

#endif
