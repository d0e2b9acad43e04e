#include "attn_node/sequences.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "proto/limits.h"

/* A packed Envelope that waits for the scheduler. */
struct kept {
    struct kept *next;
    size_t bytes;
    uint8_t packed[];
};

struct afd_sequences {
    struct afd_batch *batch;
    struct afd_member *member;
    uint32_t max_rows;
    /* The message that is being built: sequences[i] has tokens + i and points into the pointers. */
    Afd__SequenceTokens *sequences, **sequence_pointers;
    Afd__TokenLogprobs *logprobs, **logprob_pointers; /* one a choice */
    uint32_t *tokens;
    struct afd_logit_bias *bias; /* of the Submit that is being read */
    struct kept *first, **last;
    size_t kept_bytes;
};

struct afd_sequences *afd_sequences_create(struct afd_batch *batch, uint32_t max_rows)
{
    struct afd_sequences *q = calloc(1, sizeof *q);
    if (!q) return NULL;
    q->batch = batch;
    q->max_rows = max_rows;
    q->last = &q->first;
    q->sequences = calloc(max_rows, sizeof *q->sequences);
    q->sequence_pointers = calloc(max_rows, sizeof *q->sequence_pointers);
    q->logprobs = calloc(max_rows, sizeof *q->logprobs);
    q->logprob_pointers = calloc(max_rows, sizeof *q->logprob_pointers);
    q->tokens = calloc(max_rows, sizeof *q->tokens);
    q->bias = calloc(AFD_MAX_LOGIT_BIAS, sizeof *q->bias);
    if (q->sequences && q->sequence_pointers && q->logprobs && q->logprob_pointers && q->tokens && q->bias) {
        for (uint32_t i = 0; i < max_rows; i++) {
            q->sequence_pointers[i] = &q->sequences[i];
            q->logprob_pointers[i] = &q->logprobs[i];
        }
        return q;
    }
    afd_sequences_destroy(q);
    return NULL;
}

void afd_sequences_destroy(struct afd_sequences *q)
{
    if (!q) return;
    for (struct kept *k = q->first, *next; k; k = next) {
        next = k->next;
        free(k);
    }
    free(q->sequences);
    free(q->sequence_pointers);
    free(q->logprobs);
    free(q->logprob_pointers);
    free(q->tokens);
    free(q->bias);
    free(q);
}

void afd_sequences_set_member(struct afd_sequences *q, struct afd_member *member)
{
    q->member = member;
}

/* ---- to the scheduler */

static void keep(struct afd_sequences *q, const Afd__Envelope *message)
{
    size_t bytes = afd__envelope__get_packed_size(message);
    struct kept *k = malloc(sizeof *k + bytes);
    if (!k) {
        /* The scheduler repeats a request whose tokens do not come; it must see the gap, and it does. */
        afd_log_error("out of memory: the tokens of one step are lost");
        return;
    }
    k->next = NULL;
    k->bytes = afd__envelope__pack(message, k->packed);
    *q->last = k;
    q->last = &k->next;
    q->kept_bytes += bytes;
}

static void post(struct afd_sequences *q, const Afd__Envelope *message)
{
    afd_sequences_flush(q);
    if (q->first || afd_member_send(q->member, message) != AFD_OK) keep(q, message);
}

void afd_sequences_flush(struct afd_sequences *q)
{
    while (q->first && afd_member_is_connected(q->member)) {
        struct kept *k = q->first;
        Afd__Envelope *message = afd__envelope__unpack(NULL, k->bytes, k->packed);
        enum afd_status status = message ? afd_member_send(q->member, message) : AFD_AGAIN;
        if (message) afd__envelope__free_unpacked(message, NULL);
        if (status) return;
        q->first = k->next;
        if (!q->first) q->last = &q->first;
        q->kept_bytes -= k->bytes;
        free(k);
    }
}

int afd_sequences_is_full(const struct afd_sequences *q)
{
    return q->kept_bytes >= AFD_SEQUENCES_KEPT_BYTES;
}

static void send_sequences(struct afd_sequences *q, uint32_t count)
{
    Afd__Tokens tokens = AFD__TOKENS__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    tokens.n_sequences = count;
    tokens.sequences = q->sequence_pointers;
    e.body_case = AFD__ENVELOPE__BODY_TOKENS;
    e.tokens = &tokens;
    post(q, &e);
}

static void set_logprobs(Afd__TokenLogprobs *out, const struct afd_chosen *chosen)
{
    afd__token_logprobs__init(out);
    out->chosen = chosen->logprob;
    out->n_tokens = out->n_logprobs = chosen->top_count;
    out->tokens = (uint32_t *)chosen->top_tokens; /* read by the packer alone */
    out->logprobs = (float *)chosen->top_logprobs;
}

void afd_sequences_deliver(struct afd_sequences *q, const struct afd_batch_result *results, uint32_t count,
                           const struct afd_chosen *chosen)
{
    uint32_t told = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct afd_batch_result *r = &results[i];
        if (!r->sampled && !r->forced_count && r->finish == AFD_NOT_FINISHED) continue;
        if (r->finish == AFD_FINISH_CANCELLED) continue; /* who cancelled knows */
        Afd__SequenceTokens *s = &q->sequences[told];
        afd__sequence_tokens__init(s);
        s->request = r->request;
        s->assignment = r->assignment;
        s->position = r->position;
        s->finish = (Afd__Finish)r->finish;
        uint32_t c = r->first_choice;
        s->prompt_logprobs = &q->logprob_pointers[c];
        s->n_prompt_logprobs = r->forced_count;
        for (; c < r->first_choice + r->forced_count; c++) set_logprobs(&q->logprobs[c], &chosen[c]);
        if (r->sampled) {
            q->tokens[told] = chosen[c].token;
            s->tokens = &q->tokens[told];
            s->n_tokens = 1;
            set_logprobs(&q->logprobs[c], &chosen[c]);
            s->logprobs = &q->logprob_pointers[c];
            s->n_logprobs = r->logprobs != 0;
        }
        told++;
    }
    if (told) send_sequences(q, told);
}

/* The end of a sequence that never ran. */
static void send_end(struct afd_sequences *q, const Afd__Submit *submit, Afd__Finish finish,
                     const char *words)
{
    Afd__SequenceTokens *s = &q->sequences[0];
    afd__sequence_tokens__init(s);
    s->request = submit->request;
    s->assignment = submit->assignment;
    s->position = submit->generated;
    s->finish = finish;
    s->words = (char *)words; /* read by the packer alone */
    send_sequences(q, 1);
}

/* ---- from the scheduler */

void afd_sequences_submit(struct afd_sequences *q, const Afd__Submit *submit, const char *refusal)
{
    const Afd__Sampling *from = submit->sampling;
    struct afd_error error;
    enum afd_finish finish = AFD_NOT_FINISHED;
    if (!from) refusal = "a Submit without sampling parameters";
    if (!refusal && from->n_bias > AFD_MAX_LOGIT_BIAS) refusal = "too many logit biases";
    if (!refusal && submit->n_tokens > AFD_MAX_CONTEXT) refusal = "too many tokens";
    if (refusal) {
        send_end(q, submit, AFD__FINISH__FAILED, refusal);
        return;
    }
    for (size_t i = 0; i < from->n_bias; i++)
        q->bias[i] = (struct afd_logit_bias){from->bias[i]->token, from->bias[i]->bias};
    struct afd_sampling sampling = {
        .temperature = from->temperature,
        .top_k = from->top_k,
        .top_p = from->top_p,
        .min_p = from->min_p,
        .seed = from->seed,
        .repetition_penalty = from->repetition_penalty,
        .presence_penalty = from->presence_penalty,
        .frequency_penalty = from->frequency_penalty,
        .bias = q->bias,
        .bias_count = (uint32_t)from->n_bias,
        .stop_tokens = from->stop_tokens,
        .stop_count = from->n_stop_tokens < UINT32_MAX ? (uint32_t)from->n_stop_tokens : UINT32_MAX,
        .max_tokens = from->max_tokens,
        .min_tokens = from->min_tokens,
        .logprobs = from->logprobs,
        .prompt_logprobs = from->prompt_logprobs,
    };
    struct afd_batch_submit one = {.request = submit->request,
                                   .assignment = submit->assignment,
                                   .tokens = submit->tokens,
                                   .token_count = (uint32_t)submit->n_tokens,
                                   .generated = submit->generated,
                                   .sampling = &sampling};
    if (afd_batch_submit(q->batch, &one, &finish, &error))
        send_end(q, submit, AFD__FINISH__FAILED, error.text);
    else if (finish != AFD_NOT_FINISHED)
        send_end(q, submit, (Afd__Finish)finish, "");
}
