/* Guards a restart: a torn tail that is taken for tokens, a request that is forgotten or comes back after its
 * end, and damage that passes for data. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "base/rng.h"
#include "scheduler/journal.h"

enum { CAPACITY = 16, RECORDS = 8 };

static const uint8_t identity[AFD_JOURNAL_IDENTITY_BYTES] = {1, 2, 3};
static const uint8_t origin[5] = "who?";

static uint32_t prompt[7] = {5, 6, 7, 10, 11, 12, 13}; /* and what 102 generates */
static const struct afd_logit_bias bias[2] = {{3, -100}, {4, 2.5f}};
static const uint32_t stops[1] = {9};

static struct afd_journal_sequence request(uint64_t id)
{
    return (struct afd_journal_sequence){
        .id = id,
        .tokens = prompt,
        .prompt_count = 3,
        .assignment = 7,
        .origin = origin,
        .origin_bytes = sizeof origin,
        .sampling = {.temperature = 0.7f,
                     .top_k = 5,
                     .top_p = 0.9f,
                     .min_p = 0.1f,
                     .seed = 0x123456789abcdefu,
                     .repetition_penalty = 1.1f,
                     .presence_penalty = -1,
                     .frequency_penalty = 2,
                     .max_tokens = 50,
                     .min_tokens = 2,
                     .logprobs = 3,
                     .prompt_logprobs = 1,
                     .bias = bias,
                     .bias_count = 2,
                     .stop_tokens = stops,
                     .stop_count = 1},
    };
}

/* A head, two admissions, a step of both, a step of the second, the end of the first, a third admission, the
 * cluster's record. `ends[i]` is the size after record i. */
static size_t make(uint8_t *out, size_t limit, size_t ends[RECORDS])
{
    struct afd_journal_step step;
    size_t at = ends[0] = afd_journal_encode_head(4, identity, out, limit);
    for (uint64_t id = 101; id <= 102; id++) {
        struct afd_journal_sequence q = request(id);
        at += afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &q, out + at, limit - at);
        ends[id - 100] = at;
    }
    afd_journal_step_begin(&step, out + at, limit - at);
    afd_journal_step_add(&step, 101, 0, prompt + 3, 1);
    afd_journal_step_add(&step, 102, 0, prompt + 3, 2);
    ends[3] = at += afd_journal_step_finish(&step);
    afd_journal_step_begin(&step, out + at, limit - at);
    afd_journal_step_add(&step, 102, 2, prompt + 5, 2);
    ends[4] = at += afd_journal_step_finish(&step);
    ends[5] = at += afd_journal_encode_end(101, AFD_FINISH_STOP, out + at, limit - at);
    struct afd_journal_sequence q = request(103);
    ends[6] = at += afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &q, out + at, limit - at);
    ends[7] = at += afd_journal_encode_cluster((const uint8_t *)"2A2F", 4, out + at, limit - at);
    return at;
}

static void expect_admit(const struct afd_journal_admit *admit)
{
    struct afd_journal_sequence q = request(101);
    assert_true(admit->id == 101 && admit->prompt_count == 3 && admit->sampling.seed == q.sampling.seed);
    assert_true(admit->sampling.temperature == 0.7f && admit->sampling.top_k == 5 &&
                admit->sampling.top_p == 0.9f);
    assert_true(admit->sampling.min_p == 0.1f && admit->sampling.repetition_penalty == 1.1f);
    assert_true(admit->sampling.presence_penalty == -1 && admit->sampling.frequency_penalty == 2);
    assert_true(admit->sampling.max_tokens == 50 && admit->sampling.min_tokens == 2 &&
                admit->sampling.logprobs == 3);
    assert_true(admit->sampling.prompt_logprobs == 1 && admit->assignment == 7);
    assert_int_equal(admit->origin_bytes, sizeof origin);
    assert_memory_equal(admit->origin, origin, sizeof origin);
}

static void test_round_trip(void **state)
{
    (void)state;
    uint8_t bytes[2048];
    size_t ends[RECORDS], size = make(bytes, sizeof bytes, ends), offset = ends[0];
    struct afd_journal_record record;
    struct afd_journal_admit admit;
    struct afd_logit_bias got_bias[2];
    uint32_t got_stops[1], got[5];
    assert_int_equal(afd_journal_next(bytes, size, &offset, &record), AFD_OK);
    assert_int_equal(offset, ends[1]);
    assert_int_equal(afd_journal_read_admit(&record, &admit, got_bias, got_stops, got), AFD_OK);
    expect_admit(&admit);
    assert_true(!admit.generated && !admit.finish);
    assert_memory_equal(got_bias, bias, sizeof bias);
    assert_memory_equal(got_stops, stops, sizeof stops);
    assert_memory_equal(got, prompt, 3 * sizeof *got);
    assert_int_equal(afd_journal_read_admit(&record, &admit, NULL, NULL, got), AFD_OK);
    assert_memory_equal(got, prompt, 3 * sizeof *got);
    /* kept: with what was generated */
    struct afd_journal_sequence q = request(101);
    q.generated = 2;
    q.finish = AFD_FINISH_LENGTH;
    size = afd_journal_encode_sequence(AFD_JOURNAL_KEEP, &q, bytes, sizeof bytes);
    offset = 0;
    assert_int_equal(afd_journal_next(bytes, size, &offset, &record), AFD_OK);
    assert_int_equal(afd_journal_read_admit(&record, &admit, got_bias, got_stops, got), AFD_OK);
    expect_admit(&admit);
    assert_true(admit.generated == 2 && admit.finish == AFD_FINISH_LENGTH);
    assert_memory_equal(got, prompt, sizeof got);
    assert_true(size <= afd_journal_record_most(5));
}

static struct afd_journal_entry *find(struct afd_journal_entry *table, uint64_t id)
{
    for (int i = 0; i < CAPACITY; i++)
        if (table[i].id == id) return &table[i];
    return NULL;
}

/* Cut at every byte: the conclusion is that of the records that are whole. */
static void test_torn_at_every_byte(void **state)
{
    (void)state;
    uint8_t all[2048];
    size_t ends[RECORDS], size = make(all, sizeof all, ends);
    for (size_t cut = 0; cut <= size; cut++) {
        uint8_t *bytes = malloc(cut + 1); /* its own block: a read behind it is seen */
        memcpy(bytes, all, cut);
        struct afd_journal_entry table[CAPACITY] = {0};
        struct afd_journal_segment segment = {bytes, cut};
        struct afd_journal_conclusion c;
        size_t records = 0;
        uint32_t pool[8];
        while (records < RECORDS && ends[records] <= cut) records++;
        size_t whole = records ? ends[records - 1] : 0;
        assert_int_equal(afd_journal_count(&segment, 1), records < 2   ? 0
                                                         : records < 3 ? 1
                                                         : records < 7 ? 2
                                                                       : 3);
        afd_journal_conclude(&segment, 1, identity, table, CAPACITY, &c);
        assert_int_equal(segment.size, whole);
        assert_int_equal(c.cut, whole < cut);
        const size_t expected[RECORDS + 1] = {0, 0, 0, 0, 3, 5, 5, 5, 5};
        assert_int_equal(c.tokens, expected[records]);
        afd_journal_fill(&segment, 1, table, CAPACITY, pool);
        struct afd_journal_entry *second = find(table, 102);
        assert_int_equal(second != NULL, records >= 3);
        if (records >= 5) {
            assert_int_equal(second->generated, 4);
            for (uint32_t i = 0; i < 4; i++) assert_int_equal(second->tokens[i], 10 + i);
        }
        if (records >= 6) assert_int_equal(find(table, 101)->finish, AFD_FINISH_STOP);
        if (records >= 7) assert_true(find(table, 103) && !find(table, 103)->finish);
        assert_int_equal(c.cluster != NULL, records == 8);
        if (c.cluster) assert_true(c.cluster_bytes == 4 && !memcmp(c.cluster, "2A2F", 4));
        free(bytes);
    }
}

/* A changed bit anywhere: the segment ends before the record it is in. */
static void test_damage_is_seen(void **state)
{
    (void)state;
    uint8_t bytes[2048];
    size_t ends[RECORDS], size = make(bytes, sizeof bytes, ends);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        struct afd_journal_entry table[CAPACITY] = {0};
        struct afd_journal_segment segment = {bytes, size};
        struct afd_journal_conclusion c;
        size_t record = 0;
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        while (ends[record] <= bit / 8) record++;
        afd_journal_conclude(&segment, 1, identity, table, CAPACITY, &c);
        assert_int_equal(segment.size, record ? ends[record - 1] : 0);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static size_t one_step(uint8_t *out, uint64_t id, uint32_t position, uint32_t count)
{
    const uint32_t tokens[60] = {1};
    struct afd_journal_step step;
    afd_journal_step_begin(&step, out, 1000);
    afd_journal_step_add(&step, id, position, tokens, count);
    return afd_journal_step_finish(&step);
}

/* A sequence twice in one record, the second time with a gap: nothing of the record counts. */
static size_t gap_within(uint8_t *out)
{
    const uint32_t tokens[2] = {1, 2};
    struct afd_journal_step step;
    afd_journal_step_begin(&step, out, 1000);
    afd_journal_step_add(&step, 101, 0, tokens, 2);
    afd_journal_step_add(&step, 101, 3, tokens, 1);
    return afd_journal_step_finish(&step);
}

/* What follows a contradiction does not count either. */
static void test_contradictions(void **state)
{
    (void)state;
    for (int kind = 0; kind < 10; kind++) {
        uint8_t bytes[4096];
        struct afd_journal_entry table[CAPACITY] = {0};
        struct afd_journal_conclusion c;
        struct afd_journal_sequence q = request(101);
        size_t at = afd_journal_encode_head(1, identity, bytes, sizeof bytes);
        at += afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &q, bytes + at, sizeof bytes - at);
        size_t expected = at;
        if (kind == 0) at += one_step(bytes + at, 102, 0, 1);  /* unknown */
        if (kind == 1) at += one_step(bytes + at, 101, 1, 1);  /* a gap */
        if (kind == 2) at += one_step(bytes + at, 101, 0, 51); /* too many */
        if (kind == 3)                                         /* twice */
            at += afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &q, bytes + at, sizeof bytes - at);
        if (kind == 4) at += afd_journal_encode_end(102, AFD_FINISH_STOP, bytes + at, 100); /* unknown */
        if (kind == 5) {
            expected = at += afd_journal_encode_end(101, AFD_FINISH_STOP, bytes + at, 100);
            at += one_step(bytes + at, 101, 0, 1); /* after its end */
        }
        if (kind == 6) {
            expected = at += afd_journal_encode_forget(101, bytes + at, 100);
            at += one_step(bytes + at, 101, 0, 1); /* after it was forgotten */
        }
        if (kind == 7) at += afd_journal_encode_end(101, AFD_FINISH_FAILED, bytes + at, 100);
        if (kind == 8) at += afd_journal_encode_head(2, identity, bytes + at, 100);
        if (kind == 9) at += gap_within(bytes + at);
        at += one_step(bytes + at, 101, 0, 1);
        struct afd_journal_segment segment = {bytes, at};
        afd_journal_conclude(&segment, 1, identity, table, CAPACITY, &c);
        assert_int_equal(segment.size, expected);
        assert_true(c.cut == 1 && c.tokens == 0);
    }
}

/* The second segment has what the first lost at its end, and more; a third is of another cluster. */
static void test_segments(void **state)
{
    (void)state;
    uint8_t first[2048], second[2048], third[256], other[AFD_JOURNAL_IDENTITY_BYTES] = {9};
    struct afd_journal_entry table[CAPACITY] = {0};
    struct afd_journal_conclusion c;
    size_t ends[RECORDS];
    make(first, sizeof first, ends);
    size_t at = afd_journal_encode_head(5, identity, second, sizeof second);
    struct afd_journal_sequence q = request(102);
    q.generated = 3;
    at += afd_journal_encode_sequence(AFD_JOURNAL_KEEP, &q, second + at, sizeof second - at);
    at += one_step(second + at, 102, 3, 2);
    at += afd_journal_encode_forget(101, second + at, 100);
    at += afd_journal_encode_forget(999, second + at, 100); /* its admission went with its segment */
    size_t bad = afd_journal_encode_head(6, other, third, sizeof third);
    bad += afd_journal_encode_forget(102, third + bad, 100);
    struct afd_journal_segment segments[3] = {{first, ends[4] + 3}, {second, at}, {third, bad}};
    assert_int_equal(afd_journal_count(segments, 3), 3);
    afd_journal_conclude(segments, 3, identity, table, CAPACITY, &c);
    assert_true(c.cut == 2 && segments[0].size == ends[4] && segments[1].size == at && !segments[2].size);
    assert_int_equal(c.tokens, 5);
    uint32_t pool[5];
    afd_journal_fill(segments, 3, table, CAPACITY, pool);
    assert_true(find(table, 101)->is_forgotten && !find(table, 101)->tokens);
    const uint32_t expected[5] = {10, 11, 12, 1, 0};
    assert_int_equal(find(table, 102)->filled, 5);
    assert_memory_equal(find(table, 102)->tokens, expected, sizeof expected);
}

static void test_room(void **state)
{
    (void)state;
    uint8_t bytes[256];
    struct afd_journal_sequence q = request(101);
    size_t need = afd_journal_sequence_bytes(AFD_JOURNAL_ADMIT, &q);
    assert_int_equal(afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &q, bytes, need - 1), 0);
    assert_int_equal(afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &q, bytes, need), need);
    assert_int_equal(afd_journal_encode_end(1, AFD_FINISH_STOP, bytes, 17), 0);
    assert_int_equal(afd_journal_encode_end(1, AFD_FINISH_STOP, bytes, 18), AFD_JOURNAL_END_BYTES);
    assert_int_equal(afd_journal_encode_forget(1, bytes, 16), 0);
    assert_int_equal(afd_journal_encode_forget(1, bytes, 17), AFD_JOURNAL_FORGET_BYTES);
    assert_int_equal(afd_journal_encode_head(1, identity, bytes, 52), 0);
    assert_int_equal(afd_journal_encode_head(1, identity, bytes, 53), AFD_JOURNAL_HEAD_BYTES);
    assert_int_equal(afd_journal_encode_cluster(bytes, 10, bytes + 100, 18), 0);
    static uint8_t much[AFD_JOURNAL_CLUSTER_BYTES + 100];
    assert_int_equal(afd_journal_encode_cluster(much, AFD_JOURNAL_CLUSTER_BYTES + 1, much, sizeof much), 0);
    struct afd_journal_step step;
    afd_journal_step_begin(&step, bytes, 32);
    afd_journal_step_add(&step, 1, 0, prompt, 3);
    assert_int_equal(afd_journal_step_finish(&step), 0); /* whole or not at all */
    afd_journal_step_begin(&step, bytes, 256);
    assert_int_equal(afd_journal_step_finish(&step), 0); /* nothing to write */
}

/* The checksum of a changed record: CRC-32, bit by bit. */
static void reseal(uint8_t *record, size_t bytes)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 8; i < bytes; i++) {
        crc ^= record[i];
        for (int b = 0; b < 8; b++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    for (int b = 0; b < 4; b++) record[4 + b] = (uint8_t)(~crc >> (8 * b));
}

/* Records of random bytes with a good checksum: refused or concluded, never read out of bounds. */
static void test_random_payloads(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20000; seed++) {
        uint8_t bytes[2048];
        size_t ends[RECORDS], size = make(bytes, sizeof bytes, ends);
        struct afd_journal_entry table[CAPACITY] = {0};
        struct afd_journal_conclusion c;
        uint32_t pool[256];
        /* a payload that is changed and sealed again is what a wrong writer would leave */
        size_t k = afd_random(seed, 0, 0) % RECORDS, begin = k ? ends[k - 1] : 0;
        for (int n = 0; n < 2; n++)
            bytes[begin + 8 + afd_random(seed, 1, (uint64_t)n) % (ends[k] - begin - 8)] =
                (uint8_t)afd_random(seed, 2, (uint64_t)n);
        reseal(bytes + begin, ends[k] - begin);
        uint8_t *copy = malloc(size);
        memcpy(copy, bytes, size);
        struct afd_journal_segment segment = {copy, size};
        assert_true(afd_journal_count(&segment, 1) < CAPACITY);
        afd_journal_conclude(&segment, 1, identity, table, CAPACITY, &c);
        assert_true(c.tokens <= 256);
        afd_journal_fill(&segment, 1, table, CAPACITY, pool);
        for (int i = 0; i < CAPACITY; i++)
            if (table[i].tokens) assert_int_equal(table[i].filled, table[i].generated);
        free(copy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_torn_at_every_byte),
        cmocka_unit_test(test_damage_is_seen),  cmocka_unit_test(test_contradictions),
        cmocka_unit_test(test_segments),        cmocka_unit_test(test_room),
        cmocka_unit_test(test_random_payloads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
