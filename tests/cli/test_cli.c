/* Guards: a command that says something else than it did, exits 0 after a failure, or leaves processes
 * behind; a cluster that is not found, or the wrong one that is.
 *
 * The real afd program with made-up daemons (tests/deploy/fixture_daemon.c), in a home folder of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/cli/program.h"

static char home[] = "/tmp/afd-cli-XXXXXX";

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(home)) return -1;
    setenv("HOME", home, 1);
    setenv("AFD_BIN", FIXTURE_BIN, 1);
    unsetenv("AFD_STATE");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return run("rm -rf %s", home);
}

static int stop(void **state)
{
    (void)state;
    unsetenv("FIXTURE_FAIL");
    unsetenv("FIXTURE_UNUSABLE");
    return run("for d in %s/.afd/*/; do [ ! -d $d ] || $afd down --state $d; done; rm -rf %s/.afd", home,
               home);
}

#define TOPOLOGY "tests/deploy/2a2f.yaml"

/* ---- without a cluster */

static void the_table_is_the_help(void **state)
{
    (void)state;
    static const char *const commands[] = {"check",  "up",       "down", "ps",    "logs",
                                           "status", "complete", "chat", "bench", "help"};
    expect(0, run("$afd help"));
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        char line[32];
        snprintf(line, sizeof line, "\n  afd %s ", commands[i]);
        expect_words(line);
    }
    assert_null(strstr(output, "supervise"));
    expect(0, run("$afd help check"));
    expect_words("--context N");
    expect(2, run("$afd"));
    expect(2, run("$afd fly"));
    expect_words("no command \"fly\"");
    expect(2, run("$afd ps --fast"));
    expect_words("no option \"--fast\"");
    expect(2, run("$afd bench serve --requests many"));
    expect_words("--requests is \"many\"; expected a number");
    expect(2, run("$afd up"));
    expect(2, run("$afd up a b"));
}

static void a_bad_topology_is_told_with_its_place(void **state)
{
    (void)state;
    expect(1, run("printf 'model: { path: m }\\nslo: { tpot: 1 }\\n' >%s/bad.yaml; $afd check %s/bad.yaml",
                  home, home));
    expect_words("bad.yaml:2:8: unknown key \"tpot\" in slo; expected one of: tpot_ms");
    expect(1, run("$afd up %s/bad.yaml", home));
    expect_words("bad.yaml:2:8:");
    expect(1, run("$afd up deploy/topologies/2a2f-32gpu.yaml"));
#if defined AFD_HAS_NCCL
    expect_words("is not this machine");
#elif defined AFD_HAS_CUDA
    expect_words("this build has no NCCL");
#else
    expect_words("no CUDA back end");
#endif
}

static void check_prints_facts(void **state)
{
    (void)state;
    expect(0, run("$afd check deploy/topologies/2a2f-32gpu-hopper.yaml --context 4096"));
    expect_words("ffn/15");
    expect_words("A2F 896.00 KiB, F2A 1.75 MiB a shard");
    expect_words("of 273 us each (50 ms a token)");
    expect(0, run("$afd check deploy/topologies/2a2f-32gpu-hopper.yaml --json --context 4096"));
    json_t *plan = parse_output();
    assert_int_equal(json_array_size(json_object_get(plan, "ranks")), 32);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(plan, "messages"), "a2f_payload_bytes")),
        896 << 10);
    assert_string_equal(json_string_value(json_object_get(json_object_get(plan, "topology"), "cluster")),
                        "step3-2a2f-hopper");
    json_decref(plan);
    expect(0, run("$afd check deploy/topologies/2a2f-local.yaml"));
    expect_words("shard 1 (experts 4-7)");
    expect_words("none: within one host");
}

/* What the layers and the ranks take is the whole checkpoint: each layer's bytes, the members of a group. */
static void ranks_add_up(void)
{
    json_int_t whole[2] = {0}, layers = 0;
    for (int cut = 0; cut < 2; cut++) {
        size_t i;
        json_t *one;
        expect(0, run("$afd model info tests/reference/fixtures/qwen3_moe --json %s",
                      cut ? "--attn-tp 2 --tp 3" : ""));
        json_t *info = parse_output();
        assert_int_equal(json_array_size(json_object_get(info, "ranks")), cut ? 5 : 2);
        json_array_foreach(json_object_get(info, "ranks"), i, one)
        {
            whole[cut] += json_integer_value(json_object_get(one, "weights"));
        }
        layers = 0;
        json_array_foreach(json_object_get(info, "layers"), i, one)
        {
            layers += json_integer_value(json_object_get(one, "bytes"));
        }
        assert_int_equal(whole[0], json_integer_value(json_object_get(info, "parameters")));
        assert_true(layers > 0 && layers < json_integer_value(json_object_get(info, "bytes")));
        json_decref(info);
    }
    /* of 3 layers the norms of Q's and K's heads, which each member has; nothing else is held twice */
    assert_int_equal(whole[1] - whole[0], 3 * 2 * 24);
    expect(2, run("$afd model info tests/reference/fixtures/qwen3_moe --ep 65"));
    expect_words("expected 1 to 64");
}

/* Each spoils what lies in $d. */
static const struct {
    const char *spoil, *words;
} spoilt[] = {
    {"rm $d/tokenizer.json", "tokenizer.json: cannot open"},
    {"truncate -s 100000 $d/model-00002-of-00003.safetensors", "model-00002-of-00003.safetensors: tensor"},
    {"rm $d/model-00003-of-00003.safetensors", "model-00003-of-00003.safetensors: No such file"},
    {"printf 'version https://git-lfs.github.com/spec/v1' > $d/model-00001-of-00003.safetensors",
     "a pointer of Git LFS"},
    {"printf 'version https://git-lfs.github.com/spec/v1' > $d/tokenizer.json", "a pointer of Git LFS"},
    {"sed -i 's/\"num_hidden_layers\": 4/\"num_hidden_layers\": 5/' $d/config.json",
     "made: tensor model.layers.4.input_layernorm.weight: not in the checkpoint"},
    {"sed -i 's/\"intermediate_size\": 128/\"intermediate_size\": 96/' $d/config.json",
     "the model's configuration asks for [96, 64]"},
    {"rm $d/*", "neither a config.json nor one GGUF model"},
};

/* Guards: a checkpoint that is found to be useless by ranks that load it, minutes later, and not by check. */
static void check_looks_at_the_weights(void **state)
{
    (void)state;
    expect(0, run("mkdir -p %s/w && printf 'model: { path: made }\n' > %s/w/t.yaml", home, home));
    for (size_t i = 0; i < sizeof spoilt / sizeof *spoilt; i++) {
        expect(0, run("$afd model make %s/w/made --family qwen3_moe --moe-layers 1 --files 3", home));
        expect(0, run("$afd check %s/w/t.yaml", home));
        expect(0, run("d=%s/w/made; %s", home, spoilt[i].spoil));
        expect(1, run("$afd check %s/w/t.yaml", home));
        expect_words(spoilt[i].words);
        expect(1, run("$afd up %s/w/t.yaml", home));
        expect_words(spoilt[i].words);
        expect(0, run("rm -r %s/w/made", home));
    }
    expect(0, run("$afd model make %s/w/made && rm %s/w/made/model*", home, home));
    expect(0, run("$afd check %s/w/t.yaml", home)); /* it may be planned .. */
    expect_words("has no weights");
    expect(1, run("$afd up %s/w/t.yaml", home)); /* .. and not run */
    expect_words("neither model.safetensors nor model.safetensors.index.json");
}

static void model_info_counts_a_checkpoint(void **state)
{
    (void)state;
    expect(0, run("$afd model info tests/reference/fixtures/llama_gptq"));
    expect_words("INT4_128");
    expect(0, run("$afd model info tests/reference/fixtures/deepseek_v3_gguf --json"));
    json_t *info = parse_output();
    assert_int_equal(json_array_size(json_object_get(info, "layers")), 3);
    assert_true(json_integer_value(json_object_get(info, "parameters")) >
                json_integer_value(json_object_get(info, "active_parameters")));
    json_decref(info);
    ranks_add_up();
    expect(1, run("$afd model info %s", home));
    expect(2, run("$afd model weigh %s", home));
}

static void a_model_is_made(void **state)
{
    (void)state;
    expect(0, run("$afd model make %s/made --family deepseek_v3 --layers 3 --experts 8 --dtype f32 --seed 7",
                  home));
    expect(0, run("$afd model info %s/made --json", home));
    json_t *info = parse_output();
    assert_string_equal(json_string_value(json_object_get(info, "architecture")), "DeepseekV3ForCausalLM");
    assert_int_equal(json_array_size(json_object_get(info, "layers")), 3);
    json_decref(info);
    expect(1, run("$afd model make %s/made", home));
    expect_words("has a model already");
    expect(2, run("$afd model make %s/other --family gpt", home));
    expect_words("expected one of: step3, step3p5");
    expect(1, run("$afd model make %s/other --top-k 9", home));
    expect_words("moe_top_k: 9 of 8 experts");
    expect(1, run("$afd model info %s/other", home));
}

static void a_model_is_converted(void **state)
{
    (void)state;
    expect(0, run("$afd model make %s/tiny --family llama --hidden 128 --intermediate 256", home));
    expect(0, run("$afd model convert %s/tiny -o %s/tiny.gguf --to gguf --type q8_0", home, home));
    expect_words("blk.*.ffn_down.weight");
    expect(0, run("$afd model info %s/tiny.gguf", home));
    expect_words("Q8_0");
    expect(0, run("$afd model convert %s/tiny.gguf -o %s/back --to safetensors --type gptq --shard-size "
                  "100KB --json",
                  home, home));
    json_t *report = parse_output(), *first = json_array_get(json_object_get(report, "tensors"), 0);
    assert_string_equal(json_string_value(json_object_get(report, "format")), "safetensors");
    assert_string_equal(json_string_value(json_object_get(first, "from")), "Q8_0");
    assert_true(json_number_value(json_object_get(first, "rms_relative_error")) < 0.01);
    json_decref(report);
    expect(0, run("$afd model info %s/back", home));
    expect_words("INT4_128");
    expect(1, run("$afd model convert %s/tiny -o %s/back --to safetensors", home, home));
    expect_words("is there already");
    expect(1, run("$afd model convert %s/tiny -o %s/new --to safetensors --type q8_0", home, home));
    expect_words("safetensors has f32");
    expect(2, run("$afd model convert %s/tiny -o %s/new --to onnx", home, home));
    expect(2, run("$afd model convert %s/tiny -o %s/new --to safetensors --shard-size five", home, home));
    expect_words("expected a size such as 5GB");
    expect(0, run("$afd model make %s/made.gguf --family qwen3_moe --moe-layers 0,1,2,3 --renormalise "
                  "--format gguf",
                  home));
    expect(0, run("$afd model info %s/made.gguf", home));
    expect(1, run("$afd model make %s/step3.gguf --format gguf", home));
    expect_words("GGUF has no architecture");
    expect(1, run("ls %s | grep -e unfinished -e making", home));
}

/* A rank's adapter: as the topology says, as this machine has it, or not known before the rank starts there.
 */
static void check_prints_the_adapters(void **state)
{
    (void)state;
    static const char *const head = "printf 'model: { path: %%s/model/nano }\\ntransport: { %s }\\npools: { "
                                    "attn: { hosts: [elsewhere] } }\\n' "
                                    "\"$PWD\" >%s/nic.yaml; $afd check --json %s/nic.yaml";
    static const struct {
        const char *transport, *nic, *attn, *ffn;
    } rows[] = {
        {"network: { devices: [mlx5_0, \"mlx5_1:2\"] }", "mlx5_1:2", "named in the topology",
         "named in the topology"},
        {"path: tcp", NULL, "none: TCP", "none: TCP over lo"},
        {"data: auto", NULL, "found on the host at start", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        expect(0, run(head, rows[i].transport, home, home));
        json_t *plan = parse_output(), *ranks = json_object_get(plan, "ranks");
        json_t *attn = json_array_get(ranks, 0), *ffn = json_array_get(ranks, 1);
        json_t *nics = json_object_get(attn, "nics");
        assert_int_equal(json_array_size(nics), rows[i].nic ? 2 : 0);
        if (rows[i].nic) assert_string_equal(json_string_value(json_array_get(nics, 1)), rows[i].nic);
        assert_string_equal(json_string_value(json_object_get(attn, "nic_reason")), rows[i].attn);
        if (rows[i].ffn)
            assert_string_equal(json_string_value(json_object_get(ffn, "nic_reason")), rows[i].ffn);
        json_decref(plan);
    }
}

static void without_a_cluster_commands_say_so(void **state)
{
    (void)state;
    expect(0, run("$afd down"));
    expect_words("nothing runs");
    expect(0, run("$afd down --state %s/none", home));
    expect(1, run("$afd ps"));
    expect_words("no cluster runs");
    expect(1, run("$afd status"));
    expect_words("afd up FILE");
    expect(1, run("$afd complete hello --url http://127.0.0.1:1"));
}

/* ---- with one */

static void a_cluster_from_up_to_down(void **state)
{
    (void)state;
    expect(0, run("$afd up " TOPOLOGY " --timeout 60"));
    expect_words("ranks ready: 4 of 4");
    expect_words("ready: http://127.0.0.1:");
    expect(0, run("$afd up " TOPOLOGY));
    expect_words("runs already");
    expect(1, run("$afd up deploy/topologies/1a1f-local.yaml --state %s/.afd/fixture", home));
    expect_words("another cluster runs in");

    expect(0, run("$afd ps --json"));
    json_t *ps = parse_output(), *process;
    size_t i;
    assert_int_equal(json_array_size(json_object_get(ps, "processes")), 5);
    pid_t pids[5];
    json_array_foreach(json_object_get(ps, "processes"), i, process)
    {
        pids[i] = (pid_t)json_integer_value(json_object_get(process, "pid"));
        assert_int_equal(kill(pids[i], 0), 0);
        assert_string_equal(json_string_value(json_object_get(process, "state")), "running");
    }
    json_decref(ps);
    expect(0, run("$afd ps --state fixture"));
    expect_words("attn/1");
    expect(0, run("$afd logs ffn/1 -n 1"));
    assert_string_equal(output, "ffn-1 runs\n");
    expect(2, run("$afd logs everybody"));
    expect(1, run("$afd logs attn/77"));

    expect(0, run("$afd status"));
    expect_words("fixture: ready, model made-up, epoch 3");
    expect_words("1.500 s  75.0%");
    expect(0, run("$afd status --json"));
    json_t *cluster = parse_output();
    assert_int_equal(json_integer_value(json_object_get(cluster, "epoch")), 3);
    json_decref(cluster);

    expect(0, run("$afd down"));
    for (i = 0; i < 5; i++) assert_int_equal(kill(pids[i], 0), -1);
    expect(0, run("$afd down"));
    expect_words("nothing runs");
}

static void text_streams_to_the_terminal(void **state)
{
    (void)state;
    expect(0, run("$afd up " TOPOLOGY " --timeout 60"));
    expect(0, run("$afd complete 'to be or not' --max-tokens 8 --seed 1 --top-k 4"));
    assert_string_equal(output, "to be or not\n");
    expect(1, run("$afd complete fail"));
    expect_words("answered 400: as you wish");
    expect(0, run("printf 'hello\\nagain\\n/clear\\nonce more\\n/exit\\nnever\\n' | $afd chat --system 'be "
                  "brief'"));
    assert_string_equal(output,
                        "2 messages\n4 messages\n2 messages\n"); /* system, user; and the answer, user */
    expect(0, run("$afd bench serve --requests 20 --concurrency 4 --prompt-tokens 5 --max-tokens 3 --json"));
    json_t *report = parse_output();
    assert_int_equal(json_integer_value(json_object_get(report, "requests")), 20);
    assert_int_equal(json_integer_value(json_object_get(report, "failed")), 0);
    assert_int_equal(json_integer_value(json_object_get(report, "generated_tokens")), 60);
    assert_true(json_number_value(json_object_get(json_object_get(report, "ttft_s"), "p99")) > 0);
    json_decref(report);
    expect(0, run("$afd bench serve --requests 3"));
    expect_words("TTFT");
    expect(0, run("$afd bench serve -n 6 --warmup 2 -c 1,3 --rate 200 --burstiness 0.5 --prompt-tokens 2-9 "
                  "--max-tokens 1-4 --slo-e2e-ms 60000 --svg $HOME/serve.svg --json"));
    report = parse_output();
    expect(0, run("grep -q 'Goodput' $HOME/serve.svg && grep -q 'Latency, 3 requests' $HOME/serve.svg"));
    json_t *runs = json_object_get(report, "runs"), *second = json_array_get(runs, 1);
    assert_int_equal(json_array_size(runs), 2);
    assert_int_equal(json_integer_value(json_object_get(second, "concurrency")), 3);
    assert_int_equal(json_integer_value(json_object_get(second, "requests")), 6);
    assert_true(json_number_value(json_object_get(second, "goodput_requests_per_s")) > 0);
    json_decref(report);
    expect(0, run("printf '{\"at_s\":0,\"prompt_tokens\":3,\"max_tokens\":2}\n"
                  "{\"at_s\":0.05,\"prompt_tokens\":4,\"max_tokens\":5}\n' >$HOME/trace.jsonl; "
                  "$afd bench serve --trace $HOME/trace.jsonl --json"));
    report = parse_output();
    assert_int_equal(json_integer_value(json_object_get(report, "requests")), 2);
    assert_int_equal(json_integer_value(json_object_get(report, "prompt_tokens")),
                     3); /* the mean of 3 and 4 */
    assert_true(json_number_value(json_object_get(report, "seconds")) >= 0.05);
    json_decref(report);
    expect(1, run("printf '{\"at_s\":1}\n' >$HOME/trace.jsonl; $afd bench serve --trace $HOME/trace.jsonl"));
    expect_words("trace.jsonl:1: expected");
    expect(2, run("$afd bench serve -c 1,,2"));
    expect(2, run("$afd bench serve --prompt-tokens 9-2"));
}

static void a_rank_that_fails_takes_all_down(void **state)
{
    (void)state;
    setenv("FIXTURE_FAIL", "ffn-1", 1);
    expect(1, run("$afd up " TOPOLOGY " --timeout 60"));
    expect_words("ffn/1 cannot be kept running (exit status 3)");
    expect_words("ffn-1: fails because the test says so");
    expect(0, run("$afd down"));
    expect_words("nothing runs");
}

static void a_scheduler_that_cannot_work_is_told_with_its_words(void **state)
{
    (void)state;
    setenv("FIXTURE_UNUSABLE", "scheduler", 1);
    expect(1, run("$afd up " TOPOLOGY " --timeout 60"));
    expect_words("scheduler: cannot work because the test says so");
    expect(0, run("$afd down"));
    expect_words("nothing runs");
}

static void up_gives_up_in_time(void **state)
{
    (void)state;
    setenv("FIXTURE_FAIL", "ffn-1", 1);
    expect(1, run("$afd up " TOPOLOGY " --timeout 0"));
    expect_words("not every rank became ready in time");
    expect(0, run("$afd down"));
    expect_words("nothing runs");
}

static void two_clusters_must_be_named(void **state)
{
    (void)state;
    expect(0, run("$afd up " TOPOLOGY " --state %s/.afd/one", home));
    expect(0, run("$afd up " TOPOLOGY " --state %s/.afd/two", home));
    expect(1, run("$afd ps"));
    expect_words("2 clusters run");
    expect_words("--state NAME");
    expect(1, run("$afd down"));
    expect(0, run("$afd ps --state one"));
    expect(0, run("AFD_STATE=%s/.afd/two $afd down", home));
    expect(0, run("$afd ps"));
    expect(0, run("$afd down one"));
    expect(1, run("$afd ps"));
}

/* The supervisor was killed: its folder has a socket, files and no process. */
static void a_stale_folder_is_used_again(void **state)
{
    (void)state;
    expect(0, run("$afd up " TOPOLOGY));
    char path[128];
    snprintf(path, sizeof path, "%s/.afd/fixture/cluster.json", home);
    json_t *cluster = json_load_file(path, 0, NULL);
    assert_non_null(cluster);
    kill((pid_t)json_integer_value(json_object_get(cluster, "pid")), SIGKILL);
    json_decref(cluster);
    expect(0, run("flock %s/.afd/fixture/lock true", home)); /* waits until it is really gone */
    expect(1, run("$afd ps"));
    expect(0, run("$afd up " TOPOLOGY));
    expect_words("starting fixture");
    expect(0, run("$afd ps"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_is_the_help),
        cmocka_unit_test(a_bad_topology_is_told_with_its_place),
        cmocka_unit_test(check_prints_facts),
        cmocka_unit_test(check_looks_at_the_weights),
        cmocka_unit_test(model_info_counts_a_checkpoint),
        cmocka_unit_test(a_model_is_made),
        cmocka_unit_test(a_model_is_converted),
        cmocka_unit_test(check_prints_the_adapters),
        cmocka_unit_test(without_a_cluster_commands_say_so),
        cmocka_unit_test_teardown(a_cluster_from_up_to_down, stop),
        cmocka_unit_test_teardown(text_streams_to_the_terminal, stop),
        cmocka_unit_test_teardown(a_rank_that_fails_takes_all_down, stop),
        cmocka_unit_test_teardown(a_scheduler_that_cannot_work_is_told_with_its_words, stop),
        cmocka_unit_test_teardown(up_gives_up_in_time, stop),
        cmocka_unit_test_teardown(two_clusters_must_be_named, stop),
        cmocka_unit_test_teardown(a_stale_folder_is_used_again, stop),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
