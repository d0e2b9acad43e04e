/* machine.h: a whole model on devices of one process: an attention device or group and the FFN devices of all
 * shards, without transport: what route wrote is handed to ffn, what ffn wrote to combine. For tests. */
#ifndef AFD_TESTS_COMPUTE_MACHINE_H
#define AFD_TESTS_COMPUTE_MACHINE_H

#include "compute/compute.h"
#include "model/tiny_model.h"

struct machine_config {
    enum afd_device_type type;
    enum afd_numerics numerics; /* of a cuda device */
    uint32_t threads;
    uint32_t ep, instances, tp; /* shard s on instance s mod instances */
    uint32_t attn_tp;           /* members of the attention group; 0: 1 */
    int routed;                 /* dispatch: a destination an instance that takes only its rows */
    enum afd_dtype a2f, f2a;
    enum afd_kv_dtype kv;
    uint32_t kv_block_tokens, kv_blocks, max_rows, slots;
};

enum { MACHINE_MAX_INSTANCES = 4, MACHINE_MAX_TP = 8 };

struct machine {
    struct machine_config config;
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
    struct afd_wire_layout wire;
    struct afd_device *attn, *ffn[MACHINE_MAX_INSTANCES][MACHINE_MAX_TP];
    struct afd_device *members[MACHINE_MAX_TP]; /* attn_tp above 1: the others, from 1 on */
    float *normed, *heads[MACHINE_MAX_TP];      /* attn_tp above 1: [max_rows][hidden] */
    uint64_t shards[MACHINE_MAX_INSTANCES];
    unsigned char *records[MACHINE_MAX_INSTANCES]; /* max_rows records each */
    unsigned char *sums[AFD_MAX_SHARDS];           /* max_rows F2A rows each */
    float *partial[MACHINE_MAX_TP];                /* tp: [max_rows * shards][hidden] */
    struct afd_partials partials;
    uint64_t trace; /* hash over everything that crossed the wire */
};

/* Ends the test with words when something fails. */
struct machine machine_open(const char *dir, struct machine_config config);
void machine_close(struct machine *machine);

/* One step of a slot through all layers; logits_out [step->rows][vocab]. */
void machine_step(struct machine *machine, uint32_t slot, const struct afd_step *step, float *logits_out);

/* Submits, waits for its event, returns its status. */
enum afd_status machine_run(struct afd_device *device, struct afd_op op);

enum { AFD_DEVICE_TYPES = AFD_DEVICE_CUDA + 1 };
/* 0 where there is no such device, and why is printed. */
int machine_has(enum afd_device_type type);

/* A default for one attention device and one FFN device of `type`. */
struct machine_config machine_plain(enum afd_device_type type);
/* Writes the checkpoint under a new folder of /tmp; `dir` [64]. */
void machine_write(const struct afd_tiny_model *tiny, char *dir);
void machine_remove(const char *dir);

#endif
