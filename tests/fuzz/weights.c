#include "tests/fuzz/weights.h"

#include <assert.h>
#include <math.h>

#include "model/weight_read.h"

/* A few bytes can ask for 512 layers of 1,024 experts. */
enum { MOST_WEIGHTS = 2000, MOST_VALUES = 300 };

struct reader {
    const struct afd_model *model;
    const struct afd_checkpoint *checkpoint;
    int left;
    volatile int not_numbers; /* so that nothing is optimized away */
};

static void read_values(struct reader *r, const struct afd_weight_view *view, uint32_t row, int last)
{
    float values[MOST_VALUES];
    uint32_t n = view->columns < MOST_VALUES ? view->columns : MOST_VALUES;
    afd_weight_values(view, row, last ? view->columns - n : 0, n, values);
    for (uint32_t i = 0; i < n; i++) r->not_numbers += isnan(values[i]);
}

static enum afd_status read_corners(const struct afd_weight *weight, void *user)
{
    struct reader *r = user;
    struct afd_weight_view view;
    struct afd_error error = {""};
    if (!r->left--) return AFD_ERR_LIMIT;
    if (afd_weight_view(r->model, r->checkpoint, weight, &view, &error)) {
        assert(*error.text);
        return AFD_OK;
    }
    read_values(r, &view, 0, 0);
    read_values(r, &view, view.rows - 1, 1);
    if (view.int4.kind && !view.int4.groups) {
        uint8_t block[AFD_INT4_GROUP];
        assert(view.quant->bytes <= sizeof block);
        afd_int4_block(&view.int4, view.rows - 1, view.columns / AFD_INT4_GROUP - 1, block);
        r->not_numbers += block[0];
    }
    return AFD_OK;
}

void fuzz_read_weights(const struct afd_model *model, const struct afd_checkpoint *checkpoint)
{
    struct reader r = {.model = model, .checkpoint = checkpoint, .left = MOST_WEIGHTS};
    struct afd_share attention = {.ep = 1, .tp = 1},
                     ffn = {.ffn = 1, .shards = 1, .ep = 1, .tp = 2, .tp_index = 1};
    afd_weights_each(model, &attention, read_corners, &r);
    afd_weights_each(model, &ffn, read_corners, &r);
}
