/* Guards the scheduler against what comes from outside: requests that are wrong in every way (each is refused
 * with words, and the server goes on), and ranks that do not belong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "proto/limits.h"
#include "scheduler/api_params.h"
#include "tests/scheduler/fixture.h"

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    fixture_open(f, ", max_body: 4KiB");
    *state = f;
    return 0;
}

static int setup_joined(void **state)
{
    setup(state);
    fixture_join(*state, 2);
    return 0;
}

static int teardown(void **state)
{
    fixture_close(*state);
    free(*state);
    return 0;
}

static void still_serves(struct fixture *f)
{
    int status;
    char *text = ask_text(f, "POST", "/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":3}", &status);
    assert_int_equal(status, 200);
    assert_non_null(strstr(text, "\"Hel\""));
    free(text);
}

struct body_case {
    const char *path, *body;
    int status;
    const char *param; /* NULL: none is named */
};

#define C "/v1/completions"
#define CHAT "/v1/chat/completions"
#define P "{\"prompt\":\"x\","
#define M "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"

static const struct body_case bodies[] = {
    {C, "", 400, NULL},
    {C, "{", 400, NULL},
    {C, "[]", 400, NULL},
    {C, "null", 400, NULL},
    {C, "{\"prompt\":\"x\"} trailing", 400, NULL},
    {C, "{\"prompt\":\"x\",\"prompt\":\"y\"}", 400, NULL},
    {C, "{\"prompt\":\"\xff\xfe\"}", 400, NULL},
    {C, "{\"prompt\":\"\xed\xa0\x80\"}", 400, NULL}, /* a surrogate */
    {C, "{\"prompt\":\"\\ud800\"}", 400, NULL},
    {C, "{\"prompt\":\"a\\u0000b\"}", 400, NULL},
    {C, P "\"temperature\":NaN}", 400, NULL},
    {C, P "\"temperature\":1e999}", 400, NULL},
    {C, P "\"temperature\":-Infinity}", 400, NULL},
    {C, P "\"max_tokens\":99999999999999999999999}", 400, NULL},
    {C, "{}", 400, "prompt"},
    {C, "{\"prompt\":\"\"}", 400, "prompt"},
    {C, "{\"prompt\":[]}", 400, "prompt"},
    {C, "{\"prompt\":[[]]}", 400, "prompt"},
    {C, "{\"prompt\":{}}", 400, "prompt"},
    {C, "{\"prompt\":[1,\"a\"]}", 400, "prompt"},
    {C, "{\"prompt\":[\"a\",1]}", 400, "prompt"},
    {C, "{\"prompt\":[-1]}", 400, "prompt"},
    {C, "{\"prompt\":[4294967296]}", 400, "prompt"},
    {C, "{\"prompt\":[1.5]}", 400, "prompt"},
    {C, P "\"model\":7}", 400, "model"},
    {C, P "\"model\":\"gpt-9\"}", 404, "model"},
    {C, P "\"max_tokens\":-1}", 400, "max_tokens"},
    {C, P "\"max_tokens\":\"5\"}", 400, "max_tokens"},
    {C, P "\"max_tokens\":1.5}", 400, "max_tokens"},
    {C, P "\"max_tokens\":128}", 400, "prompt"}, /* with the prompt beyond the context */
    {C, P "\"max_tokens\":100000}", 400, "max_tokens"},
    {C, P "\"temperature\":\"hot\"}", 400, "temperature"},
    {C, P "\"temperature\":2.5}", 400, "temperature"},
    {C, P "\"top_p\":0}", 400, "top_p"},
    {C, P "\"top_p\":true}", 400, "top_p"},
    {C, P "\"top_k\":-2}", 400, "top_k"},
    {C, P "\"min_p\":1.1}", 400, "min_p"},
    {C, P "\"n\":0}", 400, "n"},
    {C, P "\"n\":17}", 400, "n"},
    {C, P "\"best_of\":2}", 400, "best_of"},
    {C, P "\"logprobs\":21}", 400, "logprobs"},
    {C, P "\"logprobs\":true}", 400, "logprobs"},
    {C, P "\"stop\":\"\"}", 200, NULL},
    {C, P "\"stop\":[\"\"]}", 400, "stop"},
    {C, P "\"stop\":[1]}", 400, "stop"},
    {C, P "\"stop\":{}}", 400, "stop"},
    {C,
     P "\"stop\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\","
       "\"a\",\"a\"]}",
     400, "stop"},
    {C, P "\"logit_bias\":[]}", 400, "logit_bias"},
    {C, P "\"logit_bias\":{\"x\":1}}", 400, "logit_bias"},
    {C, P "\"logit_bias\":{\"99999999999999999999\":1}}", 400, "logit_bias"},
    {C, P "\"logit_bias\":{\"-1\":1}}", 400, "logit_bias"},
    {C, P "\"logit_bias\":{\"1\":101}}", 400, "logit_bias"},
    {C, P "\"logit_bias\":{\"1\":\"a\"}}", 400, "logit_bias"},
    {C, P "\"seed\":\"a\"}", 400, "seed"},
    {C, P "\"min_tokens\":20}", 400, "min_tokens"},
    {C, P "\"stop_token_ids\":[-1]}", 400, "stop_token_ids"},
    {C, P "\"stop_token_ids\":7}", 400, "stop_token_ids"},
    {C, P "\"stream\":1}", 400, "stream"},
    {C, P "\"stream_options\":{}}", 400, "stream_options"},
    {C, P "\"stream\":true,\"stream_options\":[]}", 400, "stream_options"},
    {C, P "\"stream\":true,\"stream_options\":{\"include_usage\":1}}", 400, "include_usage"},
    {C, P "\"suffix\":\"y\"}", 400, "suffix"},
    {C, P "\"temperature\":null,\"stop\":null,\"n\":null,\"logit_bias\":null}", 200, NULL},
    {CHAT, "{}", 400, "messages"},
    {CHAT, "{\"messages\":[]}", 400, "messages"},
    {CHAT, "{\"messages\":{}}", 400, "messages"},
    {CHAT, "{\"messages\":[7]}", 400, "messages"},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":7}]}", 400, "messages[0].content"},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", 400,
     "messages[0].content"},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", 400,
     "messages[0].content"},
    {CHAT, "{\"messages\":[{\"role\":\"wizard\",\"content\":\"x\"}]}", 400, "messages"},
    {CHAT, M "\"max_tokens\":0}", 400, "max_tokens"},
    {CHAT, M "\"max_completion_tokens\":0}", 400, "max_completion_tokens"},
    {CHAT, M "\"top_logprobs\":3}", 400, "top_logprobs"},
    {CHAT, M "\"logprobs\":5}", 400, "logprobs"},
    {CHAT, M "\"tools\":[{\"type\":\"function\"}]}", 400, "tools"},
    {CHAT, M "\"response_format\":{\"type\":\"json_object\"}}", 400, "response_format"},
    {CHAT, M "\"response_format\":7}", 400, "response_format"},
    {"/tokenize", "{\"prompt\":5}", 400, "prompt"},
    {"/tokenize", "{\"prompt\":\"x\",\"add_special_tokens\":1}", 400, "add_special_tokens"},
    {"/detokenize", "{\"tokens\":\"x\"}", 400, "tokens"},
    {"/detokenize", "{\"tokens\":[1e3]}", 400, "tokens"},
    {"/detokenize", "{\"tokens\":[99999]}", 400, "tokens"},
};

static void test_wrong_bodies(void **state)
{
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        const struct body_case *b = &bodies[i];
        int status;
        json_t *root = ask(f, "POST", b->path, b->body, &status);
        if (status != b->status) fail_msg("%s %s: status %d, not %d", b->path, b->body, status, b->status);
        assert_non_null(root);
        if (status != 200) {
            json_t *error = json_object_get(root, "error");
            const char *param = json_string_value(json_object_get(error, "param"));
            assert_true(json_string_length(json_object_get(error, "message")) > 0);
            assert_string_equal(json_string_value(json_object_get(error, "type")), "invalid_request_error");
            if (!param != !b->param || (param && strcmp(param, b->param) != 0))
                fail_msg("%s: param is %s", b->body, param ? param : "null");
        }
        json_decref(root);
    }
    still_serves(f);
}

static void test_deep_nesting(void **state)
{
    struct fixture *f = *state;
    char body[3000];
    int status;
    memset(body, '[', sizeof body - 1);
    body[sizeof body - 1] = 0;
    memcpy(body, "{\"a\":", 5);
    json_t *root = ask(f, "POST", C, body, &status);
    assert_int_equal(status, 400);
    assert_non_null(
        strstr(json_string_value(json_object_get(json_object_get(root, "error"), "message")), "nested"));
    json_decref(root);
    still_serves(f);
}

static void test_context_length_in_words(void **state)
{
    struct fixture *f = *state;
    char body[600];
    int status, at = sprintf(body, "{\"prompt\":\"");
    for (int i = 0; i < 200; i++) body[at++] = (char)('0' + i % 10);
    strcpy(body + at, "\"}");
    json_t *root = ask(f, "POST", C, body, &status);
    assert_int_equal(status, 400);
    assert_string_equal(json_string_value(json_object_get(json_object_get(root, "error"), "code")),
                        "context_length_exceeded");
    json_decref(root);
    strcpy(body, "{\"prompt\":\"123\",\"max_tokens\":126}");
    root = ask(f, "POST", C, body, &status);
    assert_int_equal(status, 400);
    assert_non_null(
        strstr(json_string_value(json_object_get(json_object_get(root, "error"), "message")),
               "maximum context length is 128 tokens. However, you requested 129 tokens (3 in the prompt, "
               "126 in the completion)"));
    json_decref(root);
}

/* Raw bytes and the status they get; 0: the connection is closed without an answer. All connections are
 * closed by the server after a refusal. */
static const struct {
    const char *bytes;
    int status;
} raws[] = {
    {"\r\n\r\n", 400},
    {"GET\r\n\r\n", 400},
    {"GET /live\r\n\r\n", 400},
    {"GET /live HTTP/1.1\n\n\r\n\r\n", 400},
    {"GET  /live HTTP/1.1\r\nHost: t\r\n\r\n", 400},
    {"GET live HTTP/1.1\r\nHost: t\r\n\r\n", 400},
    {"GET http://t/live HTTP/1.1\r\nHost: t\r\n\r\n", 400},
    {"GET /li\x01ve HTTP/1.1\r\nHost: t\r\n\r\n", 400},
    {"GET /live HTTP/2.0\r\nHost: t\r\n\r\n", 505},
    {"GET /live HTTP/1.7\r\nHost: t\r\n\r\n", 505},
    {"GET /live HTTX/1.1\r\nHost: t\r\n\r\n", 400},
    {"ABCDEFGHIJKLMNOPQRSTUVW /live HTTP/1.1\r\nHost: t\r\n\r\n", 501},
    {"GET /live HTTP/1.1\r\n\r\n", 400}, /* no Host */
    {"GET /live HTTP/1.1\r\nHost: t\r\nHost: u\r\n\r\n", 400},
    {"GET /live HTTP/1.1\r\nHost : t\r\n\r\n", 400},
    {"GET /live HTTP/1.1\r\nHost: t\r\n folded\r\n\r\n", 400},
    {"GET /live HTTP/1.1\r\nHost: t\r\nX: a\x01\r\n\r\n", 400},
    {"GET /live HTTP/1.1\r\nHost: t\r\nnothing\r\n\r\n", 400},
    {"GET /live HTTP/1.1\r\nHost: t\r\n: x\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: +1\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 1x\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length:\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 18446744073709551616\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 4097\r\n\r\n", 413},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 999999999999\r\n\r\n", 413},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nExpect: 200-ok\r\nContent-Length: 2\r\n\r\n", 417},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", 400},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", 413},
    {"POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", 400},
    {"POST /tokenize HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
};

static void test_wrong_http(void **state)
{
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof raws / sizeof *raws; i++) {
        struct client *c = client_open(f);
        char *body = NULL;
        client_send(c, raws[i].bytes, strlen(raws[i].bytes));
        int status = client_answer(c, &body);
        if (status != raws[i].status)
            fail_msg("%s: status %d, not %d", raws[i].bytes, status, raws[i].status);
        assert_non_null(strstr(body, "\"error\""));
        while (!c->closed) fixture_pump(f);
        free(body);
        client_close(c);
    }
    still_serves(f);
}

static void test_giant_heads(void **state)
{
    struct fixture *f = *state;
    static char bytes[40000];
    /* one header without end; too many headers; a target that is too long */
    for (int kind = 0; kind < 3; kind++) {
        int at = sprintf(bytes, kind == 2 ? "GET /" : "GET /live HTTP/1.1\r\nHost: t\r\n");
        if (kind == 0) at += sprintf(bytes + at, "X: ");
        while (at < (kind ? 9000 : 30000)) at += sprintf(bytes + at, kind == 1 ? "A: b\r\n" : "aaaaaaaa");
        sprintf(bytes + at, kind == 2 ? " HTTP/1.1\r\nHost: t\r\n\r\n" : kind == 1 ? "\r\n" : "");
        struct client *c = client_open(f);
        client_send(c, bytes, strlen(bytes));
        assert_int_equal(client_answer(c, NULL), kind == 2 ? 414 : 431);
        client_close(c);
    }
    still_serves(f);
}

static void test_paths_and_methods(void **state)
{
    struct fixture *f = *state;
    int status;
    free(ask_text(f, "GET", "/nothing", NULL, &status));
    assert_int_equal(status, 404);
    free(ask_text(f, "GET", "/../etc/passwd", NULL, &status));
    assert_int_equal(status, 404);
    free(ask_text(f, "GET", C, NULL, &status));
    assert_int_equal(status, 405);
    free(ask_text(f, "DELETE", "/v1/models", NULL, &status));
    assert_int_equal(status, 405);
    free(ask_text(f, "POST", "/live", "", &status));
    assert_int_equal(status, 405);
    struct client *c = client_open(f);
    const char head[] = "HEAD /live HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    client_send(c, head, sizeof head - 1);
    while (!c->closed) fixture_pump(f);
    assert_memory_equal(c->data, "HTTP/1.1 200", 12);
    assert_string_equal(strstr(c->data, "\r\n\r\n"), "\r\n\r\n");
    client_close(c);
}

static void test_pipelining(void **state)
{
    struct fixture *f = *state;
    struct client *c = client_open(f);
    char *body;
    f->held = 1;
    client_post(c, C, "{\"prompt\":\"x\",\"max_tokens\":3}");
    client_post(c, C, "{\"prompt\":\"x\",\"max_tokens\":4,\"stream\":true}");
    const char last[] = "GET /live HTTP/1.1\r\nHost: t\r\n\r\n";
    client_send(c, last, sizeof last - 1);
    while (!f->ranks[0].submits) fixture_pump(f);
    fixture_settle(f);
    assert_int_equal(f->ranks[0].submits, 1); /* one after the other */
    f->held = 0;
    while (rank_running(&f->ranks[0])) rank_step(&f->ranks[0]);
    assert_int_equal(client_answer(c, &body), 200);
    assert_non_null(strstr(body, "\"Hel\""));
    free(body);
    assert_int_equal(client_answer(c, &body), 200);
    assert_non_null(strstr(body, "[DONE]"));
    free(body);
    assert_int_equal(client_answer(c, &body), 200);
    assert_string_equal(body, "ok\n");
    free(body);
    client_close(c);
}

static void test_flood_while_waiting(void **state)
{
    struct fixture *f = *state;
    static char flood[200000];
    struct client *c = client_open(f);
    f->held = 1;
    uint32_t cancels = f->ranks[0].cancels;
    client_post(c, C, "{\"prompt\":\"x\",\"max_tokens\":3}");
    while (!f->ranks[0].submits) fixture_pump(f);
    memset(flood, 'x', sizeof flood);
    client_send(c, flood, sizeof flood);
    while (f->ranks[0].cancels == cancels) fixture_pump(f); /* it is dropped, and its request with it */
    while (!c->closed) fixture_pump(f);
    client_close(c);
    f->held = 0;
    still_serves(f);
}

static void test_pieces_and_chunks(void **state)
{
    struct fixture *f = *state;
    const char text[] =
        "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        "5;x=y\r\n{\"pro\r\nC\r\nmpt\":\"Hi\"}  \r\n0\r\nTrailer: 1\r\n\r\n";
    struct client *c = client_open(f);
    char *body;
    for (size_t i = 0; i < sizeof text - 1; i++) { /* a byte at a time */
        client_send(c, text + i, 1);
        fixture_settle(f);
    }
    while (!strstr(c->data, "\r\n\r\nHTTP")) fixture_pump(f);
    assert_memory_equal(c->data, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    memmove(c->data, c->data + 25, c->bytes - 25 + 1);
    c->bytes -= 25;
    assert_int_equal(client_answer(c, &body), 200);
    assert_non_null(strstr(body, "\"count\":2"));
    free(body);
    client_close(c);
    /* a body that never comes to its end */
    c = client_open(f);
    const char part[] = "POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{\"prompt\":";
    client_send(c, part, sizeof part - 1);
    fixture_settle(f);
    assert_int_equal(c->bytes, 0);
    client_close(c);
    still_serves(f);
}

/* A stream whose client does not read is ended when a bounded amount waits for it. */
static void test_client_that_does_not_read(void **state)
{
    struct fixture *f = *state;
    struct client *c = client_open(f);
    event_del(c->event); /* it sends, and never reads */
    f->held = 1;
    uint32_t cancels = f->ranks[0].cancels;
    client_post(c, C,
                "{\"prompt\":[[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1]],"
                "\"max_tokens\":100,\"n\":16,\"stream\":true,\"ignore_eos\":true,\"logprobs\":20,"
                "\"return_token_ids\":true}");
    while (f->ranks[0].submits + f->ranks[1].submits < 64) fixture_pump(f);
    /* 25 MB in all: more than the sockets between take */
    for (int i = 0; i < 400 && f->ranks[0].cancels == cancels; i++) {
        rank_step(&f->ranks[0]);
        rank_step(&f->ranks[1]);
        fixture_settle(f);
    }
    assert_true(f->ranks[0].cancels > cancels);
    uint32_t submits = f->ranks[0].submits;
    fixture_settle(f);
    assert_int_equal(f->ranks[0].submits, submits); /* what waited of it is gone too */
    client_close(c);
    f->held = 0;
    still_serves(f);
}

/* ---- ranks */

static void test_wrong_secret(void **state)
{
    struct fixture *f = *state;
    f->config.secret[0] ^= 1;
    rank_start(f, 0);
    while (!f->ranks[0].refused) fixture_pump(f);
    assert_non_null(strstr(f->ranks[0].words, "secret"));
    assert_false(f->ranks[0].assigned);
}

static void test_wrong_hashes(void **state)
{
    struct fixture *f = *state;
    static uint8_t other[AFD_HASH_BYTES];
    rank_start(f, 0);
    rank_start(f, 1);
    f->ranks[0].registration.model_hash = (ProtobufCBinaryData){AFD_HASH_BYTES, other};
    f->ranks[1].registration.topology_hash = (ProtobufCBinaryData){AFD_HASH_BYTES, other};
    while (!f->ranks[0].refused || !f->ranks[1].refused) fixture_pump(f);
    assert_non_null(strstr(f->ranks[0].words, "another model"));
    assert_non_null(strstr(f->ranks[1].words, "another topology"));
}

static void on_raw_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    (void)channel, (void)status;
    snprintf(user, 512, "%s", words);
}

static void test_message_before_register(void **state)
{
    struct fixture *f = *state;
    struct afd_error error;
    char words[512] = "";
    struct afd_channel_config config = {.base = f->base,
                                        .name = "attn/0",
                                        .timeout_ms = 5000,
                                        .callbacks = {NULL, NULL, on_raw_closed},
                                        .user = words};
    memcpy(config.secret, f->config.secret, sizeof config.secret);
    struct afd_channel *channel = afd_channel_connect(&config, afd_scheduler_control(f->scheduler), &error);
    Afd__Ready ready = AFD__READY__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_READY;
    e.ready = &ready;
    while (afd_channel_send(channel, &e) != AFD_OK) fixture_pump(f);
    while (!words[0]) fixture_pump(f);
    assert_non_null(strstr(words, "Register comes first"));
    afd_channel_close(channel);
}

/* The greeting of another protocol version, as raw bytes. */
static void test_wrong_version(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[256], nonce[32] = {0};
    Afd__Greeting greeting = AFD__GREETING__INIT;
    greeting.protocol_version = AFD_PROTOCOL_VERSION + 1;
    greeting.nonce = (ProtobufCBinaryData){sizeof nonce, nonce};
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_GREETING;
    e.greeting = &greeting;
    size_t size = afd__envelope__pack(&e, bytes + 4);
    memcpy(bytes, (uint8_t[4]){(uint8_t)size, 0, 0, 0}, 4);
    struct afd_scheduler *at = f->scheduler;
    struct client *c = client_open_at(f, afd_scheduler_control(at));
    client_send(c, (const char *)bytes, size + 4);
    while (!c->closed) fixture_pump(f);
    assert_true(c->bytes > 8);
    assert_non_null(memmem(c->data, c->bytes, "protocol version", 16));
    client_close(c);
}

/* A rank that sends nonsense loses its sequence, the client gets words, and the others go on. */
static void test_rank_that_sends_nonsense(void **state)
{
    struct fixture *f = *state;
    char *body;
    f->held = 1;
    struct client *c = client_open(f), *other = client_open(f);
    client_post(c, C, "{\"prompt\":\"x\",\"max_tokens\":5}");
    while (!f->ranks[0].submits) fixture_pump(f);
    client_post(other, C, "{\"prompt\":\"x\",\"max_tokens\":5}");
    while (!f->ranks[1].submits) fixture_pump(f);
    uint32_t token = 1 << 30;
    Afd__SequenceTokens sequence = AFD__SEQUENCE_TOKENS__INIT, *at = &sequence;
    sequence.request = f->ranks[0].sequences[0].request;
    sequence.assignment = 1;
    sequence.n_tokens = 1;
    sequence.tokens = &token;
    Afd__Tokens tokens = AFD__TOKENS__INIT;
    tokens.n_sequences = 1;
    tokens.sequences = &at;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_TOKENS;
    e.tokens = &tokens;
    afd_member_send(f->ranks[0].member, &e);
    assert_int_equal(client_answer(c, &body), 500);
    assert_non_null(strstr(body, "token that the model does not have"));
    free(body);
    while (rank_running(&f->ranks[1])) rank_step(&f->ranks[1]);
    assert_int_equal(client_answer(other, NULL), 200);
    client_close(c);
    client_close(other);
}

#define JOINED(name) cmocka_unit_test_setup_teardown(name, setup_joined, teardown)
#define ALONE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        JOINED(test_wrong_bodies),
        JOINED(test_deep_nesting),
        JOINED(test_context_length_in_words),
        JOINED(test_wrong_http),
        JOINED(test_giant_heads),
        JOINED(test_paths_and_methods),
        JOINED(test_pipelining),
        JOINED(test_flood_while_waiting),
        JOINED(test_pieces_and_chunks),
        JOINED(test_client_that_does_not_read),
        JOINED(test_rank_that_sends_nonsense),
        ALONE(test_wrong_secret),
        ALONE(test_wrong_hashes),
        ALONE(test_message_before_register),
        ALONE(test_wrong_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
