/* bench_remote.c: the FFN group on another host: `--server` there, a client here, one authenticated channel.
 *
 * Requests are those of a rank, which the server passes on, and three of its own:
 *   {"do": "start", "plan"}   starts the ranks; the answers are their addresses
 *   {"do": "end"}             ends them
 *   {"do": "tool", "run"}     starts the waiting side of a library's test; {"port"}. Without "run": ends it
 * Answered by {"answers": [..]}, one a rank, or {"error"}. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/bench_transport.h"

enum { ANSWER_SECONDS = 120 };

struct bt_remote { /* either end */
    struct event_base *base;
    struct event *timer;
    struct afd_channel *channel;
    char host[BT_HOST_BYTES * 4], local[BT_HOST_BYTES];
    int is_open, is_closed, is_expired;
    json_t *got; /* the message that came */
    char words[512];
};

/* ---- the channel */

static void on_opened(struct afd_channel *channel, const char *peer_name, void *user)
{
    struct bt_remote *r = user;
    (void)channel, (void)peer_name;
    r->is_open = 1;
}

static void on_message(struct afd_channel *channel, const Afd__Envelope *message, void *user)
{
    struct bt_remote *r = user;
    (void)channel;
    json_decref(r->got);
    r->got = message->body_case == AFD__ENVELOPE__BODY_BENCH
                 ? json_loads(message->bench->json, JSON_REJECT_DUPLICATES, NULL)
                 : NULL;
    if (!r->got) r->got = json_pack("{s:s}", "error", "a message that is none of afd bench transport");
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    struct bt_remote *r = user;
    (void)status;
    r->is_closed = 1;
    snprintf(r->words, sizeof r->words, "%s", words);
    afd_channel_close(channel);
    r->channel = NULL;
}

static void on_expired(evutil_socket_t fd, short what, void *user)
{
    struct bt_remote *r = user;
    (void)fd, (void)what;
    r->is_expired = 1;
}

/* Until a message came, the channel opened (`opening`) or ended, or the time is over; 0 seconds: no limit. */
static void wait_for(struct bt_remote *r, int opening, double seconds)
{
    struct timeval wait = {.tv_sec = (time_t)seconds};
    r->is_expired = 0;
    if (seconds > 0) evtimer_add(r->timer, &wait);
    while (!r->is_closed && !r->is_expired && !(opening ? r->is_open : r->got != NULL))
        event_base_loop(r->base, EVLOOP_ONCE);
    evtimer_del(r->timer);
}

static void remote_open(struct bt_remote *r)
{
    r->base = event_base_new();
    r->timer = r->base ? evtimer_new(r->base, on_expired, r) : NULL;
    if (!r->timer) abort();
}

static void remote_fini(struct bt_remote *r)
{
    if (r->channel) afd_channel_close(r->channel);
    event_base_loop(r->base, EVLOOP_NONBLOCK); /* its last words */
    event_free(r->timer);
    event_base_free(r->base);
    json_decref(r->got);
}

static struct afd_channel_config channel_config(struct bt_remote *r, const uint8_t secret[AFD_SECRET_BYTES])
{
    struct afd_channel_config config = {
        .base = r->base, .name = "bench", .callbacks = {on_opened, on_message, on_closed}, .user = r};
    memcpy(config.secret, secret, sizeof config.secret);
    return config;
}

/* Our end of a connected socket, as "127.0.0.1" or "[::1]". */
static void local_host(int fd, char out[BT_HOST_BYTES])
{
    struct sockaddr_storage at;
    socklen_t bytes = sizeof at;
    char text[INET6_ADDRSTRLEN] = "127.0.0.1";
    if (!getsockname(fd, (struct sockaddr *)&at, &bytes))
        getnameinfo((struct sockaddr *)&at, bytes, text, sizeof text, NULL, 0, NI_NUMERICHOST);
    snprintf(out, BT_HOST_BYTES, strchr(text, ':') ? "[%s]" : "%s", text);
}

/* The same for an address that we would send to: a datagram socket asks the routing table. */
static int route_to(const char *host, const char *port, char out[BT_HOST_BYTES])
{
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM}, *found;
    if (getaddrinfo(host, port, &hints, &found)) return -1;
    int fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int failed = fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen);
    if (!failed) local_host(fd, out);
    if (fd >= 0) close(fd);
    freeaddrinfo(found);
    return failed ? -1 : 0;
}

/* ---- the client's side */

struct bt_remote *bt_remote_connect(const char *address, const uint8_t secret[AFD_SECRET_BYTES],
                                    struct afd_error *error_out)
{
    struct bt_remote *r = calloc(1, sizeof *r);
    if (!r) abort();
    const char *colon = strrchr(address, ':');
    int bracket = address[0] == '[';
    size_t length = colon ? (size_t)(colon - address) : 0;
    snprintf(r->host, sizeof r->host, "%.*s", (int)length, address);
    char bare[sizeof r->host];
    snprintf(bare, sizeof bare, "%.*s", length > 2 ? (int)length - 2 * bracket : (int)length,
             address + bracket);
    remote_open(r);
    if (!length || route_to(bare, colon + 1, r->local)) {
        afd_fail(error_out, AFD_ERR_CONFIG, "--connect %s: expected HOST:PORT, of a host that has a route",
                 address);
        goto fail;
    }
    struct afd_channel_config config = channel_config(r, secret);
    r->channel = afd_channel_connect(&config, address, error_out);
    if (!r->channel) goto fail;
    wait_for(r, 1, 10);
    if (r->is_open) return r;
    afd_fail(error_out, AFD_ERR_PEER, "no server at %s: %s", address,
             r->is_closed ? r->words : "no answer in 10 s");
fail:
    bt_remote_close(r);
    return NULL;
}

void bt_remote_close(struct bt_remote *r)
{
    if (!r) return;
    remote_fini(r);
    free(r);
}

const char *bt_remote_host(const struct bt_remote *r)
{
    return r->host;
}

const char *bt_remote_local(const struct bt_remote *r)
{
    return r->local;
}

enum afd_status bt_remote_send(struct bt_remote *r, const json_t *request, struct afd_error *error_out)
{
    Afd__Bench bench = AFD__BENCH__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    bench.json = json_dumps(request, JSON_COMPACT);
    e.body_case = AFD__ENVELOPE__BODY_BENCH;
    e.bench = &bench;
    json_decref(r->got);
    r->got = NULL;
    enum afd_status status = r->channel ? afd_channel_send(r->channel, &e) : AFD_ERR_PEER;
    free(bench.json);
    if (!status) return AFD_OK;
    return afd_fail(error_out, status, "the other side has gone: %s", r->words);
}

json_t *bt_remote_receive(struct bt_remote *r, double seconds, struct afd_error *error_out)
{
    wait_for(r, 0, seconds + 1);
    json_t *got = r->got;
    const char *words = json_string_value(json_object_get(got, "error"));
    r->got = NULL;
    if (got && !words) return got;
    if (words)
        afd_fail(error_out, AFD_ERR_PEER, "on the server: %s", words);
    else if (r->is_closed)
        afd_fail(error_out, AFD_ERR_PEER, "the server has gone: %s", r->words);
    else
        afd_fail(error_out, AFD_ERR_DEADLINE, "the server has not answered for %.0f s", seconds);
    json_decref(got);
    return NULL;
}

/* ---- the server's side */

struct served { /* one client */
    struct bt_plan plan;
    struct bt_group group;
    struct bt_tool_server *tool;
    const char *host;
};

static json_t *serve_start(struct served *s, const json_t *request, struct afd_error *error)
{
    bt_group_end(&s->group);
    if (bt_plan_read(&s->plan, json_object_get(request, "plan"), error)) return NULL;
    if (bt_group_start(&s->group, &s->plan, AFD_ROLE_FFN, s->host, error)) return NULL;
    json_t *answers = bt_group_collect(&s->group, ANSWER_SECONDS, error);
    return answers ? json_pack("{s:o}", "answers", answers) : NULL;
}

static json_t *serve_tool(struct served *s, const json_t *request, struct afd_error *error)
{
    struct bt_tool_run run;
    int port;
    const json_t *wanted = json_object_get(request, "run");
    bt_tool_end(s->tool);
    s->tool = NULL;
    if (!wanted) return json_object();
    if (bt_tool_run_read(&run, wanted, error)) return NULL;
    s->tool = bt_tool_serve(&run, s->host, &port, error);
    return s->tool ? json_pack("{s:i}", "port", port) : NULL;
}

static json_t *serve_request(struct served *s, json_t *request, struct afd_error *error)
{
    const char *what = json_string_value(json_object_get(request, "do"));
    if (what && !strcmp(what, "start")) return serve_start(s, request, error);
    if (what && !strcmp(what, "tool")) return serve_tool(s, request, error);
    if (what && !strcmp(what, "end")) {
        json_t *answers = json_array();
        for (uint32_t i = 0; i < s->group.count; i++) json_array_append_new(answers, json_null());
        bt_group_end(&s->group);
        return json_pack("{s:o}", "answers", answers);
    }
    if (!s->group.processes) {
        afd_fail(error, AFD_ERR_REQUEST, "no ranks were started");
        return NULL;
    }
    json_t *answers = bt_group_ask(&s->group, json_incref(request), ANSWER_SECONDS, error);
    return answers ? json_pack("{s:o}", "answers", answers) : NULL;
}

static void serve_client(int fd, const uint8_t secret[AFD_SECRET_BYTES])
{
    struct bt_remote r = {0};
    struct served s = {0};
    struct afd_error error;
    remote_open(&r);
    local_host(fd, r.local);
    s.host = r.local;
    memcpy(s.plan.secret, secret, sizeof s.plan.secret);
    struct afd_channel_config config = channel_config(&r, secret);
    r.channel = afd_channel_accept(&config, fd);
    if (r.channel) wait_for(&r, 1, 10);
    if (r.is_open) printf("a client at %s\n", r.local), fflush(stdout);
    while (r.is_open && !r.is_closed) {
        wait_for(&r, 0, 0);
        json_t *request = r.got;
        if (!request) break;
        r.got = NULL;
        json_t *answer = serve_request(&s, request, &error);
        if (!answer) answer = json_pack("{s:s}", "error", error.text);
        bt_remote_send(&r, answer, &error); /* if it has gone, the next wait says so */
        json_decref(answer);
        json_decref(request);
    }
    if (r.words[0]) printf("it has gone: %s\n", r.words), fflush(stdout);
    bt_tool_end(s.tool);
    bt_group_end(&s.group);
    remote_fini(&r);
}

int bt_server(const char *address, const char *secret_file)
{
    char default_file[512];
    uint8_t secret[AFD_SECRET_BYTES];
    struct afd_error error;
    int port, fd;
    if (!secret_file) {
        const char *home = getenv("HOME");
        snprintf(default_file, sizeof default_file, "%s/.afd-bench.secret", home ? home : ".");
        secret_file = default_file;
    }
    if (afd_secret_make(secret_file, &error) || afd_secret_read(secret_file, secret, &error) ||
        (fd = afd_listen(address, &port, &error)) < 0)
        return cli_fail("bench transport: %s", error.text);
    printf("listening on %.*s:%d, secret in %s\n", (int)(strrchr(address, ':') - address), address, port,
           secret_file);
    fflush(stdout);
    for (;;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN}; /* it does not block */
        int client = poll(&ready, 1, -1) == 1 ? accept4(fd, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (client >= 0)
            serve_client(client, secret);
        else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            return cli_fail("bench transport: accept: %s", strerror(errno));
    }
}
