/* What lies beside a topology's config.json, looked at before anything starts. */
#include "model/weights.h"
#include "cli/cli.h"
#include "model/tensors.h"
#include "model/tokenizer.h"

static enum afd_status look(const struct afd_weight *weight, void *user)
{
    struct cli_weights *w = user;
    struct afd_weight_view view;
    enum afd_status status = afd_weight_view(w->model, w->checkpoint, weight, &view, w->error);
    if (status) afd_error_prefix(w->error, "%s", w->dir);
    return status;
}

enum afd_status cli_weights_open(const char *dir, struct cli_weights *w)
{
    struct afd_share ffn = {.ffn = 1, .shards = 1, .ep = 1, .tp = 1}, attn = {.ep = 1, .tp = 1};
    struct afd_tokenizer *tokenizer = NULL;
    w->dir = dir;
    w->checkpoint = NULL;
    if (!afd_checkpoint_exists(dir)) return AFD_OK;
    enum afd_status status = afd_checkpoint_open(dir, &w->checkpoint, w->error);
    if (!status) status = afd_weights_each(w->model, &attn, look, w);
    if (!status) status = afd_weights_each(w->model, &ffn, look, w);
    if (!status) status = afd_tokenizer_load(dir, &tokenizer, w->error);
    afd_tokenizer_destroy(tokenizer);
    return status;
}
