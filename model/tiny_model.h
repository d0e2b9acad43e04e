/* tiny_model.h: writes a random checkpoint of any family, small enough for a test and as awkward as it wants.
 *
 * The directory then holds config.json, model.safetensors (or shards and their index), tokenizer.json and
 * tokenizer_config.json; config.json comes last, so that what was interrupted is no model. The same struct
 * gives the same bytes on every machine. Weights are scaled so that router probabilities, attention scores
 * and logits are spread: a wrong kernel changes tokens. Token ids: 0..255 are the bytes, 256 <|endoftext|>
 * (bos), 257 <|BOT|>, 258 <|EOT|> (eos), then merges of two letters. */
#ifndef AFD_MODEL_TINY_MODEL_H
#define AFD_MODEL_TINY_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/wire.h"

enum { AFD_TINY_BOS = 256, AFD_TINY_BOT = 257, AFD_TINY_EOT = 258, AFD_TINY_MIN_VOCAB = 259 };

enum afd_tiny_family {
    AFD_TINY_STEP3,
    AFD_TINY_STEP3P5,
    AFD_TINY_DEEPSEEK_V2,
    AFD_TINY_DEEPSEEK_V3,
    AFD_TINY_QWEN3,
    AFD_TINY_QWEN3_MOE,
    AFD_TINY_LLAMA,
    AFD_TINY_FAMILY_COUNT
};

struct afd_tiny_model {
    enum afd_tiny_family family;
    uint32_t hidden, vocab, layers, max_context;
    uint32_t heads, kv_heads, head_dim, q_rank; /* q_rank: step3, deepseek */
    uint32_t kv_rank, rope_dim, value_dim;      /* deepseek; head_dim includes rope_dim */
    uint32_t window;        /* step3p5: of all layers but each fourth, which have kv_heads heads more */
    uint32_t intermediate;  /* of dense layers */
    const char *moe_layers; /* "1,3"; "" none; deepseek: all behind the first */
    uint32_t experts, top_k, expert_intermediate, shared_intermediate;
    uint32_t groups, group_top_k; /* deepseek */
    int renormalise, tied_head;
    enum afd_dtype dtype; /* of the matrices; AFD_FP8 leaves embedding, head, router and norms in bf16 */
    uint32_t files;       /* 1, or the number of shards with an index */
    uint64_t seed;
    int no_weights; /* AFD_RANDOM_WEIGHTS_FILE in place of the tensors: dtype is fp8 or bf16 */
};

/* Step3. Round sizes: hidden 64, 4 heads of 16, 4 layers of which 1 and 2 have 8 experts, top 3. */
struct afd_tiny_model afd_tiny_model_small(void);
/* No size is a multiple of anything: hidden 96, 5 heads of 24, q_rank 40, 7 experts top 2 in layers 1 and 3.
 */
struct afd_tiny_model afd_tiny_model_awkward(void);
/* Several 128x128 blocks a matrix, ragged: hidden 320, fp8. */
struct afd_tiny_model afd_tiny_model_fp8(void);
/* One of them for another family: what Step3 does not have gets a size, what the family does not have 0. */
struct afd_tiny_model afd_tiny_model_as(struct afd_tiny_model tiny, enum afd_tiny_family family);

/* "step3", "deepseek_v3", ...; AFD_TINY_FAMILY_COUNT: none of that name. */
enum afd_tiny_family afd_tiny_family_of(const char *name);
const char *afd_tiny_family_name(enum afd_tiny_family family);

/* Makes `dir` if it is not there, and replaces what is of the same name. Sizes that make no model are refused
 * by the words with which config.json is. */
enum afd_status afd_tiny_model_write(const struct afd_tiny_model *tiny, const char *dir,
                                     struct afd_error *error_out);

/* ---- its parts */

struct json_t;
/* config.json; the caller owns *out. */
enum afd_status afd_tiny_model_config(const struct afd_tiny_model *tiny, struct json_t **out,
                                      struct afd_error *error_out);
enum afd_status afd_tiny_tokenizer_write(uint32_t vocab, const char *dir, struct afd_error *error_out);
/* DIR/NAME: `head`, then `data`. */
enum afd_status afd_tiny_file_write(const char *dir, const char *name, const void *head, size_t head_bytes,
                                    const void *data, size_t bytes, struct afd_error *error_out);

#endif
