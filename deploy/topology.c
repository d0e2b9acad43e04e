#include "deploy/topology.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/yaml.h"

_Static_assert((int)AFD_NAME_BYTES == (int)AFD_YAML_ITEM_BYTES, "a host is one item of a list");
_Static_assert(sizeof((struct afd_network_options *)0)->gid_index == sizeof(uint32_t), "`auto` is -1");

/* What a value means before it is resolved. The file's `auto` of an enum is one past its last value. */
enum { AUTO_DTYPE = AFD_DTYPE_COUNT, AUTO_NUMERICS = AFD_NUMERICS_NATIVE + 1 };

/* What the reader fills: the topology, and values that have another form in it. */
struct file_values {
    struct afd_topology topology;
    uint32_t host_count; /* of `hosts`: machines for what names none */
    char hosts[AFD_MAX_HOSTS][AFD_YAML_ITEM_BYTES];
    uint64_t max_body_bytes; /* the reader's sizes are 64 bits wide */
    char devices[AFD_MAX_RAILS][AFD_YAML_ITEM_BYTES];
};

/* ---- the keys: name, kind, place, range; defaults are in set_defaults and resolve */

#define AT(field) offsetof(struct file_values, topology.field)
#define SCRATCH(field) offsetof(struct file_values, field)
#define COUNT(name, field, min, max)                                                                         \
    {                                                                                                        \
        name, AFD_YAML_COUNT, AT(field), min, max, NULL, NULL, 0                                             \
    }
#define COUNT_OR(name, field, min, max, words)                                                               \
    {                                                                                                        \
        name, AFD_YAML_COUNT, AT(field), min, max, words, NULL, 0                                            \
    }
#define SIZE(name, field, min, max)                                                                          \
    {                                                                                                        \
        name, AFD_YAML_BYTES, AT(field), min, max, NULL, NULL, 0                                             \
    }
#define WORD(name, field, words)                                                                             \
    {                                                                                                        \
        name, AFD_YAML_WORD, AT(field), 0, 0, words, NULL, 0                                                 \
    }
#define TEXT(name, field, bytes)                                                                             \
    {                                                                                                        \
        name, AFD_YAML_TEXT, AT(field), 1, bytes, NULL, NULL, 0                                              \
    }
#define LIST(name, field, max, count)                                                                        \
    {                                                                                                        \
        name, AFD_YAML_LIST, AT(field), 1, max, NULL, NULL, AT(count)                                        \
    }
#define MAP(name, keys)                                                                                      \
    {                                                                                                        \
        name, AFD_YAML_MAP, 0, 0, 0, NULL, keys, 0                                                           \
    }
#define END                                                                                                  \
    {                                                                                                        \
        NULL, AFD_YAML_MAP, 0, 0, 0, NULL, NULL, 0                                                           \
    }

static const struct afd_yaml_word auto_word[] = {{"auto", UINT32_MAX}, {NULL, 0}};
static const struct afd_yaml_word a2f_words[] = {
    {"auto", AUTO_DTYPE}, {"fp8", AFD_FP8}, {"bf16", AFD_BF16}, {"f32", AFD_F32}, {NULL, 0}};
static const struct afd_yaml_word f2a_words[] = {{"bf16", AFD_BF16}, {"f32", AFD_F32}, {NULL, 0}};
static const struct afd_yaml_word numerics_words[] = {
    {"auto", AUTO_NUMERICS}, {"portable", AFD_NUMERICS_PORTABLE}, {"native", AFD_NUMERICS_NATIVE}, {NULL, 0}};
static const struct afd_yaml_word kv_words[] = {
    {"auto", AUTO_DTYPE}, {"f32", AFD_KV_F32},   {"bf16", AFD_KV_BF16}, {"f16", AFD_KV_F16},
    {"fp8", AFD_KV_FP8},  {"int8", AFD_KV_INT8}, {"int4", AFD_KV_INT4}, {NULL, 0}};
static const struct afd_yaml_word dispatch_words[] = {
    {"broadcast", AFD_DISPATCH_BROADCAST}, {"routed", AFD_DISPATCH_ROUTED}, {NULL, 0}};
static const struct afd_yaml_word data_words[] = {{"auto", AFD_DATA_AUTO}, {"loop", AFD_DATA_LOOP},
                                                  {"ucx", AFD_DATA_UCX},   {"verbs", AFD_DATA_VERBS},
                                                  {"tcp", AFD_DATA_TCP},   {NULL, 0}};
static const struct afd_yaml_word path_words[] = {{"auto", AFD_PATH_AUTO},
                                                  {"shm", AFD_PATH_SHM},
                                                  {"tcp", AFD_PATH_TCP},
                                                  {"rdma", AFD_PATH_RDMA},
                                                  {NULL, 0}};
static const struct afd_yaml_word mtu_words[] = {{"auto", 0},    {"256", 256},   {"512", 512}, {"1024", 1024},
                                                 {"2048", 2048}, {"4096", 4096}, {NULL, 0}};
static const struct afd_yaml_word group_words[] = {
    {"p2p", AFD_GROUP_P2P}, {"nccl", AFD_GROUP_NCCL}, {NULL, 0}};
static const struct afd_yaml_word memory_words[] = {
    {"auto", AFD_ROWS_AUTO}, {"host", AFD_ROWS_HOST}, {"gpu", AFD_ROWS_GPU}, {NULL, 0}};
static const struct afd_yaml_word compat_words[] = {
    {"none", AFD_METRICS_OWN}, {"vllm", AFD_METRICS_VLLM}, {NULL, 0}};
static const struct afd_yaml_word rebalance_words[] = {{"off", 0}, {"auto", 1}, {NULL, 0}};
static const struct afd_yaml_word device_words[] = {
    {"cpu", AFD_DEVICE_CPU}, {"ref", AFD_DEVICE_REF}, {"cuda", AFD_DEVICE_CUDA}, {NULL, 0}};

static const struct afd_yaml_key model_keys[] = {TEXT("path", model_path, AFD_PATH_BYTES),
                                                 COUNT("max_context", max_context, 1, AFD_MAX_CONTEXT), END};
static const struct afd_yaml_key slo_keys[] = {COUNT("tpot_ms", tpot_ms, 0, 60000), END};
static const struct afd_yaml_key scheduler_keys[] = {
    TEXT("host", scheduler.host, AFD_NAME_BYTES),
    TEXT("http", scheduler.http, AFD_ADDRESS_BYTES),
    TEXT("control", scheduler.control, AFD_ADDRESS_BYTES),
    COUNT("max_queue", scheduler.max_queue, 0, 1 << 20),
    {"max_body", AFD_YAML_BYTES, SCRATCH(max_body_bytes), 1024, 1 << 30, NULL, NULL, 0},
    COUNT("max_tokens", scheduler.max_tokens, 1, AFD_MAX_CONTEXT),
    COUNT("max_streams", scheduler.max_streams, 1, 1 << 20),
    COUNT("request_timeout_s", scheduler.request_timeout_s, 1, 86400),
    COUNT("lease_ms", scheduler.lease_ms, AFD_MIN_LEASE_MS, AFD_MAX_LEASE_MS),
    COUNT("heartbeat_ms", scheduler.heartbeat_ms, AFD_MIN_HEARTBEAT_MS, AFD_MAX_HEARTBEAT_MS),
    COUNT("drain_s", scheduler.drain_s, 1, 86400),
    COUNT("orphan_s", scheduler.orphan_s, 1, 86400),
    COUNT("scale_s", scheduler.scale_s, 1, 86400),
    COUNT_OR("send_threads", scheduler.send_threads, 0, 16, auto_word),
    WORD("metrics_compat", scheduler.metrics_compat, compat_words),
    END};
static const struct afd_yaml_key pipeline_keys[] = {
    COUNT("microbatches", pipeline.microbatches, 1, AFD_MAX_SLOTS),
    COUNT("max_rows", pipeline.max_rows, 1, AFD_MAX_ROWS),
    COUNT("prefill_rows", pipeline.prefill_rows, 1, AFD_MAX_ROWS),
    COUNT("max_sequences", pipeline.max_sequences, 1, 1 << 20),
    WORD("a2f", pipeline.a2f, a2f_words),
    WORD("f2a", pipeline.f2a, f2a_words),
    WORD("dispatch", pipeline.dispatch, dispatch_words),
    WORD("numerics", pipeline.numerics, numerics_words),
    COUNT_OR("gather_us", pipeline.gather_us, 0, 1000000, auto_word),
    END};
static const struct afd_yaml_key network_keys[] = {
    {"devices", AFD_YAML_LIST, SCRATCH(devices), 1, AFD_MAX_RAILS, NULL, NULL,
     AT(transport.network.device_count)},
    COUNT_OR("gid_index", transport.network.gid_index, 0, 255, auto_word), /* auto: -1 */
    WORD("mtu", transport.network.mtu, mtu_words),
    COUNT("traffic_class", transport.network.traffic_class, 0, 255),
    COUNT("service_level", transport.network.service_level, 0, 15),
    TEXT("ucx_tls", transport.network.ucx_tls, sizeof((struct afd_network_options *)0)->ucx_tls),
    END};
static const struct afd_yaml_key transport_keys[] = {
    WORD("data", transport.data, data_words),
    WORD("path", transport.path, path_words),
    MAP("network", network_keys),
    WORD("group", transport.group, group_words),
    WORD("memory", transport.memory, memory_words),
    COUNT_OR("spin_us", transport.spin_us, 0, 100000, auto_word),
    END};

#define DEVICE_KEYS(pool)                                                                                    \
    {                                                                                                        \
        WORD("type", pool.device, device_words), TEXT("class", pool.device_class, AFD_NAME_BYTES),           \
            COUNT("threads", pool.threads, 1, 256), TEXT("cores", pool.cores, AFD_NAME_BYTES), END           \
    }
#define POOL_KEYS(pool, device, parallel)                                                                    \
    COUNT("instances", pool.instances, 1, AFD_MAX_RANKS),                                                    \
        COUNT("ranks_per_instance", pool.ranks_per_instance, 1, AFD_MAX_RANKS),                              \
        COUNT("max_instances", pool.max_instances, 1, AFD_MAX_RANKS), MAP("device", device),                 \
        MAP("parallel", parallel), LIST("hosts", pool.hosts, AFD_MAX_HOSTS, pool.host_count)

static const struct afd_yaml_key attn_device_keys[] = DEVICE_KEYS(attn);
static const struct afd_yaml_key ffn_device_keys[] = DEVICE_KEYS(ffn);
static const struct afd_yaml_key attn_parallel_keys[] = {COUNT("dp", attn.dp, 1, AFD_MAX_RANKS),
                                                         COUNT("tp", attn.tp, 1, AFD_MAX_TP), END};
static const struct afd_yaml_key ffn_parallel_keys[] = {COUNT("ep", ffn.ep, 1, AFD_MAX_SHARDS),
                                                        COUNT("tp", ffn.tp, 1, AFD_MAX_TP), END};
static const struct afd_yaml_key kv_keys[] = {
    WORD("dtype", attn.kv_dtype, kv_words), COUNT("block_tokens", attn.kv_block_tokens, 16, 1024),
    SIZE("memory", attn.kv_memory_bytes, 1, (uint64_t)1 << 50), END};
static const struct afd_yaml_key attn_keys[] = {POOL_KEYS(attn, attn_device_keys, attn_parallel_keys),
                                                MAP("kv_cache", kv_keys), END};
static const struct afd_yaml_key ffn_keys[] = {POOL_KEYS(ffn, ffn_device_keys, ffn_parallel_keys),
                                               COUNT("copies", ffn.copies, 1, AFD_MAX_RANKS),
                                               COUNT("max_shards", ffn.max_shards, 1, AFD_MAX_SHARDS),
                                               WORD("rebalance", ffn.rebalance, rebalance_words),
                                               COUNT("spares", ffn.spares, 0, AFD_MAX_FFN_INSTANCES),
                                               TEXT("shards", ffn.shards, AFD_PATH_BYTES),
                                               END};
static const struct afd_yaml_key pools_keys[] = {MAP("attn", attn_keys), MAP("ffn", ffn_keys), END};

static const struct afd_yaml_word launch_words[] = {{"local", AFD_LAUNCH_LOCAL},
                                                    {"ssh", AFD_LAUNCH_SSH},
                                                    {"slurm", AFD_LAUNCH_SLURM},
                                                    {"kubernetes", AFD_LAUNCH_KUBERNETES},
                                                    {NULL, 0}};
static const struct afd_yaml_word restart_words[] = {{"always", 0}, {"never", 1}, {NULL, 0}};
static const struct afd_yaml_key launch_keys[] = {
    WORD("by", launch.by, launch_words),
    WORD("restart", launch.never_restart, restart_words),
    LIST("ssh", launch.ssh, AFD_MAX_LAUNCH_WORDS, launch.ssh_count),
    LIST("slurm", launch.slurm, AFD_MAX_LAUNCH_WORDS, launch.slurm_count),
    TEXT("dir", launch.dir, AFD_PATH_BYTES),
    TEXT("state", launch.state, AFD_PATH_BYTES),
    END};

static const struct afd_yaml_key top_keys[] = {
    TEXT("cluster", cluster, AFD_NAME_BYTES),
    MAP("model", model_keys),
    MAP("slo", slo_keys),
    MAP("scheduler", scheduler_keys),
    MAP("pipeline", pipeline_keys),
    MAP("transport", transport_keys),
    MAP("pools", pools_keys),
    {"hosts", AFD_YAML_LIST, SCRATCH(hosts), 1, AFD_MAX_HOSTS, NULL, NULL, SCRATCH(host_count)},
    MAP("launch", launch_keys),
    END};

/* Before the file is read. A 0 that no file can contain means "not given": resolve fills it in. */
static void set_defaults(struct file_values *v)
{
    struct afd_topology *t = &v->topology;
    strcpy(t->cluster, "afd");
    v->host_count = 1;
    strcpy(v->hosts[0], "localhost");
    t->launch.ssh_count = 1;
    strcpy(t->launch.ssh[0], "ssh");
    strcpy(t->scheduler.http, "127.0.0.1:8000");
    strcpy(t->scheduler.control, "127.0.0.1:7070");
    t->scheduler.max_queue = 1024;
    v->max_body_bytes = 4 << 20;
    t->scheduler.max_tokens = 4096;
    t->scheduler.max_streams = 1024;
    t->scheduler.request_timeout_s = 600;
    t->scheduler.lease_ms = 3000;
    t->scheduler.heartbeat_ms = 500;
    t->scheduler.drain_s = 30;
    t->scheduler.orphan_s = 60;
    t->scheduler.scale_s = 120;
    t->scheduler.send_threads = UINT32_MAX;
    t->ffn.spares = UINT32_MAX;
    t->pipeline.microbatches = 3;
    t->pipeline.max_rows = 64;
    t->pipeline.a2f = (enum afd_dtype)AUTO_DTYPE;
    t->pipeline.numerics = (enum afd_numerics)AUTO_NUMERICS;
    t->pipeline.f2a = AFD_BF16;
    t->pipeline.gather_us = UINT32_MAX;
    t->transport.spin_us = UINT32_MAX;
    t->transport.network.gid_index = -1;
    t->attn.kv_dtype = (enum afd_kv_dtype)AUTO_DTYPE;
    t->attn.kv_block_tokens = 64;
    t->attn.kv_memory_bytes = 256 << 20;
    t->attn.tp = 1;
    t->ffn.copies = 1;
    struct afd_pool *pools[] = {&t->attn, &t->ffn};
    for (int i = 0; i < 2; i++) {
        pools[i]->instances = pools[i]->ranks_per_instance = pools[i]->threads = 1;
    }
}

/* What one instance holds of all the shards when `instances` share them. */
static uint32_t shards_of_each(const struct afd_pool *ffn, uint32_t instances)
{
    uint32_t copies = ffn->copies < instances ? ffn->copies : instances;
    return (ffn->ep * copies + instances - 1) / instances;
}

static void resolve_ffn(struct afd_pool *ffn)
{
    if (!ffn->max_shards) ffn->max_shards = shards_of_each(ffn, ffn->instances > 1 ? ffn->instances - 1 : 1);
    if (ffn->max_shards > ffn->ep) ffn->max_shards = ffn->ep;
    if (ffn->spares == UINT32_MAX)
        ffn->spares = ffn->instances > ffn->ep * ffn->copies ? ffn->instances - ffn->ep * ffn->copies : 0;
}

/* The machines of a pool that names none: all of `hosts`, or, where every instance can have one of its own,
 * as many of them as it has instances, from `first` on. */
static void deal_hosts(const struct file_values *v, struct afd_pool *pool, uint32_t first, int is_split)
{
    if (pool->host_count) return;
    pool->host_count = is_split ? pool->max_instances : v->host_count;
    for (uint32_t i = 0; i < pool->host_count; i++)
        strcpy(pool->hosts[i], v->hosts[is_split ? first + i : i]);
}

/* Defaults that follow from other values. */
static void resolve(struct file_values *v)
{
    struct afd_topology *t = &v->topology;
    if (!t->attn.max_instances) t->attn.max_instances = t->attn.instances;
    if (!t->ffn.max_instances) t->ffn.max_instances = t->ffn.instances;
    int is_split = v->host_count >= t->attn.max_instances + t->ffn.max_instances;
    if (!*t->scheduler.host) strcpy(t->scheduler.host, v->hosts[0]);
    deal_hosts(v, &t->attn, 0, is_split);
    deal_hosts(v, &t->ffn, t->attn.max_instances, is_split);
    if (!t->attn.dp)
        t->attn.dp = t->attn.ranks_per_instance > t->attn.tp ? t->attn.ranks_per_instance / t->attn.tp : 1;
    if (!t->ffn.tp) t->ffn.tp = t->ffn.ranks_per_instance;
    if (!t->ffn.ep) t->ffn.ep = t->ffn.instances < AFD_MAX_SHARDS ? t->ffn.instances : AFD_MAX_SHARDS;
    resolve_ffn(&t->ffn);
    if (!t->pipeline.prefill_rows) t->pipeline.prefill_rows = (t->pipeline.max_rows + 1) / 2;
    if (!t->pipeline.max_sequences)
        t->pipeline.max_sequences = t->pipeline.microbatches * t->pipeline.max_rows;
    int cuda = t->attn.device == AFD_DEVICE_CUDA && t->ffn.device == AFD_DEVICE_CUDA;
    if (t->pipeline.a2f == (enum afd_dtype)AUTO_DTYPE) t->pipeline.a2f = cuda ? AFD_FP8 : AFD_BF16;
    if (t->pipeline.numerics == (enum afd_numerics)AUTO_NUMERICS)
        t->pipeline.numerics = cuda ? AFD_NUMERICS_NATIVE : AFD_NUMERICS_PORTABLE;
    if (t->attn.kv_dtype == (enum afd_kv_dtype)AUTO_DTYPE)
        t->attn.kv_dtype = t->attn.device == AFD_DEVICE_CUDA ? AFD_KV_FP8 : AFD_KV_BF16;
    t->pipeline.gather_auto = t->pipeline.gather_us == UINT32_MAX;
    if (t->pipeline.gather_auto) t->pipeline.gather_us = 0;
    t->scheduler.max_body_bytes = (uint32_t)v->max_body_bytes;
}

/* ---- impossible plans */

/* "0-3,6" into numbers; -1 when it is not such a list. Counts all, writes at most `limit`. */
static int32_t parse_cores(const char *text, uint32_t limit, uint32_t *out)
{
    uint32_t count = 0;
    const char *p = text;
    for (;;) {
        uint32_t bound[2];
        int parts = 0;
        do {
            if (*p < '0' || *p > '9') return -1;
            char *end;
            unsigned long n = strtoul(p, &end, 10);
            if (n > 65535) return -1;
            bound[parts++] = (uint32_t)n;
            p = end;
        } while (parts < 2 && *p == '-' && p++);
        if (parts == 1) bound[1] = bound[0];
        if (bound[1] < bound[0]) return -1;
        for (uint32_t core = bound[0]; core <= bound[1]; core++, count++)
            if (count < limit) out[count] = core;
        if (!*p) return (int32_t)count;
        if (*p++ != ',') return -1;
    }
}

static int address_is_valid(const char *address)
{
    const char *colon = strrchr(address, ':');
    if (!colon || colon == address || !colon[1] || strlen(colon + 1) > 5) return 0;
    for (const char *p = colon + 1; *p; p++)
        if (*p < '0' || *p > '9') return 0;
    return atoi(colon + 1) <= 65535;
}

static enum afd_status check_pool(const struct afd_yaml *d, const char *name, const struct afd_pool *p,
                                  struct afd_error *error)
{
    char at[96];
#define FAIL_AT(key, ...)                                                                                    \
    (snprintf(at, sizeof at, "pools.%s.%s", name, key), afd_yaml_fail(d, at, error, __VA_ARGS__))
    if (p->max_instances < p->instances)
        return FAIL_AT("max_instances",
                       "pools.%s.max_instances is %u with %u instances; expected at least %u", name,
                       p->max_instances, p->instances, p->instances);
    if ((uint64_t)p->max_instances * p->ranks_per_instance > AFD_MAX_RANKS)
        return FAIL_AT("ranks_per_instance", "pools.%s has %llu ranks at its largest; expected at most %d",
                       name, (unsigned long long)p->max_instances * p->ranks_per_instance, AFD_MAX_RANKS);
    if (*p->cores && parse_cores(p->cores, 0, NULL) < 0)
        return FAIL_AT("device.cores",
                       "pools.%s.device.cores is \"%s\"; expected a list of cores like \"0-3,6\"", name,
                       p->cores);
    if (p->device == AFD_DEVICE_CUDA) {
        snprintf(at, sizeof at, "pools.%s.device.threads", name);
        if (afd_yaml_has(d, at) || *p->cores)
            return FAIL_AT(
                *p->cores ? "device.cores" : "device.threads",
                "pools.%s.device: threads and cores are for type cpu; expected neither with type cuda", name);
    } else if (*p->device_class)
        return FAIL_AT("device.class", "pools.%s.device.class names a GPU; expected none with type %s", name,
                       p->device == AFD_DEVICE_CPU ? "cpu" : "ref");
    return AFD_OK;
#undef FAIL_AT
}

static enum afd_status check_parallel(const struct afd_yaml *d, const struct afd_topology *t,
                                      struct afd_error *error)
{
    if (t->attn.dp * t->attn.tp != t->attn.ranks_per_instance)
        return afd_yaml_fail(d, t->attn.tp > 1 ? "pools.attn.parallel.tp" : "pools.attn.parallel.dp", error,
                             "pools.attn.parallel is dp %u x tp %u with %u ranks an instance, which are dp "
                             "groups of tp ranks; "
                             "expected dp x tp: %u",
                             t->attn.dp, t->attn.tp, t->attn.ranks_per_instance, t->attn.ranks_per_instance);
    if (t->ffn.tp != t->ffn.ranks_per_instance)
        return afd_yaml_fail(
            d, "pools.ffn.parallel.tp", error,
            "pools.ffn.parallel.tp is %u with %u ranks an instance, and the ranks of an instance are "
            "one tensor-parallel group; expected tp: %u (ep counts shards over the whole pool)",
            t->ffn.tp, t->ffn.ranks_per_instance, t->ffn.ranks_per_instance);
    if (t->ffn.tp > AFD_MAX_TP)
        return afd_yaml_fail(d, "pools.ffn.ranks_per_instance", error,
                             "pools.ffn has a tensor-parallel group of %u; expected at most %d", t->ffn.tp,
                             AFD_MAX_TP);
    if (t->ffn.max_instances > AFD_MAX_FFN_INSTANCES)
        return afd_yaml_fail(d, "pools.ffn.max_instances", error,
                             "pools.ffn has %u instances at its largest; expected at most %d",
                             t->ffn.max_instances, AFD_MAX_FFN_INSTANCES);
    if (t->ffn.max_shards < shards_of_each(&t->ffn, t->ffn.instances) || t->ffn.max_shards > t->ffn.ep)
        return afd_yaml_fail(
            d, "pools.ffn.max_shards", error,
            "pools.ffn.max_shards is %u, and an instance holds %u of %u shards at the start; "
            "expected that at least, and all at most",
            t->ffn.max_shards, shards_of_each(&t->ffn, t->ffn.instances), t->ffn.ep);
    if (t->ffn.spares >= t->ffn.instances)
        return afd_yaml_fail(d, "pools.ffn.spares", error,
                             "pools.ffn.spares is %u of %u instances; expected one at least that serves",
                             t->ffn.spares, t->ffn.instances);
    if (t->ffn.copies > t->ffn.instances)
        return afd_yaml_fail(
            d, "pools.ffn.copies", error,
            "pools.ffn.copies is %u with %u instances, and an instance holds a shard once; expected "
            "at most %u",
            t->ffn.copies, t->ffn.instances, t->ffn.instances);
    if (t->pipeline.numerics == AFD_NUMERICS_NATIVE &&
        (t->attn.device != AFD_DEVICE_CUDA || t->ffn.device != AFD_DEVICE_CUDA))
        return afd_yaml_fail(d, "pipeline.numerics", error,
                             "pipeline.numerics is native, which is for device type cuda in both pools; "
                             "expected portable or auto");
    if (t->attn.kv_dtype > AFD_KV_FP8 && t->attn.device == AFD_DEVICE_CUDA)
        return afd_yaml_fail(
            d, "pools.attn.kv_cache.dtype", error,
            "pools.attn.kv_cache.dtype is %s, which device type cuda lacks; expected fp8, bf16, f16 or f32",
            afd_kv_dtype_name(t->attn.kv_dtype));
    uint32_t block = t->attn.kv_block_tokens;
    if (block % 16 || (64 % block && block % 64))
        return afd_yaml_fail(
            d, "pools.attn.kv_cache.block_tokens", error,
            "pools.attn.kv_cache.block_tokens is %u, and attention runs over blocks of 64 tokens; "
            "expected 16, 32, 64 or a multiple of 64",
            block);
    return AFD_OK;
}

static enum afd_status check_pipeline(const struct afd_yaml *d, const struct afd_topology *t,
                                      struct afd_error *error)
{
    if (t->pipeline.prefill_rows > t->pipeline.max_rows)
        return afd_yaml_fail(
            d, "pipeline.prefill_rows", error,
            "pipeline.prefill_rows is %u, more than pipeline.max_rows %u; expected at most %u",
            t->pipeline.prefill_rows, t->pipeline.max_rows, t->pipeline.max_rows);
    if (t->pipeline.max_sequences < t->pipeline.microbatches)
        return afd_yaml_fail(
            d, "pipeline.max_sequences", error,
            "pipeline.max_sequences is %u with %u micro-batches; expected at least one for each",
            t->pipeline.max_sequences, t->pipeline.microbatches);
    return AFD_OK;
}

static enum afd_status check_scheduler(const struct afd_yaml *d, const struct afd_topology *t,
                                       struct afd_error *error)
{
    if (!address_is_valid(t->scheduler.http))
        return afd_yaml_fail(
            d, "scheduler.http", error,
            "scheduler.http is \"%s\"; expected host:port, like 127.0.0.1:8000 (port 0: any)",
            t->scheduler.http);
    if (!address_is_valid(t->scheduler.control))
        return afd_yaml_fail(
            d, "scheduler.control", error,
            "scheduler.control is \"%s\"; expected host:port, like 127.0.0.1:7070 (port 0: any)",
            t->scheduler.control);
    if (t->scheduler.lease_ms < 3 * t->scheduler.heartbeat_ms)
        return afd_yaml_fail(
            d, "scheduler.lease_ms", error,
            "scheduler.lease_ms is %u with a heartbeat every %u ms; expected at least three heartbeats, "
            "%u",
            t->scheduler.lease_ms, t->scheduler.heartbeat_ms, 3 * t->scheduler.heartbeat_ms);
    return AFD_OK;
}

static int one_host(const struct afd_topology *t)
{
    const char *host = t->attn.hosts[0];
    for (uint32_t i = 0; i < t->attn.host_count; i++)
        if (strcmp(t->attn.hosts[i], host)) return 0;
    for (uint32_t i = 0; i < t->ffn.host_count; i++)
        if (strcmp(t->ffn.hosts[i], host)) return 0;
    return 1;
}

/* "mlx5_0" or "mlx5_0:1": a name of /sys/class/infiniband and a port. */
static int rail_is_valid(const char *device)
{
    size_t name = strspn(device, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.");
    const char *port = device + name;
    if (!name || *device == '.' || *device == '-' ||
        strlen(device) >= sizeof((struct afd_network_options *)0)->devices[0])
        return 0;
    if (!*port) return 1;
    size_t digits = strspn(port + 1, "0123456789");
    return *port == ':' && digits > 0 && digits <= 3 && !port[1 + digits] && port[1] != '0' &&
           atoi(port + 1) <= 255;
}

/* Of a valid name; a name alone is its port 1. */
static int port_of(const char *device)
{
    const char *colon = strchr(device, ':');
    return colon ? atoi(colon + 1) : 1;
}

/* Takes the names over. Two rails are two ports. */
static enum afd_status take_devices(const struct afd_yaml *d, const struct file_values *v,
                                    struct afd_network_options *out, struct afd_error *error)
{
    for (uint32_t i = 0; i < out->device_count; i++) {
        if (!rail_is_valid(v->devices[i]))
            return afd_yaml_fail(
                d, "transport.network.devices", error,
                "transport.network.devices has \"%s\"; expected RDMA devices as `rdma link` "
                "names them, at most %zu bytes, mlx5_0, or with a port from 1 to 255, \"mlx5_0:1\"",
                v->devices[i], sizeof out->devices[0] - 1);
        strcpy(out->devices[i], v->devices[i]);
    }
    const char *a = out->devices[0], *b = out->devices[1];
    size_t name = strcspn(a, ":");
    if (out->device_count == 2 && name == strcspn(b, ":") && !strncmp(a, b, name) && port_of(a) == port_of(b))
        return afd_yaml_fail(
            d, "transport.network.devices", error,
            "transport.network.devices has %s and %s, which share a port; expected one of them, "
            "or two different ports",
            a, b);
    return AFD_OK;
}

/* Keys of `network` that are about what the other keys leave out. */
static enum afd_status check_network(const struct afd_yaml *d, const struct afd_topology *t,
                                     struct afd_error *error)
{
    static const char *const rdma[] = {"devices", "gid_index", "mtu", "traffic_class", "service_level"};
    const char *tls = t->transport.network.ucx_tls;
    const char *neither = t->transport.data == AFD_DATA_LOOP  ? "data: loop"
                          : t->transport.path == AFD_PATH_SHM ? "path: shm"
                                                              : NULL;
    const char *tcp = t->transport.data == AFD_DATA_TCP   ? "data: tcp"
                      : t->transport.path == AFD_PATH_TCP ? "path: tcp"
                                                          : NULL;
    const char *no_rdma = !neither && tcp ? tcp : neither;
    const char *no_ucx = neither                               ? neither
                         : t->transport.data == AFD_DATA_VERBS ? "data: verbs"
                         : t->transport.data != AFD_DATA_UCX   ? tcp
                                                               : NULL;
    char at[64];
    for (size_t i = 0; no_rdma && i < sizeof rdma / sizeof *rdma; i++) {
        snprintf(at, sizeof at, "transport.network.%s", rdma[i]);
        if (!afd_yaml_has(d, at)) continue;
        return afd_yaml_fail(
            d, at, error,
            "%s is about RDMA, which %s leaves out; expected no such key, or data: auto with path: rdma "
            "or auto",
            at, no_rdma);
    }
    snprintf(at, sizeof at, "transport.network.ucx_tls");
    if (no_ucx && *tls)
        return afd_yaml_fail(
            d, at, error,
            "%s is about UCX, which %s leaves out; expected no such key, or data: ucx with path: "
            "rdma, tcp or auto",
            at, no_ucx);
    if (strspn(tls, "abcdefghijklmnopqrstuvwxyz0123456789_,^") != strlen(tls))
        return afd_yaml_fail(
            d, at, error,
            "%s is \"%s\"; expected transports as `ucx_info -d` names them, like \"rc_mlx5,self\"", at, tls);
    return AFD_OK;
}

static int may_be_rdma(const struct afd_topology *t)
{
    return t->transport.data != AFD_DATA_TCP && t->transport.data != AFD_DATA_LOOP &&
           t->transport.path != AFD_PATH_SHM && t->transport.path != AFD_PATH_TCP;
}

int afd_topology_splits(const struct afd_topology *t)
{
    if (t->transport.memory != AFD_ROWS_AUTO) return t->transport.memory == AFD_ROWS_GPU;
    return t->attn.device == AFD_DEVICE_CUDA && t->ffn.device == AFD_DEVICE_CUDA && may_be_rdma(t);
}

static enum afd_status check_transport(const struct afd_yaml *d, const struct file_values *v,
                                       struct afd_error *error)
{
    const struct afd_topology *t = &v->topology;
    enum afd_data_path path = t->transport.path;
    if (path == AFD_PATH_SHM && !one_host(t))
        return afd_yaml_fail(
            d, "transport.path", error,
            "transport.path is shm, but the pools are on more than one host; expected tcp, rdma or "
            "auto");
    if (t->transport.data == AFD_DATA_VERBS && (path == AFD_PATH_TCP || path == AFD_PATH_SHM))
        return afd_yaml_fail(
            d, "transport.path", error,
            "transport.path is %s with data: verbs, which is RDMA; expected path: rdma or auto, or "
            "data: auto",
            path_words[path].name);
    if (t->transport.data == AFD_DATA_TCP && path == AFD_PATH_RDMA)
        return afd_yaml_fail(
            d, "transport.path", error,
            "transport.path is rdma with data: tcp, which is sockets; expected path: tcp or auto, or "
            "data: auto");
    if (t->transport.data == AFD_DATA_LOOP && path != AFD_PATH_AUTO)
        return afd_yaml_fail(
            d, "transport.path", error,
            "transport.path is %s with data: loop, which joins threads of one process; expected "
            "path: auto",
            path_words[path].name);
    enum afd_status status = check_network(d, t, error);
    if (status) return status;
    if (t->transport.group == AFD_GROUP_NCCL && t->ffn.device != AFD_DEVICE_CUDA)
        return afd_yaml_fail(
            d, "transport.group", error,
            "transport.group is nccl, which joins CUDA devices; expected p2p with this device type");
    int has_gpus = t->attn.device == AFD_DEVICE_CUDA || t->ffn.device == AFD_DEVICE_CUDA;
    if (t->transport.memory == AFD_ROWS_GPU && has_gpus && !may_be_rdma(t))
        return afd_yaml_fail(
            d, "transport.memory", error,
            "transport.memory is gpu with %s, which copies with the CPU; expected host or auto, or "
            "a path that is RDMA",
            t->transport.data == AFD_DATA_TCP    ? "data: tcp"
            : t->transport.data == AFD_DATA_LOOP ? "data: loop"
            : path == AFD_PATH_SHM               ? "path: shm"
                                                 : "path: tcp");
    return AFD_OK;
}

/* ---- how it is launched */

static int host_is_valid(const char *host)
{
    return *host != '-' &&
           !host[strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:")];
}

/* An address that means the machine which says it. */
static int is_loopback(const char *host)
{
    return !strncmp(host, "127.", 4) || !strncmp(host, "localhost", 9) || !strncmp(host, "[::1]", 5);
}

/* Names that each host would take for itself reach nobody else; 127.0.0.2 beside 127.0.0.3 are one machine.
 */
static enum afd_status check_reach(const struct afd_yaml *d, const struct afd_topology *t,
                                   struct afd_error *error)
{
    char hosts[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES];
    uint32_t count = afd_topology_hosts(t, hosts), loopback = 0;
    for (uint32_t i = 0; i < count; i++) loopback += is_loopback(hosts[i]);
    if (loopback && loopback < count)
        return afd_yaml_fail(
            d, "pools", error,
            "the cluster has %u hosts, and one of them is called localhost, which each of them "
            "is for itself; expected the names by which they reach each other",
            count);
    const char *names[] = {"http", "control"}, *addresses[] = {t->scheduler.http, t->scheduler.control};
    for (int i = 0; i < 2; i++) {
        char at[32];
        snprintf(at, sizeof at, "scheduler.%s", names[i]);
        if (!strcmp(strrchr(addresses[i], ':'), ":0"))
            return afd_yaml_fail(
                d, at, error, "%s has port 0, which other hosts cannot know; expected a port from 1 to 65535",
                at);
        if (!loopback && is_loopback(addresses[i]))
            return afd_yaml_fail(d, at, error,
                                 "%s is \"%s\", which other hosts cannot reach; expected 0.0.0.0:PORT, or an "
                                 "address of %s",
                                 at, addresses[i], t->scheduler.host);
    }
    return AFD_OK;
}

/* Keys that are about another launcher, and what one on several hosts needs. */
static enum afd_status check_launch(const struct afd_yaml *d, const struct afd_topology *t,
                                    struct afd_error *error)
{
    static const struct {
        const char *key;
        unsigned launchers;
    } keys[] = {{"launch.ssh", 1 << AFD_LAUNCH_SSH},
                {"launch.slurm", 1 << AFD_LAUNCH_SLURM},
                {"launch.dir", 1 << AFD_LAUNCH_SSH | 1 << AFD_LAUNCH_SLURM},
                {"launch.state", 1 << AFD_LAUNCH_SSH}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (afd_yaml_has(d, keys[i].key) && !(keys[i].launchers >> t->launch.by & 1))
            return afd_yaml_fail(d, keys[i].key, error,
                                 "%s says nothing with launch.by: %s; expected no such key", keys[i].key,
                                 launch_words[t->launch.by].name);
    if (t->launch.by != AFD_LAUNCH_SSH && t->launch.by != AFD_LAUNCH_SLURM) return AFD_OK;
    if (*t->model_path != '/')
        return afd_yaml_fail(
            d, "model.path", error,
            "model.path is \"%s\", and each host reads the model itself; expected a path that "
            "begins with / and is there on all of them",
            t->model_path);
    if (*t->ffn.shards && *t->ffn.shards != '/')
        return afd_yaml_fail(
            d, "pools.ffn.shards", error,
            "pools.ffn.shards is \"%s\", and each host reads the file itself; expected a path that "
            "begins with / and is there on all of them",
            t->ffn.shards);
    char hosts[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES];
    uint32_t count = afd_topology_hosts(t, hosts);
    for (uint32_t i = 0; i < count; i++)
        if (!host_is_valid(hosts[i]))
            return afd_yaml_fail(d, "pools", error,
                                 "\"%s\" is no name of a host; expected letters, digits, dot, dash, "
                                 "underscore and colon, not a dash first",
                                 hosts[i]);
    return t->launch.by == AFD_LAUNCH_SLURM && !t->launch.names_hosts ? AFD_OK : check_reach(d, t, error);
}

static enum afd_status check(const struct afd_yaml *d, const struct file_values *v, struct afd_error *error)
{
    const struct afd_topology *t = &v->topology;
    enum afd_status status;
    if (!*t->model_path)
        return afd_yaml_fail(
            d, "model", error,
            "model.path is missing; expected the folder of a checkpoint (config.json and weights)");
    for (const char *c = t->cluster; *c; c++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", *c) ||
            *t->cluster == '.')
            return afd_yaml_fail(
                d, "cluster", error,
                "cluster is \"%s\"; expected letters, digits, dot, dash and underscore, not a dot first",
                t->cluster);
    if ((status = check_pool(d, "attn", &t->attn, error))) return status;
    if ((status = check_pool(d, "ffn", &t->ffn, error))) return status;
    if ((status = check_parallel(d, t, error))) return status;
    if ((status = check_pipeline(d, t, error))) return status;
    if ((status = check_scheduler(d, t, error))) return status;
    if ((status = check_transport(d, v, error))) return status;
    return check_launch(d, t, error);
}

/* ---- loading */

static enum afd_status read_file(const char *path, char **bytes_out, size_t *size_out,
                                 struct afd_error *error)
{
    FILE *f = fopen(path, "rb");
    if (!f) return afd_fail(error, AFD_ERR_CONFIG, "%s: cannot be opened: %s", path, strerror(errno));
    char *bytes = malloc(AFD_YAML_MAX_BYTES + 1);
    size_t size = bytes ? fread(bytes, 1, AFD_YAML_MAX_BYTES + 1, f) : 0;
    int failed = ferror(f), cause = errno;
    fclose(f);
    if (!bytes) return afd_fail(error, AFD_ERR_MEMORY, "%s: out of memory", path);
    if (failed) {
        free(bytes);
        return afd_fail(error, AFD_ERR_CONFIG, "%s: cannot be read: %s", path, strerror(cause));
    }
    *bytes_out = bytes;
    *size_out = size;
    return AFD_OK;
}

/* A relative path is relative to the folder of the topology's file. */
static enum afd_status resolve_path(const struct afd_yaml *d, const struct afd_topology *t, const char *key,
                                    const char *path, char out[AFD_PATH_BYTES], struct afd_error *error)
{
    char joined[2 * AFD_PATH_BYTES];
    int folder = *path == '/' ? 0 : (int)(strrchr(t->file, '/') - t->file + 1);
    snprintf(joined, sizeof joined, "%.*s%s", folder, t->file, path);
    char *real = realpath(joined, NULL); /* fails where there is nothing: whoever opens it says so */
    int written = snprintf(out, AFD_PATH_BYTES, "%s", real ? real : joined);
    free(real);
    if (written >= AFD_PATH_BYTES)
        return afd_yaml_fail(d, key, error, "%s is too long once resolved; expected at most %d bytes", key,
                             AFD_PATH_BYTES - 1);
    return AFD_OK;
}

/* The file's absolute path, the model's, and that of the shards. */
static enum afd_status resolve_paths(const struct afd_yaml *d, const char *path, struct afd_topology *t,
                                     struct afd_error *error)
{
    char *whole = realpath(path, NULL);
    if (!whole || strlen(whole) >= AFD_PATH_BYTES) {
        free(whole);
        return afd_fail(error, AFD_ERR_CONFIG, "%s: its absolute path has more than %d bytes", path,
                        AFD_PATH_BYTES - 1);
    }
    strcpy(t->file, whole);
    free(whole);
    enum afd_status status = resolve_path(d, t, "model.path", t->model_path, t->model_dir, error);
    if (!status && *t->ffn.shards)
        status = resolve_path(d, t, "pools.ffn.shards", t->ffn.shards, t->shards_file, error);
    return status;
}

enum afd_status afd_topology_load(const char *path, struct afd_topology **out, struct afd_error *error_out)
{
    char *bytes = NULL;
    size_t size = 0;
    struct afd_yaml *document = NULL;
    struct file_values *v = NULL;
    enum afd_status status = read_file(path, &bytes, &size, error_out);
    if (status) return status;
    if ((status = afd_yaml_parse(path, bytes, size, &document, error_out))) goto out;
    v = calloc(1, sizeof *v);
    struct afd_sha256 *hash = v ? afd_sha256_create() : NULL;
    if (!hash) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "%s: out of memory", path);
        goto out;
    }
    afd_sha256_update(hash, bytes, size);
    afd_sha256_finish(hash, v->topology.hash);
    set_defaults(v);
    if ((status = afd_yaml_read(document, top_keys, v, error_out))) goto out;
    v->topology.launch.names_hosts = afd_yaml_has(document, "hosts") ||
                                     afd_yaml_has(document, "pools.attn.hosts") ||
                                     afd_yaml_has(document, "pools.ffn.hosts");
    resolve(v);
    if ((status = take_devices(document, v, &v->topology.transport.network, error_out))) goto out;
    if ((status = check(document, v, error_out))) goto out;
    if ((status = resolve_paths(document, path, &v->topology, error_out))) goto out;
    *out = malloc(sizeof **out);
    if (*out)
        **out = v->topology;
    else
        status = afd_fail(error_out, AFD_ERR_MEMORY, "%s: out of memory", path);
out:
    free(v);
    afd_yaml_destroy(document);
    free(bytes);
    return status;
}

void afd_topology_destroy(struct afd_topology *topology)
{
    free(topology);
}

void afd_topology_write(const struct afd_topology *topology, uint32_t indent, FILE *to)
{
    struct file_values *defaults = calloc(1, sizeof *defaults), *v = calloc(1, sizeof *v);
    if (defaults && v) {
        set_defaults(defaults);
        set_defaults(v);
        v->topology = *topology;
        v->max_body_bytes = topology->scheduler.max_body_bytes;
        if (topology->pipeline.gather_auto) v->topology.pipeline.gather_us = UINT32_MAX;
        for (uint32_t i = 0; i < topology->transport.network.device_count; i++)
            strcpy(v->devices[i], topology->transport.network.devices[i]);
        afd_yaml_write(top_keys, v, defaults, indent, to);
    }
    free(defaults);
    free(v);
}

/* ---- what follows from a topology */

static const struct afd_pool *pool_of(const struct afd_topology *t, enum afd_role role)
{
    return role == AFD_ROLE_ATTN ? &t->attn : &t->ffn;
}

uint32_t afd_pool_ranks(const struct afd_pool *pool)
{
    return pool->instances * pool->ranks_per_instance;
}

uint32_t afd_pool_max_ranks(const struct afd_pool *pool)
{
    return pool->max_instances * pool->ranks_per_instance;
}

uint32_t afd_topology_batch_rows(const struct afd_topology *t)
{
    uint32_t groups = afd_attn_groups(t, t->attn.max_instances);
    uint32_t most = groups * t->pipeline.microbatches * t->pipeline.max_rows;
    uint32_t limit = t->pipeline.max_rows > AFD_BATCH_ROWS ? t->pipeline.max_rows : AFD_BATCH_ROWS;
    return most < limit ? most : limit;
}

uint32_t afd_attn_member(const struct afd_topology *t, uint32_t rank)
{
    return t->attn.tp > 1 ? rank % t->attn.tp : 0;
}

uint32_t afd_attn_groups(const struct afd_topology *t, uint32_t instances)
{
    return instances * t->attn.ranks_per_instance / (t->attn.tp > 1 ? t->attn.tp : 1);
}

const char *afd_role_name(enum afd_role role)
{
    return role == AFD_ROLE_ATTN ? "attn" : "ffn";
}

const char *afd_rank_host(const struct afd_topology *topology, enum afd_role role, uint32_t rank)
{
    const struct afd_pool *pool = pool_of(topology, role);
    return pool->hosts[rank / pool->ranks_per_instance % pool->host_count];
}

uint32_t afd_topology_hosts(const struct afd_topology *t, char out[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES])
{
    const struct afd_pool *pools[] = {&t->attn, &t->ffn};
    uint32_t count = 1;
    strcpy(out[0], t->scheduler.host);
    for (int p = 0; p < 2; p++)
        for (uint32_t i = 0; i < pools[p]->host_count && i < pools[p]->max_instances; i++) {
            uint32_t known = 0;
            while (known < count && strcmp(out[known], pools[p]->hosts[i])) known++;
            if (known == count) strcpy(out[count++], pools[p]->hosts[i]);
        }
    return count;
}

void afd_topology_reach(const struct afd_topology *t, const char *address, char out[2 * AFD_ADDRESS_BYTES])
{
    int is_any = !strncmp(address, "0.0.0.0:", 8) || !strncmp(address, "[::]:", 5);
    if (is_any)
        snprintf(out, 2 * AFD_ADDRESS_BYTES, "%s%s", t->scheduler.host, strrchr(address, ':'));
    else
        snprintf(out, 2 * AFD_ADDRESS_BYTES, "%s", address);
}

uint32_t afd_rank_local(const struct afd_topology *topology, enum afd_role role, uint32_t rank)
{
    const char *host = afd_rank_host(topology, role, rank);
    uint32_t before = 0;
    for (uint32_t i = 0; i < rank; i++) before += !strcmp(afd_rank_host(topology, role, i), host);
    for (uint32_t i = 0; role == AFD_ROLE_FFN && i < afd_pool_max_ranks(&topology->attn); i++)
        before += !strcmp(afd_rank_host(topology, AFD_ROLE_ATTN, i), host);
    return before;
}

/* Compute threads of both pools on `host`. */
static uint32_t host_threads(const struct afd_topology *t, const char *host)
{
    uint32_t threads = 0;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t rank = 0; rank < afd_pool_ranks(pool_of(t, role)); rank++)
            if (!strcmp(afd_rank_host(t, role, rank), host)) threads += pool_of(t, role)->threads;
    return threads;
}

uint32_t afd_topology_spin_us(const struct afd_topology *topology, uint32_t cores_online)
{
    if (topology->transport.spin_us != UINT32_MAX) return topology->transport.spin_us;
    uint32_t most = 0;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < pool_of(topology, role)->host_count; i++) {
            uint32_t threads = host_threads(topology, pool_of(topology, role)->hosts[i]);
            if (threads > most) most = threads;
        }
    return cores_online > most ? AFD_SPIN_US : 0;
}

uint32_t afd_topology_crowding(const struct afd_topology *topology, enum afd_role role, uint32_t rank,
                               uint32_t cores_online)
{
    uint32_t threads = host_threads(topology, afd_rank_host(topology, role, rank));
    return threads > cores_online && cores_online ? (threads + cores_online - 1) / cores_online : 1;
}

uint32_t afd_rank_cores(const struct afd_topology *topology, enum afd_role role, uint32_t rank,
                        uint32_t limit, uint32_t *cores_out)
{
    enum { MAX_CORES = 4096 };
    const struct afd_pool *pool = pool_of(topology, role);
    uint32_t cores[MAX_CORES];
    if (!*pool->cores) return 0;
    int32_t listed = parse_cores(pool->cores, MAX_CORES, cores);
    if (listed <= 0) return 0;
    if (listed > MAX_CORES) listed = MAX_CORES;
    uint32_t count = pool->threads < limit ? pool->threads : limit;
    for (uint32_t i = 0; i < count; i++)
        cores_out[i] = cores[((uint64_t)rank * pool->threads + i) % (uint32_t)listed];
    return count;
}

uint32_t afd_topology_placement(const struct afd_topology *topology, uint32_t shard, uint32_t *instances_out)
{
    uint32_t instances = topology->ffn.instances, copies = topology->ffn.copies, count = 0;
    uint32_t stride = (instances + copies - 1) / copies;
    while (count < copies) {
        uint32_t instance = (shard + count * stride) % instances;
        /* the stride can come round to an instance that has the shard (4 instances, 3 copies): take the next
         * free */
        for (uint32_t i = 0; i < count; i++)
            if (instances_out[i] == instance) {
                instance = (instance + 1) % instances;
                i = UINT32_MAX;
            }
        instances_out[count++] = instance;
    }
    return count;
}
