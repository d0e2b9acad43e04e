/* normalizer.h: what a tokenizer does to text before it is split (inside the model folder only).
 *
 * A chain of steps: NFC, Prepend, Replace of a fixed string. Built once, then read-only; the buffers are one
 * thread's. */
#ifndef AFD_MODEL_NORMALIZER_H
#define AFD_MODEL_NORMALIZER_H

#include "model/json.h"

enum { AFD_NORMALIZER_STEPS = 8 };

enum afd_normal_kind { AFD_NORMAL_NFC, AFD_NORMAL_PREPEND, AFD_NORMAL_REPLACE };

struct afd_normalizer {
    struct afd_normal_step {
        enum afd_normal_kind kind;
        char *from, *to; /* PREPEND: `to` alone */
    } steps[AFD_NORMALIZER_STEPS];
    int count;
};

/* A text that grows; all zeroes is empty. */
struct afd_buffer {
    char *data;
    size_t bytes, room;
};
enum afd_status afd_buffer_add(struct afd_buffer *buffer, const void *data, size_t bytes);
void afd_buffer_fini(struct afd_buffer *buffer);

/* `config` NULL or null: no steps. */
enum afd_status afd_normalizer_init(struct afd_normalizer *n, const json_t *config,
                                    struct afd_error *error_out);
/* Strings are copied. */
enum afd_status afd_normalizer_add(struct afd_normalizer *n, enum afd_normal_kind kind, const char *from,
                                   const char *to, struct afd_error *error_out);
void afd_normalizer_fini(struct afd_normalizer *n);

/* *text and *bytes, valid UTF-8, become the normalized text: themselves, or one of the buffers' until the
 * next call with it. AFD_ERR_LIMIT when it would grow beyond 1 GiB. */
enum afd_status afd_normalizer_run(const struct afd_normalizer *n, struct afd_buffer buffers[2],
                                   const char **text, size_t *bytes);

#endif
