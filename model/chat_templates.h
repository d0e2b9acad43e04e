/* chat_templates.h: prompts for checkpoints that come without a template (inside the model folder only).
 *
 * Each is chosen where the tokenizer knows all of its `tokens`, in the order of the table; the last needs
 * none. */
#ifndef AFD_MODEL_CHAT_TEMPLATES_H
#define AFD_MODEL_CHAT_TEMPLATES_H

struct afd_chat_builtin {
    const char *name, *tokens[4], *source;
    const char *stop; /* at which an answer ends; NULL: a token of the model's does */
};

/* Ends with an entry without tokens. */
extern const struct afd_chat_builtin afd_chat_builtins[];

#endif
