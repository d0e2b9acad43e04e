/* complete and chat: text from the model, streamed to the terminal. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

/* What both ask the model with. */
struct sampling {
    const char *state, *url;
    uint64_t max_tokens, seed, top_k;
    double temperature, top_p;
};

static const uint64_t no_seed = UINT64_MAX;

#define SAMPLING_OPTIONS(s)                                                                                  \
    {"--state", 0, CLI_TEXT, &(s).state,                                                                     \
     "state directory or name of the cluster (default: the one that runs)"},                                 \
        {"--url", 0, CLI_TEXT, &(s).url, "of the scheduler, http://host:port"},                              \
        {"--max-tokens", 'n', CLI_COUNT, &(s).max_tokens, "to generate at most"},                            \
        {"--temperature", 't', CLI_REAL, &(s).temperature, "0: always the likeliest token"},                 \
        {"--top-p", 0, CLI_REAL, &(s).top_p, "of the probability mass (default 1)"},                         \
        {"--top-k", 0, CLI_COUNT, &(s).top_k, "likeliest tokens (default 0: all)"},                          \
    {                                                                                                        \
        "--seed", 0, CLI_COUNT, &(s).seed, "the same seed gives the same text"                               \
    }

static json_t *request_of(const struct sampling *s)
{
    json_t *r = json_pack("{s:b, s:I, s:f}", "stream", 1, "max_tokens", (json_int_t)s->max_tokens,
                          "temperature", s->temperature);
    if (s->seed != no_seed) json_object_set_new(r, "seed", json_integer((json_int_t)s->seed));
    if (s->top_p < 1) json_object_set_new(r, "top_p", json_real(s->top_p));
    if (s->top_k) json_object_set_new(r, "top_k", json_integer((json_int_t)s->top_k));
    return r;
}

/* The first model that the cluster serves; OpenAI's requests name one. */
static int add_model(const char *base, json_t *request)
{
    struct afd_error error;
    long code;
    json_t *models = cli_get_json(base, "/v1/models", &code, &error);
    if (!models) return cli_fail("%s", error.text);
    json_t *first = json_array_get(json_object_get(models, "data"), 0);
    json_object_set(request, "model", json_object_get(first, "id"));
    json_decref(models);
    return CLI_OK;
}

/* ---- complete */

static void show(const char *text)
{
    fputs(text, stdout);
    fflush(stdout);
}

static int on_completion(json_t *event, void *user)
{
    const char *text =
        json_string_value(json_object_get(json_array_get(json_object_get(event, "choices"), 0), "text"));
    (void)user;
    if (text) show(text);
    return ferror(stdout);
}

int cli_complete(const struct cli_command *self, int argc, char **argv)
{
    struct sampling s = {.max_tokens = 64, .seed = no_seed, .top_p = 1};
    const char *prompt;
    int echo = 0, help;
    const struct cli_option options[] = {
        SAMPLING_OPTIONS(s), {"--echo", 0, CLI_FLAG, &echo, "print the prompt before its completion"}, {0}};
    int count = cli_parse(self, argc, argv, options, &prompt, 1, &help);
    if (count < 0) return cli_parse_exit(help);
    if (!count) {
        cli_fail("complete: what? usage: afd complete %s", self->arguments);
        return CLI_USAGE;
    }
    char base[CLI_URL_BYTES];
    struct afd_error error;
    if (cli_url(s.url, s.state, base)) return CLI_FAILED;
    json_t *request = request_of(&s);
    json_object_set_new(request, "prompt", json_string(prompt));
    int result = json_object_get(request, "prompt") ? add_model(base, request)
                                                    : cli_fail("complete: the prompt is not UTF-8");
    if (!result) {
        if (echo) show(prompt);
        if (cli_post_stream(base, "/v1/completions", request, on_completion, NULL, &error))
            result = cli_fail("%s", error.text);
        putchar('\n');
    }
    json_decref(request);
    return result;
}

/* ---- chat */

struct answer {
    char *text;
    size_t used;
};

static int on_chat(json_t *event, void *user)
{
    struct answer *a = user;
    json_t *delta = json_object_get(json_array_get(json_object_get(event, "choices"), 0), "delta");
    const char *text = json_string_value(json_object_get(delta, "content"));
    if (!text) return 0;
    size_t bytes = strlen(text);
    char *whole = realloc(a->text, a->used + bytes + 1);
    if (!whole) return 1;
    memcpy(whole + a->used, text, bytes + 1);
    a->text = whole;
    a->used += bytes;
    show(text);
    return ferror(stdout);
}

static void add_message(json_t *messages, const char *role, const char *content)
{
    json_array_append_new(messages, json_pack("{s:s, s:s}", "role", role, "content", content));
}

/* One question: streams the answer and keeps both in the history. */
static int ask(const char *base, json_t *request, json_t *messages, const char *line)
{
    struct afd_error error;
    struct answer answer = {0};
    json_t *text = json_string(line);
    if (!text) return cli_fail("that is not UTF-8");
    json_decref(text);
    add_message(messages, "user", line);
    json_object_set(request, "messages", messages);
    int failed = cli_post_stream(base, "/v1/chat/completions", request, on_chat, &answer, &error);
    putchar('\n');
    if (failed) {
        json_array_remove(messages,
                          json_array_size(messages) - 1); /* the next question starts from before this one */
        cli_fail("%s", error.text);
    } else
        add_message(messages, "assistant", answer.text ? answer.text : "");
    free(answer.text);
    return failed ? CLI_FAILED : CLI_OK;
}

int cli_chat(const struct cli_command *self, int argc, char **argv)
{
    struct sampling s = {.max_tokens = 256, .seed = no_seed, .top_p = 1, .temperature = 0.7};
    const char *system = NULL;
    int help;
    const struct cli_option options[] = {
        SAMPLING_OPTIONS(s), {"--system", 0, CLI_TEXT, &system, "the system message"}, {0}};
    if (cli_parse(self, argc, argv, options, NULL, 0, &help) < 0) return cli_parse_exit(help);
    char base[CLI_URL_BYTES], *line = NULL;
    size_t room = 0;
    int is_terminal = isatty(0), result = CLI_OK;
    if (cli_url(s.url, s.state, base)) return CLI_FAILED;
    json_t *request = request_of(&s), *messages = json_array();
    if (system) add_message(messages, "system", system);
    result = add_model(base, request);
    if (!result && is_terminal)
        printf("%s; /clear forgets what was said, /exit leaves\n",
               json_string_value(json_object_get(request, "model")));
    while (!result) {
        if (is_terminal) show("\n> ");
        ssize_t length = getline(&line, &room, stdin);
        if (length <= 0) break;
        while (length && (line[length - 1] == '\n' || line[length - 1] == '\r')) line[--length] = 0;
        if (!strcmp(line, "/exit")) break;
        if (!length) continue;
        if (!strcmp(line, "/clear")) {
            json_array_clear(messages);
            if (system) add_message(messages, "system", system);
            continue;
        }
        int failed = ask(base, request, messages, line);
        if (!is_terminal) result = failed; /* a script wants to know; a person can try again */
    }
    free(line);
    json_decref(messages);
    json_decref(request);
    return result;
}
