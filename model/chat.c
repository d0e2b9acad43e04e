#include "model/chat.h"

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat_templates.h"
#include "model/jinja.h"
#include "model/tokenizer_parts.h"
#include "model/utf8.h"

/* ---- which template */

static const struct afd_chat_builtin *builtin(const struct afd_tokenizer *t)
{
    for (const struct afd_chat_builtin *b = afd_chat_builtins;; b++) {
        int has = 1;
        for (int i = 0; i < 4 && b->tokens[i]; i++) has &= afd_tokenizer_special(t, b->tokens[i]) >= 0;
        if (has) return b;
    }
}

const char *afd_chat_template(const struct afd_tokenizer *tokenizer)
{
    return tokenizer->chat_template ? "checkpoint" : builtin(tokenizer)->name;
}

/* A template that cannot be compiled takes no completion with it: whoever asks for chat is told. */
enum afd_status afd_tokenizer_prepare_chat(struct afd_tokenizer *t)
{
    const char *source = t->chat_template ? t->chat_template : builtin(t)->source;
    return afd_jinja_compile(source, strlen(source), &t->jinja, &t->jinja_error);
}

/* ---- messages, as templates expect them */

/* A string, or parts of type text, which are put together; null stays. A new reference, NULL: refused. */
static json_t *content_of(const json_t *message, size_t index, struct afd_error *error_out)
{
    const json_t *content = json_object_get(message, "content"), *part;
    struct afd_buffer text = {0};
    size_t i;
    if (!content || json_is_null(content)) return json_null();
    if (json_is_string(content)) return json_incref((json_t *)content);
    if (!json_is_array(content)) {
        afd_fail(error_out, AFD_ERR_REQUEST,
                 "messages[%zu].content must be a string or an array of text parts", index);
        return NULL;
    }
    json_array_foreach(content, i, part)
    {
        const json_t *piece = json_is_object(part) ? json_object_get(part, "text") : part;
        const char *type = json_is_object(part) ? json_string_value(json_object_get(part, "type")) : "text";
        if (!type || strcmp(type, "text") || !json_is_string(piece)) {
            afd_buffer_fini(&text);
            afd_fail(error_out, AFD_ERR_REQUEST, "messages[%zu].content: the only type of a part is text",
                     index);
            return NULL;
        }
        if (afd_buffer_add(&text, json_string_value(piece), json_string_length(piece))) break;
    }
    json_t *out = json_stringn(text.data ? text.data : "", text.bytes);
    afd_buffer_fini(&text);
    if (!out) afd_fail(error_out, AFD_ERR_REQUEST, "messages[%zu].content is not UTF-8", index);
    return out;
}

/* Arguments are a JSON text in the API, and an object in templates. */
static void parse_arguments(json_t *calls)
{
    size_t i;
    json_t *call;
    json_array_foreach(calls, i, call)
    {
        json_t *function = json_object_get(call, "function");
        const json_t *text = json_object_get(function, "arguments");
        if (!json_is_string(text)) continue;
        json_t *parsed =
            json_loadb(json_string_value(text), json_string_length(text), JSON_REJECT_DUPLICATES, NULL);
        if (json_is_object(parsed)) json_object_set(function, "arguments", parsed);
        json_decref(parsed);
    }
}

static json_t *message_of(const json_t *message, size_t index, struct afd_error *error_out)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool", "developer"};
    const char *role = json_string_value(json_object_get(message, "role"));
    int known = 0;
    for (int r = 0; role && r < 5; r++) known |= !strcmp(role, roles[r]);
    if (!known) {
        afd_fail(error_out, AFD_ERR_REQUEST,
                 "messages[%zu]: role \"%.40s\"; expected system, user, assistant or tool", index,
                 role ? role : "(none)");
        return NULL;
    }
    json_t *content = content_of(message, index, error_out);
    if (!content) return NULL;
    json_t *calls = json_object_get(message, "tool_calls");
    if (json_is_null(content) && !json_array_size(calls)) {
        afd_fail(error_out, AFD_ERR_REQUEST, "messages[%zu]: no content", index);
        return NULL;
    }
    json_t *out = json_copy((json_t *)message);
    if (!out) afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the messages");
    json_object_set_new(out, "content", content);
    if (!strcmp(role, "developer"))
        json_object_set_new(out, "role", json_string("system")); /* its newer name */
    if (json_array_size(calls)) {
        json_t *own = json_deep_copy(calls);
        parse_arguments(own);
        json_object_set_new(out, "tool_calls", own);
    } else
        json_object_del(out, "tool_calls");
    return out;
}

static json_t *messages_of(const json_t *messages, struct afd_error *error_out)
{
    json_t *out = json_array(), *one;
    if (!json_array_size(messages)) {
        afd_fail(error_out, AFD_ERR_REQUEST, "messages: expected at least one");
        json_decref(out);
        return NULL;
    }
    for (size_t i = 0; i < json_array_size(messages); i++) {
        one = message_of(json_array_get(messages, i), i, error_out);
        if (!one) {
            json_decref(out);
            return NULL;
        }
        json_array_append_new(out, one);
    }
    return out;
}

/* ---- variables of the template */

static json_t *context_of(const struct afd_chat_request *request, struct afd_error *error_out)
{
    json_t *messages = messages_of(request->messages, error_out), *out, *value;
    const char *key;
    if (!messages) return NULL;
    out = json_object();
    json_object_foreach((json_t *)request->options, key, value) json_object_set(out, key, value);
    json_object_set_new(out, "messages", messages);
    json_object_set_new(out, "add_generation_prompt", json_true());
    json_object_set_new(out, "documents", json_null());
    if (json_array_size(request->tools))
        json_object_set(out, "tools", (json_t *)request->tools);
    else
        json_object_set_new(out, "tools", json_null());
    return out;
}

static void set_token(json_t *object, const char *key, const struct afd_tokenizer *t, int64_t id)
{
    size_t bytes = 0;
    const char *text = id >= 0 ? afd_tokenizer_token(t, (uint32_t)id, &bytes) : "";
    json_object_set_new(object, key, json_stringn(text, bytes));
}

static json_t *trusted_of(const struct afd_tokenizer *t)
{
    json_t *out = json_object();
    set_token(out, "bos_token", t, t->bos);
    set_token(out, "eos_token", t, t->eos);
    json_object_set_new(out, "has_think", json_boolean(afd_tokenizer_special(t, "<think>") >= 0));
    return out;
}

enum afd_status afd_chat_encode(const struct afd_tokenizer *tokenizer, const struct afd_chat_request *request,
                                size_t limit, uint32_t **ids_out, size_t *count_out,
                                const char *stop_out[AFD_CHAT_STOPS], struct afd_error *error_out)
{
    struct afd_jinja_output prompt = {0};
    struct afd_error words;
    const char *stop = tokenizer->chat_template ? NULL : builtin(tokenizer)->stop;
    if (!tokenizer->jinja)
        return afd_fail(error_out, AFD_ERR_REQUEST, "the model's chat template cannot be used: %s",
                        tokenizer->jinja_error.text);
    json_t *context = context_of(request, error_out), *trusted = trusted_of(tokenizer);
    enum afd_status status = context ? AFD_OK : AFD_ERR_REQUEST;
    if (!status) {
        status = afd_jinja_render(tokenizer->jinja, context, trusted, request->now, &prompt, &words);
        if (status) afd_fail(error_out, AFD_ERR_REQUEST, "%s", words.text);
        if (status == AFD_ERR_LIMIT)
            status = AFD_ERR_REQUEST; /* of the template; not of the context's length */
    }
    if (!status) {
        status = afd_tokenizer_encode_marked(tokenizer, prompt.text, prompt.bytes, prompt.marks,
                                             AFD_ENCODE_SPECIAL, limit, ids_out, count_out);
        if (status == AFD_ERR_LIMIT) afd_fail(error_out, status, "messages: more than %zu tokens", limit);
        if (status && status != AFD_ERR_LIMIT)
            afd_fail(error_out, status, "messages: the prompt cannot be encoded: %s",
                     afd_status_name(status));
    }
    for (int i = 0; i < AFD_CHAT_STOPS; i++) stop_out[i] = "";
    if (stop) stop_out[0] = stop;
    afd_jinja_output_fini(&prompt);
    json_decref(context);
    json_decref(trusted);
    return status;
}
