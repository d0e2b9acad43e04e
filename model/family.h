/* family.h: what a family of models adds: how its config.json reads, and what it calls its tensors.
 *
 * A new family is one file with one `struct afd_family` and one line in the table of config.c. */
#ifndef AFD_MODEL_FAMILY_H
#define AFD_MODEL_FAMILY_H

#include "model/json.h"
#include "model/weights.h"

enum { AFD_TENSOR_NAME_BYTES = 128 };

struct afd_family {
    /* Names in "architectures" of config.json, ended by NULL. */
    const char *const *architectures;
    /* Fills everything of `model` but name, architecture, bos, eos and fp8_block. `config` is the object with
     * the text model's fields. `layers` is allocated here, freed by afd_model_destroy even on failure. */
    enum afd_status (*read)(const json_t *config, struct afd_model *model, struct afd_error *error_out);
    /* The tensor that holds a use, and whether experts are stacked in it ([experts, out, in]). Never called
     * for a use that the layer does not have. */
    int (*tensor)(const struct afd_model *model, enum afd_weight_use use, uint32_t layer, uint32_t expert,
                  char name_out[AFD_TENSOR_NAME_BYTES]);
};

extern const struct afd_family afd_family_step3;

/* By architecture; NULL when none knows it. */
const struct afd_family *afd_family_find(const char *architecture);

#endif
