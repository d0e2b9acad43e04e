/* limits.h: the limits that both ends of a wire must know. A limit on everything: what exceeds one is refused
 * with words, never truncated. */
#ifndef AFD_PROTO_LIMITS_H
#define AFD_PROTO_LIMITS_H

enum {
    AFD_PROTOCOL_VERSION = 4, /* control messages, hello and wire.h together */

    AFD_MAX_RANKS = 1024,       /* of one role */
    AFD_MAX_SHARDS = 64,        /* a set of shards is one 64-bit mask */
    AFD_MAX_FFN_INSTANCES = 64, /* a set of FFN instances is one, too */
    AFD_MAX_SLOTS = 8,          /* micro-batches a rank */
    AFD_MAX_ROWS = 4096,        /* rows of one micro-batch */
    AFD_MAX_LAYERS = 512,
    AFD_MAX_EXPERTS = 1024, /* of one layer */
    AFD_MAX_TOP_K = 32,
    AFD_MAX_TP = 64,

    AFD_MIN_HEARTBEAT_MS = 10,
    AFD_MAX_HEARTBEAT_MS = 60000,
    AFD_MIN_LEASE_MS = 100,
    AFD_MAX_LEASE_MS = 600000,

    AFD_MAX_FRAME_BYTES = 16 << 20,
    AFD_MAX_CONTEXT = 1 << 20,
    AFD_MAX_LOGPROBS = 20,
    AFD_MAX_STOP_TOKENS = 64,
    AFD_MAX_LOGIT_BIAS = 1024,

    AFD_LATENCY_BUCKETS = 16,
};

/* Upper bounds of the latency histograms of PairCounters, seconds; the last bucket has no bound. */
static const double afd_bucket_seconds[AFD_LATENCY_BUCKETS - 1] = {20e-6,  50e-6,  100e-6, 150e-6, 200e-6,
                                                                   272e-6, 400e-6, 700e-6, 1e-3,   2e-3,
                                                                   5e-3,   10e-3,  50e-3,  250e-3, 1.0};

#endif
