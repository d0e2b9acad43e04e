/* convert_parts.h: what the files of a conversion share (inside the model folder only). */
#ifndef AFD_MODEL_CONVERT_PARTS_H
#define AFD_MODEL_CONVERT_PARTS_H

#include <limits.h>

#include "model/convert.h"
#include "model/family.h"
#include "model/normalizer.h"
#include "model/tensors.h"

enum { AFD_STRIP_ROWS = 128, AFD_INT4_PARTS = 4 };

/* ---- how a tensor is stored (convert_encode.c) */

enum afd_store_kind { AFD_STORE_PLAIN, AFD_STORE_FP8, AFD_STORE_QUANT, AFD_STORE_AWQ, AFD_STORE_GPTQ };

struct afd_store {
    const char *name; /* "q4_k" */
    enum afd_store_kind kind;
    enum afd_dtype dtype;      /* PLAIN */
    enum afd_quant_kind quant; /* QUANT */
    int in_safetensors, in_gguf;
};

/* NULL: there is none of that name. */
const struct afd_store *afd_store_find(const char *name);
const struct afd_store *afd_store_of(enum afd_dtype dtype, const struct afd_quant *quant);

struct afd_store_error {
    double max, squares, differences;
};

/* Rows [count][columns] of float32, at most AFD_STRIP_ROWS, as PLAIN or QUANT (out: rows one after the other)
 * or FP8 (out, and one scale for 128 columns). The error is added up. AFD_ERR_CONFIG: a number that is none,
 * or too large for the type. */
enum afd_status afd_store_rows(const struct afd_store *store, const float *rows, uint32_t count,
                               uint32_t columns, void *out, float *scales, struct afd_store_error *error,
                               struct afd_error *error_out);

/* A matrix in the layout of int4.h, filled strip by strip; strips begin on multiples of 8. */
struct afd_int4_out {
    enum afd_int4_kind kind;
    uint32_t rows, columns;
    uint32_t *weights, *zeros, *groups; /* groups: GPTQ */
    uint16_t *scales;
};
enum afd_status afd_int4_out_init(struct afd_int4_out *out, enum afd_int4_kind kind, uint32_t rows,
                                  uint32_t columns);
void afd_int4_out_fini(struct afd_int4_out *out);
enum afd_status afd_int4_out_rows(struct afd_int4_out *out, const float *rows, uint32_t begin, uint32_t count,
                                  struct afd_store_error *error, struct afd_error *error_out);

/* ---- GGUF keys, one after the other (convert_out.c) */

struct afd_keys {
    struct afd_buffer data;
    uint64_t count;
    enum afd_status status; /* the first failure; what follows does nothing */
};
void afd_keys_raw(struct afd_keys *keys, const char *key, const void *raw, size_t bytes);
void afd_keys_uint(struct afd_keys *keys, const char *key, uint32_t value);
void afd_keys_real(struct afd_keys *keys, const char *key, double value);
void afd_keys_bool(struct afd_keys *keys, const char *key, int value);
void afd_keys_text(struct afd_keys *keys, const char *key, const char *text, size_t bytes);
/* The head of an array; its elements follow by afd_keys_element, of strings by afd_keys_string. */
void afd_keys_array(struct afd_keys *keys, const char *key, enum afd_gguf_kind kind, uint64_t count);
void afd_keys_element(struct afd_keys *keys, const void *data, size_t bytes);
void afd_keys_string(struct afd_keys *keys, const char *text, size_t bytes);

/* ---- the files that are written (convert_out.c) */

/* One tensor of a file. */
struct afd_piece {
    char name[AFD_TENSOR_NAME_BYTES + 16];
    const char *type;     /* safetensors: "BF16" */
    uint32_t type_id;     /* GGUF */
    uint32_t dims, width; /* width: of an element, which it is aligned to */
    uint64_t shape[AFD_MAX_DIMS];
    uint64_t bytes, offset; /* offset: from the data's beginning */
    uint32_t file;
    int goes_on; /* belongs to the tensor of the piece before it, and stays in its file */
};

struct afd_out {
    char final[PATH_MAX], dir[PATH_MAX]; /* dir: what is renamed, or (a lone .gguf) whose file is */
    int to_gguf, lone_file, lock_fd;
    struct afd_piece *pieces;
    uint32_t count, room;
    struct afd_out_file {
        int fd;
        uint64_t header_bytes, bytes; /* bytes: of the data */
    } * files;
    uint32_t file_count;
};

/* Refuses an OUT that is there; takes over what a killed one left. */
enum afd_status afd_out_open(struct afd_out *out, const char *path, int to_gguf, struct afd_error *error_out);
/* A copy of `piece`; offset and file come later. */
enum afd_status afd_out_add(struct afd_out *out, const struct afd_piece *piece);
/* After the last piece: places them, makes the files with their headers, and reserves their bytes. `keys` are
 * GGUF's, else NULL. */
enum afd_status afd_out_begin(struct afd_out *out, uint64_t shard_bytes, const struct afd_keys *keys,
                              struct afd_error *error_out);
enum afd_status afd_out_write(struct afd_out *out, const struct afd_piece *piece, uint64_t at,
                              const void *data, uint64_t bytes, struct afd_error *error_out);
/* A small file beside the weights. */
enum afd_status afd_out_text(struct afd_out *out, const char *name, const void *data, size_t bytes,
                             struct afd_error *error_out);
enum afd_status afd_out_json(struct afd_out *out, const char *name, const json_t *value,
                             struct afd_error *error_out);
/* Syncs, opens the result as a model, renames. */
enum afd_status afd_out_finish(struct afd_out *out, struct afd_error *error_out);
/* Removes what was not finished. */
void afd_out_close(struct afd_out *out);

/* ---- what is said beside the weights */

/* The keys of a model that was read from safetensors; `config` is its config.json. (convert_metadata.c) */
enum afd_status afd_convert_keys(const struct afd_model *model, const json_t *config,
                                 const struct afd_store *store, struct afd_keys *keys,
                                 struct afd_error *error_out);
/* What llama3's scaling divides the frequencies by, [dim / 2] of the layers that are scaled, filled up with 1
 * to the widest layer. *count_out 0: no layer is scaled so. */
enum afd_status afd_convert_rope_table(const struct afd_model *model, float **out, uint32_t *count_out,
                                       struct afd_error *error_out);
/* config.json of a model that was read from GGUF. */
enum afd_status afd_convert_config(const struct afd_gguf *gguf, const struct afd_model *model, json_t **out,
                                   struct afd_error *error_out);

/* (convert_tokenizer.c) */
enum afd_status afd_convert_tokenizer_keys(const char *in, const struct afd_model *model,
                                           struct afd_keys *keys, struct afd_error *error_out);
enum afd_status afd_convert_tokenizer_json(const struct afd_gguf *gguf, struct afd_out *out,
                                           struct afd_error *error_out);
int afd_gguf_token_type(const struct afd_gguf *gguf, uint64_t id); /* tokenizer_parts.h */

/* What a tokenizer of characters, SentencePiece's, has of its own (convert_spaced.c): keys for merges and
 * spaces; the types of bytes and of the unknown token change. `root` is the tokenizer.json of `t`; texts and
 * types: [count]. */
struct afd_tokenizer;
enum afd_status afd_spaced_keys(const json_t *root, const struct afd_tokenizer *t, const char *const *texts,
                                int32_t *types, uint32_t count, struct afd_keys *keys,
                                struct afd_error *error_out);
/* Parts of a tokenizer.json, the caller's; NULL: no memory. */
json_t *afd_spaced_merges(const struct afd_gguf *gguf, const json_t *vocab);
json_t *afd_spaced_normalizer(int adds_space);
json_t *afd_spaced_decoder(int adds_space);

#endif
