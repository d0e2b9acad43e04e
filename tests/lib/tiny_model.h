/* tiny_model.h: writes a random Step3 checkpoint, small enough for a test and as awkward as the test wants.
 *
 * The directory then holds config.json, model.safetensors (or shards and their index), tokenizer.json and
 * tokenizer_config.json. The same struct gives the same bytes on every machine. Weights are scaled so that
 * router probabilities, attention scores and logits are spread: a wrong kernel changes tokens. Token ids:
 * 0..255 are the bytes, 256 <|endoftext|> (bos), 257 <|BOT|>, 258 <|EOT|> (eos), then merges of two letters.
 */
#ifndef AFD_TESTS_LIB_TINY_MODEL_H
#define AFD_TESTS_LIB_TINY_MODEL_H

#include <stdint.h>

#include "base/error.h"
#include "proto/wire.h"

enum { AFD_TINY_BOS = 256, AFD_TINY_BOT = 257, AFD_TINY_EOT = 258, AFD_TINY_MIN_VOCAB = 259 };

struct afd_tiny_model {
    uint32_t hidden, vocab, layers, max_context;
    uint32_t heads, kv_heads, head_dim, q_rank;
    uint32_t intermediate;  /* of dense layers */
    const char *moe_layers; /* "1,3"; "" none */
    uint32_t experts, top_k, expert_intermediate, shared_intermediate;
    int renormalise, tied_head;
    enum afd_dtype dtype; /* of the matrices; AFD_FP8 leaves embedding, head, router and norms in bf16 */
    uint32_t files;       /* 1, or the number of shards with an index */
    uint64_t seed;
};

/* Round sizes: hidden 64, 4 heads of 16, 4 layers of which 1 and 2 have 8 experts, top 3. */
struct afd_tiny_model afd_tiny_model_small(void);
/* No size is a multiple of anything: hidden 96, 5 heads of 24, q_rank 40, 7 experts top 2 in layers 1 and 3.
 */
struct afd_tiny_model afd_tiny_model_awkward(void);
/* Several 128x128 blocks a matrix, ragged: hidden 320, fp8. */
struct afd_tiny_model afd_tiny_model_fp8(void);

/* Makes `dir` if it is not there. */
enum afd_status afd_tiny_model_write(const struct afd_tiny_model *tiny, const char *dir,
                                     struct afd_error *error_out);

#endif
