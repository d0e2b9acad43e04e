/* Stands in for afd-scheduler, afd-attn-node and afd-ffn-node, chosen by the program's name, so that the
 * launcher and the command line are tested without a model: the same command line, files, signals and HTTP,
 * made-up answers.
 *
 * A rank leaves DIR/fixture.ROLE-RANK (DIR: the folder of the secret) while it runs; the scheduler reports
 * those as ready. FIXTURE_FAIL="attn-1" makes that one fail at start, FIXTURE_UNUSABLE="attn-1" end as
 * one that cannot work, FIXTURE_STUBBORN="ffn-0" ignore SIGTERM. */
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct daemon {
    struct event_base *base;
    const char *topology, *rank, *scheduler, *secret, *state, *http, *control;
    char dir[512], name[32], marker[640];
};

static int is_named(const char *variable, const char *name)
{
    const char *value = getenv(variable);
    return value && !strcmp(value, name);
}

static void on_term(evutil_socket_t fd, short what, void *user)
{
    struct daemon *d = user;
    (void)fd, (void)what;
    if (is_named("FIXTURE_STUBBORN", d->name))
        fprintf(stderr, "%s: no\n", d->name);
    else
        event_base_loopexit(d->base, NULL);
}

static void send_json(struct evhttp_request *request, json_t *object)
{
    struct evbuffer *out = evbuffer_new();
    char *text = json_dumps(object, 0);
    evbuffer_add_printf(out, "%s", text);
    evhttp_send_reply(request, 200, "OK", out);
    evbuffer_free(out);
    free(text);
    json_decref(object);
}

static void add_rank(json_t *ranks, const struct daemon *d, const char *role, int rank)
{
    char path[700];
    snprintf(path, sizeof path, "%s/fixture.%s-%d", d->dir, role, rank);
    json_array_append_new(ranks,
                          json_pack("{s:s, s:i, s:i, s:i, s:s, s:s, s:[i], s:i, s:{s:f, s:f}}", "role", role,
                                    "instance", rank, "rank", rank, "pid", 1, "host", "localhost", "state",
                                    access(path, F_OK) ? "starting" : "ready", "shards", rank, "steps", 7,
                                    "stages_s", "compute", 1.5, "idle", 0.5));
}

/* The cluster of tests/deploy/2a2f.yaml: two ranks a role. */
static void on_cluster(struct evhttp_request *request, void *user)
{
    const struct daemon *d = user;
    json_t *ranks = json_array(), *rank;
    size_t i;
    int ready = 0;
    for (int r = 0; r < 4; r++) add_rank(ranks, d, r < 2 ? "attn" : "ffn", r % 2);
    json_array_foreach(ranks, i, rank) ready +=
        !strcmp(json_string_value(json_object_get(rank, "state")), "ready");
    send_json(request, json_pack("{s:s, s:s, s:i, s:s, s:o}", "cluster", "fixture", "model", "made-up",
                                 "epoch", 3, "state", ready == 4 ? "ready" : "starting", "ranks", ranks));
}

static void on_models(struct evhttp_request *request, void *user)
{
    (void)user;
    send_json(request, json_pack("{s:[{s:s}]}", "data", "id", "made-up"));
}

static void send_event(struct evhttp_request *request, json_t *event)
{
    struct evbuffer *out = evbuffer_new();
    char *text = event ? json_dumps(event, 0) : strdup("[DONE]");
    evbuffer_add_printf(out, "data: %s\n\n", text);
    evhttp_send_reply_chunk(request, out);
    evbuffer_free(out);
    free(text);
    json_decref(event);
}

static json_t *read_body(struct evhttp_request *request)
{
    struct evbuffer *in = evhttp_request_get_input_buffer(request);
    size_t bytes = evbuffer_get_length(in);
    return json_loadb((const char *)evbuffer_pullup(in, -1), bytes, 0, NULL);
}

/* Echoes the prompt, one event a word; "fail" gives a status 400. */
static void on_completion(struct evhttp_request *request, void *user)
{
    json_t *body = read_body(request), *prompt = json_object_get(body, "prompt");
    const char *words = json_is_string(prompt) ? json_string_value(prompt) : "one two three";
    (void)user;
    if (!strcmp(words, "fail")) {
        struct evbuffer *out = evbuffer_new();
        evbuffer_add_printf(out, "{\"error\": {\"message\": \"as you wish\"}}");
        evhttp_send_reply(request, 400, "Bad Request", out);
        evbuffer_free(out);
        json_decref(body);
        return;
    }
    evhttp_send_reply_start(request, 200, "OK");
    int tokens = 0;
    for (const char *p = words; *p; tokens++) {
        size_t length = strcspn(p, " ") + 1;
        if (length > strlen(p)) length = strlen(p);
        send_event(request, json_pack("{s:[{s:s%}]}", "choices", "text", p, length));
        p += length;
    }
    send_event(request, json_pack("{s:[], s:{s:i}}", "choices", "usage", "completion_tokens", tokens));
    send_event(request, NULL);
    evhttp_send_reply_end(request);
    json_decref(body);
}

/* Says how many messages it was given: a client that forgets its history shows. */
static void on_chat(struct evhttp_request *request, void *user)
{
    json_t *body = read_body(request), *messages = json_object_get(body, "messages");
    char text[64];
    (void)user;
    snprintf(text, sizeof text, "%zu messages", json_array_size(messages));
    evhttp_send_reply_start(request, 200, "OK");
    send_event(request, json_pack("{s:[{s:{s:s}}]}", "choices", "delta", "role", "assistant"));
    send_event(request, json_pack("{s:[{s:{s:s}}]}", "choices", "delta", "content", text));
    send_event(request, NULL);
    evhttp_send_reply_end(request);
    json_decref(body);
}

static int port_of(const char *address)
{
    const char *colon = address ? strrchr(address, ':') : NULL;
    return colon ? atoi(colon + 1) : 0;
}

/* Listens, and says where as the real one does. The control port is made up: nobody connects. */
static int open_scheduler(struct daemon *d, struct evhttp *http)
{
    char path[640], fresh[660];
    struct evhttp_bound_socket *bound =
        evhttp_bind_socket_with_handle(http, "127.0.0.1", (uint16_t)port_of(d->http));
    if (!bound) return 1;
    union {
        struct sockaddr any;
        struct sockaddr_in in;
    } address;
    socklen_t bytes = sizeof address;
    if (getsockname(evhttp_bound_socket_get_fd(bound), &address.any, &bytes)) return 1;
    int port = ntohs(address.in.sin_port);
    evhttp_set_cb(http, "/afd/v1/cluster", on_cluster, d);
    evhttp_set_cb(http, "/v1/models", on_models, d);
    evhttp_set_cb(http, "/v1/completions", on_completion, d);
    evhttp_set_cb(http, "/v1/chat/completions", on_chat, d);
    snprintf(path, sizeof path, "%s/scheduler.json", d->state);
    snprintf(fresh, sizeof fresh, "%s.part", path);
    FILE *f = fopen(fresh, "w");
    if (!f) return 1;
    fprintf(f, "{\"pid\": %d, \"http\": \"127.0.0.1:%d\", \"control\": \"127.0.0.1:%d\"}", (int)getpid(),
            port, d->control ? port_of(d->control) : port + 1);
    fclose(f);
    return rename(fresh, path);
}

static void read_options(struct daemon *d, int argc, char **argv)
{
    const struct {
        const char *name, **out;
    } options[] = {{"--topology", &d->topology},  {"--rank", &d->rank},   {"--scheduler", &d->scheduler},
                   {"--secret-file", &d->secret}, {"--state", &d->state}, {"--http", &d->http},
                   {"--control", &d->control}};
    for (int i = 1; i + 1 < argc; i += 2)
        for (size_t o = 0; o < sizeof options / sizeof options[0]; o++)
            if (!strcmp(argv[i], options[o].name)) *options[o].out = argv[i + 1];
}

int main(int argc, char **argv)
{
    struct daemon d = {0};
    const char *program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    int is_scheduler = !strcmp(program, "afd-scheduler"), result = 0;
    read_options(&d, argc, argv);
    if (!d.topology || !d.secret || access(d.secret, R_OK) ||
        (is_scheduler ? !d.state : !d.rank || !d.scheduler)) {
        fprintf(stderr, "%s: missing options\n", program);
        return 2;
    }
    snprintf(d.dir, sizeof d.dir, "%.*s", (int)(strrchr(d.secret, '/') - d.secret), d.secret);
    if (is_scheduler)
        strcpy(d.name, "scheduler");
    else
        snprintf(d.name, sizeof d.name, "%s-%s", strstr(program, "attn") ? "attn" : "ffn", d.rank);
    if (is_named("FIXTURE_FAIL", d.name)) {
        fprintf(stderr, "%s: fails because the test says so\n", d.name);
        return 3;
    }
    if (is_named("FIXTURE_UNUSABLE", d.name)) {
        fprintf(stderr, "%s: cannot work because the test says so\n", d.name);
        return 2;
    }
    d.base = event_base_new();
    struct event *term = evsignal_new(d.base, SIGTERM, on_term, &d);
    struct evhttp *http = evhttp_new(d.base);
    event_add(term, NULL);
    fprintf(stderr, "%s runs\n", d.name);
    if (is_scheduler)
        result = open_scheduler(&d, http);
    else {
        snprintf(d.marker, sizeof d.marker, "%s/fixture.%s", d.dir, d.name);
        FILE *f = fopen(d.marker, "w");
        if (f) fclose(f);
    }
    if (!result) event_base_dispatch(d.base);
    if (*d.marker) unlink(d.marker);
    evhttp_free(http);
    event_free(term);
    event_base_free(d.base);
    return result;
}
