/* chat.h: messages to a prompt.
 *
 * Built-in templates, chosen by what the tokenizer has: `step3` where it knows <|BOT|> and <|EOT|>, and
 * `plain` (a transcript, "ROLE:\ncontent\n\n") for models that were never trained on chat. Text of a message
 * never becomes a control token: the template yields pieces, and only the template's own pieces are encoded
 * with AFD_ENCODE_SPECIAL. Pure functions. */
#ifndef AFD_MODEL_CHAT_H
#define AFD_MODEL_CHAT_H

#include "model/tokenizer.h"

struct afd_chat_message {
    const char *role;    /* system, user, assistant */
    const char *content; /* UTF-8 */
};

/* "step3" or "plain". */
const char *afd_chat_template(const struct afd_tokenizer *tokenizer);

/* Prompt ids for the messages and the opening of the assistant's answer; *ids_out is malloc'ed. Words name
 * the message that is at fault. `stop_out` receives up to 4 static strings at which an answer ends ("" none).
 */
enum afd_status afd_chat_encode(const struct afd_tokenizer *tokenizer,
                                const struct afd_chat_message *messages, size_t count, size_t limit,
                                uint32_t **ids_out, size_t *count_out, const char *stop_out[4],
                                struct afd_error *error_out);

#endif
