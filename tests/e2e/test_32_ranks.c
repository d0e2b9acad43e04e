/* Guards the report's shape: 2x8 attention and 2x8 FFN ranks (ep 2, tp 8) as 33 processes on one small
 * machine. Launches deploy/topologies/2a2f-32-local.yaml, completes prompts from 16 streams at once, checks
 * every token's log-probability against the oracle, and that idle ranks sleep. */
#include <curl/curl.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster.h"
#include "oracle.h"

enum { STREAMS = 16, GENERATED = 24 };

static const char *const prompts[STREAMS] = {"ROMEO:\n",
                                             "JULIET:\nO ",
                                             "First Citizen:\nWe are ",
                                             "KING RICHARD II:\nNow",
                                             "What is the ",
                                             "Good morrow, ",
                                             "My lord, I ",
                                             "MENENIUS:\nThe ",
                                             "To be, or ",
                                             "DUKE VINCENTIO:\n",
                                             "The quality of mercy ",
                                             "Speak, ",
                                             "GLOUCESTER:\nHow ",
                                             "I pray you, ",
                                             "Away with ",
                                             "LADY ANNE:\nThou "};

/* Copies the topology with ports of the kernel's choice, so that it runs beside other clusters. */
static void copy_topology(const char *to)
{
    char command[1000];
    snprintf(
        command, sizeof command,
        "sed -E -e 's/127\\.0\\.0\\.1:[0-9]+/127.0.0.1:0/g' -e 's#\\.\\./\\.\\./model/nano#%s/model/nano#' "
        "%s/deploy/topologies/2a2f-32-local.yaml > %s",
        AFD_SOURCE_DIR, AFD_SOURCE_DIR, to);
    CHECK(run_command(command, NULL) == 0, "%s", command);
}

static size_t take(char *data, size_t size, size_t count, void *user)
{
    size_t *used = ((size_t **)user)[0], bytes = size * count;
    char *text = ((char **)user)[1];
    CHECK(*used + bytes < 1 << 20, "a stream is too long");
    memcpy(text + *used, data, bytes);
    *used += bytes;
    return bytes;
}

/* Collects "token_ids" and "token_logprobs" of a finished SSE text. Returns the number of tokens. */
static size_t parse_stream(char *text, uint32_t *tokens, double *logprobs, size_t *prompt_count,
                           uint32_t *prompt)
{
    size_t count = 0;
    int is_done = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (!strncmp(line, "data: [DONE]", 12)) is_done = 1;
        if (strncmp(line, "data: {", 7)) continue;
        json_t *event = json_loads(line + 6, JSON_ALLOW_NUL, NULL);
        CHECK(event, "not JSON: %s", line);
        json_t *choice = json_array_get(json_object_get(event, "choices"), 0), *id, *value;
        size_t i;
        json_array_foreach(json_object_get(choice, "prompt_token_ids"), i, id) prompt[(*prompt_count)++] =
            (uint32_t)json_integer_value(id);
        json_array_foreach(json_object_get(choice, "token_ids"), i, id)
        {
            CHECK(count < GENERATED, "more tokens than asked for: %s", line);
            value = json_array_get(json_object_get(json_object_get(choice, "logprobs"), "token_logprobs"), i);
            CHECK(json_is_real(value), "a token without log-probability: %s", line);
            tokens[count] = (uint32_t)json_integer_value(id);
            logprobs[count++] = json_real_value(value);
        }
        json_decref(event);
    }
    CHECK(is_done, "a stream did not end with [DONE]");
    return count;
}

static void stream_all(const struct cluster *cluster)
{
    char url[400], *texts[STREAMS];
    size_t used[STREAMS] = {0};
    void *users[STREAMS][2];
    CURLM *multi = curl_multi_init();
    CURL *handles[STREAMS];
    snprintf(url, sizeof url, "%s/v1/completions", cluster->url);
    for (size_t i = 0; i < STREAMS; i++) {
        json_t *body = json_pack("{s:s, s:i, s:f, s:i, s:b, s:i, s:b, s:b}", "prompt", prompts[i],
                                 "max_tokens", GENERATED, "temperature", 0.8, "seed", (int)i, "stream", 1,
                                 "logprobs", 0, "return_token_ids", 1, "ignore_eos", 1);
        char *text = json_dumps(body, 0);
        texts[i] = calloc(1, 1 << 20);
        users[i][0] = &used[i];
        users[i][1] = texts[i];
        handles[i] = curl_easy_init();
        curl_easy_setopt(handles[i], CURLOPT_URL, url);
        curl_easy_setopt(handles[i], CURLOPT_COPYPOSTFIELDS, text);
        curl_easy_setopt(handles[i], CURLOPT_WRITEFUNCTION, take);
        curl_easy_setopt(handles[i], CURLOPT_WRITEDATA, users[i]);
        curl_easy_setopt(handles[i], CURLOPT_TIMEOUT, 200L);
        curl_multi_add_handle(multi, handles[i]);
        free(text);
        json_decref(body);
    }
    for (int still = 1; still; curl_multi_poll(multi, NULL, 0, 500, NULL))
        CHECK(curl_multi_perform(multi, &still) == CURLM_OK, "curl");
    struct oracle *oracle = oracle_open(AFD_SOURCE_DIR "/model/nano");
    double worst = 0;
    for (size_t i = 0; i < STREAMS; i++) {
        uint32_t sequence[512 + GENERATED], tokens[GENERATED];
        double logprobs[GENERATED], expected[512], margins[512];
        size_t prompt_count = 0, count = parse_stream(texts[i], tokens, logprobs, &prompt_count, sequence);
        CHECK(count == GENERATED && prompt_count > 0, "stream %zu: %zu tokens, prompt %zu", i, count,
              prompt_count);
        memcpy(sequence + prompt_count, tokens, sizeof tokens);
        oracle_score(oracle, sequence, prompt_count + GENERATED, 0, expected, margins);
        for (size_t t = 0; t < GENERATED; t++) {
            /* bf16 messages and KV cache: relative 2^-9 each, a few 1e-3 of logits of order 1 to 10; a router
             * that is nearly undecided may choose otherwise */
            if (margins[prompt_count + t] < 2e-3) continue;
            double difference = fabs(logprobs[t] - expected[prompt_count + t]);
            CHECK(difference < 0.15, "stream %zu token %zu: %.4f, expected %.4f", i, t, logprobs[t],
                  expected[prompt_count + t]);
            worst = difference > worst ? difference : worst;
        }
        curl_multi_remove_handle(multi, handles[i]);
        curl_easy_cleanup(handles[i]);
        free(texts[i]);
    }
    curl_multi_cleanup(multi);
    oracle_close(oracle);
    printf("16 streams of %d tokens: largest difference from the oracle %.2e\n", GENERATED, worst);
}

/* How many threads of a process are running or wait for a core at this moment. */
static int runnable_threads(int pid)
{
    char path[600], state;
    int runnable = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    CHECK(tasks, "no process %d", pid);
    for (struct dirent *e; (e = readdir(tasks));) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/stat", pid, e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (f && fscanf(f, "%*d %*s %c", &state) == 1) runnable += state == 'R';
        if (f) fclose(f);
    }
    closedir(tasks);
    return runnable;
}

/* Ranks that have nothing to do sleep: one that polls is runnable whenever it is looked at, one that sleeps
 * only while it beats or waits for a core to do so. All are looked at in turn, so that the looks at one lie
 * apart. */
static void expect_ranks_asleep(const struct cluster *cluster)
{
    enum { RANKS = 32, LOOKS = 2000, ASLEEP = 10 };
    json_t *object = http_get_json(cluster, "/afd/v1/cluster"), *rank;
    json_t *ranks = json_object_get(object, "ranks");
    int asleep[RANKS] = {0}, awake = RANKS;
    CHECK(json_array_size(ranks) == RANKS, "%zu ranks", json_array_size(ranks));
    for (int look = 0; look < LOOKS && awake; look++) {
        size_t i;
        awake = 0;
        json_array_foreach(ranks, i, rank)
        {
            asleep[i] += runnable_threads((int)json_integer_value(json_object_get(rank, "pid"))) == 0;
            awake += asleep[i] < ASLEEP;
        }
    }
    json_decref(object);
    CHECK(awake == 0, "%d of 32 idle ranks do not sleep", awake);
    printf("32 idle ranks sleep\n");
}

int main(void)
{
    struct cluster cluster = {.dir = "/tmp/afd-test-XXXXXX"};
    char topology[300];
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(mkdtemp(cluster.dir), "mkdtemp");
    snprintf(topology, sizeof topology, "%s/topology.yaml", cluster.dir);
    copy_topology(topology);
    cluster_up_file(&cluster);
    stream_all(&cluster);
    cluster_expect_all_worked(&cluster, "attn");
    cluster_expect_all_worked(&cluster, "ffn");
    expect_ranks_asleep(&cluster);
    cluster_down(&cluster);
    return 0;
}
