#include "scheduler/journal.h"

#include <assert.h>
#include <string.h>

#include "base/rng.h"
#include "proto/limits.h"

enum { HEAD_BYTES = 8, SEQUENCE_BYTES = 16, SAMPLING_BYTES = 60, ADMIT_BYTES = 8 + SAMPLING_BYTES + 4 };

/* CRC-32 of IEEE 802.3, four bits at a time: a token record is some hundred bytes. */
static uint32_t crc32_of(const uint8_t *data, size_t bytes)
{
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* ---- little-endian fields */

static uint8_t *put32(uint8_t *at, uint32_t x)
{
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(x >> (8 * i));
    return at + 4;
}

static uint8_t *put64(uint8_t *at, uint64_t x)
{
    return put32(put32(at, (uint32_t)x), (uint32_t)(x >> 32));
}

static uint8_t *put_float(uint8_t *at, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return put32(at, bits);
}

static uint32_t get32(const uint8_t **at)
{
    uint32_t x = 0;
    for (int i = 0; i < 4; i++) x |= (uint32_t)(*at)[i] << (8 * i);
    *at += 4;
    return x;
}

static uint64_t get64(const uint8_t **at)
{
    uint64_t low = get32(at);
    return low | (uint64_t)get32(at) << 32;
}

static float get_float(const uint8_t **at)
{
    uint32_t bits = get32(at);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static size_t seal(uint8_t *record, size_t payload_bytes)
{
    put32(record, (uint32_t)payload_bytes);
    put32(record + 4, crc32_of(record + HEAD_BYTES, payload_bytes));
    return HEAD_BYTES + payload_bytes;
}

/* ---- writing */

size_t afd_journal_admit_bytes(const struct afd_request *q)
{
    return HEAD_BYTES + 1 + ADMIT_BYTES + 8 * (size_t)q->sampling.bias_count +
           4 * (size_t)q->sampling.stop_count + 4 * (size_t)q->prompt_count;
}

size_t afd_journal_encode_admit(const struct afd_request *q, uint8_t *out, size_t limit)
{
    const struct afd_sampling *p = &q->sampling;
    size_t bytes = afd_journal_admit_bytes(q);
    if (bytes > limit) return 0;
    uint8_t *at = out + HEAD_BYTES;
    *at++ = AFD_JOURNAL_ADMIT;
    at = put64(at, q->id);
    at = put_float(at, p->temperature);
    at = put32(at, p->top_k);
    at = put_float(at, p->top_p);
    at = put_float(at, p->min_p);
    at = put64(at, p->seed);
    at = put_float(at, p->repetition_penalty);
    at = put_float(at, p->presence_penalty);
    at = put_float(at, p->frequency_penalty);
    at = put32(at, p->max_tokens);
    at = put32(at, p->min_tokens);
    at = put32(at, p->logprobs);
    at = put32(at, p->prompt_logprobs != 0);
    at = put32(at, p->bias_count);
    at = put32(at, p->stop_count);
    at = put32(at, q->prompt_count);
    for (uint32_t i = 0; i < p->bias_count; i++) at = put_float(put32(at, p->bias[i].token), p->bias[i].bias);
    for (uint32_t i = 0; i < p->stop_count; i++) at = put32(at, p->stop_tokens[i]);
    for (uint32_t i = 0; i < q->prompt_count; i++) at = put32(at, q->tokens[i]);
    assert((size_t)(at - out) == bytes);
    return seal(out, bytes - HEAD_BYTES);
}

size_t afd_journal_encode_end(uint64_t request, enum afd_finish finish, uint8_t *out, size_t limit)
{
    if (limit < HEAD_BYTES + 10) return 0;
    out[HEAD_BYTES] = AFD_JOURNAL_END;
    put64(out + HEAD_BYTES + 1, request);
    out[HEAD_BYTES + 9] = (uint8_t)finish;
    return seal(out, 10);
}

void afd_journal_step_begin(struct afd_journal_step *s, uint8_t *out, size_t limit)
{
    *s = (struct afd_journal_step){.out = out, .limit = limit, .bytes = HEAD_BYTES + 5};
    s->is_full = s->bytes > limit;
}

void afd_journal_step_add(struct afd_journal_step *s, uint64_t request, uint32_t position,
                          const uint32_t *tokens, uint32_t count)
{
    size_t bytes = SEQUENCE_BYTES + 4 * (size_t)count;
    if (s->is_full || bytes > s->limit - s->bytes) {
        s->is_full = 1;
        return;
    }
    uint8_t *at = put32(put32(put64(s->out + s->bytes, request), position), count);
    for (uint32_t i = 0; i < count; i++) at = put32(at, tokens[i]);
    s->bytes += bytes;
    s->sequences++;
}

size_t afd_journal_step_finish(struct afd_journal_step *s)
{
    if (s->is_full || !s->sequences) return 0;
    s->out[HEAD_BYTES] = AFD_JOURNAL_TOKENS;
    put32(s->out + HEAD_BYTES + 1, s->sequences);
    return seal(s->out, s->bytes - HEAD_BYTES);
}

/* ---- reading */

enum afd_status afd_journal_next(const uint8_t *bytes, size_t size, size_t *offset,
                                 struct afd_journal_record *out)
{
    if (*offset == size) return AFD_AGAIN;
    if (size - *offset < HEAD_BYTES + 1) return AFD_ERR_PROTOCOL;
    const uint8_t *at = bytes + *offset;
    uint32_t payload = get32(&at), crc = get32(&at);
    if (!payload || payload > size - *offset - HEAD_BYTES || crc32_of(at, payload) != crc)
        return AFD_ERR_PROTOCOL;
    if (*at < AFD_JOURNAL_ADMIT || *at > AFD_JOURNAL_END) return AFD_ERR_PROTOCOL;
    *out = (struct afd_journal_record){(enum afd_journal_kind) * at, at + 1, payload - 1};
    *offset += HEAD_BYTES + payload;
    return AFD_OK;
}

enum afd_status afd_journal_read_admit(const struct afd_journal_record *record, struct afd_journal_admit *out,
                                       struct afd_logit_bias *bias, uint32_t *stop_tokens, uint32_t *prompt)
{
    const uint8_t *at = record->payload;
    if (record->kind != AFD_JOURNAL_ADMIT || record->bytes < ADMIT_BYTES) return AFD_ERR_PROTOCOL;
    out->id = get64(&at);
    struct afd_sampling *p = &out->sampling;
    *p = (struct afd_sampling){.temperature = get_float(&at)};
    p->top_k = get32(&at);
    p->top_p = get_float(&at);
    p->min_p = get_float(&at);
    p->seed = get64(&at);
    p->repetition_penalty = get_float(&at);
    p->presence_penalty = get_float(&at);
    p->frequency_penalty = get_float(&at);
    p->max_tokens = get32(&at);
    p->min_tokens = get32(&at);
    p->logprobs = get32(&at);
    p->prompt_logprobs = get32(&at) != 0;
    p->bias_count = get32(&at);
    p->stop_count = get32(&at);
    out->prompt_count = get32(&at);
    if (!out->id || !out->prompt_count || p->bias_count > AFD_MAX_LOGIT_BIAS ||
        p->stop_count > AFD_MAX_STOP_TOKENS || out->prompt_count > AFD_MAX_CONTEXT ||
        record->bytes != ADMIT_BYTES + 8 * (size_t)p->bias_count + 4 * (size_t)p->stop_count +
                             4 * (size_t)out->prompt_count)
        return AFD_ERR_PROTOCOL;
    for (uint32_t i = 0; i < p->bias_count && bias; i++) {
        bias[i].token = get32(&at);
        bias[i].bias = get_float(&at);
    }
    at = record->payload + ADMIT_BYTES + 8 * (size_t)p->bias_count;
    for (uint32_t i = 0; i < p->stop_count && stop_tokens; i++) stop_tokens[i] = get32(&at);
    at = record->payload + ADMIT_BYTES + 8 * (size_t)p->bias_count + 4 * (size_t)p->stop_count;
    for (uint32_t i = 0; i < out->prompt_count && prompt; i++) prompt[i] = get32(&at);
    return AFD_OK;
}

/* ---- concluding */

void afd_journal_count(const uint8_t *bytes, size_t size, size_t *admissions_out, size_t *whole_bytes_out)
{
    struct afd_journal_record record;
    size_t offset = 0;
    *admissions_out = 0;
    while (afd_journal_next(bytes, size, &offset, &record) == AFD_OK)
        *admissions_out += record.kind == AFD_JOURNAL_ADMIT;
    *whole_bytes_out = offset;
}

/* The request's entry, or the free one where it belongs. Open addressing: nothing is ever taken out. */
static struct afd_journal_entry *entry_of(struct afd_journal_entry *table, size_t capacity, uint64_t id)
{
    size_t i = afd_mix64(id) & (capacity - 1);
    while (table[i].id && table[i].id != id) i = (i + 1) & (capacity - 1);
    return &table[i];
}

/* The next sequence of a tokens record; 0 when there is none, -1 when the record is malformed. */
static int next_sequence(const uint8_t **at, const uint8_t *end, uint64_t *id_out, uint32_t *position_out,
                         uint32_t *count_out)
{
    if (*at == end) return 0;
    if ((size_t)(end - *at) < SEQUENCE_BYTES) return -1;
    *id_out = get64(at);
    *position_out = get32(at);
    *count_out = get32(at);
    return *id_out && *count_out <= (size_t)(end - *at) / 4 ? 1 : -1;
}

static enum afd_status conclude_tokens(const struct afd_journal_record *record,
                                       struct afd_journal_entry *table, size_t capacity)
{
    const uint8_t *at = record->payload, *end = at + record->bytes;
    if (record->bytes < 4) return AFD_ERR_PROTOCOL;
    uint32_t sequences = get32(&at), seen = 0, position, count;
    uint64_t id;
    int more;
    while ((more = next_sequence(&at, end, &id, &position, &count)) > 0) {
        struct afd_journal_entry *e = entry_of(table, capacity, id);
        if (!e->id || e->is_ended || position != e->generated || count > e->max_tokens - e->generated)
            return AFD_ERR_PROTOCOL;
        e->generated += count;
        at += 4 * (size_t)count;
        seen++;
    }
    return more < 0 || seen != sequences ? AFD_ERR_PROTOCOL : AFD_OK;
}

enum afd_status afd_journal_conclude(const uint8_t *bytes, size_t whole_bytes,
                                     struct afd_journal_entry *table, size_t capacity, size_t *tokens_out)
{
    struct afd_journal_record record;
    assert((capacity & (capacity - 1)) == 0);
    for (size_t offset = 0, begin = 0; afd_journal_next(bytes, whole_bytes, &offset, &record) == AFD_OK;
         begin = offset) {
        if (record.kind == AFD_JOURNAL_TOKENS) {
            if (conclude_tokens(&record, table, capacity) != AFD_OK) return AFD_ERR_PROTOCOL;
            continue;
        }
        struct afd_journal_admit admit;
        const uint8_t *at = record.payload;
        if (record.kind == AFD_JOURNAL_ADMIT) {
            if (afd_journal_read_admit(&record, &admit, NULL, NULL, NULL) != AFD_OK) return AFD_ERR_PROTOCOL;
        } else if (record.bytes != 9) {
            return AFD_ERR_PROTOCOL;
        }
        struct afd_journal_entry *e = entry_of(table, capacity, get64(&at));
        if (record.kind == AFD_JOURNAL_END) {
            if (!e->id || e->is_ended) return AFD_ERR_PROTOCOL;
            e->is_ended = 1;
        } else {
            if (e->id) return AFD_ERR_PROTOCOL; /* admitted twice */
            *e = (struct afd_journal_entry){
                .id = admit.id, .admit = begin, .max_tokens = admit.sampling.max_tokens};
        }
    }
    *tokens_out = 0;
    for (size_t i = 0; i < capacity; i++)
        if (table[i].id && !table[i].is_ended) *tokens_out += table[i].generated;
    return AFD_OK;
}

void afd_journal_fill(const uint8_t *bytes, size_t whole_bytes, struct afd_journal_entry *table,
                      size_t capacity, uint32_t *pool)
{
    struct afd_journal_record record;
    for (size_t i = 0; i < capacity; i++) {
        if (!table[i].id || table[i].is_ended) continue;
        table[i].tokens = pool;
        pool += table[i].generated;
    }
    for (size_t offset = 0; afd_journal_next(bytes, whole_bytes, &offset, &record) == AFD_OK;) {
        const uint8_t *at = record.payload + 4, *end = record.payload + record.bytes;
        uint32_t position, count;
        uint64_t id;
        while (record.kind == AFD_JOURNAL_TOKENS && next_sequence(&at, end, &id, &position, &count) > 0) {
            struct afd_journal_entry *e = entry_of(table, capacity, id);
            for (uint32_t i = 0; i < count; i++) {
                uint32_t token = get32(&at);
                if (e->tokens) e->tokens[e->filled++] = token;
            }
        }
    }
}
