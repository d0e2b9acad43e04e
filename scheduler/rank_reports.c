#include "scheduler/rank_reports.h"

enum afd_role afd_hear_role(Afd__Role role)
{
    return role == AFD__ROLE__ATTN ? AFD_ROLE_ATTN : role == AFD__ROLE__FFN ? AFD_ROLE_FFN : AFD_ROLE_COUNT;
}

uint64_t afd_hear_shards(const uint32_t *shards, size_t count)
{
    uint64_t set = 0;
    for (size_t i = 0; i < count; i++)
        if (shards[i] < AFD_MAX_SHARDS) set |= (uint64_t)1 << shards[i];
    return set;
}

struct afd_cluster_registration afd_hear_register(const Afd__Register *m, uint64_t connection)
{
    return (struct afd_cluster_registration){
        .connection = connection,
        .role = afd_hear_role(m->role),
        .rank = m->rank,
        .incarnation = m->incarnation,
        .pid = m->pid,
        .host = m->host,
        .data_address = m->data_address,
        .model_hash = m->model_hash.data,
        .model_hash_bytes = m->model_hash.len,
        .topology_hash = m->topology_hash.data,
        .topology_hash_bytes = m->topology_hash.len,
        .loaded = afd_hear_shards(m->shards, m->n_shards),
    };
}

/* ---- tokens */

/* NULL if the log-probabilities are as many as they must be. */
static const char *check_logprobs(const Afd__SequenceTokens *m, const struct afd_request *q, uint32_t vocab)
{
    if (!q) return NULL; /* dropped anyway */
    if (m->n_logprobs != (q->sampling.logprobs ? m->n_tokens : 0))
        return "the rank sent another count of logprobs than of tokens";
    for (size_t i = 0; i < m->n_logprobs + m->n_prompt_logprobs; i++) {
        const Afd__TokenLogprobs *p =
            i < m->n_logprobs ? m->logprobs[i] : m->prompt_logprobs[i - m->n_logprobs];
        if (p->n_tokens != p->n_logprobs || p->n_tokens > AFD_MAX_LOGPROBS)
            return "the rank sent a malformed list of logprobs";
        for (size_t k = 0; k < p->n_tokens; k++)
            if (p->tokens[k] >= vocab)
                return "the rank sent logprobs of a token that the model does not have";
    }
    return NULL;
}

static enum afd_finish finish_of(Afd__Finish finish)
{
    switch (finish) {
    case AFD__FINISH__NOT_FINISHED:
        return AFD_UNFINISHED;
    case AFD__FINISH__STOP:
        return AFD_FINISH_STOP;
    case AFD__FINISH__LENGTH:
        return AFD_FINISH_LENGTH;
    case AFD__FINISH__CANCELLED:
        return AFD_FINISH_CANCELLED;
    default:
        return AFD_FINISH_FAILED;
    }
}

struct afd_requests_report afd_hear_tokens(const Afd__SequenceTokens *m, const struct afd_request *request,
                                           uint32_t vocab)
{
    return (struct afd_requests_report){
        .id = m->request,
        .assignment = m->assignment,
        .position = m->position,
        .count = m->n_tokens > UINT32_MAX ? UINT32_MAX : (uint32_t)m->n_tokens,
        .tokens = m->tokens,
        .prompt_logprobs = m->n_prompt_logprobs > UINT32_MAX ? UINT32_MAX : (uint32_t)m->n_prompt_logprobs,
        .finish = finish_of(m->finish),
        .words = m->words,
        .defect = check_logprobs(m, request, vocab),
    };
}
