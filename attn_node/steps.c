#include "attn_node/steps.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/starts.h"

/* How a token is chosen where a sequence must begin with one of some: the sequence's own parameters, changed.
 */
struct start {
    struct afd_sampling sampling;
    struct afd_logit_bias bias[AFD_MAX_STARTS];
};

struct slot {
    int busy; /* an op is under way, `ticket` the last of them */
    uint64_t ticket;
    struct afd_partials partials;
    uint32_t to_count;
    struct afd_route_to to[AFD_PIPELINE_MAX_INSTANCES];
    uint8_t to_of[AFD_PIPELINE_MAX_INSTANCES]; /* index in `to`, by instance */
    uint32_t choice_count;
    uint32_t *logit_rows; /* [max_rows], as all below */
    struct afd_choice *choices;
    struct afd_chosen *chosen;
    uint32_t *tokens;
    struct start *starts;
};

struct afd_steps {
    struct afd_steps_config config;
    uint32_t max_rows;
    struct afd_segment *segments; /* scratch of load: the device copies */
    struct slot slots[AFD_MAX_SLOTS];
};

struct afd_steps *afd_steps_create(const struct afd_steps_config *config)
{
    struct afd_steps *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->config = *config;
    s->max_rows = config->slab->wire.shape.max_rows;
    s->segments = calloc(s->max_rows, sizeof *s->segments);
    int good = s->segments != NULL;
    for (uint32_t i = 0; i < config->slab->slots; i++) {
        struct slot *slot = &s->slots[i];
        slot->logit_rows = calloc(s->max_rows, sizeof *slot->logit_rows);
        slot->choices = calloc(s->max_rows, sizeof *slot->choices);
        slot->chosen = calloc(s->max_rows, sizeof *slot->chosen);
        slot->tokens = calloc(s->max_rows, sizeof *slot->tokens);
        slot->starts = calloc(s->max_rows, sizeof *slot->starts); /* touched where a start is asked for */
        good &= slot->logit_rows && slot->choices && slot->chosen && slot->tokens && slot->starts;
    }
    if (good) return s;
    afd_steps_destroy(s);
    return NULL;
}

void afd_steps_destroy(struct afd_steps *s)
{
    if (!s) return;
    for (uint32_t i = 0; i < AFD_MAX_SLOTS; i++) {
        free(s->slots[i].logit_rows);
        free(s->slots[i].choices);
        free(s->slots[i].chosen);
        free(s->slots[i].tokens);
        free(s->slots[i].starts);
    }
    free(s->segments);
    free(s);
}

/* A bias so far above any logit that no other token is drawn; what is allowed keeps its order to 1e-4. */
static const float start_bias = 1000.0f;

/* Keeps a choice to what its sequence must begin with. Bias and penalties of the request wait until it has
 * begun. */
static void keep_to_start(struct afd_choice *choice, struct start *own)
{
    const struct afd_sampling *s = choice->sampling;
    uint32_t tokens[AFD_MAX_STARTS], count;
    enum afd_starts_state state =
        afd_starts_next(s->starts, s->start_words, choice->tokens + choice->prompt_count,
                        choice->token_count - choice->prompt_count, tokens, &count);
    if (state == AFD_STARTS_FREE) return;
    if (count == 1) {
        choice->forced = tokens[0];
        return;
    }
    own->sampling = *s;
    choice->sampling = &own->sampling;
    if (state == AFD_STARTS_WAITING) {
        own->sampling.min_tokens = UINT32_MAX; /* masks the stop tokens */
        return;
    }
    for (uint32_t i = 0; i < count; i++) own->bias[i] = (struct afd_logit_bias){tokens[i], start_bias};
    own->sampling.bias = own->bias;
    own->sampling.bias_count = count;
    own->sampling.repetition_penalty = 1;
    own->sampling.presence_penalty = own->sampling.frequency_penalty = 0;
}

enum afd_status afd_steps_load(struct afd_steps *s, uint32_t i)
{
    const struct afd_batch *batch = s->config.batch;
    const struct afd_batch_step *step = afd_batch_step_of(batch, i);
    struct slot *slot = &s->slots[i];
    assert(!slot->busy);
    for (uint32_t n = 0; n < step->segment_count; n++) {
        const struct afd_batch_segment *from = &step->segments[n];
        struct afd_segment *to = &s->segments[n];
        *to = (struct afd_segment){
            .first_row = from->first_row, .rows = from->rows, .first_position = from->first_position};
        to->blocks = afd_kv_table(afd_batch_kv(batch), from->sequence, &to->block_count);
        to->group_stride = afd_kv_group_stride(afd_batch_kv(batch));
    }
    slot->choice_count = step->choice_count;
    for (uint32_t n = 0; n < step->choice_count; n++) {
        const struct afd_batch_choice *from = &step->choices[n];
        struct afd_choice *to = &slot->choices[n];
        slot->logit_rows[n] = from->row;
        *to = (struct afd_choice){.logit_row = n, .token_count = from->token_count, .forced = from->forced};
        to->sampling = afd_batch_sampling(batch, from->sequence);
        to->tokens = afd_batch_tokens(batch, from->sequence, &to->prompt_count);
        if (to->prompt_count > to->token_count) to->prompt_count = to->token_count; /* amid the prompt */
        if (to->forced < 0) keep_to_start(to, &slot->starts[n]);
    }
    struct afd_step whole = {.rows = step->rows,
                             .segment_count = step->segment_count,
                             .tokens = step->tokens,
                             .segments = s->segments};
    if (s->config.lead) afd_lead_load(s->config.lead, i, &whole);
    return afd_device_step(s->config.device, i, &whole);
}

/* The partial sums that answered the layer before: where no row was active there are none. */
static void set_partials(struct afd_steps *s, uint32_t i)
{
    const struct afd_slab *slab = s->config.slab;
    for (uint32_t shard = 0; shard < slab->shards; shard++) {
        uint32_t by = afd_pipeline_answered_by(s->config.pipeline, i, shard);
        s->slots[i].partials.rows[shard] =
            by == AFD_PIPELINE_NOBODY ? NULL : afd_slab_partials(slab, by, i, shard);
    }
}

static void set_destinations(struct afd_steps *s, uint32_t i)
{
    struct slot *slot = &s->slots[i];
    const uint64_t *shards = afd_pipeline_destinations(s->config.pipeline, i);
    slot->to_count = 0;
    for (uint32_t instance = 0; instance < s->config.slab->instances; instance++) {
        if (!shards[instance]) continue;
        slot->to_of[instance] = (uint8_t)slot->to_count;
        slot->to[slot->to_count++] =
            (struct afd_route_to){.shards = shards[instance],
                                  .every_row = s->config.dispatch == AFD_DISPATCH_BROADCAST,
                                  .records = afd_slab_records(s->config.slab, i, instance)};
    }
}

enum afd_status afd_steps_submit(struct afd_steps *s, uint32_t i, uint32_t layer)
{
    struct slot *slot = &s->slots[i];
    struct afd_op ops[3];
    uint32_t count = 0;
    assert(!slot->busy);
    if (layer == s->config.layers && !slot->choice_count) return AFD_OK;
    set_partials(s, i);
    struct afd_op route = {.kind = AFD_OP_ROUTE, .slot = i, .layer = layer, .route.to = slot->to};
    if (layer < s->config.layers) {
        set_destinations(s, i);
        route.route.to_count = slot->to_count;
        if (s->config.lead) return afd_lead_submit(s->config.lead, i, layer, &slot->partials, &route);
        if (layer == 0) ops[count++] = (struct afd_op){.kind = AFD_OP_EMBED};
        ops[count++] = (struct afd_op){.kind = AFD_OP_ATTN, .attn = {.partials = &slot->partials}};
        ops[count++] = route;
    } else {
        ops[count++] = (struct afd_op){
            .kind = AFD_OP_LOGITS,
            .logits = {.partials = &slot->partials, .rows = slot->logit_rows, .count = slot->choice_count}};
        ops[count++] = (struct afd_op){
            .kind = AFD_OP_SAMPLE,
            .sample = {.choices = slot->choices, .chosen_out = slot->chosen, .count = slot->choice_count}};
    }
    for (uint32_t n = 0; n < count; n++) {
        ops[n].slot = i;
        ops[n].layer = layer < s->config.layers ? layer : 0;
        ops[n].quiet = n + 1 < count;
        enum afd_status status = afd_device_submit(s->config.device, &ops[n], &slot->ticket);
        if (status) return status;
    }
    slot->busy = 1;
    return AFD_PENDING;
}

uint32_t afd_steps_computed(struct afd_steps *s, uint64_t ticket, int *is_over_out)
{
    uint32_t led = s->config.lead ? afd_lead_computed(s->config.lead, ticket, is_over_out) : UINT32_MAX;
    if (led != UINT32_MAX) return led;
    *is_over_out = 1;
    for (uint32_t i = 0; i < s->config.slab->slots; i++)
        if (s->slots[i].busy && s->slots[i].ticket == ticket) {
            s->slots[i].busy = 0;
            return i;
        }
    return UINT32_MAX;
}

int afd_steps_are_busy(const struct afd_steps *s)
{
    int busy = s->config.lead && afd_lead_is_on_device(s->config.lead);
    for (uint32_t i = 0; i < s->config.slab->slots; i++) busy |= s->slots[i].busy;
    return busy;
}

const uint32_t *afd_steps_active(const struct afd_steps *s, uint32_t slot)
{
    return afd_device_route_result(s->config.device, slot)->active;
}

const uint32_t *afd_steps_experts(const struct afd_steps *s, uint32_t slot)
{
    return afd_device_route_result(s->config.device, slot)->experts;
}

uint32_t afd_steps_rows(const struct afd_steps *s, uint32_t slot, uint32_t instance)
{
    return afd_device_route_result(s->config.device, slot)->rows[s->slots[slot].to_of[instance]];
}

enum afd_status afd_steps_exchange(struct afd_steps *s, uint32_t i, uint32_t a, uint32_t b, uint32_t stride)
{
    uint64_t bytes_a = (uint64_t)afd_steps_rows(s, i, a) * stride;
    uint64_t bytes_b = (uint64_t)afd_steps_rows(s, i, b) * stride;
    unsigned char *of_a = afd_slab_records(s->config.slab, i, a), *spare = afd_slab_spare(s->config.slab),
                  *of_b = afd_slab_records(s->config.slab, i, b);
    uint8_t index = s->slots[i].to_of[a];
    s->slots[i].to_of[a] = s->slots[i].to_of[b];
    s->slots[i].to_of[b] = index;
    enum afd_status status = afd_device_move(s->config.device, spare, of_a, bytes_a);
    if (!status) status = afd_device_move(s->config.device, of_a, of_b, bytes_b);
    return status ? status : afd_device_move(s->config.device, of_b, spare, bytes_a);
}

const struct afd_chosen *afd_steps_chosen(const struct afd_steps *s, uint32_t slot)
{
    return s->slots[slot].chosen;
}

const uint32_t *afd_steps_tokens(struct afd_steps *s, uint32_t i)
{
    struct slot *slot = &s->slots[i];
    for (uint32_t n = 0; n < slot->choice_count; n++) slot->tokens[n] = slot->chosen[n].token;
    return slot->tokens;
}
