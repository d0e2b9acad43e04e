/* Guards: a mistake in a topology file that goes unnoticed, or is told at the wrong place or without the
 * expected form; a default that changes; hostile bytes that crash the reader. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "deploy/topology.h"

static char folder[] = "/tmp/afd-topology-XXXXXX";
static char file[64];

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(file, sizeof file, "%s/t.yaml", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(file);
    return rmdir(folder);
}

static enum afd_status load_bytes(const char *bytes, size_t size, struct afd_topology **out,
                                  struct afd_error *error)
{
    FILE *f = fopen(file, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    return afd_topology_load(file, out, error);
}

/* ---- what is refused, where, and in which words */

struct mistake {
    const char *yaml, *where, *words; /* "line:column", and a part of the text */
};

#define MODEL "model: { path: m }\n"
#define REMOTE "model: { path: /m }\nlaunch: { by: ssh }\n"

static const struct mistake mistakes[] = {
    /* the language */
    {"", "1:1", "not a mapping; expected \"key: value\" lines"},
    {"# only a comment\n", "1:1", "not a mapping"},
    {"- a\n- b\n", "1:1", "not a mapping"},
    {"model: {path: m\n", "2:1", "expected valid YAML"},
    {"model:\n\tpath: m\n", "2:1", "expected valid YAML"},
    {"model: &a { path: m }\n", "1:8", "an anchor (&name) is not supported"},
    {MODEL "slo: *a\n", "2:6", "an alias (*name) is not supported"},
    {"model: { path: !!str m }\n", "1:16", "a tag (!name) is not supported"},
    {"%TAG ! tag:x,2000:\n---\n" MODEL, "1:1", "%TAG directive is not supported"},
    {MODEL "---\n" MODEL, "2:1", "a second document begins; expected one document a file"},
    {MODEL "? [a, b]\n: c\n", "2:3", "a key is not a word"},
    {MODEL "slo: {a: {b: {c: {d: {e: {f: {g: {h: 1}}}}}}}}\n", "2:34",
     "nested too deeply; expected at most 8 levels"},
    {"model: { path: \"a\\0b\" }\n", "1:16", "a NUL character"},
    /* keys */
    {MODEL "modle: {}\n", "2:1", "unknown key \"modle\"; expected \"model\"?"},
    {MODEL "pools: { attn: { instnces: 2 } }\n", "2:18",
     "unknown key \"instnces\" in pools.attn; expected \"instances\"?"},
    {MODEL "pools:\n  ffn:\n    kv_cache: {}\n", "4:5",
     "unknown key \"kv_cache\" in pools.ffn; expected one of: instances, "},
    {MODEL "slo: { tpot_ms: 1, tpot_ms: 2 }\n", "2:20",
     "repeated key \"tpot_ms\"; expected it once, it is at line 2"},
    {"cluster: a\n" MODEL "cluster: b\n", "3:1",
     "repeated key \"cluster\"; expected it once, it is at line 1"},
    {MODEL "<<: { slo: {} }\n", "2:1", "unknown key \"<<\""},
    /* kinds, units and ranges */
    {"cluster: a\n", "1:1", "model.path is missing"},
    {"model: {}\n", "1:8", "model.path is missing"},
    {"model: { path: }\n", "1:16", "model.path is nothing; expected text of 1 to 511 bytes"},
    {"model: m\n", "1:8", "model is \"m\"; expected keys and values"},
    {MODEL "pools: [attn]\n", "2:8", "pools is a list; expected keys and values"},
    {MODEL "pools: { attn: { instances: two } }\n", "2:29",
     "pools.attn.instances is \"two\"; expected a number from 1 to 1024"},
    {MODEL "pools: { attn: { instances: 0 } }\n", "2:29", "expected a number from 1 to 1024"},
    {MODEL "pools: { attn: { instances: -1 } }\n", "2:29", "expected a number from 1 to 1024"},
    {MODEL "pools: { attn: { instances: 010 } }\n", "2:29", "is \"010\"; expected a number"},
    {MODEL "pools: { attn: { instances: 1.5 } }\n", "2:29", "is \"1.5\"; expected a number"},
    {MODEL "pools: { attn: { instances: \"2\" } }\n", "2:29", "is \"2\"; expected a number"},
    {MODEL "pools: { attn: { instances: 99999999999999999999999 } }\n", "2:29",
     "expected a number from 1 to 1024"},
    {MODEL "pools: { attn: { instances: { a: 1 } } }\n", "2:29", "is a mapping; expected a number"},
    {MODEL "pipeline: { max_rows: 4097 }\n", "2:23",
     "pipeline.max_rows is \"4097\"; expected a number from 1 to 4096"},
    {MODEL "pipeline: { microbatches: 9 }\n", "2:27", "expected a number from 1 to 8"},
    {MODEL "pipeline: { gather_us: soon }\n", "2:24", "expected a number from 0 to 1000000 or auto"},
    {MODEL "pipeline: { a2f: fp4 }\n", "2:18",
     "pipeline.a2f is \"fp4\"; expected one of: auto, fp8, bf16, f32"},
    {MODEL "pipeline: { numerics: native }\n", "2:23",
     "pipeline.numerics is native, which is for device type cuda in both pools"},
    {MODEL "pipeline: { f2a: fp8 }\n", "2:18", "expected one of: bf16, f32"},
    {MODEL "pools: { ffn: { parallel: { ep: 65 } } }\n", "2:33", "expected a number from 1 to 64"},
    {MODEL "pools: { attn: { kv_cache: { memory: 60GB } } }\n", "2:38",
     "expected a size with its unit, B, KiB, MiB, GiB"},
    {MODEL "pools: { attn: { kv_cache: { memory: 60 } } }\n", "2:38", "expected a size with its unit"},
    {MODEL "pools: { attn: { kv_cache: { memory: 0GiB } } }\n", "2:38", "expected a size with its unit"},
    {MODEL "pools: { attn: { kv_cache: { memory: 99999999999TiB } } }\n", "2:38",
     "expected a size with its unit"},
    {MODEL "pools: { attn: { hosts: a0 } }\n", "2:25",
     "pools.attn.hosts is \"a0\"; expected a list of 1 to 64 names"},
    {MODEL "pools: { attn: { hosts: [] } }\n", "2:25", "expected a list of 1 to 64 names"},
    {MODEL "pools: { attn: { hosts: [[a]] } }\n", "2:25", "expected a list of 1 to 64 names"},
    {MODEL "cluster: \"\"\n", "2:10", "cluster is \"\"; expected text of 1 to 63 bytes"},
    {MODEL "cluster: ../up\n", "2:10", "cluster is \"../up\"; expected letters, digits"},
    {MODEL "cluster: a/b\n", "2:10", "expected letters, digits"},
    {MODEL "scheduler: { http: 8000 }\n", "2:20", "scheduler.http is \"8000\"; expected host:port"},
    {MODEL "scheduler: { http: \"h:65536\" }\n", "2:20", "expected host:port"},
    {MODEL "scheduler: { control: \":1\" }\n", "2:23", "scheduler.control is \":1\"; expected host:port"},
    /* impossible plans */
    {MODEL "scheduler: { lease_ms: 1000 }\n", "2:24",
     "scheduler.lease_ms is 1000 with a heartbeat every 500 ms; expected at least three heartbeats, 1500"},
    {MODEL "pipeline: { max_rows: 8, prefill_rows: 9 }\n", "2:40",
     "pipeline.prefill_rows is 9, more than pipeline.max_rows 8; expected at most 8"},
    {MODEL "pipeline: { max_sequences: 2 }\n", "2:28", "pipeline.max_sequences is 2 with 3 micro-batches"},
    {MODEL "pools: { attn: { parallel: { tp: 2 } } }\n", "2:34",
     "pools.attn.parallel is dp 1 x tp 2 with 1 ranks an instance, which are dp groups of tp ranks; expected "
     "dp x tp: 1"},
    {MODEL "pools: { attn: { ranks_per_instance: 8, parallel: { dp: 4 } } }\n", "2:57",
     "pools.attn.parallel is dp 4 x tp 1 with 8 ranks an instance, which are dp groups of tp ranks; expected "
     "dp x tp: 8"},
    {MODEL "pools: { attn: { ranks_per_instance: 8, parallel: { tp: 3 } } }\n", "2:57",
     "pools.attn.parallel is dp 2 x tp 3 with 8 ranks an instance"},
    {MODEL "pools: { ffn: { ranks_per_instance: 8, parallel: { ep: 2, tp: 4 } } }\n", "2:63",
     "pools.ffn.parallel.tp is 4 with 8 ranks an instance"},
    {MODEL "pools: { ffn: { ranks_per_instance: 128 } }\n", "2:37",
     "tensor-parallel group of 128; expected at most 64"},
    {MODEL "pools: { ffn: { instances: 2, copies: 3 } }\n", "2:39",
     "pools.ffn.copies is 3 with 2 instances, and an instance holds a shard once; expected at most 2"},
    {MODEL "pools: { ffn: { instances: 4, max_instances: 2 } }\n", "2:46",
     "pools.ffn.max_instances is 2 with 4 instances; expected at least 4"},
    {MODEL "pools: { attn: { instances: 256, ranks_per_instance: 8 } }\n", "2:54",
     "pools.attn has 2048 ranks at its largest; expected at most 1024"},
    {MODEL "pools: { attn: { kv_cache: { block_tokens: 48 } } }\n", "2:44",
     "block_tokens is 48, and attention runs over blocks of 64 tokens; expected 16, 32, 64 or a multiple of "
     "64"},
    {MODEL "pools: { attn: { kv_cache: { dtype: int2 } } }\n", "2:37",
     "expected one of: auto, f32, bf16, f16, fp8, int8, int4"},
    {MODEL "pools: { attn: { device: { type: cuda }, kv_cache: { dtype: int4 } } }\n", "2:61",
     "dtype is int4, which device type cuda lacks; expected fp8, bf16, f16 or f32"},
    {MODEL "pools: { attn: { device: { cores: 0-x } } }\n", "2:35",
     "expected a list of cores like \"0-3,6\""},
    {MODEL "pools: { attn: { device: { cores: 3-1 } } }\n", "2:35",
     "expected a list of cores like \"0-3,6\""},
    {MODEL "pools: { attn: { device: { type: cuda, threads: 2 } } }\n", "2:49",
     "threads and cores are for type cpu"},
    {MODEL "pools: { ffn: { device: { type: cpu, class: H20 } } }\n", "2:45",
     "class names a GPU; expected none"},
    {MODEL "transport: { group: nccl }\n", "2:21",
     "transport.group is nccl, which joins CUDA devices; expected p2p"},
    {MODEL "pools: { attn: { device: { type: cuda } }, ffn: { device: { type: cuda } } }\n"
           "transport: { path: shm, memory: gpu }\n",
     "3:33", "transport.memory is gpu with path: shm, which copies with the CPU; expected host or auto"},
    {MODEL "transport: { data: verbs, path: tcp }\n", "2:33",
     "transport.path is tcp with data: verbs, which is RDMA; expected path: rdma or auto, or data: auto"},
    {MODEL "transport: { data: verbs, path: shm }\n", "2:33",
     "transport.path is shm with data: verbs, which is RDMA; expected path: rdma or auto, or data: auto"},
    {MODEL "transport: { data: tcp, path: rdma }\n", "2:31",
     "transport.path is rdma with data: tcp, which is sockets; expected path: tcp or auto, or data: auto"},
    {MODEL "transport: { data: loop, path: shm }\n", "2:32",
     "transport.path is shm with data: loop, which joins threads of one process; expected path: auto"},
    {MODEL "transport: { path: tcp, network: { devices: [mlx5_0] } }\n", "2:45",
     "transport.network.devices is about RDMA, which path: tcp leaves out; expected no such key"},
    {MODEL "transport: { path: shm, network: { mtu: 4096 } }\n", "2:41",
     "transport.network.mtu is about RDMA, which path: shm leaves out"},
    {MODEL "transport: { data: loop, network: { gid_index: auto } }\n", "2:48",
     "transport.network.gid_index is about RDMA, which data: loop leaves out"},
    {MODEL "transport: { path: tcp, network: { traffic_class: 106 } }\n", "2:51",
     "transport.network.traffic_class is about RDMA, which path: tcp leaves out"},
    {MODEL "transport: { path: tcp, network: { service_level: 3 } }\n", "2:51",
     "transport.network.service_level is about RDMA, which path: tcp leaves out"},
    {MODEL "transport: { data: verbs, network: { ucx_tls: \"rc,self\" } }\n", "2:47",
     "transport.network.ucx_tls is about UCX, which data: verbs leaves out; expected no such key, or data: "
     "ucx"},
    {MODEL "transport: { path: tcp, network: { ucx_tls: tcp } }\n", "2:45",
     "transport.network.ucx_tls is about UCX, which path: tcp leaves out"},
    {MODEL "transport: { data: tcp, network: { mtu: 4096 } }\n", "2:41",
     "transport.network.mtu is about RDMA, which data: tcp leaves out"},
    {MODEL "transport: { path: shm, network: { ucx_tls: tcp } }\n", "2:45",
     "transport.network.ucx_tls is about UCX, which path: shm leaves out"},
    {MODEL "transport: { network: { ucx_tls: \"tcp;self\" } }\n", "2:34",
     "transport.network.ucx_tls is \"tcp;self\"; expected transports"},
    {MODEL "transport: { network: { devices: [] } }\n", "2:34",
     "transport.network.devices is a list; expected a list of 1 to 2 names"},
    {MODEL "transport: { network: { devices: [a, b, c] } }\n", "2:34",
     "transport.network.devices is a list; expected a list of 1 to 2 names"},
    {MODEL "transport: { network: { devices: mlx5_0 } }\n", "2:34",
     "transport.network.devices is \"mlx5_0\"; expected a list of 1 to 2 names"},
    {MODEL "transport: { network: { devices: [\"mlx5_0:0\"] } }\n", "2:34",
     "transport.network.devices has \"mlx5_0:0\"; expected RDMA devices"},
    {MODEL "transport: { network: { devices: [\"mlx5_0:256\"] } }\n", "2:34",
     "transport.network.devices has \"mlx5_0:256\"; expected RDMA devices"},
    {MODEL "transport: { network: { devices: [mlx5_0, \"mlx5_1:\"] } }\n", "2:34",
     "transport.network.devices has \"mlx5_1:\"; expected RDMA devices"},
    {MODEL "transport: { network: { devices: [../mlx5_0] } }\n", "2:34",
     "transport.network.devices has \"../mlx5_0\"; expected RDMA devices"},
    {MODEL "transport: { network: { devices: [a123456789a123456789a123456789ab] } }\n", "2:34",
     "expected RDMA devices as `rdma link` names them, at most 31 bytes"},
    {MODEL "transport: { network: { devices: [mlx5_0, mlx5_0] } }\n", "2:34",
     "transport.network.devices has mlx5_0 and mlx5_0, which share a port; expected one of them"},
    {MODEL "transport: { network: { devices: [mlx5_0, \"mlx5_0:1\"] } }\n", "2:34", "which share a port"},
    {MODEL "transport: { network: { devices: [\"mlx5_0:2\", \"mlx5_0:2\"] } }\n", "2:34",
     "which share a port"},
    {MODEL "transport: { network: { gid_index: -1 } }\n", "2:36",
     "transport.network.gid_index is \"-1\"; expected a number from 0 to 255 or auto"},
    {MODEL "transport: { network: { gid_index: 256 } }\n", "2:36", "expected a number from 0 to 255 or auto"},
    {MODEL "transport: { network: { mtu: 1500 } }\n", "2:30",
     "transport.network.mtu is \"1500\"; expected one of: auto, 256, 512, 1024, 2048, 4096"},
    {MODEL "transport: { network: { traffic_class: 256 } }\n", "2:40", "expected a number from 0 to 255"},
    {MODEL "transport: { network: { service_level: 16 } }\n", "2:40", "expected a number from 0 to 15"},
    {MODEL "transport: { path: shm }\npools: { attn: { hosts: [a, b] } }\n", "2:20",
     "the pools are on more than one host; expected tcp, rdma or auto"},
    {MODEL "launch: { by: ssh }\n", "1:16", "model.path is \"m\", and each host reads the model itself"},
    {REMOTE "hosts: [a, b]\npools: { ffn: { shards: s.json } }\n", "4:25",
     "pools.ffn.shards is \"s.json\", and each host reads the file itself"},
    {REMOTE "pools: { attn: { hosts: [a] }, ffn: { hosts: [localhost] } }\n", "3:8",
     "one of them is called localhost"},
    {REMOTE "hosts: [a, b]\nscheduler: { control: \"0.0.0.0:0\", http: \"0.0.0.0:8000\" }\n", "4:23",
     "scheduler.control has port 0, which other hosts cannot know"},
    {REMOTE "hosts: [a, b]\nscheduler: { control: \"0.0.0.0:7070\" }\n", "4:12",
     "scheduler.http is \"127.0.0.1:8000\", which other hosts cannot reach"},
    {REMOTE "hosts: [a, -b]\n", "1:1", "\"-b\" is no name of a host"},
    {MODEL "launch: { ssh: [ssh] }\n", "2:16", "launch.ssh says nothing with launch.by: local"},
    {MODEL "launch: { by: kubernetes, dir: /bin }\n", "2:32",
     "launch.dir says nothing with launch.by: kubernetes"},
    {MODEL "launch: { restart: often }\n", "2:20", "launch.restart is \"often\"; expected one of: always"},
    {MODEL "launch: { by: mail }\n", "2:15", "launch.by is \"mail\"; expected one of: local"},
};

static void each_mistake_is_told_with_place_and_words(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        const struct mistake *m = &mistakes[i];
        struct afd_topology *t = NULL;
        struct afd_error error = {""};
        char prefix[128];
        enum afd_status status = load_bytes(m->yaml, strlen(m->yaml), &t, &error);
        snprintf(prefix, sizeof prefix, "%s:%s: ", file, m->where);
        if (status != AFD_ERR_CONFIG || strncmp(error.text, prefix, strlen(prefix)) ||
            !strstr(error.text, m->words) || !strstr(error.text, "expected"))
            fail_msg("mistake %zu\n%s\nexpected %s and \"%s\", got %d: %s", i, m->yaml, prefix, m->words,
                     status, error.text);
        assert_null(t);
    }
}

static void a_missing_file_is_named(void **state)
{
    (void)state;
    struct afd_topology *t = NULL;
    struct afd_error error;
    assert_int_equal(afd_topology_load("/nowhere/x.yaml", &t, &error), AFD_ERR_CONFIG);
    assert_string_equal(error.text, "/nowhere/x.yaml: cannot be opened: No such file or directory");
    assert_int_equal(afd_topology_load(folder, &t, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "cannot be read: Is a directory"));
}

/* ---- what is accepted */

static struct afd_topology *load_good(const char *yaml)
{
    struct afd_topology *t = NULL;
    struct afd_error error = {""};
    enum afd_status status = load_bytes(yaml, strlen(yaml), &t, &error);
    if (status) fail_msg("%s", error.text);
    return t;
}

static void every_key_but_the_model_has_a_default(void **state)
{
    (void)state;
    struct afd_topology *t = load_good(MODEL);
    char expected[128];
    snprintf(expected, sizeof expected, "%s/m", folder);
    assert_string_equal(t->file, file);
    assert_string_equal(t->model_path, "m");
    assert_string_equal(t->model_dir, expected);
    assert_string_equal(t->cluster, "afd");
    assert_string_equal(t->scheduler.http, "127.0.0.1:8000");
    assert_int_equal(t->scheduler.max_body_bytes, 4 << 20);
    assert_int_equal(t->pipeline.microbatches, 3);
    assert_int_equal(t->pipeline.max_rows, 64);
    assert_int_equal(t->pipeline.prefill_rows, 32);
    assert_int_equal(t->pipeline.max_sequences, 192);
    assert_int_equal(t->pipeline.a2f, AFD_BF16);
    assert_int_equal(t->pipeline.f2a, AFD_BF16);
    assert_true(t->pipeline.gather_auto);
    assert_int_equal(t->transport.data, AFD_DATA_AUTO);
    assert_int_equal(t->transport.path, AFD_PATH_AUTO);
    assert_int_equal(t->transport.memory, AFD_ROWS_AUTO);
    assert_false(afd_topology_splits(t)); /* no pool of GPUs */
    assert_int_equal(t->transport.network.device_count, 0);
    assert_int_equal(t->transport.network.gid_index, -1);
    assert_int_equal(t->transport.network.mtu, 0);
    assert_string_equal(t->transport.network.ucx_tls, "");
    assert_int_equal(t->transport.spin_us, UINT32_MAX);
    assert_int_equal(t->attn.instances, 1);
    assert_int_equal(t->attn.max_instances, 1);
    assert_int_equal(t->attn.dp, 1);
    assert_int_equal(t->attn.kv_dtype, AFD_KV_BF16);
    assert_int_equal(t->ffn.ep, 1);
    assert_int_equal(t->ffn.tp, 1);
    assert_int_equal(t->ffn.copies, 1);
    assert_string_equal(afd_rank_host(t, AFD_ROLE_FFN, 0), "localhost");
    afd_topology_destroy(t);
}

static void auto_follows_the_devices(void **state)
{
    (void)state;
    struct afd_topology *t =
        load_good(MODEL "pools: { attn: { device: { type: cuda } }, ffn: { device: { type: cuda } } }\n");
    assert_int_equal(t->pipeline.a2f, AFD_FP8);
    assert_int_equal(t->attn.kv_dtype, AFD_KV_FP8);
    afd_topology_destroy(t);
    t = load_good(MODEL "pipeline: { a2f: f32, gather_us: 0 }\ntransport: { spin_us: 7 }\n");
    assert_int_equal(t->pipeline.a2f, AFD_F32);
    assert_false(t->pipeline.gather_auto);
    assert_int_equal(t->pipeline.gather_us, 0);
    assert_int_equal(afd_topology_spin_us(t, 1), 7);
    afd_topology_destroy(t);
}

/* Guards: attention tp that the GPU has refused by the file that asks for it; members of a group on two
 * hosts, whose every layer would wait for the network between them. */
static void attention_groups_of_gpus(void **state)
{
    (void)state;
    struct afd_topology *t = load_good(
        MODEL "pools: { attn: { instances: 2, hosts: [a, b], device: { type: cuda }, ranks_per_instance: 4, "
              "parallel: { dp: 2, tp: 2 } }, ffn: { device: { type: cuda } } }\n"
              "transport: { group: nccl }\n");
    assert_int_equal(t->attn.tp, 2);
    for (uint32_t rank = 0; rank < 8; rank++)
        assert_string_equal(afd_rank_host(t, AFD_ROLE_ATTN, rank), rank < 4 ? "a" : "b");
    afd_topology_destroy(t);
}

/* A key that is read into the wrong field would steer traffic without a word. */
static void the_network_is_taken_as_written(void **state)
{
    (void)state;
    struct afd_topology *t =
        load_good(MODEL "transport: { data: verbs, path: rdma, network: { devices: [mlx5_0, \"mlx5_1:2\"], "
                        "gid_index: 3, mtu: 2048, traffic_class: 106, service_level: 5 } }\n");
    const struct afd_network_options *n = &t->transport.network;
    assert_int_equal(t->transport.data, AFD_DATA_VERBS);
    assert_int_equal(t->transport.path, AFD_PATH_RDMA);
    assert_int_equal(n->device_count, 2);
    assert_string_equal(n->devices[0], "mlx5_0");
    assert_string_equal(n->devices[1], "mlx5_1:2");
    assert_int_equal(n->gid_index, 3);
    assert_int_equal(n->mtu, 2048);
    assert_int_equal(n->traffic_class, 106);
    assert_int_equal(n->service_level, 5);
    afd_topology_destroy(t);
    t = load_good(MODEL
                  "transport: { network: { devices: [mlx4_0, \"mlx4_0:2\"], gid_index: auto, mtu: auto, "
                  "ucx_tls: \"rc_mlx5,self\" } }\n");
    n = &t->transport.network;
    assert_int_equal(n->device_count, 2);
    assert_string_equal(n->devices[1], "mlx4_0:2");
    assert_int_equal(n->gid_index, -1);
    assert_int_equal(n->mtu, 0);
    assert_string_equal(n->ucx_tls, "rc_mlx5,self");
    afd_topology_destroy(t);
}

/* Two ranks of one host that took the same number would share a GPU or an adapter. */
static void ranks_of_a_host_are_counted(void **state)
{
    (void)state;
    struct afd_topology *t =
        load_good(MODEL "pools: { attn: { instances: 3, ranks_per_instance: 2, hosts: [a, b] }, "
                        "ffn: { instances: 2, ranks_per_instance: 2, hosts: [b, c] } }\n");
    static const uint32_t attn[] = {0, 1, 0, 1, 2, 3}, ffn[] = {2, 3, 0, 1};
    for (uint32_t i = 0; i < 6; i++) assert_int_equal(afd_rank_local(t, AFD_ROLE_ATTN, i), attn[i]);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(afd_rank_local(t, AFD_ROLE_FFN, i), ffn[i]);
    afd_topology_destroy(t);
}

/* Ranks on machines that the file gives to nobody in particular; supervisors that nobody starts. */
static void hosts_are_dealt_out(void **state)
{
    (void)state;
    char hosts[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES], address[2 * AFD_ADDRESS_BYTES];
    struct afd_topology *t =
        load_good(REMOTE "scheduler: { http: \"0.0.0.0:80\", control: \"0.0.0.0:81\" }\n"
                         "hosts: [a, b, c, d]\n"
                         "pools: { attn: { max_instances: 2 }, ffn: { instances: 2 } }\n");
    assert_string_equal(t->scheduler.host, "a"); /* enough for one an instance */
    assert_string_equal(afd_rank_host(t, AFD_ROLE_ATTN, 1), "b");
    assert_string_equal(afd_rank_host(t, AFD_ROLE_FFN, 0), "c");
    assert_string_equal(afd_rank_host(t, AFD_ROLE_FFN, 1), "d");
    assert_int_equal(afd_topology_hosts(t, hosts), 4);
    assert_string_equal(hosts[1], "b"); /* of an instance that is not there yet */
    afd_topology_reach(t, t->scheduler.control, address);
    assert_string_equal(address, "a:81");
    afd_topology_destroy(t);

    t = load_good(MODEL "hosts: [a, b]\npools: { attn: { instances: 3 }, ffn: { hosts: [b, c, d] } }\n");
    assert_string_equal(afd_rank_host(t, AFD_ROLE_ATTN, 2), "a"); /* too few: shared */
    assert_int_equal(afd_topology_hosts(t, hosts), 2);            /* c and d have no instance */
    afd_topology_destroy(t);
}

/* A topology that Kubernetes' files carry would run another cluster. */
static void what_is_written_loads_as_the_same(void **state)
{
    (void)state;
    static const char *const files[] = {
        "deploy/topologies/2a2f-local.yaml", "deploy/topologies/2a2f-32-local.yaml",
        "deploy/topologies/2a2f-32gpu.yaml", "deploy/topologies/2a2f-32gpu-hopper.yaml"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct afd_topology *a = NULL, *b = NULL;
        struct afd_error error = {""};
        char *text = NULL;
        size_t bytes = 0;
        if (afd_topology_load(files[i], &a, &error)) fail_msg("%s", error.text);
        FILE *f = open_memstream(&text, &bytes);
        afd_topology_write(a, 2, f);
        assert_int_equal(fclose(f), 0);
        if (load_bytes(text, bytes, &b, &error)) fail_msg("%s in\n%s", error.text, text);
        memcpy(b->file, a->file, sizeof a->file);
        memcpy(b->model_dir, a->model_dir, sizeof a->model_dir);
        memcpy(b->hash, a->hash, sizeof a->hash);
        b->launch.names_hosts = a->launch.names_hosts;
        if (memcmp(a, b, sizeof *a) != 0) fail_msg("%s: not the same when read again:\n%s", files[i], text);
        free(text);
        afd_topology_destroy(a);
        afd_topology_destroy(b);
    }
}

static void the_hash_is_of_the_bytes(void **state)
{
    (void)state;
    struct afd_topology *a = load_good(MODEL), *b = load_good(MODEL), *c = load_good(MODEL "# more\n");
    assert_memory_equal(a->hash, b->hash, AFD_HASH_BYTES);
    assert_memory_not_equal(a->hash, c->hash, AFD_HASH_BYTES);
    afd_topology_destroy(a);
    afd_topology_destroy(b);
    afd_topology_destroy(c);
}

static void spinning_needs_more_cores_than_threads(void **state)
{
    (void)state;
    struct afd_topology *t =
        load_good(MODEL "pools: { attn: { instances: 2, device: { threads: 2 }, hosts: [a, b] }, "
                        "ffn: { instances: 2, hosts: [a, b] } }\n");
    assert_int_equal(afd_topology_spin_us(t, 3), 0); /* 2 + 1 threads on each host */
    assert_int_equal(afd_topology_spin_us(t, 4), AFD_SPIN_US);
    assert_int_equal(afd_topology_crowding(t, AFD_ROLE_FFN, 1, 4), 1);
    assert_int_equal(afd_topology_crowding(t, AFD_ROLE_FFN, 1, 3), 1);
    assert_int_equal(afd_topology_crowding(t, AFD_ROLE_FFN, 1, 2), 2);
    assert_int_equal(afd_topology_crowding(t, AFD_ROLE_ATTN, 0, 1), 3);
    assert_string_equal(afd_rank_host(t, AFD_ROLE_ATTN, 1), "b");
    afd_topology_destroy(t);
}

static void ranks_are_pinned_in_turn(void **state)
{
    (void)state;
    uint32_t cores[8];
    struct afd_topology *t =
        load_good(MODEL "pools: { attn: { instances: 3, device: { threads: 2, cores: \"0-2,6\" } } }\n");
    assert_int_equal(afd_rank_cores(t, AFD_ROLE_ATTN, 0, 8, cores), 2);
    assert_int_equal(cores[0], 0);
    assert_int_equal(cores[1], 1);
    assert_int_equal(afd_rank_cores(t, AFD_ROLE_ATTN, 1, 8, cores), 2);
    assert_int_equal(cores[0], 2);
    assert_int_equal(cores[1], 6);
    assert_int_equal(afd_rank_cores(t, AFD_ROLE_ATTN, 2, 1, cores), 1);
    assert_int_equal(cores[0], 0);
    assert_int_equal(afd_rank_cores(t, AFD_ROLE_FFN, 0, 8, cores), 0);
    afd_topology_destroy(t);
}

/* Every shard has `copies` different instances, and the first choice spreads the shards. */
static void copies_are_on_different_instances(void **state)
{
    (void)state;
    struct afd_topology *t = load_good(MODEL);
    for (uint32_t instances = 1; instances <= 9; instances++)
        for (uint32_t copies = 1; copies <= instances; copies++) {
            t->ffn.instances = instances;
            t->ffn.copies = copies;
            for (uint32_t shard = 0; shard < 2 * instances; shard++) {
                uint32_t out[9], seen = 0;
                assert_int_equal(afd_topology_placement(t, shard, out), copies);
                assert_int_equal(out[0], shard % instances);
                for (uint32_t c = 0; c < copies; c++) {
                    assert_true(out[c] < instances);
                    assert_false(seen & 1u << out[c]);
                    seen |= 1u << out[c];
                }
            }
        }
    t->ffn.instances = 4;
    t->ffn.copies = 2;
    uint32_t out[2];
    afd_topology_placement(t, 1, out);
    assert_int_equal(out[1], 3); /* 1 + ceil(4 / 2) */
    afd_topology_destroy(t);
}

static void the_shipped_topologies_load(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        uint32_t attn_ranks, ffn_ranks, ep, max_rows;
    } shipped[] = {{"deploy/topologies/2a2f-local.yaml", 2, 2, 2, 32},
                   {"deploy/topologies/1a1f-local.yaml", 1, 1, 1, 32},
                   {"deploy/topologies/2a2f-32-local.yaml", 16, 16, 2, 8},
                   {"deploy/topologies/2a2f-32gpu.yaml", 16, 16, 2, 84},
                   {"deploy/topologies/2a2f-32gpu-hopper.yaml", 16, 16, 2, 128}};
    for (size_t i = 0; i < sizeof shipped / sizeof shipped[0]; i++) {
        struct afd_topology *t = NULL;
        struct afd_error error = {""};
        if (afd_topology_load(shipped[i].file, &t, &error)) fail_msg("%s", error.text);
        assert_int_equal(afd_pool_ranks(&t->attn), shipped[i].attn_ranks);
        assert_int_equal(afd_pool_ranks(&t->ffn), shipped[i].ffn_ranks);
        assert_int_equal(t->ffn.ep, shipped[i].ep);
        assert_int_equal(t->pipeline.max_rows, shipped[i].max_rows);
        afd_topology_destroy(t);
    }
}

/* ---- hostile bytes: whatever is in the file, an answer, and words with it when the answer is no */

static void mutated_files_never_crash(void **state)
{
    (void)state;
    enum { ROUNDS = 3000, LIMIT = 16384 };
    static const char pieces[][12] = {"{",  "}",        "[",     "]",           ": ", "- ", "&a ",
                                      "*a", "!!int ",   "---\n", "\n",          "\"", "'",  "|\n",
                                      "? ", "\xff\xfe", "\x80",  "99999999999", "#",  "\t"};
    char *seed = calloc(1, LIMIT), *bytes = calloc(1, LIMIT + 64);
    FILE *f = fopen("deploy/topologies/2a2f-local.yaml", "rb");
    assert_non_null(f);
    size_t seed_size = fread(seed, 1, LIMIT, f);
    fclose(f);
    uint32_t accepted = 0;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        size_t size = seed_size;
        memcpy(bytes, seed, size);
        uint64_t edits = 1 + afd_random(round, 0, 1) % 3;
        for (uint64_t e = 0; e < edits; e++) {
            size_t at = afd_random(round, e, 2) % size;
            const char *piece = pieces[afd_random(round, e, 3) % (sizeof pieces / sizeof pieces[0])];
            switch (afd_random(round, e, 4) % 4) {
            case 0:
                bytes[at] = (char)afd_random(round, e, 5);
                break;
            case 1:
                size = at + 1;
                break;
            case 2:
                memmove(bytes + at, bytes + at + 1, --size - at);
                break;
            default:
                if (size + 16 < LIMIT) {
                    memmove(bytes + at + strlen(piece), bytes + at, size - at);
                    memcpy(bytes + at, piece, strlen(piece));
                    size += strlen(piece);
                }
            }
            if (!size) size = 1;
        }
        struct afd_topology *t = NULL;
        struct afd_error error = {""};
        enum afd_status status = load_bytes(bytes, size, &t, &error);
        if (status) {
            assert_int_equal(status, AFD_ERR_CONFIG);
            assert_int_equal(strncmp(error.text, file, strlen(file)), 0);
            assert_non_null(strstr(error.text, "expected"));
        } else
            accepted++;
        afd_topology_destroy(t);
    }
    assert_in_range(accepted, 1,
                    ROUNDS - 1); /* edits inside comments are accepted: the fuzz reaches both ends */
    free(seed);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_mistake_is_told_with_place_and_words),
        cmocka_unit_test(a_missing_file_is_named),
        cmocka_unit_test(every_key_but_the_model_has_a_default),
        cmocka_unit_test(auto_follows_the_devices),
        cmocka_unit_test(attention_groups_of_gpus),
        cmocka_unit_test(the_network_is_taken_as_written),
        cmocka_unit_test(ranks_of_a_host_are_counted),
        cmocka_unit_test(hosts_are_dealt_out),
        cmocka_unit_test(what_is_written_loads_as_the_same),
        cmocka_unit_test(the_hash_is_of_the_bytes),
        cmocka_unit_test(spinning_needs_more_cores_than_threads),
        cmocka_unit_test(ranks_are_pinned_in_turn),
        cmocka_unit_test(copies_are_on_different_instances),
        cmocka_unit_test(the_shipped_topologies_load),
        cmocka_unit_test(mutated_files_never_crash),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
