/* chat.h: messages to a prompt.
 *
 * Built-in templates, chosen by what the tokenizer has. `step3` where it knows <|BOT|> and <|EOT|>:
 *     <bos><|BOT|>ROLE\nCONTENT<|EOT|> ... <|BOT|>assistant\n, and <think>\n where that is a token
 * `plain` for models that were never trained on chat, a transcript:
 *     <bos>SYSTEM\n\nUSER:\nCONTENT\n\nASSISTANT:\n
 * Text of a message never becomes a control token: a template's control tokens are put in by id, and all
 * text, its own words included, is encoded with AFD_ENCODE_TEXT. Pure functions, any thread. */
#ifndef AFD_MODEL_CHAT_H
#define AFD_MODEL_CHAT_H

#include "model/tokenizer.h"

struct afd_chat_message {
    const char *role;    /* system, user, assistant */
    const char *content; /* UTF-8 */
};

/* "step3" or "plain". */
const char *afd_chat_template(const struct afd_tokenizer *tokenizer);

enum { AFD_CHAT_STOPS = 4 };

/* Prompt ids for the messages and the opening of the assistant's answer: at most `limit` (AFD_ERR_LIMIT);
 * *ids_out is malloc'ed. AFD_ERR_REQUEST with words that name the message at fault. `stop_out` receives
 * static strings at which an answer ends ("" none). */
enum afd_status afd_chat_encode(const struct afd_tokenizer *tokenizer,
                                const struct afd_chat_message *messages, size_t count, size_t limit,
                                uint32_t **ids_out, size_t *count_out, const char *stop_out[AFD_CHAT_STOPS],
                                struct afd_error *error_out);

#endif
