/* generation.h: one request of the API under way: its choices, and what of them is still to be sent (inside
 * the API only: generation.c runs it, generation_json.c gives it its shape).
 *
 * A choice collects text and log-probabilities as tokens come, already as JSON. A stream sends and clears
 * them at each message of a rank; a whole answer sends them at the end. Buffers keep their room, so that a
 * running stream allocates nothing. */
#ifndef AFD_SCHEDULER_GENERATION_H
#define AFD_SCHEDULER_GENERATION_H

#include "model/answer.h"
#include "scheduler/api.h"

/* Fragments of the logprobs object, each an array without its brackets and with a comma before every entry.
 * Chat has the first alone: entries of "content". */
enum { LP_TOKENS, LP_LOGPROBS, LP_TOP, LP_OFFSETS, LP_COUNT };

struct choice {
    struct afd_sequence sequence;
    struct afd_generation *generation;
    const struct afd_prompt *prompt;
    uint32_t index;
    int is_submitted;   /* and neither ended nor cancelled */
    int has_begun;      /* a chunk was sent */
    const char *finish; /* NULL until it ended: "stop", "length" */
    uint32_t generated;
    uint32_t echoed; /* prompt tokens that are in the text; all of them before a chunk is sent */
    uint64_t chars;  /* characters of text so far, held ones included: text_offset of the next token */
    struct afd_detokenizer detokenizer;
    struct afd_stop stop;
    struct afd_answer answer; /* of chat */
    uint32_t calls;           /* tools that the answer calls */
    afd_ns begun, last_token;
    uint32_t assignment; /* of the rank that the last token came from */
    struct afd_text text, reasoning, tool_calls, ids, logprobs[LP_COUNT];
};

struct afd_generation {
    struct afd_api *api;
    struct afd_generation *next, **link;
    struct afd_http_exchange *exchange;
    struct afd_params params;
    struct afd_text prefix; /* {"id":...,"object":...,"created":...,"model":... */
    int stream_has_begun;
    uint32_t count, unfinished;
    struct choice choices[]; /* [count] */
};

/* A call of a tool, to `tool_calls`: an array without its brackets and with a comma before every entry. */
void choice_add_call(struct choice *choice, const char *name, const char *arguments, size_t bytes);
/* One token's entry; `logprobs` NULL: the first of a prompt, which has none. */
void choice_add_logprobs(struct choice *choice, uint32_t token, const Afd__TokenLogprobs *logprobs);

void generation_make_prefix(struct afd_generation *generation);
/* An event of the stream with what the choice has collected. */
void generation_print_chunk(const struct afd_generation *generation, const struct choice *choice,
                            struct afd_text *out);
void generation_print_usage_chunk(const struct afd_generation *generation, struct afd_text *out);
void generation_print_whole(const struct afd_generation *generation, struct afd_text *out);

#endif
