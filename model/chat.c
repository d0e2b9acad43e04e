#include "model/chat.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/utf8.h"

enum { PROMPT_LIMIT_BYTES = 1 << 28 };

/* A prompt being written: text gathers until a control token or the end encodes it. */
struct prompt {
    const struct afd_tokenizer *tokenizer;
    char *text;
    size_t bytes, room;
    uint32_t *ids;
    size_t count, limit;
};

static enum afd_status put_text(struct prompt *p, const char *text, size_t bytes)
{
    if (bytes > PROMPT_LIMIT_BYTES - p->bytes) return AFD_ERR_LIMIT;
    if (p->bytes + bytes > p->room) {
        size_t room = 2 * (p->bytes + bytes) + 256;
        char *grown = realloc(p->text, room);
        if (!grown) return AFD_ERR_MEMORY;
        p->text = grown;
        p->room = room;
    }
    memcpy(p->text + p->bytes, text, bytes);
    p->bytes += bytes;
    return AFD_OK;
}

static enum afd_status put_string(struct prompt *p, const char *text)
{
    return put_text(p, text, strlen(text));
}

static enum afd_status append(struct prompt *p, const uint32_t *ids, size_t count)
{
    if (count > p->limit - p->count) return AFD_ERR_LIMIT;
    if (!count) return AFD_OK;
    uint32_t *grown = realloc(p->ids, (p->count + count) * sizeof *grown);
    if (!grown) return AFD_ERR_MEMORY;
    memcpy(grown + p->count, ids, count * sizeof *ids);
    p->ids = grown;
    p->count += count;
    return AFD_OK;
}

static enum afd_status flush(struct prompt *p)
{
    uint32_t *ids = NULL;
    size_t count = 0;
    enum afd_status status = afd_tokenizer_encode(p->tokenizer, p->text ? p->text : "", p->bytes,
                                                  AFD_ENCODE_TEXT, p->limit - p->count, &ids, &count);
    if (!status) status = append(p, ids, count);
    free(ids);
    p->bytes = 0;
    return status;
}

/* The text so far, then the control token. Nothing when `id` is -1. */
static enum afd_status put_control(struct prompt *p, int64_t id)
{
    uint32_t one = (uint32_t)id;
    if (id < 0) return AFD_OK;
    enum afd_status status = flush(p);
    return status ? status : append(p, &one, 1);
}

const char *afd_chat_template(const struct afd_tokenizer *tokenizer)
{
    int turns =
        afd_tokenizer_special(tokenizer, "<|BOT|>") >= 0 && afd_tokenizer_special(tokenizer, "<|EOT|>") >= 0;
    return turns ? "step3" : "plain";
}

static enum afd_status write_step3(struct prompt *p, const struct afd_chat_message *messages, size_t count)
{
    int64_t bot = afd_tokenizer_special(p->tokenizer, "<|BOT|>");
    int64_t eot = afd_tokenizer_special(p->tokenizer, "<|EOT|>");
    int64_t think = afd_tokenizer_special(p->tokenizer, "<think>");
    enum afd_status status = AFD_OK;
    for (size_t i = 0; i < count; i++)
        if ((status = put_control(p, bot)) || (status = put_string(p, messages[i].role)) ||
            (status = put_string(p, "\n")) || (status = put_string(p, messages[i].content)) ||
            (status = put_control(p, eot)))
            return status;
    if ((status = put_control(p, bot)) || (status = put_string(p, "assistant\n"))) return status;
    if (think >= 0 && !(status = put_control(p, think))) status = put_string(p, "\n");
    return status;
}

static enum afd_status write_plain(struct prompt *p, const struct afd_chat_message *messages, size_t count)
{
    enum afd_status status = AFD_OK;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(messages[i].role, "system")) {
            status = put_string(p, strcmp(messages[i].role, "user") ? "ASSISTANT:\n" : "USER:\n");
            if (status) return status;
        }
        if ((status = put_string(p, messages[i].content)) || (status = put_string(p, "\n\n"))) return status;
    }
    return put_string(p, "ASSISTANT:\n");
}

static enum afd_status check_message(const struct afd_chat_message *message, size_t index,
                                     struct afd_error *error_out)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    int known = 0;
    for (int r = 0; message->role && r < 3; r++) known |= !strcmp(message->role, roles[r]);
    if (!known)
        return afd_fail(error_out, AFD_ERR_REQUEST,
                        "messages[%zu]: role \"%.40s\"; expected system, user or assistant", index,
                        message->role ? message->role : "(none)");
    if (!message->content) return afd_fail(error_out, AFD_ERR_REQUEST, "messages[%zu]: no content", index);
    if (!afd_utf8_valid(message->content, strlen(message->content)))
        return afd_fail(error_out, AFD_ERR_REQUEST, "messages[%zu]: content is not UTF-8", index);
    return AFD_OK;
}

enum afd_status afd_chat_encode(const struct afd_tokenizer *tokenizer,
                                const struct afd_chat_message *messages, size_t count, size_t limit,
                                uint32_t **ids_out, size_t *count_out, const char *stop_out[AFD_CHAT_STOPS],
                                struct afd_error *error_out)
{
    struct prompt p = {.tokenizer = tokenizer, .limit = limit};
    int step3 = !strcmp(afd_chat_template(tokenizer), "step3");
    if (!count) return afd_fail(error_out, AFD_ERR_REQUEST, "messages: expected at least one");
    for (size_t i = 0; i < count; i++) {
        enum afd_status status = check_message(&messages[i], i, error_out);
        if (status) return status;
    }
    enum afd_status status = put_control(&p, afd_tokenizer_bos(tokenizer));
    if (!status) status = step3 ? write_step3(&p, messages, count) : write_plain(&p, messages, count);
    if (!status) status = flush(&p);
    free(p.text);
    if (status) {
        free(p.ids);
        if (status == AFD_ERR_LIMIT)
            return afd_fail(error_out, status, "messages: more than %zu tokens", limit);
        return afd_fail(error_out, status, "messages: %s", afd_status_name(status));
    }
    for (int i = 0; i < AFD_CHAT_STOPS; i++) stop_out[i] = "";
    if (!step3) stop_out[0] = "\n\n"; /* the end of a turn; step3 ends one with its eos token */
    *ids_out = p.ids;
    *count_out = p.count;
    return AFD_OK;
}
