/* Guards: an A2F message (header, records, region, notice) that crashes an FFN rank, is answered with more
 * than a region holds, or is never answered although it was taken.
 *
 * The input is what attention ranks do, one after the other:
 *   | uint8 how: rank, WRITE alone, SERVE | uint8 region | uint16 sequence | uint32 bytes | bytes of the
 * message | as the transport lets them: to a region that exists, at most its size. */
#include <assert.h>
#include <poll.h>

#include "ffn_node/node.c"
#include "model/tiny_model.h"
#include "tests/fuzz/fuzz.h"

enum { RANKS = 2, SLOTS = 2, SHARDS = 2, ROWS = 4, WRITE = 2, SERVE = 4, FRAME = 8 };

static struct afd_ffn_node *node;
static uint32_t answers, refused;
static int was_taken;
static char pairs[RANKS]; /* their addresses stand for pairs */

/* ---- in place of the transport (--wrap) */

void __wrap_afd_pair_close(struct afd_pair *pair);
enum afd_status __wrap_afd_transport_register(struct afd_transport *t, void *base, uint64_t bytes);
enum afd_status __wrap_afd_pair_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                                    uint16_t sequence);

void __wrap_afd_pair_close(struct afd_pair *pair)
{
    assert((char *)pair >= pairs && (char *)pair < pairs + RANKS);
    refused++;
}

enum afd_status __wrap_afd_transport_register(struct afd_transport *t, void *base, uint64_t bytes)
{
    assert(!t && base && bytes);
    return AFD_OK;
}

enum afd_status __wrap_afd_pair_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                                    uint16_t sequence)
{
    struct afd_f2a_header h;
    volatile unsigned sum = 0;
    memcpy(&h, from, sizeof h);
    assert((char *)pair >= pairs && (char *)pair < pairs + RANKS);
    assert(region < SLOTS * SHARDS && h.slot == region / SHARDS && h.shard == region % SHARDS);
    assert(h.magic == AFD_F2A_MAGIC && h.rows <= ROWS && h.sequence == sequence);
    assert(bytes == sizeof h + h.rows * node->wire.f2a_stride && bytes <= node->wire.f2a_region_bytes);
    for (uint32_t i = 0; i < bytes; i++) sum += ((const unsigned char *)from)[i];
    return ++answers % 5 ? AFD_OK : AFD_AGAIN;
}

/* ---- an FFN rank without a network */

static struct afd_topology topology = {
    .pipeline = {.microbatches = SLOTS, .max_rows = ROWS, .a2f = AFD_BF16, .f2a = AFD_F32},
    .attn = {.instances = RANKS,
             .max_instances = RANKS,
             .ranks_per_instance = 1,
             .host_count = 1,
             .hosts = {"localhost"}},
    .ffn = {.instances = 1,
            .max_instances = 1,
            .ranks_per_instance = 1,
            .threads = 1,
            .ep = SHARDS,
            .tp = 1,
            .host_count = 1,
            .hosts = {"localhost"}},
};

static void open_sources(void)
{
    for (uint32_t i = 0; i < RANKS; i++) {
        struct ffn_source *source = &node->sources[i];
        if (source->pair || !afd_ffn_group_is_quiet(node->core, (uint16_t)i)) continue;
        source->pair = (struct afd_pair *)&pairs[i];
        source->is_open = 1;
        node->open_pairs++;
    }
}

static void open_node(void)
{
    struct afd_tiny_model tiny = afd_tiny_model_small();
    struct afd_error error;
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
    char dir[] = "/tmp/afd-fuzz-XXXXXX", command[64];
    afd_log_init("fuzz", AFD_LOG_ERROR);
    if (!mkdtemp(dir) || afd_tiny_model_write(&tiny, dir, &error) || afd_model_load(dir, &model, &error) ||
        afd_checkpoint_open(dir, &checkpoint, &error))
        abort();
    snprintf(command, sizeof command, "rm -r %s", dir); /* what is open stays mapped */
    if (system(command)) abort();
    node = calloc(1, sizeof *node);
    if (!node) abort();
    node->config.checkpoint = checkpoint;
    node->topology = &topology;
    node->model = model;
    if (init(node, &error) || open_events(node, &error)) abort();
    if (!(node->tracer = afd_tracer_create(node->base))) abort();
    node->trace = afd_tracer_trace(node->tracer);
    node->wanted = (1 << SHARDS) - 1;
    node->room = SHARDS;
    if (ffn_load(node, &error)) abort();
}

static int is_idle(void)
{
    int busy = node->device_ops || node->outbox_count || afd_ffn_group_queued(node->core);
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++) busy |= node->runs[i].step != RUN_IDLE;
    return !busy;
}

static void serve(void)
{
    while (!is_idle()) {
        struct pollfd fd = {.fd = afd_device_event_fd(node->device), .events = POLLIN};
        if (!ffn_serve(node, afd_now()) && node->device_ops && !afd_device_arm(node->device))
            poll(&fd, 1, -1);
        assert(!node->is_exiting);
    }
    for (uint32_t i = 0; i < RANKS; i++)
        for (uint32_t s = 0; s < SLOTS; s++)
            assert(!node->sources[i].places[s].is_busy && !node->sources[i].places[s].unsent);
    open_sources();
}

/* ---- the input */

static void check_taken(const struct afd_a2f_header *h, const struct afd_transport_event *event)
{
    assert(h->slot == event->region && h->sequence == event->sequence);
    assert(h->layer < node->model->layer_count && h->rows <= ROWS && h->shards && h->shards < 1 << SHARDS);
    assert(event->bytes == sizeof *h + (uint64_t)h->rows * node->wire.a2f_stride);
}

static size_t take_frame(const uint8_t *data, size_t bytes)
{
    struct ffn_source *source = &node->sources[data[0] % RANKS];
    struct afd_transport_event event = {.kind = AFD_EVENT_NOTICE, .region = data[1] % SLOTS};
    memcpy(&event.sequence, data + 2, sizeof event.sequence);
    memcpy(&event.bytes, data + 4, sizeof event.bytes);
    if (event.bytes > node->wire.a2f_region_bytes) event.bytes %= (uint32_t)node->wire.a2f_region_bytes + 1;
    size_t there = bytes - FRAME < event.bytes ? bytes - FRAME : event.bytes;
    memcpy(ffn_a2f_region(node, source->rank, event.region).base, data + FRAME, there);
    if (!(data[0] & WRITE) && source->pair) {
        ffn_on_message(node, source, &event, afd_now());
        if (source->pair) check_taken(&source->places[event.region].header, &event);
    }
    if (data[0] & SERVE) serve();
    return FRAME + there;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!node) open_node();
    memset(node->slab, 0, (size_t)(node->whole.f2a - node->slab));
    open_sources();
    refused = 0;
    while (bytes >= FRAME) {
        size_t used = take_frame(data, bytes);
        data += used;
        bytes -= used;
    }
    serve();
    was_taken = !refused && !bytes;
    for (uint32_t i = 0; i < RANKS; i++)
        if (node->sources[i].pair) ffn_poison(node, &node->sources[i], "the input ends");
    serve();
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

/* ---- a good one */

static uint8_t *add_message(uint8_t *to, uint8_t how, uint8_t region, uint16_t sequence, uint16_t layer,
                            uint32_t rows, uint64_t step)
{
    const struct afd_wire_layout *w = &node->wire;
    uint32_t bytes = (uint32_t)sizeof(struct afd_a2f_header) + rows * w->a2f_stride;
    struct afd_a2f_header h = {.magic = AFD_A2F_MAGIC,
                               .version = AFD_PROTOCOL_VERSION,
                               .shards = (1 << SHARDS) - 1,
                               .step = step,
                               .rows = rows,
                               .layer = layer,
                               .slot = region,
                               .sequence = sequence};
    to[0] = how;
    to[1] = region;
    memcpy(to + 2, &sequence, sizeof sequence);
    memcpy(to + 4, &bytes, sizeof bytes);
    memcpy(to + FRAME, &h, sizeof h);
    int has_experts = node->model->layers[layer].ffn.kind == AFD_FFN_EXPERTS;
    for (uint32_t r = 0; r < rows; r++) {
        uint8_t *record = to + FRAME + sizeof h + r * w->a2f_stride;
        uint32_t turn = r % SHARDS;
        memset(record, 0x3c, w->scale_offset);
        memcpy(record + w->turn_offset, &turn, sizeof turn);
        for (uint32_t k = 0; k < w->shape.top_k; k++) {
            float weight = 0.5f;
            uint16_t expert = has_experts ? (uint16_t)(r + 2 * k) : (uint16_t)AFD_NO_EXPERT;
            memcpy(record + w->weight_offset + 4 * k, &weight, sizeof weight);
            memcpy(record + w->expert_offset + 2 * k, &expert, sizeof expert);
        }
    }
    return to + FRAME + bytes;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    if (!node) open_node();
    uint8_t *data = calloc(1, 64 << 10), *at = data;
    if (!data) abort();
    at = add_message(at, 0, 0, 7, 1, 3, 1);
    at = add_message(at, 1 | SERVE, 1, 8, 1, 2, 1);
    at = add_message(at, 0, 0, 9, 3, 1, 1);
    at = add_message(at, SERVE, 1, 10, 2, 0, 5);
    at = add_message(at, SERVE, 0, 11, 2, 1, 2);
    at = add_message(at, 1 | SERVE, 0, 12, 0, 4, 2);
    *bytes_out = (size_t)(at - data);
    return data;
}
