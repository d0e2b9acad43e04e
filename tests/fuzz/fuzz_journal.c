/* Guards: the bytes of a journal's segments that make a restarting scheduler read or write out of bounds, or
 * conclude what cannot be: more tokens than were asked for, tokens that are not there.
 *
 *   | uint16: bytes of the first segment | both segments
 *
 * Checksums are made good first, as far as the lengths go: a wrong writer makes them so, and damage that they
 * show is found by the unit test at every bit. */
#include <stdlib.h>

#include "scheduler/journal.c"
#include "tests/fuzz/fuzz.h"

enum { TOKENS = 5 };

static const uint8_t identity[AFD_JOURNAL_IDENTITY_BYTES] = {1};
static int was_taken;

static void check(const struct afd_journal_entry *e)
{
    struct afd_journal_admit admit;
    assert(e->generated <= e->max_tokens);
    if (e->is_forgotten) return;
    assert(e->filled == e->generated);
    assert(afd_journal_read_admit(&e->record, &admit, NULL, NULL, NULL) == AFD_OK && admit.id == e->id);
    struct afd_logit_bias *bias = calloc(admit.sampling.bias_count + 1, sizeof *bias);
    uint32_t *stops = calloc(admit.sampling.stop_count + 1, sizeof *stops);
    uint32_t *tokens = calloc((size_t)admit.prompt_count + admit.generated + 1, sizeof *tokens);
    assert(bias && stops && tokens);
    assert(afd_journal_read_admit(&e->record, &admit, bias, stops, tokens) == AFD_OK);
    free(bias);
    free(stops);
    free(tokens);
}

static void reseal(uint8_t *at, size_t bytes)
{
    while (bytes > FRAME_BYTES) {
        const uint8_t *length = at;
        uint32_t payload = get32(&length);
        if (!payload || payload > bytes - FRAME_BYTES) return;
        size_t record = seal(at, payload);
        at += record;
        bytes -= record;
    }
}

static void conclude_two(struct afd_journal_segment segments[2])
{
    struct afd_journal_conclusion c;
    size_t capacity = 1;
    while (capacity <= afd_journal_count(segments, 2)) capacity *= 2;
    struct afd_journal_entry *table = calloc(capacity, sizeof *table);
    if (!table) abort();
    afd_journal_conclude(segments, 2, identity, table, capacity, &c);
    uint32_t *pool = calloc(c.tokens + !c.tokens, sizeof *pool);
    if (!pool) abort();
    afd_journal_fill(segments, 2, table, capacity, pool);
    size_t tokens = 0;
    for (size_t i = 0; i < capacity; i++) {
        if (!table[i].id) continue;
        check(&table[i]);
        tokens += table[i].is_forgotten ? 0 : table[i].generated;
    }
    assert(tokens == c.tokens);
    was_taken = !c.cut;
    free(table);
    free(pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint16_t first = 0;
    was_taken = 0;
    if (bytes < sizeof first) return 0;
    memcpy(&first, data, sizeof first);
    bytes -= sizeof first;
    if (first > bytes) first = (uint16_t)bytes;
    uint8_t *copies[2] = {malloc(first + 1), malloc(bytes - first + 1)}; /* each its own block */
    if (!copies[0] || !copies[1]) abort();
    memcpy(copies[0], data + sizeof first, first);
    memcpy(copies[1], data + sizeof first + first, bytes - first);
    reseal(copies[0], first);
    reseal(copies[1], bytes - first);
    conclude_two((struct afd_journal_segment[]){{copies[0], first}, {copies[1], bytes - first}});
    free(copies[0]);
    free(copies[1]);
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

static struct afd_journal_sequence sequence(uint64_t id, uint32_t *tokens)
{
    static const struct afd_logit_bias bias[1] = {{3, 1}};
    static const uint32_t stops[1] = {9};
    static const uint8_t origin[4] = "who";
    return (struct afd_journal_sequence){
        .id = id,
        .tokens = tokens,
        .prompt_count = 3,
        .generated = 2,
        .sampling = {.max_tokens = 9, .bias = bias, .bias_count = 1, .stop_tokens = stops, .stop_count = 1},
        .origin = origin,
        .origin_bytes = sizeof origin};
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    enum { ROOM = 4096 };
    uint32_t tokens[TOKENS] = {1, 2, 3, 4, 5};
    uint8_t *out = malloc(ROOM), *at = out + 2, *end = out + ROOM;
    if (!out) abort();
    struct afd_journal_sequence a = sequence(101, tokens), b = sequence(102, tokens);
    struct afd_journal_step step;
    at += afd_journal_encode_head(1, identity, at, (size_t)(end - at));
    at += afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &a, at, (size_t)(end - at));
    at += afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &b, at, (size_t)(end - at));
    afd_journal_step_begin(&step, at, (size_t)(end - at));
    afd_journal_step_add(&step, 101, 0, tokens, 2);
    afd_journal_step_add(&step, 102, 0, tokens, 1);
    at += afd_journal_step_finish(&step);
    at += afd_journal_encode_end(102, AFD_FINISH_STOP, at, (size_t)(end - at));
    uint16_t first = (uint16_t)(at - out - 2);
    memcpy(out, &first, sizeof first);
    at += afd_journal_encode_head(2, identity, at, (size_t)(end - at));
    at += afd_journal_encode_cluster((const uint8_t *)"2A2F", 4, at, (size_t)(end - at));
    at += afd_journal_encode_sequence(AFD_JOURNAL_KEEP, &a, at, (size_t)(end - at));
    afd_journal_step_begin(&step, at, (size_t)(end - at));
    afd_journal_step_add(&step, 101, 2, tokens, 3);
    at += afd_journal_step_finish(&step);
    at += afd_journal_encode_forget(102, at, (size_t)(end - at));
    *bytes_out = (size_t)(at - out);
    return out;
}
