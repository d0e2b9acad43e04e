/* The endpoints of an operator: the cluster as it is, and changes of it. */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/stages.h"
#include "scheduler/api.h"

/* ---- GET /afd/v1/cluster */

static void print_shards(struct afd_text *t, uint64_t set)
{
    const char *comma = "";
    for (; set; set &= set - 1, comma = ",") afd_text_printf(t, "%s%d", comma, __builtin_ctzll(set));
}

/* Rate and time left are reckoned from the beginning of the loading. */
static void print_loading(struct afd_text *t, const struct afd_service_loading *l)
{
    if (!l) {
        afd_text_puts(t, ",\"loading\":null");
        return;
    }
    double seconds = (double)l->spent * 1e-9, rate = l->spent ? (double)l->bytes / seconds : 0;
    afd_text_printf(t,
                    ",\"loading\":{\"bytes\":%" PRIu64 ",\"total_bytes\":%" PRIu64
                    ",\"seconds\":%.3f,\"bytes_per_s\":%.0f,\"left_s\":",
                    l->bytes, l->total_bytes, seconds, rate);
    if (rate > 0)
        afd_text_printf(t, "%.1f}", (double)(l->total_bytes - l->bytes) / rate);
    else
        afd_text_puts(t, "null}");
}

static void print_rank(struct afd_text *t, const struct afd_api *api, const struct afd_cluster *c,
                       uint32_t index)
{
    static const Afd__Heartbeat none = AFD__HEARTBEAT__INIT;
    const struct afd_cluster_member *m = afd_cluster_at(c, index);
    const struct afd_pool *pool = m->role == AFD_ROLE_ATTN ? &api->topology->attn : &api->topology->ffn;
    uint32_t shards[AFD_MAX_SHARDS], count = afd_cluster_shards(c, m->role, m->rank, shards);
    Afd__Heartbeat *kept = afd_service_heartbeat(api->service, index);
    const Afd__Heartbeat *h = kept ? kept : &none;
    afd_ns since = m->since > api->started ? m->since : api->started;
    afd_text_printf(t, "{\"role\":\"%s\",\"instance\":%u,\"rank\":%u,\"pid\":%u,\"host\":",
                    afd_role_name(m->role), m->rank / pool->ranks_per_instance, m->rank, m->pid);
    afd_text_json_string(t, m->host[0] ? m->host : afd_rank_host(api->topology, m->role, m->rank));
    afd_text_printf(t, ",\"state\":\"%s\",\"since_s\":%.3f,\"reason\":", afd_cluster_state_name(c, m),
                    (double)(afd_now() - since) * 1e-9);
    afd_text_json_string(t, m->words);
    afd_text_puts(t, ",\"shards\":[");
    for (uint32_t i = 0; i < count; i++) afd_text_printf(t, "%s%u", i ? "," : "", shards[i]);
    afd_text_puts(t, "],\"loaded\":[");
    print_shards(t, m->role == AFD_ROLE_FFN && m->connection ? m->loaded : 0);
    afd_text_printf(t,
                    "],\"steps\":%" PRIu64 ",\"rows\":%" PRIu64
                    ",\"running\":%u,\"waiting\":%u,\"kv_blocks\":%u,"
                    "\"kv_blocks_used\":%u,\"stages_s\":{",
                    h->steps, h->rows, h->running, h->waiting, h->kv_blocks, h->kv_blocks_used);
    for (size_t s = 0; s < AFD_STAGE_COUNT; s++)
        afd_text_printf(t, "%s\"%s\":%.9g", s ? "," : "", afd_stage_name((enum afd_stage)s),
                        h->stages && s < h->stages->n_ns ? (double)h->stages->ns[s] * 1e-9 : 0.0);
    afd_text_printf(t, "},\"resident_bytes\":%" PRIu64, h->resident_bytes);
    print_loading(t, afd_service_loading(api->service, index));
    afd_api_print_accounting(t, h, api->model->layer_count);
    afd_text_puts(t, "}");
    if (kept) afd__heartbeat__free_unpacked(kept, NULL);
}

static void print_change(struct afd_text *t, const char *name, const struct afd_cluster_change *change)
{
    afd_text_printf(t, ",\"%s\":", name);
    if (!change->id) {
        afd_text_puts(t, "null");
        return;
    }
    afd_text_printf(t,
                    "{\"id\":%" PRIu64 ",\"kind\":\"%s\",\"phase\":\"%s\",\"from\":{\"attn\":%u,\"ffn\":%u},"
                    "\"to\":{\"attn\":%u,\"ffn\":%u},\"since_s\":%.3f,\"words\":",
                    change->id, afd_change_kind_name(change->kind), afd_change_phase_name(change->phase),
                    change->from[AFD_ROLE_ATTN], change->from[AFD_ROLE_FFN], change->to[AFD_ROLE_ATTN],
                    change->to[AFD_ROLE_FFN], (double)(afd_now() - change->since) * 1e-9);
    afd_text_json_string(t, change->words);
    afd_text_puts(t, "}");
}

static void print_placement(struct afd_text *t, const struct afd_api *api, const struct afd_cluster *c)
{
    afd_text_puts(t, "],\"placement\":[");
    for (uint32_t s = 0; s < api->topology->ffn.ep; s++) {
        uint32_t instances[AFD_MAX_FFN_INSTANCES], count = afd_cluster_placement(c, s, instances);
        afd_text_printf(t, "%s{\"shard\":%u,\"instances\":[", s ? "," : "", s);
        for (uint32_t i = 0; i < count; i++) afd_text_printf(t, "%s%u", i ? "," : "", instances[i]);
        afd_text_puts(t, "]}");
    }
    afd_text_printf(t, "],\"imbalance\":%.4g", afd_cluster_imbalance(c));
}

int afd_api_degraded(const struct afd_api *api, char words[AFD_API_DEGRADED_BYTES])
{
    const struct afd_cluster *c = afd_service_cluster(api->service);
    uint32_t bad = 0, all = 0;
    if (!afd_service_accepts(api->service)) {
        snprintf(words, AFD_API_DEGRADED_BYTES,
                 "the journal cannot be written: new requests are refused until its disk has room");
        return 1;
    }
    for (uint32_t i = 0; i < afd_cluster_size(c); i++) {
        const struct afd_cluster_member *m = afd_cluster_at(c, i);
        const char *state = afd_cluster_state_name(c, m);
        if (!afd_cluster_runs(c, m->role, m->rank)) continue;
        all++;
        if (!strcmp(state, "ready") || !strcmp(state, "preparing")) continue;
        if (!bad++)
            snprintf(words, AFD_API_DEGRADED_BYTES, "%s/%u is %s%s%.180s", afd_role_name(m->role), m->rank,
                     state, m->words[0] ? ": " : "", m->words);
    }
    size_t used = bad ? strlen(words) : 0;
    if (bad > 1) snprintf(words + used, AFD_API_DEGRADED_BYTES - used, "; %u of %u ranks in all", bad, all);
    return bad != 0;
}

static void print_stragglers(struct afd_text *t, const struct afd_api *api, const struct afd_cluster *c)
{
    const char *comma = "";
    afd_text_puts(t, ",\"stragglers\":[");
    for (uint32_t i = 0; i < afd_cluster_size(c); i++) {
        const struct afd_cluster_member *m = afd_cluster_at(c, i);
        const struct afd_straggler_verdict *v =
            afd_straggler_verdict(afd_service_straggler(api->service), m->role, m->rank);
        if (!v->is_accused) continue;
        afd_text_printf(
            t, "%s{\"role\":\"%s\",\"rank\":%u,\"score\":%.3g,\"stage\":\"%s\",\"cause\":\"%s\",\"words\":",
            comma, afd_role_name(m->role), m->rank, v->accused_score, afd_straggler_stage_name(v->stage),
            afd_straggler_cause_name(v->cause));
        afd_text_json_string(t, v->words);
        afd_text_puts(t, "}");
        comma = ",";
    }
    afd_text_puts(t, "]");
}

void afd_api_cluster(struct afd_api *api, struct afd_http_exchange *x)
{
    struct afd_text t = {0};
    const struct afd_cluster *c = afd_service_cluster(api->service);
    const struct afd_requests_counters *r = afd_requests_counters(afd_service_requests(api->service));
    char degraded[AFD_API_DEGRADED_BYTES];
    const char *comma = "";
    afd_text_puts(&t, "{\"cluster\":");
    afd_text_json_string(&t, api->topology->cluster);
    afd_text_puts(&t, ",\"model\":");
    afd_text_json_string(&t, api->model->name);
    afd_text_printf(
        &t, ",\"version\":\"%s\",\"epoch\":%" PRIu64 ",\"state\":\"%s\",\"uptime_s\":%.3f,\"degraded\":",
        AFD_VERSION, afd_cluster_epoch(c), afd_api_state(api), (double)(afd_now() - api->started) * 1e-9);
    afd_text_json_string(&t, afd_api_degraded(api, degraded) ? degraded : "");
    afd_text_puts(&t, ",\"ranks\":[");
    for (uint32_t i = 0; i < afd_cluster_size(c); i++) {
        const struct afd_cluster_member *m = afd_cluster_at(c, i);
        if (!afd_cluster_runs(c, m->role, m->rank)) continue;
        afd_text_puts(&t, comma);
        comma = ",";
        print_rank(&t, api, c, i);
    }
    print_placement(&t, api, c);
    print_change(&t, "change", afd_cluster_change(c));
    print_change(&t, "own_change", afd_cluster_own_change(c));
    print_stragglers(&t, api, c);
    afd_text_printf(&t, ",\"requests\":{\"running\":%u,\"waiting\":%u,\"finished\":%" PRIu64 "}}", r->running,
                    r->waiting, r->finished);
    afd_api_answer(x, &t);
    afd_text_free(&t);
}

/* ---- POST: what an operator asks for */

static json_t *read_body(struct afd_http_exchange *x)
{
    size_t bytes;
    const char *body = afd_http_body(x, &bytes);
    struct afd_api_error e = {0};
    json_t *root = afd_api_json(body, bytes, &e);
    if (!root) afd_api_refuse(x, &e);
    return root;
}

/* 202: GET /afd/v1/cluster tells how it goes on, under `change`. */
static void answer(struct afd_api *api, struct afd_http_exchange *x, enum afd_status status,
                   const struct afd_error *error)
{
    struct afd_text t = {0};
    if (status) {
        afd_http_error(x, status == AFD_AGAIN ? 409 : 400, NULL,
                       status == AFD_AGAIN ? "conflict" : "invalid_request", error->text);
        return;
    }
    const struct afd_cluster_change *change = afd_cluster_change(afd_service_cluster(api->service));
    afd_text_printf(&t,
                    "{\"id\":%" PRIu64 ",\"from\":{\"attn\":%u,\"ffn\":%u},\"to\":{\"attn\":%u,\"ffn\":%u}}",
                    change->id, change->from[AFD_ROLE_ATTN], change->from[AFD_ROLE_FFN],
                    change->to[AFD_ROLE_ATTN], change->to[AFD_ROLE_FFN]);
    afd_http_reply(x, 202, "application/json", "", t.data, t.bytes);
    afd_text_free(&t);
}

static uint32_t active(const struct afd_cluster *c, enum afd_role role, uint32_t instances)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < instances; i++) count += afd_cluster_instance(c, role, i) == AFD_INSTANCE_ACTIVE;
    return count;
}

/* {"attn": 3, "ffn": 2}: instances; what is left out stays. */
void afd_api_scale(struct afd_api *api, struct afd_http_exchange *x)
{
    const struct afd_cluster *c = afd_service_cluster(api->service);
    const char *const keys[AFD_ROLE_COUNT] = {"attn", "ffn"};
    uint32_t wanted[AFD_ROLE_COUNT] = {active(c, AFD_ROLE_ATTN, api->topology->attn.max_instances),
                                       active(c, AFD_ROLE_FFN, api->topology->ffn.max_instances)};
    struct afd_error error;
    enum afd_status status = AFD_OK;
    size_t known = 0;
    json_t *root = read_body(x);
    if (!root) return;
    for (int role = 0; role < AFD_ROLE_COUNT && !status; role++) {
        const json_t *value = json_object_get(root, keys[role]);
        known += value != NULL;
        if (value && (!json_is_integer(value) || json_integer_value(value) < 1 ||
                      json_integer_value(value) > AFD_MAX_RANKS))
            status = afd_fail(&error, AFD_ERR_REQUEST, "'%s' must be a number of instances", keys[role]);
        else if (value)
            wanted[role] = (uint32_t)json_integer_value(value);
    }
    if (!status && (!known || known != json_object_size(root)))
        status = afd_fail(&error, AFD_ERR_REQUEST, "expected an object with 'attn', 'ffn' or both");
    json_decref(root);
    if (!status)
        status = afd_service_scale(api->service, wanted[AFD_ROLE_ATTN], wanted[AFD_ROLE_FFN], &error);
    answer(api, x, status, &error);
}

/* "ffn/1" */
static enum afd_status read_rank(const json_t *value, struct afd_cluster_rank *out, struct afd_error *error)
{
    const char *text = json_string_value(value), *slash = text ? strchr(text, '/') : NULL;
    char *end = NULL;
    unsigned long rank =
        slash && slash[1] >= '0' && slash[1] <= '9' ? strtoul(slash + 1, &end, 10) : AFD_MAX_RANKS;
    for (int role = 0; role < AFD_ROLE_COUNT && slash; role++) {
        const char *name = afd_role_name((enum afd_role)role);
        if (strlen(name) != (size_t)(slash - text) || strncmp(name, text, strlen(name))) continue;
        if (rank >= AFD_MAX_RANKS || *end) break;
        *out = (struct afd_cluster_rank){(enum afd_role)role, (uint32_t)rank};
        return AFD_OK;
    }
    return afd_fail(error, AFD_ERR_REQUEST, "expected a rank, as \"attn/0\" or \"ffn/1\"");
}

void afd_api_drain_rank(struct afd_api *api, struct afd_http_exchange *x)
{
    struct afd_cluster_rank rank;
    struct afd_error error;
    json_t *root = read_body(x);
    if (!root) return;
    enum afd_status status = read_rank(json_object_get(root, "rank"), &rank, &error);
    json_decref(root);
    if (!status) status = afd_service_drain(api->service, rank, &error);
    answer(api, x, status, &error);
}

static enum afd_status read_ranks(const struct afd_cluster *c, const json_t *list,
                                  struct afd_cluster_rank *out, uint32_t *count_out, struct afd_error *error)
{
    uint32_t count = 0, size = afd_cluster_size(c);
    if (json_is_string(list) && !strcmp(json_string_value(list), "all")) {
        for (uint32_t i = 0; i < size; i++) {
            const struct afd_cluster_member *m = afd_cluster_at(c, i);
            if (afd_cluster_runs(c, m->role, m->rank))
                out[count++] = (struct afd_cluster_rank){m->role, m->rank};
        }
        *count_out = count;
        return AFD_OK;
    }
    if (!json_is_array(list) || json_array_size(list) > size)
        return afd_fail(error, AFD_ERR_REQUEST,
                        "'ranks' must be \"all\" or a list, as [\"attn/0\", \"ffn/1\"]");
    for (; count < json_array_size(list); count++) {
        enum afd_status status = read_rank(json_array_get(list, count), &out[count], error);
        if (status) return status;
    }
    *count_out = count;
    return AFD_OK;
}

/* {"ranks": "all" or a list, "scheduler": true}: that one last, and its streams go on for clients that attach
 * again. */
void afd_api_restart(struct afd_api *api, struct afd_http_exchange *x)
{
    const struct afd_cluster *c = afd_service_cluster(api->service);
    struct afd_cluster_rank *ranks = calloc(afd_cluster_size(c), sizeof *ranks);
    struct afd_error error;
    uint32_t count = 0;
    json_t *root = ranks ? read_body(x) : NULL;
    if (!root) {
        if (!ranks) afd_http_error(x, 503, NULL, NULL, "out of memory");
        free(ranks);
        return;
    }
    const json_t *scheduler = json_object_get(root, "scheduler");
    int with_scheduler = json_is_true(scheduler);
    enum afd_status status = read_ranks(c, json_object_get(root, "ranks"), ranks, &count, &error);
    if (!status && scheduler && !json_is_boolean(scheduler))
        status = afd_fail(&error, AFD_ERR_REQUEST, "'scheduler' must be true or false");
    if (!status && !count && !with_scheduler)
        status = afd_fail(&error, AFD_ERR_REQUEST, "neither a rank nor the scheduler is to be restarted");
    json_decref(root);
    if (!status) status = afd_service_restart(api->service, ranks, count, with_scheduler, &error);
    free(ranks);
    answer(api, x, status, &error);
}
