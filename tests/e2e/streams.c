#include "streams.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

/* One event of a stream. */
static void take_event(struct stream *s, const char *data)
{
    if (!strcmp(data, "[DONE]")) {
        s->has_done = 1;
        return;
    }
    json_t *event = json_loads(data, JSON_ALLOW_NUL, NULL), *id;
    CHECK(event, "not JSON: %s", data);
    json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    size_t i;
    json_array_foreach(json_object_get(choice, "token_ids"), i, id)
    {
        CHECK(s->count < s->limit, "more than %zu tokens", s->limit);
        s->tokens[s->count++] = (uint32_t)json_integer_value(id);
    }
    if (finish) snprintf(s->finish, sizeof s->finish, "%s", finish);
    json_decref(event);
}

/* Events end with an empty line; what is no event stays in `text`. */
static size_t take(char *data, size_t size, size_t count, void *user)
{
    struct stream *s = user;
    size_t bytes = size * count;
    s->text = realloc(s->text, s->used + bytes + 1);
    memcpy(s->text + s->used, data, bytes);
    s->used += bytes;
    s->text[s->used] = 0;
    char *end;
    while (!strncmp(s->text, "data: ", 6) && strncmp(s->text, "data: {\"error\"", 14) &&
           (end = strstr(s->text, "\n\n"))) {
        *end = 0;
        take_event(s, s->text + 6);
        s->used -= (size_t)(end + 2 - s->text);
        memmove(s->text, end + 2, s->used + 1);
    }
    return bytes;
}

static CURL *begin(const char *url, const struct prompts *p, size_t index, struct stream *s, int seed)
{
    json_t *prompt = json_array();
    for (size_t t = 0; t < p->lengths[index]; t++)
        json_array_append_new(prompt, json_integer(p->tokens[index][t]));
    json_t *body = json_pack("{s:o, s:i, s:f, s:i, s:b, s:b, s:b}", "prompt", prompt, "max_tokens",
                             (int)s->limit, "temperature", 0.9, "seed", seed + (int)index, "ignore_eos", 1,
                             "return_token_ids", 1, "stream", 1);
    char *text = json_dumps(body, 0);
    CURL *c = curl_easy_init();
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_COPYPOSTFIELDS, text);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, s);
    curl_easy_setopt(c, CURLOPT_PRIVATE, s);
    free(text);
    json_decref(body);
    return c;
}

struct streams *streams_begin(const struct cluster *cluster, const struct prompts *prompts, size_t max_tokens,
                              int seed)
{
    char url[600];
    struct streams *all = calloc(1, sizeof *all);
    snprintf(url, sizeof url, "%s/v1/completions", cluster->url);
    all->count = prompts->count;
    all->at = calloc(all->count, sizeof *all->at);
    all->handles = calloc(all->count, sizeof *all->handles);
    all->multi = curl_multi_init();
    for (size_t i = 0; i < all->count; i++) {
        all->at[i].limit = max_tokens;
        all->at[i].tokens = calloc(max_tokens, sizeof *all->at[i].tokens);
        all->handles[i] = begin(url, prompts, i, &all->at[i], seed);
        curl_multi_add_handle(all->multi, all->handles[i]);
    }
    return all;
}

static void read_what_came(struct streams *all)
{
    int still, left;
    const CURLMsg *m;
    CHECK(curl_multi_perform(all->multi, &still) == CURLM_OK, "curl");
    while ((m = curl_multi_info_read(all->multi, &left))) {
        struct stream *s;
        curl_off_t seconds = 0;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &s);
        curl_easy_getinfo(m->easy_handle, CURLINFO_RESPONSE_CODE, &s->status);
        curl_easy_getinfo(m->easy_handle, CURLINFO_RETRY_AFTER, &seconds);
        s->retry_after = (long)seconds;
        s->is_over = 1;
    }
}

static size_t count_behind(const struct streams *all, size_t tokens)
{
    size_t behind = 0;
    for (size_t i = 0; i < all->count; i++) behind += !all->at[i].is_over && all->at[i].count < tokens;
    return behind;
}

void streams_wait_tokens(struct streams *all, size_t tokens)
{
    afd_ns limit = afd_now() + AFD_SECONDS(STREAMS_WAIT_S);
    for (read_what_came(all); count_behind(all, tokens); read_what_came(all)) {
        CHECK(afd_now() < limit, "%zu of %zu streams hang", count_behind(all, tokens), all->count);
        curl_multi_poll(all->multi, NULL, 0, 1000, NULL);
    }
}

void streams_wait_over(struct streams *all)
{
    streams_wait_tokens(all, SIZE_MAX);
}

size_t streams_running(struct streams *all)
{
    read_what_came(all);
    return count_behind(all, SIZE_MAX);
}

void streams_drop(struct streams *all, size_t index)
{
    if (all->handles[index]) {
        curl_multi_remove_handle(all->multi, all->handles[index]);
        curl_easy_cleanup(all->handles[index]);
    }
    all->handles[index] = NULL;
    all->at[index].is_over = 1;
}

void streams_expect_complete(const struct streams *all, const char *title)
{
    for (size_t i = 0; i < all->count; i++) {
        const struct stream *s = &all->at[i];
        CHECK(s->status == 200 && s->has_done && s->count == s->limit && !strcmp(s->finish, "length"),
              "%s: stream %zu: status %ld, %zu of %zu tokens, finish '%s', %s: %.300s", title, i, s->status,
              s->count, s->limit, s->finish, s->has_done ? "done" : "not done", s->text ? s->text : "");
    }
}

void streams_expect_equal(const struct streams *all, const struct streams *expected, const char *title)
{
    for (size_t i = 0; i < all->count; i++)
        for (size_t t = 0; t < expected->at[i].count; t++)
            CHECK(all->at[i].tokens[t] == expected->at[i].tokens[t], "%s: stream %zu token %zu: %u, not %u",
                  title, i, t, all->at[i].tokens[t], expected->at[i].tokens[t]);
}

void streams_end(struct streams *all)
{
    for (size_t i = 0; i < all->count; i++) {
        streams_drop(all, i);
        free(all->at[i].tokens);
        free(all->at[i].text);
    }
    curl_multi_cleanup(all->multi);
    free(all->handles);
    free(all->at);
    free(all);
}
