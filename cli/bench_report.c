/* bench_report.c: what `afd bench transport` found, as tables for people. */
#include <string.h>

#include "cli/bench_transport.h"

static double real_of(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    return text ? text : "";
}

/* "7.00 KiB" is "7 KiB". */
static const char *size_text(uint64_t bytes, char out[32])
{
    cli_bytes(bytes, out);
    char *zeros = strstr(out, ".00 ");
    if (zeros) memmove(zeros, zeros + 3, strlen(zeros + 3) + 1);
    return out;
}

static void print_pair(const json_t *pair, FILE *to)
{
    static const char *const headers[] = {"<wait", ">size",  ">min us", ">p50",
                                          ">p99",  ">p99.9", ">MB/s",   ">messages under way"};
    struct cli_table *t = cli_table_create(8, headers);
    size_t i;
    json_t *one;
    char size[32];
    json_array_foreach(pair, i, one)
    {
        const json_t *l = json_object_get(one, "latency_us");
        cli_table_cell(t, "%s", text_of(one, "wait"));
        cli_table_cell(t, "%s", size_text((uint64_t)real_of(one, "bytes"), size));
        cli_table_cell(t, "%.2f", real_of(l, "min"));
        cli_table_cell(t, "%.2f", real_of(l, "p50"));
        cli_table_cell(t, "%.2f", real_of(l, "p99"));
        cli_table_cell(t, "%.2f", real_of(l, "p99_9"));
        cli_table_cell(t, "%.0f", real_of(one, "bandwidth_bytes_per_s") * 1e-6);
        cli_table_cell(t, "%.0f", real_of(one, "window"));
    }
    cli_table_print(t, to);
    fputs(
        "latency: half a round trip of messages of this size both ways; bandwidth: one way, each quarter of\n"
        "what is under way answered by a notice without data\n",
        to);
}

static void add_metric(struct cli_table *t, const json_t *one, enum bt_metric metric)
{
    const json_t *c =
        json_object_get(json_object_get(one, "compare"), metric == BT_LATENCY ? "latency" : "bandwidth");
    const char *best = text_of(c, "best"), *key = metric == BT_LATENCY ? "p50_us" : "bytes_per_s";
    double scale = metric == BT_LATENCY ? 1 : 1e-6, theirs = 0;
    const json_t *tools = json_object_get(c, "tools");
    char size[32], all[512] = "";
    size_t i, used = 0;
    json_t *tool;
    json_array_foreach(tools, i, tool)
    {
        const char *name = text_of(tool, "name");
        int is_missing = json_object_get(tool, "missing") != NULL;
        if (!strcmp(name, best)) theirs = real_of(tool, key);
        if (!is_missing)
            used += (size_t)snprintf(all + used, sizeof all - used, "%s%s %.*f", used ? ", " : "", name,
                                     metric == BT_LATENCY ? 2 : 0, real_of(tool, key) * scale);
        if (used >= sizeof all) break;
    }
    int digits = metric == BT_LATENCY ? 2 : 0;
    cli_table_cell(t, "%s", text_of(one, "wait"));
    cli_table_cell(t, "%s", size_text((uint64_t)real_of(one, "bytes"), size));
    cli_table_cell(t, "%s", metric == BT_LATENCY ? "latency us" : "MB/s");
    cli_table_cell(t, "%.*f", digits,
                   real_of(c, metric == BT_LATENCY ? "ours_p50_us" : "ours_bytes_per_s") * scale);
    cli_table_cell(t, *best ? "%.*f" : "-", digits, theirs * scale);
    cli_table_cell(t, *best ? "%.3f" : "-", real_of(c, "ratio"));
    cli_table_cell(t, "%s", *best ? best : "none ran");
    cli_table_cell(t, "%s", all);
}

/* Each reason once, with the tools and wait modes that it kept away. */
static void print_missing(const json_t *pair, FILE *to)
{
    char said[2048] = "";
    size_t i, k, metric;
    json_t *one, *tool;
    static const char *const metrics[] = {"latency", "bandwidth"};
    json_array_foreach(pair, i, one) for (metric = 0; metric < 2; metric++)
    {
        const json_t *c = json_object_get(json_object_get(one, "compare"), metrics[metric]);
        json_array_foreach(json_object_get(c, "tools"), k, tool)
        {
            const char *why = text_of(tool, "missing");
            char line[300];
            if (!*why || !strcmp(why, "it has no such path")) continue;
            snprintf(line, sizeof line, "not run: %s, %s: %s\n", text_of(tool, "name"), text_of(one, "wait"),
                     why);
            if (strstr(said, line) || strlen(said) + strlen(line) >= sizeof said) continue;
            strcat(said, line);
        }
    }
    fputs(said, to);
}

static void print_compare(const json_t *pair, FILE *to)
{
    static const char *const headers[] = {"<wait", ">size",  "<figure", ">ours",
                                          ">best", ">ratio", "<of",     "<each"};
    struct cli_table *t;
    size_t i;
    json_t *one;
    if (!json_object_get(json_array_get(pair, 0), "compare")) return;
    fputc('\n', to);
    t = cli_table_create(8, headers);
    json_array_foreach(pair, i, one)
    {
        add_metric(t, one, BT_LATENCY);
        add_metric(t, one, BT_BANDWIDTH);
    }
    cli_table_print(t, to);
    print_missing(pair, to);
    fputs(
        "medians of the rounds, in turns; ratio: ours / best. What each does for a message:\n"
        "  ours          into one of the window's regions, and a notice; the sender waits for the answer, in "
        "the\n"
        "                bandwidth test to a quarter of the window at a time\n"
        "  ucp_put_*     always into the same place; no notice: the receiver watches the last byte (lat) or\n"
        "                learns of the end alone (bw); 32 under way, a flush at the end\n"
        "  ucp_am_*      a message; the receiver drops the data where it lies if it is small enough to be "
        "sent at\n"
        "                once (no copy into place), else receives it; 32 under way\n"
        "  ib_write_*    into the same place; watches the last byte (lat); 128 under way (bw)\n"
        "No receiver reads the data.\n",
        to);
}

static void add_times(struct cli_table *t, const char *name, const json_t *times)
{
    static const char *const keys[] = {"min", "p50", "p99", "p99_9", "max"};
    cli_table_cell(t, "%s", name);
    for (int i = 0; i < 5; i++) cli_table_cell(t, "%.1f", real_of(times, keys[i]));
    cli_table_cell(t, "%.0f", real_of(times, "count"));
}

static void print_exchange(const json_t *x, FILE *to)
{
    static const char *const headers[] = {"<round trip us", ">min", ">p50",  ">p99",
                                          ">p99.9",         ">max", ">count"};
    char there[32], back[32], least[32], middle[32], most[32];
    const json_t *kill = json_object_get(x, "kill");
    fprintf(
        to,
        "%.0f pairs at once%s, %s, %.1f s, %s there and %s back, %.0f under way a pair: %.0f MB/s in all\n",
        real_of(x, "pairs"), json_is_true(json_object_get(x, "in_step")) ? ", those of a rank in step" : "",
        text_of(x, "wait"), real_of(x, "seconds"), size_text((uint64_t)real_of(x, "there_bytes"), there),
        size_text((uint64_t)real_of(x, "back_bytes"), back), real_of(x, "window"),
        real_of(x, "bytes_per_s") * 1e-6);
    fprintf(to, "bytes of a pair: least %s, median %s, most %s; least / median %.3f\n",
            size_text((uint64_t)real_of(x, "least_bytes"), least),
            size_text((uint64_t)real_of(x, "median_bytes"), middle),
            size_text((uint64_t)real_of(x, "most_bytes"), most), real_of(x, "least_to_median_ratio"));
    struct cli_table *t = cli_table_create(7, headers);
    if (!kill) {
        add_times(t, "all pairs", json_object_get(x, "round_trip_us"));
    } else {
        fprintf(to,
                "ffn/%.0f was killed and gone after %.2f ms: %.0f pairs noticed it after %.2f ms at least, "
                "%.2f median, %.2f at most\n",
                real_of(kill, "rank"), real_of(kill, "gone_ms"), real_of(kill, "pairs_noticed"),
                real_of(kill, "noticed_ms_min"), real_of(kill, "noticed_ms_median"),
                real_of(kill, "noticed_ms_max"));
        add_times(t, "others, before", json_object_get(kill, "others_before_us"));
        add_times(t, "others, 0.5 s after", json_object_get(kill, "others_during_us"));
        add_times(t, "others, later", json_object_get(kill, "others_after_us"));
    }
    cli_table_print(t, to);
}

void bt_report(const json_t *result, FILE *to)
{
    const json_t *transport = json_object_get(result, "transport"), *pair = json_object_get(result, "pair");
    const json_t *wake = json_object_get(result, "wake_us"), *idle = json_object_get(result, "idle");
    size_t i;
    json_t *exchange;
    fprintf(
        to,
        "data path %s, %.0f attention and %.0f FFN ranks on %s, %.0f cores here%s; connected in %.1f ms\n\n",
        text_of(transport, "path"), real_of(transport, "attn"), real_of(transport, "ffn"),
        real_of(transport, "hosts") > 1 ? "two hosts" : "one host", real_of(transport, "cores_online"),
        json_is_true(json_object_get(transport, "load")) ? ", a thread of multiply-adds in each rank" : "",
        real_of(transport, "connect_ms"));
    if (pair) print_pair(pair, to);
    if (pair) print_compare(pair, to);
    json_array_foreach(json_object_get(result, "exchange"), i, exchange) print_exchange(exchange, to);
    if (wake)
        fprintf(to,
                "\nfrom before the put of 64 B to the poll of a rank that slept: min %.1f us, p50 %.1f, p99 "
                "%.1f, "
                "max %.1f\n",
                real_of(wake, "min"), real_of(wake, "p50"), real_of(wake, "p99"), real_of(wake, "max"));
    if (idle)
        fprintf(to, "a rank asleep with its pairs open uses at most %.3f%% of a core (over %.0f s)\n",
                100 * real_of(idle, "cpu_ratio_most"), real_of(idle, "seconds"));
}
