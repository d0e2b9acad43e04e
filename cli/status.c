/* status: the cluster as its scheduler sees it, GET /afd/v1/cluster. */
#include <string.h>

#include "base/stages.h"
#include "cli/cli.h"

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "-";
}

static long long count_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static void print_ranks(const json_t *ranks, FILE *to)
{
    static const char *const headers[] = {"<rank",    ">instance", "<state", ">for",     ">pid",
                                          "<host",    ">steps",    ">rows",  ">running", ">waiting",
                                          ">KV used", ">memory",   "<shards"};
    struct cli_table *table = cli_table_create(sizeof headers / sizeof headers[0], headers);
    json_t *r, *shard;
    size_t i, j;
    json_array_foreach(ranks, i, r)
    {
        char bytes[32], shards[160] = "";
        long long blocks = count_of(r, "kv_blocks");
        int is_attn = !strcmp(text_of(r, "role"), "attn");
        json_array_foreach(json_object_get(r, "shards"), j, shard)
        {
            size_t used = strlen(shards);
            snprintf(shards + used, sizeof shards - used, "%s%lld", j ? "," : "", json_integer_value(shard));
        }
        cli_table_cell(table, "%s/%lld", text_of(r, "role"), count_of(r, "rank"));
        cli_table_cell(table, "%lld", count_of(r, "instance"));
        cli_table_cell(table, "%s", text_of(r, "state"));
        cli_table_cell(table, "%.0f s", json_number_value(json_object_get(r, "since_s")));
        cli_table_cell(table, "%lld", count_of(r, "pid"));
        cli_table_cell(table, "%s", text_of(r, "host"));
        cli_table_cell(table, "%lld", count_of(r, "steps"));
        cli_table_cell(table, "%lld", count_of(r, "rows"));
        cli_table_cell(table, is_attn ? "%lld" : "-", count_of(r, "running"));
        cli_table_cell(table, is_attn ? "%lld" : "-", count_of(r, "waiting"));
        if (blocks)
            cli_table_cell(table, "%lld/%lld", count_of(r, "kv_blocks_used"), blocks);
        else
            cli_table_cell(table, "-");
        cli_table_cell(table, "%s", cli_bytes((uint64_t)count_of(r, "resident_bytes"), bytes));
        cli_table_cell(table, "%s", is_attn ? "" : shards);
    }
    cli_table_print(table, to);
}

/* Seconds and share of each rank's time, by stage. */
static void print_stages(const json_t *ranks, FILE *to)
{
    static const char *const headers[] = {"<rank", ">compute", ">%",      ">group", ">%",    ">send", ">%",
                                          ">wait", ">%",       ">bubble", ">%",     ">idle", ">%"};
    struct cli_table *table = cli_table_create(sizeof headers / sizeof headers[0], headers);
    json_t *r;
    size_t i;
    json_array_foreach(ranks, i, r)
    {
        const json_t *stages = json_object_get(r, "stages_s");
        double seconds[AFD_STAGE_COUNT], sum = 0;
        for (int s = 0; s < AFD_STAGE_COUNT; s++) {
            seconds[s] = json_number_value(json_object_get(stages, afd_stage_name((enum afd_stage)s)));
            sum += seconds[s];
        }
        cli_table_cell(table, "%s/%lld", text_of(r, "role"), count_of(r, "rank"));
        for (int s = 0; s < AFD_STAGE_COUNT; s++) {
            cli_table_cell(table, "%.3f s", seconds[s]);
            cli_table_cell(table, "%.1f%%", sum > 0 ? 100 * seconds[s] / sum : 0.0);
        }
    }
    cli_table_print(table, to);
}

int cli_loading(const json_t *rank, char line[AFD_LOADING_LINE_BYTES])
{
    const json_t *loading = json_object_get(rank, "loading");
    if (!json_is_object(loading)) return 0;
    afd_loading_line((uint64_t)count_of(loading, "bytes"), (uint64_t)count_of(loading, "total_bytes"),
                     (afd_ns)(1e9 * json_number_value(json_object_get(loading, "seconds"))), line);
    return 1;
}

static void print_changes(const json_t *cluster, FILE *to)
{
    const char *const keys[] = {"change", "own_change"};
    const char *degraded = text_of(cluster, "degraded");
    json_t *r;
    size_t k;
    if (*degraded) fprintf(to, "degraded: %s\n", degraded);
    json_array_foreach(json_object_get(cluster, "ranks"), k, r)
    {
        const char *state = text_of(r, "state"), *reason = text_of(r, "reason");
        char loading[AFD_LOADING_LINE_BYTES];
        if (!strcmp(state, "ready")) continue;
        int loads = cli_loading(r, loading);
        fprintf(to, "%s/%lld: %s for %.0f s%s%s%s%s\n", text_of(r, "role"), count_of(r, "rank"), state,
                json_number_value(json_object_get(r, "since_s")), *reason ? ": " : "", reason,
                loads ? "; " : "", loads ? loading : "");
    }
    for (int i = 0; i < 2; i++) {
        const json_t *change = json_object_get(cluster, keys[i]);
        const char *words = text_of(change, "words");
        if (!json_is_object(change)) continue;
        fprintf(to, "%s: %s, %.0f s ago%s%s\n", text_of(change, "kind"), text_of(change, "phase"),
                json_number_value(json_object_get(change, "since_s")), *words ? ": " : "", words);
    }
}

static void print_stragglers(const json_t *cluster, FILE *to)
{
    json_t *s;
    size_t i;
    json_array_foreach(json_object_get(cluster, "stragglers"), i, s)
        fprintf(to, "straggler: %s/%lld, %.1f times as slow at %s, by its %s: %s\n", text_of(s, "role"),
                count_of(s, "rank"), json_number_value(json_object_get(s, "score")), text_of(s, "stage"),
                text_of(s, "cause"), text_of(s, "words"));
}

void cli_print_cluster(const json_t *cluster, FILE *to)
{
    const json_t *requests = json_object_get(cluster, "requests"), *ranks = json_object_get(cluster, "ranks");
    json_t *placed, *instance;
    size_t i, j;
    fprintf(to, "%s: %s, model %s, epoch %lld, up %.0f s, afd %s\n", text_of(cluster, "cluster"),
            text_of(cluster, "state"), text_of(cluster, "model"), count_of(cluster, "epoch"),
            json_number_value(json_object_get(cluster, "uptime_s")), text_of(cluster, "version"));
    fprintf(to, "requests: %lld running, %lld waiting, %lld finished\n", count_of(requests, "running"),
            count_of(requests, "waiting"), count_of(requests, "finished"));
    fprintf(to, "placement:");
    json_array_foreach(json_object_get(cluster, "placement"), i, placed)
    {
        fprintf(to, "%s shard %lld on", i ? "," : "", count_of(placed, "shard"));
        json_array_foreach(json_object_get(placed, "instances"), j, instance)
            fprintf(to, " F%lld", json_integer_value(instance));
    }
    fprintf(to, " (imbalance %.2f)\n", json_number_value(json_object_get(cluster, "imbalance")));
    print_changes(cluster, to);
    print_stragglers(cluster, to);
    fprintf(to, "\n");
    print_ranks(ranks, to);
    fprintf(
        to,
        "\nWhere each rank's time went (wait: all its work is at other ranks; bubble: idle although work is "
        "ready; idle: nothing in flight)\n\n");
    print_stages(ranks, to);
}

int cli_status(const struct cli_command *self, int argc, char **argv)
{
    const char *state = NULL, *url = NULL;
    int json = 0, help;
    const struct cli_option options[] = {
        {"--state", 0, CLI_TEXT, &state,
         "state directory or name of the cluster (default: the one that runs)"},
        {"--url", 0, CLI_TEXT, &url, "of the scheduler, http://host:port"},
        {"--json", 0, CLI_FLAG, &json, "the scheduler's object as it is"},
        {0}};
    if (cli_parse(self, argc, argv, options, NULL, 0, &help) < 0) return cli_parse_exit(help);
    char base[CLI_URL_BYTES];
    struct afd_error error;
    long code;
    if (cli_url(url, state, base)) return CLI_FAILED;
    json_t *cluster = cli_get_json(base, "/afd/v1/cluster", &code, &error);
    if (!cluster) return cli_fail("%s", error.text);
    if (json) return cli_print_json(cluster);
    cli_print_cluster(cluster, stdout);
    json_decref(cluster);
    return CLI_OK;
}
