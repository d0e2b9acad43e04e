/* `afd plan` as a program: the keys that others read, the picture, how it refuses; and stages measured on
 * this CPU that become the forecast of a cluster. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

/* Runs `afd COMMAND ARGUMENTS`; stdout or, with 2>&1 in them, both. */
static int run(const char *name, const char *arguments, char *out, size_t room)
{
    char command[1024];
    snprintf(command, sizeof command, "%s %s %s", AFD_PROGRAM, name, arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t got = fread(out, 1, room - 1, pipe);
    out[got] = 0;
    int status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int plan(const char *arguments, char *out, size_t room)
{
    return run("plan", arguments, out, room);
}

static char text[1 << 17];

static void keys_that_others_read(void **state)
{
    (void)state;
    assert_int_equal(
        plan("--model tests/plan/step3.json --context 8192,32768 --hardware H800,H20,A800,910B --json", text,
             sizeof text),
        0);
    json_t *o = json_loads(text, 0, NULL), *contexts = json_object_get(o, "contexts");
    assert_int_equal(json_array_size(contexts), 2);
    static const char *const names[] = {"H800", "H20", "A800", "910B"};
    for (size_t i = 0; i < 2; i++) {
        json_t *c = json_array_get(contexts, i);
        assert_int_equal(json_integer_value(json_object_get(c, "context")), i ? 32768 : 8192);
        static const char *const numbers[] = {"kv_bytes", "attention_flops", "linear_flops", "ffn_flops"};
        for (int n = 0; n < 4; n++) assert_true(json_number_value(json_object_get(c, numbers[n])) > 1e8);
        for (int h = 0; h < 4; h++) {
            assert_true(
                json_is_real(json_object_get(json_object_get(c, "attention_usd_per_mtok"), names[h])));
            assert_true(json_is_real(json_object_get(json_object_get(c, "ffn_usd_per_mtok"), names[h])));
        }
        json_t *best = json_object_get(c, "best");
        assert_string_equal(json_string_value(json_object_get(best, "attention")), "H20");
        assert_string_equal(json_string_value(json_object_get(best, "ffn")), "H800");
        assert_float_equal(json_number_value(json_object_get(best, "usd_per_mtok")), i ? 0.129 : 0.055,
                           0.001);
    }
    assert_float_equal(json_number_value(json_object_get(json_object_get(o, "min_sparsity"), "H800")), 0.058,
                       0.0006);
    assert_true(json_is_boolean(json_object_get(json_object_get(o, "verdict"), "pays")));
    json_decref(o);
}

/* Cheapest for both by the file's prices; the other number of stages and the other dispatch are there too. */
static void the_same_hardware_for_both(void **state)
{
    (void)state;
    char path[] = "/tmp/afd-plan-XXXXXX.json", arguments[128];
    int fd = mkstemps(path, 5);
    dprintf(fd, "{\"hardware\": [{\"name\": \"H800\", \"usd_per_hour\": 0.5}, {\"name\": \"H20\"}]}");
    close(fd);
    snprintf(arguments, sizeof arguments, "--model step3 --hardware %s --json", path);
    assert_int_equal(plan(arguments, text, sizeof text), 0);
    unlink(path);
    json_t *o = json_loads(text, 0, NULL), *verdict = json_object_get(o, "verdict"),
           *others = json_object_get(o, "others"), *ratio = json_object_get(o, "ratio");
    assert_true(json_is_false(json_object_get(verdict, "pays")));
    assert_string_equal(json_string_value(json_object_get(verdict, "reason")), "same_hardware");
    double three = json_number_value(json_object_get(ratio, "tokens_per_s_per_gpu")),
           four = json_number_value(
               json_object_get(json_object_get(others, "stages_4"), "tokens_per_s_per_gpu")),
           routed = json_number_value(json_object_get(json_object_get(others, "routed"), "network_ms"));
    assert_true(four > 0 && four < three); /* 12.5 ms a stage instead of 16.7 */
    assert_true(routed > 0 && routed <= json_number_value(json_object_get(ratio, "network_ms")));
    json_decref(o);
}

static void a_price_that_is_not_known_is_null(void **state)
{
    (void)state;
    assert_int_equal(plan("--model step3 --hardware L20 --json", text, sizeof text), 0);
    json_t *o = json_loads(text, 0, NULL), *c = json_array_get(json_object_get(o, "contexts"), 0);
    assert_true(json_is_null(json_object_get(c, "best")));
    assert_true(json_is_null(json_object_get(json_object_get(c, "ffn_usd_per_mtok"), "L20")));
    json_decref(o);
}

static void the_picture_is_well_formed(void **state)
{
    (void)state;
    char path[] = "/tmp/afd-plan-XXXXXX.svg", arguments[128];
    close(mkstemps(path, 4));
    snprintf(arguments, sizeof arguments, "--model step3 --svg %s", path);
    assert_int_equal(plan(arguments, text, sizeof text), 0);
    FILE *f = fopen(path, "r");
    size_t got = fread(text, 1, sizeof text - 1, f);
    text[got] = 0;
    fclose(f);
    unlink(path);
    assert_true(got > 1000 && got < sizeof text - 1);
    assert_string_equal(text + got - 7, "</svg>\n");
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
}

/* Every figure that is printed was measured: it is above 0. */
static void stages_become_a_forecast(void **state)
{
    (void)state;
    char path[] = "/tmp/afd-stage-XXXXXX.json", arguments[256];
    assert_int_equal(run("bench", "stage --model model/nano --rows 1,4 --steps 2 --json", text, sizeof text),
                     0);
    json_t *o = json_loads(text, 0, NULL), *stages = json_object_get(o, "stages");
    assert_int_equal(json_array_size(stages), 2);
    for (size_t i = 0; i < 2; i++) {
        static const char *const figures[] = {"attn_us",   "ffn_us",   "head_us",
                                              "attn_flop", "ffn_flop", "ffn_bytes"};
        for (int f = 0; f < 6; f++)
            assert_true(json_number_value(json_object_get(json_array_get(stages, i), figures[f])) > 0);
        double share = json_number_value(json_object_get(json_array_get(stages, i), "ffn_ceiling_ratio"));
        assert_true(share >
                    0); /* no bound above: the peak is measured at another moment, under another load */
    }
    int fd = mkstemps(path, 5);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    snprintf(arguments, sizeof arguments,
             "--calibrate %s --topology deploy/topologies/1a1f-local.yaml --batch 1,6 --json", path);
    assert_int_equal(plan(arguments, text, sizeof text), 0);
    json_t *forecast = json_loads(text, 0, NULL), *rows = json_object_get(forecast, "forecasts");
    assert_int_equal(json_array_size(rows), 2);
    assert_true(json_number_value(json_object_get(json_array_get(rows, 0), "tokens_per_s")) > 0);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(rows, 1), "rows")), 2);
    json_decref(o);
    json_decref(forecast);
    /* the machine it was measured on is a row of hardware: the operations of a layer over its own rate */
    snprintf(arguments, sizeof arguments, "--model step3 --hardware %s --peak --json", path);
    assert_int_equal(plan(arguments, text, sizeof text), 0);
    o = json_loads(text, 0, NULL);
    json_t *reach = json_object_get(json_object_get(o, "stage_reach"), "cpu"),
           *ideal = json_object_get(json_object_get(o, "ideal_ffn_rows"), "cpu");
    assert_true(json_number_value(json_object_get(reach, "layer_bytes")) > 0);
    assert_true(json_number_value(json_object_get(ideal, "dense")) > 0);
    json_decref(o);
    /* a table of another cut is no use */
    snprintf(arguments, sizeof arguments, "--calibrate %s --topology deploy/topologies/2a2f-local.yaml 2>&1",
             path);
    assert_int_not_equal(plan(arguments, text, sizeof text), 0);
    assert_non_null(strstr(text, "afd bench stage --ep"));
    unlink(path);
}

static void refusals(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"", "expected --model"},
        {"--model nobody", "nobody"},
        {"--model step3 --context 0", "--context"},
        {"--model step3 --context 8192,", "--context"},
        {"--model step3 --hardware H9", "H9"},
        {"--model step3 --convention loose", "--convention"},
        {"--model step3 --stages 5", "--stages"},
        {"--model step3 --pair H20", "--pair"},
        {"--model step3 --ratio 2A2F", "--batch"},
        {"--model step3 --ratio 2A2 --batch 64", "--ratio"},
        {"--model step3 --ratio 2A2F --batch 4", "--batch"},
        {"--model step3 --tpot-ms 0", "--tpot-ms"},
        {"--model step3 --svg /nowhere/x.svg", "/nowhere/x.svg"},
        {"--calibrate nothing.json", "--topology"},
        {"--calibrate nothing.json --topology deploy/topologies/1a1f-local.yaml",
         "nothing.json: unable to open"},
        {"--model step3 --hardware nothing.json", "nothing.json: unable to open"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char arguments[256];
        snprintf(arguments, sizeof arguments, "%s 2>&1", wrong[i][0]);
        assert_int_not_equal(plan(arguments, text, sizeof text), 0);
        if (!strstr(text, wrong[i][1]))
            fail_msg("plan %s: \"%s\" does not name %s", wrong[i][0], text, wrong[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_that_others_read),
        cmocka_unit_test(the_same_hardware_for_both),
        cmocka_unit_test(a_price_that_is_not_known_is_null),
        cmocka_unit_test(the_picture_is_well_formed),
        cmocka_unit_test(stages_become_a_forecast),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
