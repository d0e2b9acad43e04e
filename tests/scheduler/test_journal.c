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

enum { CAPACITY = 16 };

static uint32_t prompt[3] = {5, 6, 7};
static const struct afd_logit_bias bias[2] = {{3, -100}, {4, 2.5f}};
static const uint32_t stops[1] = {9};

static struct afd_request request(uint64_t id)
{
    return (struct afd_request){
        .id = id,
        .tokens = prompt,
        .prompt_count = 3,
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

/* Two admissions, a step of both, a step of the second, the end of the first, a third admission. `ends[i]` is
 * the size after record i. */
static size_t make(uint8_t *out, size_t limit, size_t ends[6])
{
    const uint32_t tokens[4] = {10, 11, 12, 13};
    struct afd_journal_step step;
    size_t at = 0;
    for (uint64_t id = 101; id <= 102; id++) {
        struct afd_request q = request(id);
        at += afd_journal_encode_admit(&q, out + at, limit - at);
        ends[id - 101] = at;
    }
    afd_journal_step_begin(&step, out + at, limit - at);
    afd_journal_step_add(&step, 101, 0, tokens, 1);
    afd_journal_step_add(&step, 102, 0, tokens, 2);
    ends[2] = at += afd_journal_step_finish(&step);
    afd_journal_step_begin(&step, out + at, limit - at);
    afd_journal_step_add(&step, 102, 2, tokens + 2, 2);
    ends[3] = at += afd_journal_step_finish(&step);
    ends[4] = at += afd_journal_encode_end(101, AFD_FINISH_STOP, out + at, limit - at);
    struct afd_request q = request(103);
    ends[5] = at += afd_journal_encode_admit(&q, out + at, limit - at);
    return at;
}

static void test_round_trip(void **state)
{
    (void)state;
    uint8_t bytes[2048];
    size_t ends[6], size = make(bytes, sizeof bytes, ends), offset = 0;
    struct afd_journal_record record;
    struct afd_journal_admit admit;
    struct afd_logit_bias got_bias[2];
    uint32_t got_stops[1], got_prompt[3];
    assert_int_equal(afd_journal_next(bytes, size, &offset, &record), AFD_OK);
    assert_int_equal(offset, ends[0]);
    assert_int_equal(afd_journal_read_admit(&record, &admit, got_bias, got_stops, got_prompt), AFD_OK);
    struct afd_request q = request(101);
    assert_true(admit.id == 101 && admit.prompt_count == 3 && admit.sampling.seed == q.sampling.seed);
    assert_true(admit.sampling.temperature == 0.7f && admit.sampling.top_k == 5 &&
                admit.sampling.top_p == 0.9f);
    assert_true(admit.sampling.min_p == 0.1f && admit.sampling.repetition_penalty == 1.1f);
    assert_true(admit.sampling.presence_penalty == -1 && admit.sampling.frequency_penalty == 2);
    assert_true(admit.sampling.max_tokens == 50 && admit.sampling.min_tokens == 2 &&
                admit.sampling.logprobs == 3);
    assert_true(admit.sampling.prompt_logprobs == 1);
    assert_memory_equal(got_bias, bias, sizeof bias);
    assert_memory_equal(got_stops, stops, sizeof stops);
    assert_memory_equal(got_prompt, prompt, sizeof prompt);
    assert_int_equal(afd_journal_read_admit(&record, &admit, NULL, NULL, got_prompt), AFD_OK);
    assert_memory_equal(got_prompt, prompt, sizeof prompt);
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
    size_t ends[6], size = make(all, sizeof all, ends);
    for (size_t cut = 0; cut <= size; cut++) {
        uint8_t *bytes = malloc(cut + 1); /* its own block: a read behind it is seen */
        memcpy(bytes, all, cut);
        struct afd_journal_entry table[CAPACITY] = {0};
        size_t admissions, whole, tokens, records = 0;
        uint32_t pool[8];
        while (records < 6 && ends[records] <= cut) records++;
        afd_journal_count(bytes, cut, &admissions, &whole);
        assert_int_equal(whole, records ? ends[records - 1] : 0);
        assert_int_equal(admissions, records < 2 ? records : records < 6 ? 2 : 3);
        assert_int_equal(afd_journal_conclude(bytes, whole, table, CAPACITY, &tokens), AFD_OK);
        const size_t expected[7] = {0, 0, 0, 3, 5, 4, 4};
        assert_int_equal(tokens, expected[records]);
        afd_journal_fill(bytes, whole, table, CAPACITY, pool);
        struct afd_journal_entry *second = find(table, 102);
        assert_int_equal(second != NULL, records >= 2);
        if (records >= 4) {
            assert_int_equal(second->generated, 4);
            for (uint32_t i = 0; i < 4; i++) assert_int_equal(second->tokens[i], 10 + i);
        }
        if (records >= 5) assert_true(find(table, 101)->is_ended);
        if (records == 6) assert_true(find(table, 103)->admit == ends[4] && !find(table, 103)->is_ended);
        free(bytes);
    }
}

/* A changed bit anywhere: the journal ends before the record it is in. */
static void test_damage_is_seen(void **state)
{
    (void)state;
    uint8_t bytes[2048];
    size_t ends[6], size = make(bytes, sizeof bytes, ends);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        size_t admissions, whole, record = 0;
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        while (ends[record] <= bit / 8) record++;
        afd_journal_count(bytes, size, &admissions, &whole);
        assert_int_equal(whole, record ? ends[record - 1] : 0);
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

static void test_contradictions(void **state)
{
    (void)state;
    for (int kind = 0; kind < 6; kind++) {
        uint8_t bytes[4096];
        struct afd_journal_entry table[CAPACITY] = {0};
        struct afd_request q = request(101);
        size_t at = afd_journal_encode_admit(&q, bytes, sizeof bytes), tokens, whole, admissions;
        if (kind == 0) at += one_step(bytes + at, 102, 0, 1);                               /* unknown */
        if (kind == 1) at += one_step(bytes + at, 101, 1, 1);                               /* a gap */
        if (kind == 2) at += one_step(bytes + at, 101, 0, 51);                              /* too many */
        if (kind == 3) at += afd_journal_encode_admit(&q, bytes + at, sizeof bytes - at);   /* twice */
        if (kind == 4) at += afd_journal_encode_end(102, AFD_FINISH_STOP, bytes + at, 100); /* unknown */
        if (kind == 5) {
            at += afd_journal_encode_end(101, AFD_FINISH_STOP, bytes + at, 100);
            at += one_step(bytes + at, 101, 0, 1); /* after its end */
        }
        afd_journal_count(bytes, at, &admissions, &whole);
        assert_int_equal(whole, at);
        assert_int_equal(afd_journal_conclude(bytes, whole, table, CAPACITY, &tokens), AFD_ERR_PROTOCOL);
    }
}

static void test_room(void **state)
{
    (void)state;
    uint8_t bytes[256];
    struct afd_request q = request(101);
    size_t need = afd_journal_admit_bytes(&q);
    assert_int_equal(afd_journal_encode_admit(&q, bytes, need - 1), 0);
    assert_int_equal(afd_journal_encode_admit(&q, bytes, need), need);
    assert_int_equal(afd_journal_encode_end(1, AFD_FINISH_STOP, bytes, 17), 0);
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
        size_t ends[6], size = make(bytes, sizeof bytes, ends), whole, admissions, tokens;
        struct afd_journal_entry table[CAPACITY] = {0};
        uint32_t pool[256];
        /* a payload that is changed and sealed again is what a wrong writer would leave */
        struct afd_journal_record record;
        size_t offset = 0, begin = 0, k = afd_random(seed, 0, 0) % 6;
        for (size_t i = 0; i <= k; i++) {
            begin = offset;
            assert_int_equal(afd_journal_next(bytes, size, &offset, &record), AFD_OK);
        }
        for (int n = 0; n < 2; n++)
            bytes[begin + 8 + afd_random(seed, 1, (uint64_t)n) % (offset - begin - 8)] =
                (uint8_t)afd_random(seed, 2, (uint64_t)n);
        reseal(bytes + begin, offset - begin);
        uint8_t *copy = malloc(size);
        memcpy(copy, bytes, size);
        afd_journal_count(copy, size, &admissions, &whole);
        if (afd_journal_conclude(copy, whole, table, CAPACITY, &tokens) == AFD_OK) {
            assert_true(tokens <= 256);
            afd_journal_fill(copy, whole, table, CAPACITY, pool);
        }
        free(copy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_torn_at_every_byte),
        cmocka_unit_test(test_damage_is_seen), cmocka_unit_test(test_contradictions),
        cmocka_unit_test(test_room),           cmocka_unit_test(test_random_payloads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
