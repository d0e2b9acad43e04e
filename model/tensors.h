/* tensors.h: a checkpoint: named tensors in one or more safetensors or GGUF files, memory-mapped.
 *
 * Opening reads the headers only; a tensor's bytes are touched when they are read, so a rank reads its slice
 * alone. Read-only, any thread, owned by the opener. A malformed file (truncated, tensors that overlap or
 * leave gaps, out-of-range offsets, unknown dtype, a shape that does not fit the bytes, a name twice) is
 * refused with file, tensor and what was expected. So is a tensor that is not aligned to its element: writers
 * since safetensors 0.3 (2023) align, and a copy would read every byte at open. A file that shrinks while it
 * is mapped kills the process (SIGBUS): checkpoints are replaced, never rewritten. */
#ifndef AFD_MODEL_TENSORS_H
#define AFD_MODEL_TENSORS_H

#include "model/model.h"
#include "model/quant.h"
#include "proto/wire.h"

enum { AFD_MAX_DIMS = 4 };

struct afd_tensor {
    const char *name;
    enum afd_dtype dtype; /* AFD_DTYPE_COUNT: quantized, or a type that no weight has (integers, F64, ...) */
    const struct afd_quant *quant; /* GGUF, and int4 of AWQ and GPTQ: how a row's blocks decode; or NULL */
    uint32_t dims;
    uint64_t shape[AFD_MAX_DIMS]; /* row-major, outermost first */
    const void *data;             /* in the mapping, aligned to the element */
    uint64_t bytes;
    /* block-FP8 only: NAME_scale_inv [.., ceil(out/128), ceil(in/128)]; w = q * scale. Float32 as DeepSeek
     * writes them, or 16 bits as Qwen does. */
    const void *scale;
    enum afd_dtype scale_dtype;
    uint64_t scale_rows, scale_columns; /* of one matrix */
};

struct afd_checkpoint;

/* What random matrices are stored as: block-FP8, bf16, GPTQ's int4. */
enum afd_random_kind { AFD_RANDOM_FP8, AFD_RANDOM_BF16, AFD_RANDOM_INT4, AFD_RANDOM_COUNT };

/* A line, "fp8", "bf16" or "int4": the directory's model has no tensors, and its weights are random ones of
 * that kind (afd_checkpoint_random). For measurements of sizes that are not at hand: `afd model make
 * --no-weights`. */
#define AFD_RANDOM_WEIGHTS_FILE "random-weights"

/* DIR/model.safetensors, or DIR/model.safetensors.index.json with its shards; or what afd_model_load takes
 * for a GGUF model; or random weights, where DIR says so. */
enum afd_status afd_checkpoint_open(const char *dir, struct afd_checkpoint **out,
                                    struct afd_error *error_out);
/* 1: there is something to open, whole or not. */
int afd_checkpoint_exists(const char *dir);
/* One without files or tensors: every weight has random values (random_weights.h). */
enum afd_status afd_checkpoint_random(enum afd_random_kind kind, struct afd_checkpoint **out,
                                      struct afd_error *error_out);
struct afd_random_weights;
const struct afd_random_weights *
afd_checkpoint_random_weights(const struct afd_checkpoint *checkpoint); /* or NULL */
void afd_checkpoint_close(struct afd_checkpoint *checkpoint);           /* NULL is allowed */
/* NULL when there is none of that name. */
const struct afd_tensor *afd_checkpoint_find(const struct afd_checkpoint *checkpoint, const char *name);
uint32_t afd_checkpoint_count(const struct afd_checkpoint *checkpoint);
/* By ascending name. */
const struct afd_tensor *afd_checkpoint_at(const struct afd_checkpoint *checkpoint, uint32_t index);

/* SHA-256 over config.json (safetensors) and each file's name, size and header: what hello and register
 * compare. */
enum afd_status afd_model_hash(const char *dir, uint8_t out[AFD_HASH_BYTES], struct afd_error *error_out);

#endif
