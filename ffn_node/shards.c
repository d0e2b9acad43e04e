/* shards.c: more shards, or fewer, while the rank serves. The scheduler asks attention ranks for a shard here
 * once Ready has named it, and takes it away once they have settled on a placement without it. */
#include "ffn_node/shell.h"

/* What a connection to the scheduler begins with. */
static void register_held(struct afd_ffn_node *node)
{
    node->registration.n_shards = 0;
    for (uint64_t left = node->held; left; left &= left - 1)
        node->registered[node->registration.n_shards++] = (uint32_t)__builtin_ctzll(left);
}

void ffn_hold(struct afd_ffn_node *node, uint64_t shards)
{
    for (uint64_t left = shards; left; left &= left - 1) {
        uint32_t at = (uint32_t)__builtin_ctzll(~node->used_at);
        assert(at < node->room);
        node->used_at |= 1ull << at;
        node->held_at[__builtin_ctzll(left)] = (uint8_t)at;
    }
    node->held |= shards;
    register_held(node);
}

static void set_held(struct afd_ffn_node *node)
{
    struct afd_share share = {
        .ffn = 1, .shards = node->held, .ep = node->topology->ffn.ep, .tp = node->tp, .tp_index = node->self};
    node->resident_bytes =
        node->slab_bytes + afd_share_bytes(node->model, node->config.checkpoint, &share, 0);
    afd_ffn_group_set_shards(node->core, node->held);
    if (node->is_ready) ffn_tell_ready(node);
}

static void take_loaded(struct afd_ffn_node *node, afd_ns now)
{
    struct afd_error error;
    enum afd_status status;
    uint64_t shards, done, total;
    afd_device_loading(node->device, &done, &total);
    ffn_loading(node, done, total, now);
    if (!afd_device_loaded(node->device, &shards, &status, &error)) return;
    node->is_loading = 0;
    if (status) { /* what it serves it goes on serving */
        afd_log_error("%d shards more cannot be loaded: %s", __builtin_popcountll(shards), error.text);
        node->unloadable |= shards;
        ffn_tell_loading(node, 0, 0, 0);
        return;
    }
    ffn_hold(node, shards);
    afd_log_info("%d shards more are loaded, in %llu ms: %d of %u", __builtin_popcountll(shards),
                 (unsigned long long)(now - node->loading.begin) / 1000000, __builtin_popcountll(node->held),
                 node->topology->ffn.ep);
    set_held(node);
}

static void begin_load(struct afd_ffn_node *node, afd_ns now)
{
    struct afd_error error;
    uint64_t more = node->wanted & ~node->held & ~node->unloadable;
    if (!more || (uint32_t)__builtin_popcountll(node->held | more) > node->room) return; /* first others go */
    enum afd_status status = afd_device_load(node->device, more, &error);
    if (status) {
        afd_log_error("%d shards more cannot be loaded: %s", __builtin_popcountll(more), error.text);
        node->unloadable |= more;
        return;
    }
    afd_log_info("loads %d shards more", __builtin_popcountll(more));
    node->is_loading = 1;
    node->loading = afd_loading_begin(now);
}

/* Shards that a message asks for which came and is not answered. */
static uint64_t shards_in_use(const struct afd_ffn_node *node)
{
    uint64_t used = afd_ffn_group_in_use(node->core);
    for (uint32_t i = 0; i < node->source_count; i++)
        for (uint32_t slot = 0; slot < node->slots; slot++)
            if (node->sources[i].places[slot].is_busy) used |= node->sources[i].places[slot].header.shards;
    return used;
}

static uint32_t drop_some(struct afd_ffn_node *node)
{
    uint64_t gone = node->held & ~node->wanted;
    if (!gone || node->is_loading) return 0;
    gone &= ~shards_in_use(node);
    /* A batch of a group that failed may still run. */
    if (!gone || (node->device_ops && node->group_state != FFN_GROUP_UP)) return 0;
    for (uint64_t left = gone; left; left &= left - 1)
        node->used_at &= ~(1ull << node->held_at[__builtin_ctzll(left)]);
    node->held &= ~gone;
    register_held(node);
    afd_device_drop(node->device, gone);
    afd_log_info("%d shards are dropped: %d of %u are held", __builtin_popcountll(gone),
                 __builtin_popcountll(node->held), node->topology->ffn.ep);
    set_held(node);
    return 1;
}

uint32_t ffn_adjust(struct afd_ffn_node *node, afd_ns now)
{
    if (node->is_loading) take_loaded(node, now);
    if (node->wanted == node->held) return 0;
    uint32_t done = drop_some(node);
    if (!node->is_loading) begin_load(node, now);
    return done;
}
