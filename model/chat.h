/* chat.h: messages to a prompt.
 *
 * By the checkpoint's own template, or a built-in one that is chosen by the tokens that the tokenizer has
 * (chat_templates.h; `plain`, a transcript, for models that were never trained on chat). Text of a message
 * never becomes a control token: added tokens are found only in what the template itself wrote. Any thread.
 */
#ifndef AFD_MODEL_CHAT_H
#define AFD_MODEL_CHAT_H

#include <time.h>

#include "model/tokenizer.h"

struct json_t;

/* As OpenAI's API has them. Read during the call alone. */
struct afd_chat_request {
    const struct json_t
        *messages; /* an array of objects: role, content (a string, null, or parts of type text) */
    const struct json_t *tools;   /* an array, or NULL */
    const struct json_t *options; /* an object of more variables for the template, or NULL */
    time_t now;                   /* what templates write as the date */
};

/* "checkpoint", or the name of a built-in one. */
const char *afd_chat_template(const struct afd_tokenizer *tokenizer);

enum { AFD_CHAT_STOPS = 4 };

/* Prompt ids for the messages and the opening of the assistant's answer: at most `limit` (AFD_ERR_LIMIT);
 * *ids_out is malloc'ed. AFD_ERR_REQUEST with words that name the message at fault, or are the template's.
 * `stop_out` receives static strings at which an answer ends ("" none). */
enum afd_status afd_chat_encode(const struct afd_tokenizer *tokenizer, const struct afd_chat_request *request,
                                size_t limit, uint32_t **ids_out, size_t *count_out,
                                const char *stop_out[AFD_CHAT_STOPS], struct afd_error *error_out);

#endif
