/* Guards what a killed scheduler costs: nothing but a gap. Streams whose scheduler is killed go on where they
 * were, for clients that come back, and what comes equals the undisturbed run token for token; the ranks keep
 * their KV cache and are not started again. Also when it is killed twice. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "streams.h"
#include "tests/lib/tiny_model.h"

enum {
    STREAMS = 8,
    LONGEST = 60,
#ifdef __SANITIZE_ADDRESS__
    TOKENS = 440,
#else
    TOKENS = 3000,
#endif
    BEGUN = 5,
    ATTN = 2,
    FFN = 2,
    RANKS = ATTN + FFN,
    SEED = 40,
    KILLS = 2,
    LIMIT_S = 120,
    WAIT_MS = 5,
};

/* All that broke off come back, again and again, until each is over with its end. */
static void come_back(struct streams *streams)
{
    afd_ns limit = afd_now() + AFD_SECONDS(LIMIT_S);
    for (size_t open = 1; open;) {
        streams_read(streams, WAIT_MS);
        open = 0;
        for (size_t i = 0; i < streams->count; i++) {
            struct stream *s = streams->at[i];
            CHECK(!s->broken[0], "stream %zu: %s", i, s->broken);
            if (s->has_done && s->is_over) continue;
            open++;
            if (!s->is_over) continue;
            CHECK(s->id[0], "stream %zu has no id to come back by", i);
            CHECK(s->status == 0 || s->status == 200, "stream %zu: status %ld: %.300s", i, s->status,
                  s->text ? s->text : "");
            streams_attach(streams, i);
        }
        CHECK(afd_now() < limit, "%zu streams are not done", open);
    }
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct afd_tiny_model tiny = afd_tiny_model_small();
    tiny.max_context = LONGEST + TOKENS;
    struct afd_error error;
    char model[] = "/tmp/afd-model-XXXXXX", command[100];
    CHECK(mkdtemp(model) && afd_tiny_model_write(&tiny, model, &error) == AFD_OK, "%s", error.text);
    struct prompts prompts = prompts_make(STREAMS, LONGEST, tiny.vocab, 3, 0);
    struct cluster cluster = {.expected_warnings = {"killed by signal 9", "trying again"}};
    struct cluster_spec spec = {.model = model, .attn = ATTN, .ffn = FFN, .ep = 2, .copies = 2};
    pid_t pids[RANKS];
    cluster_up(&cluster, &spec);
    cluster_pids(&cluster, "attn", ATTN, pids);
    cluster_pids(&cluster, "ffn", FFN, pids + ATTN);
    struct streams *undisturbed = streams_begin(&cluster, &prompts, TOKENS, SEED);
    streams_wait_over(undisturbed);
    streams_expect_complete(undisturbed, "undisturbed");
    for (int kill = 1; kill <= KILLS; kill++) {
        struct process scheduler = cluster_process(&cluster, "scheduler", 0);
        struct streams *streams = streams_begin(&cluster, &prompts, TOKENS, SEED);
        streams_wait_tokens(streams, BEGUN);
        signal_all(&scheduler.pid, 1, SIGKILL);
        come_back(streams);
        afd_ns gap = 0;
        size_t came_back = 0;
        for (size_t i = 0; i < streams->count; i++) {
            if (streams->at[i]->gap > gap) gap = streams->at[i]->gap;
            came_back += streams->at[i]->exchanges > 1;
        }
        CHECK(came_back > 0, "the streams end before the scheduler is killed");
        streams_expect_complete(streams, "after a restart");
        streams_expect_equal(streams, undisturbed, "after a restart");
        streams_end(streams);
        cluster_wait_process(&cluster, "scheduler", 0, "running", kill);
        cluster_wait_state(&cluster, "ready");
        printf("kill %d: %zu of %d streams came back, all tokens equal, longest gap %.3f s\n", kill,
               came_back, STREAMS, (double)gap * 1e-9);
    }
    for (int i = 0; i < RANKS; i++) {
        struct process p = cluster_process(&cluster, i < ATTN ? "attn" : "ffn", i % ATTN);
        CHECK(p.pid == pids[i] && p.restarts == 0, "rank %d was started again", i);
    }
    streams_end(undisturbed);
    cluster_down(&cluster);
    prompts_free(&prompts);
    snprintf(command, sizeof command, "rm -rf %s", model);
    run_command(command, NULL);
    return 0;
}
