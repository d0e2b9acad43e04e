/* Guards: what a scheduler tells an FFN rank, true or not: Assign, Peers, Drain and traces, of shards, ranks,
 * incarnations and addresses that cannot be, twice and in any order, over connections that end. It may cost
 * the pairs and the group that they are about; never the rank, nor memory beyond what rank.h allows, nor a
 * shard that there is no room for.
 *
 * The rank is whole, the second of three members; its device computes nothing, and loads at once. */
#include <assert.h>

#include "base/clock.h"

static afd_ns fuzz_now(void);
#define afd_now fuzz_now /* of the loop: time is a step of the input */
#include "ffn_node/node.c"
#undef afd_now
#include "tests/fuzz/rank.h"

enum { SELF = 1, TP = 3, SHARDS = 4, ROOM = 3, EPOCH = 7, FIRST = 20, MOST_TURNS = 64 };

static const char yaml[] =
    "pipeline: { microbatches: 2, max_rows: 8, prefill_rows: 4, max_sequences: 4, a2f: bf16, "
    "f2a: bf16 }\n"
    "scheduler: { drain_s: 5 }\n"
    "pools:\n"
    "  attn: { instances: 6, device: { type: ref } }\n"
    "  ffn: { instances: 2, ranks_per_instance: 3, device: { type: ref }, max_shards: 3, "
    "parallel: { ep: 4, tp: 3 } }\n";

static const struct rank_cluster *cluster;
static struct afd_ffn_node *node;
static afd_ns now;
static uint64_t on_device, loading; /* sets of shards */
static uint32_t loads, drops, was_up, left_out, drains;

static afd_ns fuzz_now(void)
{
    return now;
}

/* ---- in place of the device and the other side of pairs (--wrap) */

const char *__wrap_afd_device_numerics(const struct afd_device *device);
uint32_t __wrap_afd_device_poll(struct afd_device *device, struct afd_device_event *out, uint32_t limit);
enum afd_status __wrap_afd_device_load(struct afd_device *device, uint64_t shards, struct afd_error *error);
int __wrap_afd_device_loaded(struct afd_device *device, uint64_t *shards_out, enum afd_status *status_out,
                             struct afd_error *error_out);
void __wrap_afd_device_loading(const struct afd_device *device, uint64_t *done_out, uint64_t *total_out);
void __wrap_afd_device_drop(struct afd_device *device, uint64_t shards);
enum afd_status __wrap_afd_pair_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                                    uint16_t sequence);

const char *__wrap_afd_device_numerics(const struct afd_device *device)
{
    (void)device;
    on_device = node->wanted; /* it was just made */
    return afd_agreement_numerics(AFD_DEVICE_REF, cluster->topology->pipeline.numerics);
}

uint32_t __wrap_afd_device_poll(struct afd_device *device, struct afd_device_event *out, uint32_t limit)
{
    (void)device, (void)out, (void)limit;
    return 0;
}

enum afd_status __wrap_afd_device_load(struct afd_device *device, uint64_t shards, struct afd_error *error)
{
    (void)device;
    assert(!loading && shards && !(shards & on_device) && shards < 1 << SHARDS);
    assert(__builtin_popcountll(shards | on_device) <= ROOM);
    if (++loads % 8 == 0) return afd_fail(error, AFD_ERR_DEVICE_MEMORY, "no memory");
    loading = shards;
    return AFD_OK;
}

int __wrap_afd_device_loaded(struct afd_device *device, uint64_t *shards_out, enum afd_status *status_out,
                             struct afd_error *error_out)
{
    (void)device, (void)error_out;
    assert(loading);
    on_device |= loading;
    *shards_out = loading;
    *status_out = AFD_OK;
    loading = 0;
    return 1;
}

void __wrap_afd_device_loading(const struct afd_device *device, uint64_t *done_out, uint64_t *total_out)
{
    (void)device;
    *done_out = 1;
    *total_out = loading ? 4 : 0;
}

void __wrap_afd_device_drop(struct afd_device *device, uint64_t shards)
{
    (void)device;
    assert(shards && !(shards & ~on_device));
    on_device &= ~shards;
    drops++;
}

enum afd_status __wrap_afd_pair_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                                    uint16_t sequence)
{
    (void)region, (void)sequence;
    assert(pair->is_used && pair->is_open && (from || !bytes));
    return AFD_OK;
}

/* ---- the rank */

void rank_open(void)
{
    struct afd_error error = {.text = ""};
    cluster = rank_cluster(yaml);
    struct afd_ffn_node_config config = {.topology = cluster->topology,
                                         .model = cluster->model,
                                         .checkpoint = cluster->checkpoint,
                                         .rank = SELF,
                                         .scheduler = "127.0.0.1:1"};
    now = AFD_SECONDS(100);
    on_device = loading = 0;
    loads = drops = was_up = left_out = drains = 0;
    if (afd_ffn_node_open(&config, &node, &error)) {
        fprintf(stderr, "%s\n", error.text);
        abort();
    }
}

void rank_close(void)
{
    afd_ffn_node_close(node);
}

int rank_work(void)
{
    for (uint32_t turns = 0; !node->is_exiting; turns++) {
        assert(turns < MOST_TURNS);
        load_assigned(node);
        if (node->is_exiting || !progress(node, now)) break;
    }
    event_base_loop(node->base, EVLOOP_NONBLOCK);
    return !node->is_exiting;
}

void rank_pass(afd_ns ns)
{
    now += ns;
    if (event_pending(node->heartbeat, EV_TIMEOUT, NULL)) event_active(node->heartbeat, EV_TIMEOUT, 1);
}

/* The member behind this one, or an attention rank of this rail; or somebody else. */
void rank_ask(uint8_t argument)
{
    struct afd_identity peer = {AFD_ROLE_FFN, 2, FIRST + 2};
    if (argument % 2) peer = (struct afd_identity){AFD_ROLE_ATTN, argument / 2 % 8, FIRST + argument / 2 % 8};
    struct afd_pair *pair = rank_pair(&peer, NULL);
    if (pair) rank_event(&(struct afd_transport_event){.kind = AFD_EVENT_REQUEST, .pair = pair});
}

void rank_check(void)
{
    assert(__builtin_popcountll(node->held) <= ROOM && node->held < 1 << SHARDS);
    if (node->device) assert(node->held == on_device);
    drains |= node->is_draining;
    was_up |= node->group_state == FFN_GROUP_UP && node->open_pairs;
    left_out |= was_up && node->is_left_out && node->group_state != FFN_GROUP_UP;
}

void rank_sent(const Afd__Envelope *m)
{
    if (m->body_case != AFD__ENVELOPE__BODY_READY) return;
    for (size_t i = 0; i < m->ready->n_shards; i++) assert(on_device >> m->ready->shards[i] & 1);
}

int rank_is_served(void)
{
    return was_up && left_out && loads && drops && drains;
}

/* ---- a rank that joins, forms its group, serves, loads and drops, is left out, and leaves */

static uint8_t *add_assign(uint8_t *at, uint64_t set)
{
    uint32_t shards[SHARDS];
    Afd__Assign assign = AFD__ASSIGN__INIT;
    for (; set; set &= set - 1) shards[assign.n_shards++] = (uint32_t)__builtin_ctzll(set);
    assign.shards = shards;
    assign.epoch = EPOCH;
    assign.heartbeat_ms = 100;
    assign.lease_ms = 1000;
    return rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_ASSIGN, &assign);
}

static uint8_t *add_peers(uint8_t *at, uint64_t epoch, int is_left_out, const char *address)
{
    Afd__Member members[TP + 2], *pointers[TP + 2];
    Afd__Peers peers = AFD__PEERS__INIT;
    for (uint32_t i = 0; i < TP + 2; i++) {
        afd__member__init(pointers[i] = &members[i]);
        members[i].role = i < TP ? AFD__ROLE__FFN : AFD__ROLE__ATTN;
        members[i].rank = i < TP ? i : i == TP ? 1 : 4;
        members[i].incarnation = FIRST + members[i].rank;
        members[i].data_address = (char *)address;
        members[i].left_out = i < TP && is_left_out;
    }
    peers.epoch = epoch;
    peers.n_members = TP + 2;
    peers.members = pointers;
    return rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_PEERS, &peers);
}

static uint8_t *add_group(uint8_t *at)
{
    at = rank_add(at, RANK_ASK, 0, 0, NULL);   /* member 2 */
    at = rank_add(at, RANK_ASK, 3, 0, NULL);   /* attn/1 */
    return rank_add(at, RANK_ASK, 9, 0, NULL); /* attn/4 */
}

uint8_t *rank_good_steps(uint8_t *at)
{
    static const unsigned own[] = {AFD__ENVELOPE__BODY_ASSIGN,      AFD__ENVELOPE__BODY_PEERS,
                                   AFD__ENVELOPE__BODY_DRAIN,       AFD__ENVELOPE__BODY_TRACE_BEGIN,
                                   AFD__ENVELOPE__BODY_TRACE_PROBE, AFD__ENVELOPE__BODY_TRACE_END};
    Afd__TraceBegin begin = AFD__TRACE_BEGIN__INIT;
    Afd__TraceProbe probe = AFD__TRACE_PROBE__INIT;
    Afd__TraceEnd end = AFD__TRACE_END__INIT;
    Afd__Drain drain = AFD__DRAIN__INIT;
    begin.serial = probe.serial = end.serial = 3;
    begin.ms = 1000;
    begin.events = 100;
    drain.deadline_ms = 1000;
    at = add_assign(at, 3);
    at = add_peers(at, EPOCH, 0, "127.0.0.1:8");
    at = add_group(at);
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_TRACE_BEGIN, &begin);
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_TRACE_PROBE, &probe);
    at = add_assign(at, 7);
    at = rank_add(at, RANK_PASS, 6, 0, NULL);
    at = add_assign(at, 2);
    at = add_peers(at, EPOCH + 1, 1, "127.0.0.1:7"); /* left out, and member 0 says "for now" */
    at = rank_add(at, RANK_PASS, 12, 0, NULL);
    at = add_peers(at, EPOCH + 2, 0, "127.0.0.1:8");
    at = rank_add(at, RANK_PASS, 12, 0, NULL);
    at = add_group(at);
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_TRACE_END, &end);
    at = rank_add(at, RANK_BREAK, 0, 0, NULL);
    at = add_assign(at, 8);
    at = rank_add_others(at, own, sizeof own / sizeof *own);
    at = rank_add(at, RANK_PASS, 6, 0, NULL);
    return rank_add(at, RANK_SAY_TOO, 0, AFD__ENVELOPE__BODY_DRAIN, &drain);
}
