#include "scheduler/generation.h"

#include "base/crypto.h"

/* ---- log-probabilities */

/* A token's bytes as text; those that are no UTF-8 by themselves as OpenAI writes them: "bytes:\xe2\x80". */
static void print_token(struct afd_text *t, const char *data, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        unsigned length = afd_text_utf8_length(data + at, bytes - at);
        if (!length) break;
        at += length;
    }
    if (at == bytes) {
        afd_text_json(t, data, bytes);
        return;
    }
    afd_text_puts(t, "\"bytes:");
    for (size_t i = 0; i < bytes; i++) afd_text_printf(t, "\\\\x%02x", (unsigned char)data[i]);
    afd_text_puts(t, "\"");
}

static const char *token_bytes(const struct choice *c, uint32_t token, size_t *bytes_out)
{
    const char *data = afd_tokenizer_token(c->generation->api->tokenizer, token, bytes_out);
    if (!data) *bytes_out = 0; /* the vocabulary of the model may be padded */
    return data ? data : "";
}

/* "token":...,"logprob":...,"bytes":[...] */
static void print_chat_token(const struct choice *c, struct afd_text *t, uint32_t token, float logprob)
{
    size_t bytes;
    const char *data = token_bytes(c, token, &bytes);
    afd_text_puts(t, "\"token\":");
    print_token(t, data, bytes);
    afd_text_puts(t, ",\"logprob\":");
    afd_text_json_number(t, (double)logprob);
    afd_text_puts(t, ",\"bytes\":[");
    for (size_t i = 0; i < bytes; i++) {
        if (i) afd_text_add(t, ",", 1);
        afd_text_uint(t, (unsigned char)data[i]);
    }
    afd_text_puts(t, "]");
}

static void add_chat_logprobs(struct choice *c, uint32_t token, const Afd__TokenLogprobs *p)
{
    struct afd_text *t = &c->logprobs[LP_TOKENS];
    afd_text_puts(t, ",{");
    print_chat_token(c, t, token, p->chosen);
    afd_text_puts(t, ",\"top_logprobs\":[");
    for (size_t i = 0; i < p->n_tokens; i++) {
        afd_text_puts(t, i ? ",{" : "{");
        print_chat_token(c, t, p->tokens[i], p->logprobs[i]);
        afd_text_puts(t, "}");
    }
    afd_text_puts(t, "]}");
}

void choice_add_logprobs(struct choice *c, uint32_t token, const Afd__TokenLogprobs *p)
{
    size_t bytes;
    const char *data = token_bytes(c, token, &bytes);
    struct afd_text *lp = c->logprobs;
    if (c->generation->params.is_chat) {
        add_chat_logprobs(c, token, p);
        return;
    }
    afd_text_add(&lp[LP_TOKENS], ",", 1);
    print_token(&lp[LP_TOKENS], data, bytes);
    afd_text_add(&lp[LP_OFFSETS], ",", 1);
    afd_text_uint(&lp[LP_OFFSETS], c->chars);
    if (!p) {
        afd_text_puts(&lp[LP_LOGPROBS], ",null");
        afd_text_puts(&lp[LP_TOP], ",null");
        return;
    }
    afd_text_add(&lp[LP_LOGPROBS], ",", 1);
    afd_text_json_number(&lp[LP_LOGPROBS], (double)p->chosen);
    /* the best ones, and the chosen one if it is none of them */
    afd_text_puts(&lp[LP_TOP], ",{");
    int has_chosen = 0;
    for (size_t i = 0; i <= p->n_tokens; i++) {
        if (i == p->n_tokens && has_chosen) break;
        uint32_t id = i < p->n_tokens ? p->tokens[i] : token;
        has_chosen |= id == token;
        data = token_bytes(c, id, &bytes);
        if (i) afd_text_add(&lp[LP_TOP], ",", 1);
        print_token(&lp[LP_TOP], data, bytes);
        afd_text_add(&lp[LP_TOP], ":", 1);
        afd_text_json_number(&lp[LP_TOP], (double)(i < p->n_tokens ? p->logprobs[i] : p->chosen));
    }
    afd_text_puts(&lp[LP_TOP], "}");
}

void choice_add_call(struct choice *c, const char *name, const char *arguments, size_t bytes)
{
    struct afd_text *t = &c->tool_calls;
    const struct afd_generation *g = c->generation;
    uint64_t noise = (uint64_t)c->index << 32 | c->calls; /* the same whenever the answer is made again */
    for (size_t i = 0; i < g->prefix.bytes; i++) noise = afd_mix64(noise ^ (unsigned char)g->prefix.data[i]);
    afd_text_puts(t, ",{");
    if (g->params.stream) afd_text_printf(t, "\"index\":%u,", c->calls);
    afd_text_printf(t, "\"id\":\"call_%016llx%08x\",\"type\":\"function\",\"function\":{\"name\":",
                    (unsigned long long)noise, (unsigned)afd_mix64(noise + 1));
    afd_text_json_string(t, name);
    afd_text_puts(t, ",\"arguments\":");
    afd_text_json(t, arguments, bytes);
    afd_text_puts(t, "}}");
    c->calls++;
}

/* The fragment as an array; its first byte is the comma before the first entry. */
static void print_array(struct afd_text *t, const struct afd_text *fragment)
{
    afd_text_add(t, "[", 1);
    if (fragment->bytes) afd_text_add(t, fragment->data + 1, fragment->bytes - 1);
    afd_text_add(t, "]", 1);
}

static void print_logprobs(const struct choice *c, struct afd_text *t)
{
    const struct afd_params *p = &c->generation->params;
    const struct afd_text *lp = c->logprobs;
    afd_text_puts(t, ",\"logprobs\":");
    if (p->logprobs < 0 || (p->stream && !lp[LP_TOKENS].bytes)) {
        afd_text_puts(t, "null");
    } else if (p->is_chat) {
        afd_text_puts(t, "{\"content\":");
        print_array(t, &lp[LP_TOKENS]);
        afd_text_puts(t, ",\"refusal\":null}");
    } else {
        afd_text_puts(t, "{\"tokens\":");
        print_array(t, &lp[LP_TOKENS]);
        afd_text_puts(t, ",\"token_logprobs\":");
        print_array(t, &lp[LP_LOGPROBS]);
        afd_text_puts(t, ",\"top_logprobs\":");
        if (p->logprobs)
            print_array(t, &lp[LP_TOP]);
        else
            afd_text_puts(t, "null"); /* the chosen tokens' own, without alternatives, were asked for */
        afd_text_puts(t, ",\"text_offset\":");
        print_array(t, &lp[LP_OFFSETS]);
        afd_text_puts(t, "}");
    }
}

/* ---- choices and answers */

static void print_prompt_ids(const struct choice *c, struct afd_text *t)
{
    afd_text_puts(t, ",\"prompt_token_ids\":[");
    for (uint32_t i = 0; i < c->prompt->count; i++) {
        if (i) afd_text_add(t, ",", 1);
        afd_text_uint(t, c->prompt->tokens[i]);
    }
    afd_text_add(t, "]", 1);
}

/* Parts of an answer that there are; content is null in a whole answer that is calls alone. */
static void print_parts(const struct choice *c, struct afd_text *t, int with_content)
{
    const char *comma = "";
    if (with_content && !c->text.bytes && c->calls && !c->generation->params.stream) {
        afd_text_puts(t, "\"content\":null");
        comma = ",";
    } else if (with_content) {
        afd_text_puts(t, "\"content\":");
        afd_text_json(t, c->text.data, c->text.bytes);
        comma = ",";
    }
    if (c->reasoning.bytes) {
        afd_text_printf(t, "%s\"reasoning_content\":", comma);
        afd_text_json(t, c->reasoning.data, c->reasoning.bytes);
        comma = ",";
    }
    if (c->tool_calls.bytes) {
        afd_text_printf(t, "%s\"tool_calls\":", comma);
        print_array(t, &c->tool_calls);
    }
}

static void print_text(const struct choice *c, struct afd_text *t)
{
    const struct afd_params *p = &c->generation->params;
    if (!p->is_chat) {
        afd_text_puts(t, ",\"text\":");
        afd_text_json(t, c->text.data, c->text.bytes);
        return;
    }
    int is_first = !p->stream || !c->has_begun;
    afd_text_puts(t, p->stream ? ",\"delta\":{" : ",\"message\":{");
    if (is_first) afd_text_puts(t, "\"role\":\"assistant\",");
    print_parts(c, t, is_first || c->text.bytes);
    if (!p->stream) afd_text_puts(t, ",\"refusal\":null");
    afd_text_add(t, "}", 1);
}

static void print_choice(const struct choice *c, struct afd_text *t)
{
    const struct afd_params *p = &c->generation->params;
    afd_text_puts(t, "{\"index\":");
    afd_text_uint(t, c->index);
    print_text(c, t);
    print_logprobs(c, t);
    if (c->finish)
        afd_text_printf(t, ",\"finish_reason\":\"%s\"", c->finish);
    else
        afd_text_puts(t, ",\"finish_reason\":null");
    if (p->return_token_ids) {
        if (!p->is_chat && (!p->stream || !c->has_begun)) print_prompt_ids(c, t);
        afd_text_puts(t, ",\"token_ids\":");
        print_array(t, &c->ids);
    }
    afd_text_add(t, "}", 1);
}

static void print_usage(const struct afd_generation *g, struct afd_text *t)
{
    uint64_t prompt = 0, completion = 0;
    for (uint32_t i = 0; i < g->params.prompt_count; i++) prompt += g->params.prompts[i].count;
    for (uint32_t i = 0; i < g->count; i++) completion += g->choices[i].generated;
    afd_text_printf(t, ",\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu}",
                    (unsigned long long)prompt, (unsigned long long)completion,
                    (unsigned long long)(prompt + completion));
}

void generation_print_id(const struct afd_generation *g, char out[2 * AFD_PUBLIC_ID_BYTES + 1])
{
    afd_hex(g->public_id, sizeof g->public_id, out);
}

void generation_make_prefix(struct afd_generation *g)
{
    const struct afd_params *p = &g->params;
    char id[2 * AFD_PUBLIC_ID_BYTES + 1];
    generation_print_id(g, id);
    const char *object = !p->is_chat ? "text_completion"
                         : p->stream ? "chat.completion.chunk"
                                     : "chat.completion";
    afd_text_printf(&g->prefix, "{\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":%lld,\"model\":",
                    p->is_chat ? "chatcmpl" : "cmpl", id, object, (long long)g->created);
    afd_text_json_string(&g->prefix, g->api->model->name);
}

/* The event's id is where a client that has it goes on: the tokens of each choice so far. */
static void print_event_id(const struct afd_generation *g, struct afd_text *t)
{
    afd_text_puts(t, "id: ");
    for (uint32_t i = 0; i < g->count; i++) {
        const struct choice *c = &g->choices[i];
        if (i) afd_text_add(t, ",", 1);
        afd_text_uint(t, c->generated > c->shown_from ? c->generated : c->shown_from);
    }
    afd_text_add(t, "\n", 1);
}

void generation_print_chunk(const struct afd_generation *g, const struct choice *c, struct afd_text *t)
{
    print_event_id(g, t);
    afd_text_puts(t, "data: ");
    afd_text_add(t, g->prefix.data, g->prefix.bytes);
    if (g->params.is_chat && g->params.return_token_ids && !c->has_begun) print_prompt_ids(c, t);
    afd_text_puts(t, ",\"choices\":[");
    print_choice(c, t);
    afd_text_puts(t, g->params.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

void generation_print_usage_chunk(const struct afd_generation *g, struct afd_text *t)
{
    afd_text_puts(t, "data: ");
    afd_text_add(t, g->prefix.data, g->prefix.bytes);
    afd_text_puts(t, ",\"choices\":[]");
    print_usage(g, t);
    afd_text_puts(t, "}\n\n");
}

void generation_print_whole(const struct afd_generation *g, struct afd_text *t)
{
    afd_text_add(t, g->prefix.data, g->prefix.bytes);
    afd_text_puts(t, ",\"choices\":[");
    for (uint32_t i = 0; i < g->count; i++) {
        if (i) afd_text_add(t, ",", 1);
        print_choice(&g->choices[i], t);
    }
    afd_text_add(t, "]", 1);
    print_usage(g, t);
    if (g->params.is_chat && g->params.return_token_ids) print_prompt_ids(&g->choices[0], t);
    afd_text_add(t, "}", 1);
}
