/* random_weights.h: weights that are not stored anywhere: a pool of random bytes, mapped over and over,
 * stands for every matrix that a model has. For measurements of models that are not at hand, or are larger
 * than the disk.
 *
 * Values are finite in all kinds, of either sign and of magnitudes from 2^-9 to 448 (e4m3, with scales that
 * make 0.01 to 0.03 of 1) or about 0.01 (bf16, int4). Read-only, any thread. Internal to model/: a checkpoint
 * owns it (afd_checkpoint_random). */
#ifndef AFD_MODEL_RANDOM_WEIGHTS_H
#define AFD_MODEL_RANDOM_WEIGHTS_H

#include "model/weights.h"

struct afd_random_weights;

/* What is never stored as `kind`, or cannot be for its shape, is bf16. */
enum afd_status afd_random_weights_create(enum afd_random_kind kind, struct afd_random_weights **out,
                                          struct afd_error *error_out);
/* What all values are taken from. */
const void *afd_random_weights_pool(const struct afd_random_weights *weights, uint64_t *bytes_out);
void afd_random_weights_destroy(struct afd_random_weights *weights); /* NULL is allowed */
/* AFD_ERR_LIMIT with words: a matrix larger than the mapping. */
enum afd_status afd_random_weights_view(const struct afd_random_weights *weights,
                                        const struct afd_weight *weight, struct afd_weight_view *out,
                                        struct afd_error *error_out);

#endif
