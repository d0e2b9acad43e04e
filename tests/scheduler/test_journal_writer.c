/* Guards the order of the journal: a token that reaches a client before the disk, an admission that begins
 * without being there, a segment that goes while it is needed, and a journal without bound; on a disk that
 * fails at any time. What is read back must be all that was delivered, but for what was delivered while
 * nothing could be written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "base/rng.h"
#include "scheduler/journal_writer.h"

enum { STREAMS = 12, LENGTH = 60, FILES = 64, FILE_BYTES = 1 << 16, STEPS = 3000, CAPACITY = 4096 };

static const uint8_t identity[AFD_JOURNAL_IDENTITY_BYTES] = {7};

struct stream {
    struct afd_written written; /* first */
    uint32_t tokens[2 + LENGTH], delivered;
    int lives, was_unwritten;
};

struct file {
    uint64_t number;
    uint8_t bytes[FILE_BYTES];
    size_t size;
};

struct world {
    struct afd_writer *writer;
    struct stream streams[STREAMS];
    struct file files[FILES];
    uint32_t file_count, drops;
    int is_full;
    uint64_t seed, draws, ids;
};

static uint64_t draw(struct world *w, uint64_t below)
{
    return afd_random(w->seed, w->draws++, 0) % below;
}

/* What a restart would conclude now. */
static void check_disk(struct world *w)
{
    static struct afd_journal_entry table[CAPACITY];
    struct afd_journal_segment segments[FILES];
    struct afd_journal_conclusion c;
    memset(table, 0, sizeof table);
    for (uint32_t i = 0; i < w->file_count; i++)
        segments[i] = (struct afd_journal_segment){w->files[i].bytes, w->files[i].size};
    assert_true(afd_journal_count(segments, w->file_count) < CAPACITY);
    afd_journal_conclude(segments, w->file_count, identity, table, CAPACITY, &c);
    uint32_t *pool = calloc(c.tokens + 1, sizeof *pool);
    afd_journal_fill(segments, w->file_count, table, CAPACITY, pool);
    for (uint32_t i = 0; i < STREAMS; i++) {
        const struct stream *s = &w->streams[i];
        uint32_t k = 0;
        if (!s->lives) continue;
        while (k < CAPACITY && table[k].id != s->written.known.id) k++;
        assert_true(k < CAPACITY && !table[k].is_forgotten); /* its admission was durable */
        if (!s->was_unwritten) assert_true(table[k].generated >= s->delivered);
        assert_memory_equal(table[k].tokens, s->tokens + 2, table[k].generated * sizeof(uint32_t));
    }
    free(pool);
}

static struct file *file_of(struct world *w, uint64_t number)
{
    for (uint32_t i = 0; i < w->file_count; i++)
        if (w->files[i].number == number) return &w->files[i];
    return NULL;
}

static int write_file(struct world *w, const struct afd_writer_action *a)
{
    struct file *f = file_of(w, a->segment);
    assert_non_null(f);
    size_t bytes = w->is_full ? draw(w, a->size) : a->size;
    assert_true(f->size + bytes <= FILE_BYTES);
    memcpy(f->bytes + f->size, a->bytes, bytes);
    f->size += bytes;
    return !w->is_full;
}

static void act(struct world *w)
{
    struct afd_writer_action a;
    while (afd_writer_next(w->writer, &a)) {
        uint32_t kept = 0;
        switch (a.kind) {
        case AFD_WRITER_OPEN:
            if (!w->is_full) {
                assert_true(w->file_count < FILES);
                w->files[w->file_count].number = a.segment;
                w->files[w->file_count++].size = 0;
            }
            afd_writer_done(w->writer, !w->is_full);
            break;
        case AFD_WRITER_WRITE:
            afd_writer_done(w->writer, write_file(w, &a));
            break;
        case AFD_WRITER_DROP:
            for (uint32_t i = 0; i < w->file_count; i++)
                if (w->files[i].number >= a.segment) w->files[kept++] = w->files[i];
            w->file_count = kept;
            w->drops++;
            break;
        case AFD_WRITER_DELIVER: {
            struct stream *s = (struct stream *)a.accepted.sequence;
            assert_int_equal(a.accepted.index, s->delivered);
            s->delivered = a.accepted.generated;
            if (!afd_writer_is_open(w->writer)) s->was_unwritten = 1;
            break;
        }
        }
    }
}

static void admit(struct world *w, struct stream *s)
{
    *s = (struct stream){
        .written.known = {
            .id = ++w->ids, .tokens = s->tokens, .prompt_count = 2, .sampling = {.max_tokens = LENGTH}}};
    afd_writer_admit(w->writer, &s->written);
    act(w);
    s->lives = afd_writer_is_open(w->writer);
    if (!s->lives) afd_writer_forget(w->writer, &s->written);
}

static void accept_some(struct world *w, struct stream *s)
{
    uint32_t count = 1 + (uint32_t)draw(w, 3), from = s->written.known.generated;
    if (s->written.known.finish) return;
    if (count > LENGTH - from) count = LENGTH - from;
    for (uint32_t i = 0; i < count; i++)
        s->tokens[2 + from + i] = (uint32_t)(s->written.known.id * 100 + from + i);
    afd_writer_accept(w->writer, &(struct afd_writer_accepted){
                                     .sequence = &s->written,
                                     .index = from,
                                     .generated = from + count,
                                     .finish = from + count == LENGTH ? AFD_FINISH_LENGTH : AFD_UNFINISHED});
}

static uint32_t run(uint64_t seed)
{
    static struct world w;
    struct afd_arena *arena = afd_arena_create(0);
    struct afd_writer_config config = {
        .max_context = 2 + LENGTH, .segment_bytes = 4096, .keep_bytes = 600, .first_segment = 1};
    memset(&w, 0, sizeof w);
    memcpy(config.identity, identity, sizeof identity);
    w.seed = seed;
    w.writer = afd_writer_create(arena, &config);
    assert_non_null(w.writer);
    act(&w);
    for (int step = 0; step < STEPS; step++) {
        struct stream *s = &w.streams[draw(&w, STREAMS)];
        uint64_t what = draw(&w, 100);
        if (step > STEPS - 200) w.is_full = 0;
        assert_true(afd_writer_has_room(w.writer));
        if (!s->lives) {
            admit(&w, s);
        } else if (what < 60) {
            for (uint32_t i = 0; i < STREAMS; i++)
                if (w.streams[i].lives && draw(&w, 2)) accept_some(&w, &w.streams[i]);
        } else if (what < 64) {
            s->lives = 0;
            afd_writer_forget(w.writer, &s->written);
        } else if (what < 66 && step < STEPS - 200) {
            w.is_full = !w.is_full;
        } else if (what < 80) {
            afd_writer_tick(w.writer);
        }
        act(&w);
        if (step % 16 == 0) check_disk(&w);
        for (uint32_t i = 0; i < STREAMS && afd_writer_is_whole(w.writer); i++)
            w.streams[i].was_unwritten = 0;
    }
    for (int i = 0; i < 100; i++) {
        afd_writer_tick(w.writer);
        act(&w);
    }
    assert_true(afd_writer_is_whole(w.writer)); /* nothing is missing once there is room */
    assert_int_equal(w.file_count, 1);
    for (uint32_t i = 0; i < STREAMS; i++) w.streams[i].was_unwritten = 0;
    check_disk(&w);
    uint32_t drops = w.drops;
    afd_arena_destroy(arena);
    return drops;
}

static void test_what_is_delivered_is_written(void **state)
{
    (void)state;
    uint32_t drops = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) drops += run(seed);
    assert_true(drops > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_what_is_delivered_is_written)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
