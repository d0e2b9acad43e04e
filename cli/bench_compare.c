/* bench_compare.c: one pair: latency and bandwidth by size, ours and the libraries' own tests in turns. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench_transport.h"

enum { CALIBRATION = 50, MOST_ITERATIONS = 1000000 };

/* The figures of all rounds. */
struct rounds {
    double of[BT_MAX_ROUNDS];
    uint32_t count;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const struct rounds *r)
{
    struct rounds sorted = *r;
    if (!r->count) return 0;
    qsort(sorted.of, r->count, sizeof *sorted.of, by_value);
    uint32_t half = r->count / 2;
    return r->count % 2 ? sorted.of[half] : (sorted.of[half - 1] + sorted.of[half]) / 2;
}

struct comparison { /* of one size and wait mode */
    struct bt_pair *pair;
    enum bt_wait wait;
    uint64_t bytes;
    struct rounds ours[2]; /* by metric: us, bytes per second */
    struct rounds theirs[BT_TOOLS];
    double iteration_s[BT_TOOLS]; /* as the last run had it; 0: not run yet */
    char missing[BT_TOOLS][200];
};

/* ---- ours */

static enum afd_status set_ranks(struct bt_pair *p, int sleeps, struct afd_error *error)
{
    struct bt_group *const groups[] = {&p->run->ffn, &p->run->attn};
    for (int i = 0; i < 2; i++) {
        json_t *set = json_pack("{s:s, s:b, s:i}", "do", "set", "sleeps", sleeps, "sized_bytes", 0);
        json_t *answers = bt_group_ask(groups[i], set, BT_ANSWER_SECONDS, error);
        if (!answers) return AFD_ERR_PEER;
        json_decref(answers);
    }
    return AFD_OK;
}

static enum afd_status measure_ours(struct comparison *c, enum bt_metric metric, struct bt_histogram *times,
                                    struct afd_error *error)
{
    struct bt_pair *p = c->pair;
    uint32_t window = bt_window_of(c->bytes, p->run->plan.window);
    if (set_ranks(p, c->wait == BT_SLEEP, error)) return AFD_ERR_PEER;
    json_t *request = json_pack("{s:s, s:I, s:i, s:f}", "do", metric == BT_LATENCY ? "latency" : "bandwidth",
                                "bytes", (json_int_t)c->bytes, "window", (int)window, "seconds", p->seconds);
    json_t *answers = bt_group_ask(&p->run->attn, request, 2 * p->seconds + BT_ANSWER_SECONDS, error);
    if (!answers) return AFD_ERR_PEER;
    const json_t *answer = json_array_get(answers, 0);
    struct rounds *ours = &c->ours[metric];
    if (metric == BT_LATENCY) {
        struct bt_histogram *one = calloc(1, sizeof *one);
        if (!one) abort();
        bt_histogram_merge(one, json_object_get(answer, "times"));
        bt_histogram_merge(times, json_object_get(answer, "times"));
        ours->of[ours->count++] = (double)bt_histogram_at(one, 0.5) * 0.5e-3;
        free(one);
    } else {
        ours->of[ours->count++] = json_number_value(json_object_get(answer, "bytes_per_s"));
    }
    json_decref(answers);
    /* Between measurements nobody spins. */
    return set_ranks(p, 1, error);
}

/* ---- theirs */

/* The listening side, here or on the other host. */
static enum afd_status serve_tool(struct bt_pair *p, const struct bt_tool_run *run, int *port_out,
                                  struct bt_tool_server **out, struct afd_error *error)
{
    *out = NULL;
    if (!p->run->remote) {
        *out = bt_tool_serve(run, p->run->host, port_out, error);
        return *out ? AFD_OK : AFD_ERR_IO;
    }
    json_t *request = json_pack("{s:s, s:o}", "do", "tool", "run", bt_tool_run_json(run));
    enum afd_status status = bt_remote_send(p->run->remote, request, error);
    json_decref(request);
    json_t *answer = status ? NULL : bt_remote_receive(p->run->remote, BT_ANSWER_SECONDS, error);
    if (!answer) return AFD_ERR_PEER;
    *port_out = (int)json_integer_value(json_object_get(answer, "port"));
    json_decref(answer);
    return AFD_OK;
}

static void end_tool(struct bt_pair *p, struct bt_tool_server *server)
{
    struct afd_error error;
    bt_tool_end(server);
    if (!p->run->remote) return;
    json_t *request = json_pack("{s:s}", "do", "tool");
    if (!bt_remote_send(p->run->remote, request, &error))
        json_decref(bt_remote_receive(p->run->remote, BT_ANSWER_SECONDS, &error));
    json_decref(request);
}

static enum afd_status run_tool(struct comparison *c, uint32_t tool, uint64_t iterations, double *out,
                                struct afd_error *error)
{
    struct bt_pair *p = c->pair;
    struct bt_tool_run run = {tool, p->over, c->wait, c->bytes, iterations, ""};
    struct bt_tool_server *server;
    int port;
    snprintf(run.device, sizeof run.device, "%s", p->run->plan.network.devices[0]);
    enum afd_status status = serve_tool(p, &run, &port, &server, error);
    if (status) return status;
    const char *local = p->run->host;
    const char *host = p->run->remote ? bt_remote_host(p->run->remote) : p->run->host;
    status = bt_tool_measure(&run, local, host, port, out, &c->iteration_s[tool], error);
    end_tool(p, server);
    return status;
}

/* As many iterations as fill the time that ours has, known from a short run before. A tool that fails once is
 * not run again for this size. */
static void measure_theirs(struct comparison *c, uint32_t tool)
{
    struct afd_error error;
    double value;
    enum afd_status status = AFD_OK;
    if (c->missing[tool][0]) return;
    const char *lacks = bt_tool_lacks(tool, c->pair->over, c->wait);
    if (lacks) status = afd_fail(&error, AFD_ERR_REQUEST, "%s", lacks);
    if (!status && c->iteration_s[tool] <= 0) status = run_tool(c, tool, CALIBRATION, &value, &error);
    if (!status) {
        int trips = bt_tool_metric(tool) == BT_LATENCY ? 2 : 1;
        double fits = c->pair->seconds / (c->iteration_s[tool] * trips);
        uint64_t iterations = fits > MOST_ITERATIONS ? MOST_ITERATIONS
                              : fits < CALIBRATION   ? CALIBRATION
                                                     : (uint64_t)fits;
        status = run_tool(c, tool, iterations, &value, &error);
    }
    if (status)
        snprintf(c->missing[tool], sizeof c->missing[tool], "%.199s", error.text);
    else
        c->theirs[tool].of[c->theirs[tool].count++] = value;
}

/* ---- the object */

static json_t *tools_json(const struct comparison *c, enum bt_metric metric)
{
    static const char *const keys[] = {"p50_us", "bytes_per_s"};
    json_t *tools = json_array();
    double ours = median(&c->ours[metric]), best = 0;
    const char *best_name = NULL;
    for (uint32_t i = 0; i < BT_TOOLS; i++) {
        double theirs = median(&c->theirs[i]);
        if (bt_tool_metric(i) != metric) continue;
        if (!c->theirs[i].count) {
            json_array_append_new(tools,
                                  json_pack("{s:s, s:s}", "name", bt_tool_name(i), "missing", c->missing[i]));
            continue;
        }
        json_array_append_new(tools, json_pack("{s:s, s:f}", "name", bt_tool_name(i), keys[metric], theirs));
        int is_best = !best_name || (metric == BT_LATENCY ? theirs < best : theirs > best);
        if (is_best) best = theirs, best_name = bt_tool_name(i);
    }
    json_t *all = json_pack("{s:f, s:o}", metric == BT_LATENCY ? "ours_p50_us" : "ours_bytes_per_s", ours,
                            "tools", tools);
    if (best_name) {
        json_object_set_new(all, "best", json_string(best_name));
        json_object_set_new(all, "ratio", json_real(ours / best));
    }
    return all;
}

static json_t *comparison_json(const struct comparison *c, const struct bt_histogram *times, int is_compared)
{
    json_t *o = json_pack("{s:s, s:I, s:i, s:{s:f, s:f, s:f, s:f, s:I}, s:f}", "wait", bt_wait_names[c->wait],
                          "bytes", (json_int_t)c->bytes, "window",
                          (int)bt_window_of(c->bytes, c->pair->run->plan.window), "latency_us", "min",
                          (double)times->least * 0.5e-3, "p50", (double)bt_histogram_at(times, 0.5) * 0.5e-3,
                          "p99", (double)bt_histogram_at(times, 0.99) * 0.5e-3, "p99_9",
                          (double)bt_histogram_at(times, 0.999) * 0.5e-3, "round_trips",
                          (json_int_t)times->count, "bandwidth_bytes_per_s", median(&c->ours[BT_BANDWIDTH]));
    if (is_compared)
        json_object_set_new(o, "compare",
                            json_pack("{s:o, s:o}", "latency", tools_json(c, BT_LATENCY), "bandwidth",
                                      tools_json(c, BT_BANDWIDTH)));
    return o;
}

json_t *bt_pair_measure(struct bt_pair *p, uint64_t bytes, enum bt_wait wait, struct afd_error *error_out)
{
    struct comparison *c = calloc(1, sizeof *c);
    struct bt_histogram *times = calloc(1, sizeof *times);
    enum afd_status status = AFD_OK;
    json_t *done = NULL;
    char size[32];
    if (!c || !times) abort();
    *c = (struct comparison){.pair = p, .wait = wait, .bytes = bytes};
    for (uint32_t round = 0; !status && round < p->rounds; round++) {
        for (enum bt_metric metric = BT_LATENCY; !status && metric <= BT_BANDWIDTH; metric++) {
            const char *of = metric == BT_LATENCY ? "latency" : "bandwidth";
            bt_progress(p->run, "%s, %s, round %u of %u: %s", cli_bytes(bytes, size), bt_wait_names[wait],
                        round + 1, p->rounds, of);
            status = measure_ours(c, metric, times, error_out);
            for (uint32_t i = 0; !status && p->is_compared && i < BT_TOOLS; i++) {
                if (bt_tool_metric(i) != metric) continue;
                bt_progress(p->run, "%s, %s, round %u of %u: %s", cli_bytes(bytes, size), bt_wait_names[wait],
                            round + 1, p->rounds, bt_tool_name(i));
                measure_theirs(c, i);
            }
        }
    }
    if (!status) done = comparison_json(c, times, p->is_compared);
    free(times);
    free(c);
    return done;
}
