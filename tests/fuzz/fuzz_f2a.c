/* Guards: an F2A message (header, region, notice) that crashes an attention rank, is counted twice, or is
 * taken with other rows than were asked for.
 *
 * The input is what FFN ranks answer, one after the other:
 *   | uint8 instance | uint8 region | uint16 sequence | uint32 bytes | struct afd_f2a_header |
 * as the transport lets them: to a region that exists, at most its size. */
#include "attn_node/node.c"
#include "model/tiny_model.h"
#include "tests/fuzz/fuzz.h"

enum {
    SLOTS = 2,
    SHARDS = 3,
    INSTANCES = 2,
    LAYERS = 3,
    ROWS = 4,
    STEPS = 4,
    FRAME = 8 + sizeof(struct afd_f2a_header)
};

/* Rows of each layer that are active in each shard. */
static const uint32_t active[LAYERS][AFD_MAX_SHARDS] = {{4, 1, 2}, {3, 0, 4}, {0, 2, 0}};

static struct afd_attn_node *node;
static struct afd_topology topology;
static char pairs[INSTANCES]; /* their addresses stand for pairs */
static uint32_t refused, steps;
static int is_refused, was_taken;

/* What was asked last of (slot, shard): the good answers follow from it. */
static struct {
    uint32_t instance;
    struct afd_f2a_header answer;
    int is_owed;
} asked[SLOTS][SHARDS];

/* ---- in place of the pairs and the device's memory (--wrap) */

uint32_t __wrap_afd_links_instance(const struct afd_links *links, const struct afd_pair *pair);
void __wrap_afd_links_fail(struct afd_links *links, uint32_t instance, enum afd_status status,
                           const char *words);
void *__wrap_afd_device_alloc(struct afd_device *device, uint64_t bytes);

uint32_t __wrap_afd_links_instance(const struct afd_links *links, const struct afd_pair *pair)
{
    (void)links;
    return (uint32_t)((const char *)pair - pairs);
}

void __wrap_afd_links_fail(struct afd_links *links, uint32_t instance, enum afd_status status,
                           const char *words)
{
    assert(!links && instance < INSTANCES && status < 0 && *words);
    refused++;
    is_refused = 1;
    afd_pipeline_close(node->pipeline, instance);
}

void *__wrap_afd_device_alloc(struct afd_device *device, uint64_t bytes)
{
    assert(!device);
    void *memory = aligned_alloc(4096, bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

/* ---- an attention rank whose device computes nothing */

static void open_node(void)
{
    struct afd_tiny_model tiny = afd_tiny_model_small();
    struct afd_error error;
    struct afd_model *model;
    char dir[] = "/tmp/afd-fuzz-XXXXXX", command[64];
    afd_log_init("fuzz", AFD_LOG_ERROR);
    if (!mkdtemp(dir) || afd_tiny_model_write(&tiny, dir, &error) || afd_model_load(dir, &model, &error))
        abort();
    snprintf(command, sizeof command, "rm -r %s", dir);
    if (system(command)) abort();
    node = calloc(1, sizeof *node);
    if (!node) abort();
    node->wire = afd_wire_layout_of(
        (struct afd_wire_shape){model->hidden, model->max_top_k, ROWS, AFD_BF16, AFD_BF16});
    node->config.model = model;
    node->config.topology = &topology;
    node->slots = SLOTS;
    node->layers = LAYERS;
    node->shards = SHARDS;
    node->instances = INSTANCES;
    struct event_base *base = event_base_new();
    node->tracer = base ? afd_tracer_create(base) : NULL;
    if (!node->tracer) abort();
    node->trace = afd_tracer_trace(node->tracer);
    node->report = afd_report_create(&(struct afd_report_config){model, INSTANCES});
    if (!node->report || afd_slab_init(&node->slab, NULL, &node->wire, SLOTS, INSTANCES, SHARDS, &error))
        abort();
}

static void ask(const struct afd_pipeline_action *a)
{
    for (uint32_t s = 0; s < SHARDS; s++) {
        if (!(a->shards >> s & 1)) continue;
        asked[a->slot][s].instance = a->instance;
        asked[a->slot][s].is_owed = 1;
        asked[a->slot][s].answer = (struct afd_f2a_header){.magic = AFD_F2A_MAGIC,
                                                           .version = AFD_PROTOCOL_VERSION,
                                                           .step = a->step,
                                                           .rows = active[a->layer][s],
                                                           .layer = (uint16_t)a->layer,
                                                           .slot = (uint16_t)a->slot,
                                                           .shard = (uint16_t)s,
                                                           .sequence = a->sequence};
    }
}

/* Lets the slots go as far as they can without answers; a step that ended is followed by another. */
static void advance(void)
{
    struct afd_pipeline_action actions[AFD_PIPELINE_MAX_ACTIONS];
    uint32_t count;
    do {
        for (uint32_t slot = 0; slot < SLOTS; slot++)
            if (afd_pipeline_is_free(node->pipeline, slot) && steps < STEPS) {
                afd_pipeline_begin(node->pipeline, slot);
                steps++;
            }
        count = afd_pipeline_run(node->pipeline, ++node->now, actions, AFD_PIPELINE_MAX_ACTIONS);
        for (uint32_t i = 0; i < count; i++) {
            const struct afd_pipeline_action *a = &actions[i];
            if (a->kind == AFD_PIPELINE_SEND) ask(a);
            if (a->kind != AFD_PIPELINE_COMPUTE) continue;
            afd_pipeline_computed(node->pipeline, a->slot, a->layer < LAYERS ? active[a->layer] : NULL);
        }
    } while (count);
}

static void begin(void)
{
    static const uint32_t both[] = {0, 1}, other[] = {1, 0};
    afd_pipeline_destroy(node->pipeline);
    node->pipeline = afd_pipeline_create(&(struct afd_pipeline_config){.slots = SLOTS,
                                                                       .layers = LAYERS,
                                                                       .shards = SHARDS,
                                                                       .instances = INSTANCES,
                                                                       .depth = 2,
                                                                       .patience = {1000, 1000, 1},
                                                                       .give_up = 1000});
    if (!node->pipeline) abort();
    for (uint32_t s = 0; s < SHARDS; s++) afd_pipeline_place(node->pipeline, s, s == 1 ? other : both, 2);
    for (uint32_t i = 0; i < INSTANCES; i++) afd_pipeline_open(node->pipeline, i);
    memset(asked, 0, sizeof asked);
    steps = refused = 0;
    advance();
}

static void take_frame(const uint8_t *data)
{
    struct afd_transport_event event = {.kind = AFD_EVENT_NOTICE, .region = data[1] % (SLOTS * SHARDS)};
    uint32_t instance = data[0] % INSTANCES;
    struct afd_f2a_header h;
    event.pair = (struct afd_pair *)&pairs[instance];
    memcpy(&event.sequence, data + 2, sizeof event.sequence);
    memcpy(&event.bytes, data + 4, sizeof event.bytes);
    memcpy(&h, data + 8, sizeof h);
    if (event.bytes > node->wire.f2a_region_bytes) event.bytes %= (uint32_t)node->wire.f2a_region_bytes + 1;
    memcpy(afd_slab_region(&node->slab, instance, 0, event.region).base, &h, sizeof h);
    is_refused = 0;
    on_notice(node, &event);
    if (!is_refused) {
        uint32_t slot = event.region / SHARDS, shard = event.region % SHARDS;
        assert(h.layer < LAYERS && h.rows == active[h.layer][shard]);
        assert(event.bytes == sizeof h + h.rows * node->wire.f2a_stride);
        assert(asked[slot][shard].is_owed && asked[slot][shard].answer.step == h.step &&
               asked[slot][shard].answer.sequence == h.sequence && asked[slot][shard].instance == instance);
        asked[slot][shard].is_owed = 0;
    }
    advance();
    if (is_refused) afd_pipeline_open(node->pipeline, instance);
    advance();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!node) open_node();
    begin();
    for (; bytes >= FRAME; data += FRAME, bytes -= FRAME) take_frame(data);
    was_taken = !refused && !bytes && steps == STEPS;
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

/* ---- a good one: every answer that is owed, until nothing is */

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    uint8_t *data = calloc(256, FRAME), *at = data;
    if (!data) abort();
    if (!node) open_node();
    begin();
    for (uint32_t place = 0, idle = 0; idle < SLOTS * SHARDS; place = (place + 1) % (SLOTS * SHARDS)) {
        uint32_t slot = place / SHARDS, shard = place % SHARDS;
        idle++;
        if (!asked[slot][shard].is_owed) continue;
        idle = 0;
        const struct afd_f2a_header *h = &asked[slot][shard].answer;
        uint32_t bytes = (uint32_t)sizeof *h + h->rows * node->wire.f2a_stride;
        assert(at < data + 255 * FRAME);
        at[0] = (uint8_t)asked[slot][shard].instance;
        at[1] = (uint8_t)place;
        memcpy(at + 2, &h->sequence, sizeof h->sequence);
        memcpy(at + 4, &bytes, sizeof bytes);
        memcpy(at + 8, h, sizeof *h);
        take_frame(at);
        at += FRAME;
    }
    *bytes_out = (size_t)(at - data);
    return data;
}
