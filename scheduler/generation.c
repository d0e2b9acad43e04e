#include "scheduler/generation.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* ---- life */

static void generation_free(struct afd_generation *g)
{
    *g->link = g->next;
    if (g->next) g->next->link = g->link;
    g->api->generation_count--;
    for (uint32_t i = 0; i < g->count; i++) {
        struct choice *c = &g->choices[i];
        if (c->is_submitted) {
            afd_service_cancel(g->api->service, &c->sequence);
            g->api->metrics.ended[AFD_FINISH_CANCELLED]++;
        }
        free(c->sequence.tokens);
        afd_answer_fini(&c->answer);
        afd_text_free(&c->text);
        afd_text_free(&c->reasoning);
        afd_text_free(&c->tool_calls);
        afd_text_free(&c->ids);
        for (int k = 0; k < LP_COUNT; k++) afd_text_free(&c->logprobs[k]);
    }
    afd_text_free(&g->prefix);
    afd_params_free(&g->params);
    free(g);
}

static void on_gone(void *user)
{
    generation_free(user);
}

/* Ends it with an error; as an event when the stream has begun. */
static void generation_fail(struct afd_generation *g, int status, const char *code, const char *words)
{
    struct afd_http_exchange *x = g->exchange;
    int has_begun = g->stream_has_begun;
    generation_free(g);
    if (!has_begun) {
        afd_http_error(x, status, NULL, code, words);
        return;
    }
    struct afd_text t = {0};
    afd_text_puts(&t, "data: ");
    afd_http_error_json(&t, status, NULL, code, words);
    afd_text_puts(&t, "\n\ndata: [DONE]\n\n");
    if (afd_http_stream_write(x, t.data, t.bytes) == 0) afd_http_stream_end(x);
    afd_text_free(&t);
}

void afd_api_abandon(struct afd_api *api)
{
    while (api->generations) generation_fail(api->generations, 503, "draining", "the server is going down");
}

/* Writes `scratch` as the next part of the stream. -1: the client is gone, and the generation with it. */
static int send_scratch(struct afd_generation *g)
{
    struct afd_text *t = &g->api->scratch;
    if (t->failed) {
        afd_text_free(t);
        generation_fail(g, 503, NULL, "out of memory");
        return -1;
    }
    if (!g->stream_has_begun) afd_http_stream_begin(g->exchange, "text/event-stream; charset=utf-8");
    g->stream_has_begun = 1;
    if (afd_http_stream_write(g->exchange, t->data, t->bytes) == 0) return 0;
    generation_free(g);
    return -1;
}

static void generation_finish(struct afd_generation *g)
{
    struct afd_http_exchange *x = g->exchange;
    struct afd_text *scratch = &g->api->scratch, whole = {0};
    if (g->params.stream) {
        afd_text_clear(scratch);
        if (g->params.include_usage) generation_print_usage_chunk(g, scratch);
        afd_text_puts(scratch, "data: [DONE]\n\n");
        if (send_scratch(g)) return;
        generation_free(g);
        afd_http_stream_end(x);
        return;
    }
    generation_print_whole(g, &whole);
    for (uint32_t i = 0; i < g->count; i++)
        for (int k = 0; k < LP_COUNT; k++)
            whole.failed |= g->choices[i].text.failed | g->choices[i].reasoning.failed |
                            g->choices[i].tool_calls.failed | g->choices[i].answer.failed |
                            g->choices[i].logprobs[k].failed;
    generation_free(g);
    afd_api_answer(x, &whole);
    afd_text_free(&whole);
}

/* ---- text */

static uint64_t count_chars(const char *data, size_t bytes)
{
    uint64_t chars = 0;
    for (size_t i = 0; i < bytes; i++) chars += ((unsigned char)data[i] & 0xc0) != 0x80;
    return chars;
}

/* Text of the prompt: what is not decided by stop strings. */
static void echo_token(struct choice *c, uint32_t token)
{
    struct afd_api *api = c->generation->api;
    size_t bytes;
    if (c->echoed++ == 0) {
        afd_detokenizer_init(&c->detokenizer, api->tokenizer, 1);
        if (c->prompt->has_bos) return;
    }
    if (afd_detokenizer_push(&c->detokenizer, token, api->piece, api->piece_bytes, &bytes) != AFD_OK) return;
    afd_text_add(&c->text, api->piece, bytes);
    c->chars += count_chars(api->piece, bytes);
}

/* The prompt is in: from here on tokens are generated. */
static void end_echo(struct choice *c)
{
    if (c->generation->params.echo) {
        char rest[16];
        size_t bytes = afd_detokenizer_finish(&c->detokenizer, rest);
        afd_text_add(&c->text, rest, bytes);
        c->chars += count_chars(rest, bytes);
    }
    afd_detokenizer_init(&c->detokenizer, c->generation->api->tokenizer, 0);
    c->detokenizer.keep_tags = c->generation->params.is_chat;
}

static void begin_echo(struct choice *c)
{
    const struct afd_params *p = &c->generation->params;
    if (p->echo && p->logprobs >= 0) {
        choice_add_logprobs(c, c->prompt->tokens[0], NULL);
        echo_token(c, c->prompt->tokens[0]);
        if (c->prompt->count > 1) return; /* the others come with their log-probabilities */
    } else {
        for (uint32_t i = 0; p->echo && i < c->prompt->count; i++) echo_token(c, c->prompt->tokens[i]);
        c->echoed = c->prompt->count;
    }
    end_echo(c);
}

static void take_prompt_logprobs(struct choice *c, const Afd__SequenceTokens *m, uint32_t first)
{
    for (size_t i = first; i < m->n_prompt_logprobs; i++) {
        uint32_t token = c->prompt->tokens[c->echoed];
        choice_add_logprobs(c, token, m->prompt_logprobs[i]);
        echo_token(c, token);
        if (c->echoed == c->prompt->count) end_echo(c);
    }
}

/* A part of an answer. */
static void on_part(enum afd_answer_part part, const char *name, const char *text, size_t bytes, void *user)
{
    struct choice *c = user;
    if (part == AFD_ANSWER_CALL)
        choice_add_call(c, name, text, bytes);
    else
        afd_text_add(part == AFD_ANSWER_REASONING ? &c->reasoning : &c->text, text, bytes);
}

/* Text that is the client's: of chat, taken apart first. */
static void write_text(struct choice *c, const char *data, size_t bytes)
{
    if (c->generation->params.is_chat)
        afd_answer_push(&c->answer, data, bytes);
    else
        afd_text_add(&c->text, data, bytes);
}

/* Text goes through the stop strings; 1 if one ended it. */
static int show(struct choice *c, const char *data, size_t bytes)
{
    struct afd_api *api = c->generation->api;
    size_t shown;
    c->chars += count_chars(data, bytes);
    if (c->generated <
        c->sequence.sampling.min_tokens) { /* stop strings do not count yet, as stop tokens do not */
        write_text(c, data, bytes);
        return 0;
    }
    int which = afd_stop_push(&c->stop, data, bytes, api->shown, &shown);
    write_text(c, api->shown, shown);
    return which >= 0;
}

static int is_stop_token(const struct afd_sampling *s, uint32_t token)
{
    for (uint32_t i = 0; i < s->stop_count; i++)
        if (s->stop_tokens[i] == token) return 1;
    return 0;
}

/* 1 if a stop string ended the text with this token. */
static int take_token(struct choice *c, uint32_t token, const Afd__TokenLogprobs *logprobs, int is_last)
{
    struct afd_api *api = c->generation->api;
    size_t bytes;
    if (logprobs) choice_add_logprobs(c, token, logprobs);
    if (c->generation->params.return_token_ids) {
        afd_text_add(&c->ids, ",", 1);
        afd_text_uint(&c->ids, token);
    }
    c->generated++;
    if (is_last && is_stop_token(&c->sequence.sampling, token))
        return 0; /* it ends the text and is no part of it */
    if (afd_detokenizer_push(&c->detokenizer, token, api->piece, api->piece_bytes, &bytes) != AFD_OK)
        return 0;
    return bytes && show(c, api->piece, bytes);
}

/* ---- tokens */

static void observe(struct choice *c, size_t tokens, uint32_t assignment)
{
    struct afd_metrics *m = &c->generation->api->metrics;
    afd_ns now = afd_now();
    size_t between = tokens;
    if (!tokens) return;
    if (c->last_token && assignment != c->assignment)
        afd_histogram_observe(&m->failover, now - c->last_token);
    c->assignment = assignment;
    if (!c->last_token) {
        afd_histogram_observe(&m->first_token, now - c->begun);
        between--; /* what came with the first one took no time that a client could see */
    }
    for (size_t i = 0; i < between && c->last_token; i++)
        afd_histogram_observe(&m->inter_token, (now - c->last_token) / tokens);
    c->last_token = now;
}

static void end_choice(struct choice *c, enum afd_finish finish, int by_stop_string)
{
    struct afd_api *api = c->generation->api;
    char rest[AFD_STOP_STRING_BYTES + 16];
    if (!by_stop_string) {
        size_t bytes = afd_detokenizer_finish(&c->detokenizer, rest);
        if (bytes) by_stop_string = show(c, rest, bytes);
    }
    if (!by_stop_string) {
        size_t bytes = afd_stop_finish(&c->stop, rest);
        write_text(c, rest, bytes);
    }
    if (c->generation->params.is_chat) afd_answer_finish(&c->answer);
    c->finish = finish != AFD_FINISH_STOP && !by_stop_string ? "length" : c->calls ? "tool_calls" : "stop";
    api->metrics.ended[finish]++;
    afd_histogram_observe(&api->metrics.end_to_end, afd_now() - c->begun);
    c->generation->unfinished--;
}

/* Sends what a choice has collected, when there is something. -1: the generation is gone. */
static int send_chunk(struct choice *c)
{
    struct afd_generation *g = c->generation;
    if (!c->finish && !c->text.bytes && !c->reasoning.bytes && !c->tool_calls.bytes &&
        !c->logprobs[LP_TOKENS].bytes && !c->ids.bytes)
        return 0;
    if (c->echoed < c->prompt->count) return 0; /* an echo is sent as one */
    afd_text_clear(&g->api->scratch);
    generation_print_chunk(g, c, &g->api->scratch);
    if (send_scratch(g)) return -1;
    c->has_begun = 1;
    afd_text_clear(&c->text);
    afd_text_clear(&c->reasoning);
    afd_text_clear(&c->tool_calls);
    afd_text_clear(&c->ids);
    for (int k = 0; k < LP_COUNT; k++) afd_text_clear(&c->logprobs[k]);
    return 0;
}

static void on_accepted(struct afd_sequence *sequence, const Afd__SequenceTokens *m,
                        uint32_t first_prompt_logprob, enum afd_finish finish)
{
    struct choice *c = (struct choice *)sequence;
    struct afd_generation *g = c->generation;
    int by_stop_string = 0;
    take_prompt_logprobs(c, m, first_prompt_logprob);
    observe(c, m->n_tokens, m->assignment);
    for (size_t i = 0; i < m->n_tokens && !by_stop_string; i++)
        by_stop_string = take_token(c, m->tokens[i], m->n_logprobs ? m->logprobs[i] : NULL,
                                    finish == AFD_FINISH_STOP && i + 1 == m->n_tokens);
    if (finish) c->is_submitted = 0;
    if (by_stop_string && !finish) {
        afd_service_cancel(g->api->service, sequence);
        c->is_submitted = 0;
    }
    if (finish || by_stop_string) end_choice(c, by_stop_string ? AFD_FINISH_STOP : finish, by_stop_string);
    if (g->params.stream && send_chunk(c)) return;
    if (!g->unfinished) generation_finish(g);
}

static void on_failed(struct afd_sequence *sequence, enum afd_status status, const char *words)
{
    struct choice *c = (struct choice *)sequence;
    c->is_submitted = 0;
    c->generation->api->metrics.ended[AFD_FINISH_FAILED]++;
    char copy[AFD_REQUESTS_WORDS_BYTES];
    snprintf(copy, sizeof copy, "%s", words);
    generation_fail(c->generation,
                    status == AFD_ERR_REQUEST                              ? 400
                    : status == AFD_ERR_DEADLINE || status == AFD_ERR_PEER ? 503
                                                                           : 500,
                    status == AFD_ERR_DEADLINE ? "deadline" : NULL, copy);
}

/* ---- beginning */

static void choice_init(struct afd_generation *g, uint32_t index)
{
    struct choice *c = &g->choices[index];
    const struct afd_params *p = &g->params;
    uint32_t k = index % p->n;
    c->generation = g;
    c->index = index;
    c->prompt = &p->prompts[index / p->n];
    c->begun = afd_now();
    c->sequence.sampling = p->sampling;
    c->sequence.prompt_count = c->prompt->count;
    if (k) c->sequence.sampling.seed = afd_random(p->sampling.seed, k, 0);
    c->sequence.accepted = on_accepted;
    c->sequence.failed = on_failed;
    if (p->is_chat)
        afd_answer_init(&c->answer, g->api->answer_form,
                        afd_answer_starts_inside(g->api->tokenizer, c->prompt->tokens, c->prompt->count),
                        p->tools, on_part, c);
    c->stop.count = p->stop_count;
    for (uint32_t i = 0; i < p->stop_count; i++) {
        c->stop.strings[i] = p->stops[i];
        c->stop.bytes[i] = strlen(p->stops[i]);
    }
    begin_echo(c);
}

/* 0, or the status of the refusal. What needs no rank ends at once. */
static int choice_submit(struct choice *c)
{
    struct afd_api *api = c->generation->api;
    const struct afd_sampling *s = &c->sequence.sampling;
    if (!s->max_tokens && !(s->prompt_logprobs && c->prompt->count > 1)) {
        end_choice(c, AFD_FINISH_LENGTH, 0);
        return 0;
    }
    c->sequence.tokens = malloc(((size_t)c->prompt->count + s->max_tokens) * sizeof(uint32_t));
    if (!c->sequence.tokens) return 503;
    memcpy(c->sequence.tokens, c->prompt->tokens, c->prompt->count * sizeof(uint32_t));
    if (afd_service_submit(api->service, &c->sequence) != AFD_OK) return 429;
    c->is_submitted = 1;
    return 0;
}

static struct afd_generation *generation_create(struct afd_api *api, struct afd_http_exchange *x,
                                                struct afd_params *params)
{
    uint32_t count = params->prompt_count * params->n;
    struct afd_generation *g = calloc(1, sizeof *g + count * sizeof *g->choices);
    if (!g) return NULL;
    g->api = api;
    g->exchange = x;
    g->params = *params;
    g->params.sampling.bias = g->params.bias;
    g->params.sampling.stop_tokens = g->params.stop_tokens;
    g->count = g->unfinished = count;
    g->link = &api->generations;
    g->next = api->generations;
    if (g->next) g->next->link = &g->next;
    api->generations = g;
    api->generation_count++;
    generation_make_prefix(g);
    for (uint32_t i = 0; i < count; i++) choice_init(g, i);
    return g;
}

void afd_generation_begin(struct afd_api *api, struct afd_http_exchange *x, int is_chat)
{
    struct afd_api_error error = {0};
    struct afd_params params;
    size_t bytes;
    const char *body = afd_http_body(x, &bytes);
    if (api->is_draining) {
        afd_http_error(x, 503, NULL, "draining", "the server is going down");
        return;
    }
    if (api->generation_count >= api->topology->scheduler.max_streams) {
        afd_http_error(x, 429, NULL, "rate_limit_exceeded", "too many requests are under way");
        return;
    }
    if (afd_params_read(body, bytes, is_chat, &api->limits, &params, &error)) {
        afd_params_free(&params);
        afd_api_refuse(x, &error);
        return;
    }
    struct afd_generation *g = generation_create(api, x, &params);
    if (!g) {
        afd_params_free(&params);
        afd_http_error(x, 503, NULL, NULL, "out of memory");
        return;
    }
    afd_http_on_gone(x, on_gone, g);
    for (uint32_t i = 0; i < g->count; i++) {
        int refused = choice_submit(&g->choices[i]);
        if (!refused) continue;
        generation_fail(g, refused, refused == 429 ? "rate_limit_exceeded" : NULL,
                        refused == 429 ? "the queue is full, try again later" : "out of memory");
        return;
    }
    for (uint32_t i = 0; g->params.stream && i < g->count; i++)
        if (g->choices[i].finish && send_chunk(&g->choices[i])) return;
    if (!g->unfinished) generation_finish(g);
}
