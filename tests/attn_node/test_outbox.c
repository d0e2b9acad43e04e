/* Guards tokens on their way to the scheduler: one that is sent twice or never, over connections that end at
 * any time; a message that is forgotten before it is in the journal; a pool that runs full. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "attn_node/outbox.h"
#include "base/rng.h"

enum { SEQUENCES = 8, ENTRIES = 64, RESERVE = 16, MESSAGE = 5, LENGTH = 40, STEPS = 6000 };

static uint32_t dropped;

static void drop(void *extra, void *user)
{
    (void)extra, (void)user;
    dropped++;
}

static struct afd_outbox *make(uint32_t entries)
{
    dropped = 0;
    struct afd_outbox *o = afd_outbox_create(&(struct afd_outbox_config){
        .sequences = SEQUENCES, .entries = entries, .reserve = RESERVE, .drop = drop});
    assert_non_null(o);
    return o;
}

static void add(struct afd_outbox *o, uint64_t request, uint32_t position, void *extra)
{
    afd_outbox_add(o, &(struct afd_outbox_entry){.request = request,
                                                 .assignment = 1,
                                                 .position = position,
                                                 .has_token = 1,
                                                 .token = 100 + position,
                                                 .extra = extra});
}

static void end(struct afd_outbox *o, uint64_t request, uint32_t position)
{
    afd_outbox_add(o,
                   &(struct afd_outbox_entry){
                       .request = request, .assignment = 1, .position = position, .finish = AFD_FINISH_STOP});
}

static void test_resumed_from_the_schedulers_position(void **state)
{
    (void)state;
    struct afd_outbox *o = make(ENTRIES);
    struct afd_outbox_entry out[MESSAGE];
    struct afd_outbox_held held[SEQUENCES];
    uint64_t serial;
    int extra;
    assert_int_equal(afd_outbox_begin(o, 7, 1, 2), AFD_OK);
    for (uint32_t p = 2; p < 6; p++) add(o, 7, p, &extra);
    assert_int_equal(afd_outbox_next(o, out, 2, &serial), 2);
    afd_outbox_acknowledge(o, serial);
    assert_int_equal(dropped, 2);
    assert_int_equal(afd_outbox_next(o, out, MESSAGE, &serial), 2);
    assert_int_equal(out[0].position, 4);
    end(o, 7, 6);
    afd_outbox_disconnected(o);
    assert_int_equal(afd_outbox_next(o, out, MESSAGE, &serial), 0); /* not before it is resumed */
    afd_outbox_acknowledge(o, serial); /* of the old connection: it says nothing */
    assert_int_equal(afd_outbox_held(o, held, SEQUENCES), 1);
    assert_true(held[0].request == 7 && held[0].generated == 6 && held[0].is_finished);
    assert_int_equal(afd_outbox_resume(o, 7, 1, 5), AFD_OK);
    assert_int_equal(afd_outbox_next(o, out, MESSAGE, &serial), 2);
    assert_true(out[0].position == 5 && out[0].has_token && out[1].position == 6 && !out[1].has_token &&
                out[1].finish == AFD_FINISH_STOP);
    afd_outbox_acknowledge(o, serial);
    assert_true(afd_outbox_is_empty(o));
    assert_int_equal(dropped, 4);
    /* what was acknowledged cannot be sent again: it is given up */
    assert_int_equal(afd_outbox_begin(o, 8, 1, 0), AFD_OK);
    add(o, 8, 0, NULL);
    assert_int_equal(afd_outbox_next(o, out, MESSAGE, &serial), 1);
    afd_outbox_acknowledge(o, serial);
    afd_outbox_disconnected(o);
    assert_int_equal(afd_outbox_resume(o, 8, 1, 0), AFD_ERR_REQUEST);
    assert_true(afd_outbox_is_empty(o));
    assert_int_equal(afd_outbox_resume(o, 9, 1, 0), AFD_ERR_REQUEST);
    afd_outbox_destroy(o);
}

static void test_room(void **state)
{
    (void)state;
    struct afd_outbox *o = make(ENTRIES);
    struct afd_outbox_entry out[ENTRIES];
    uint64_t serial;
    assert_int_equal(afd_outbox_begin(o, 1, 1, 0), AFD_OK);
    afd_outbox_disconnected(o);
    uint32_t position = 0;
    while (!afd_outbox_is_full(o)) add(o, 1, position++, NULL);
    assert_int_equal(position, ENTRIES - RESERVE + 1); /* nothing is forgotten while nobody listens */
    assert_int_equal(afd_outbox_resume(o, 1, 1, 0), AFD_OK);
    assert_int_equal(afd_outbox_next(o, out, ENTRIES, &serial), position);
    assert_false(afd_outbox_is_full(o)); /* sent, and not acknowledged: that goes first */
    for (uint64_t r = 2; r <= SEQUENCES; r++) {
        assert_int_equal(afd_outbox_begin(o, r, 1, 0), AFD_OK);
        end(o, r, 0);
    }
    assert_int_equal(afd_outbox_next(o, out, ENTRIES, &serial), SEQUENCES - 1);
    assert_int_equal(afd_outbox_begin(o, 99, 1, 0), AFD_OK); /* ends that were sent make room */
    assert_true(afd_outbox_is_consistent(o));
    afd_outbox_destroy(o);
}

/* ---- property: whatever happens to connections, what arrives is each sequence once and in order */

struct sent { /* a message that may not have arrived */
    struct afd_outbox_entry entries[MESSAGE];
    uint32_t count;
    uint64_t serial;
};

static void run(uint64_t seed)
{
    struct afd_outbox *o =
        make(SEQUENCES * (LENGTH + 1) + RESERVE); /* so many that none is forgotten unacknowledged */
    uint64_t draws = 0;
    uint32_t made[SEQUENCES] = {0}, arrived[SEQUENCES] = {0};
    int ended[SEQUENCES] = {0}, connected = 1;
    struct sent wire[8];
    uint32_t on_wire = 0;
    for (uint64_t r = 0; r < SEQUENCES; r++) assert_int_equal(afd_outbox_begin(o, r + 1, 1, 0), AFD_OK);
    for (int step = 0; step < STEPS; step++) {
        uint64_t what = afd_random(seed, draws++, 0) % 10, r = afd_random(seed, draws++, 0) % SEQUENCES;
        int settle = step > STEPS / 2;
        if (what < 4 && made[r] < LENGTH && !afd_outbox_is_full(o)) {
            add(o, r + 1, made[r]++, NULL);
            if (made[r] == LENGTH) end(o, r + 1, made[r]);
        } else if (what < 7 && connected && on_wire < 8) {
            struct sent *m = &wire[on_wire];
            m->count = afd_outbox_next(o, m->entries, MESSAGE, &m->serial);
            if (m->count && what == 6 && !settle)
                afd_outbox_unsent(o, m->serial);
            else
                on_wire += m->count > 0;
        } else if (what < 9 && on_wire) {
            const struct sent m = wire[0];
            memmove(wire, wire + 1, --on_wire * sizeof *wire);
            for (uint32_t i = 0; i < m.count; i++) {
                uint64_t k = m.entries[i].request - 1;
                assert_int_equal(m.entries[i].position, arrived[k]);
                assert_false(ended[k]);
                if (m.entries[i].has_token) assert_int_equal(m.entries[i].token, 100 + arrived[k]);
                arrived[k] += m.entries[i].has_token != 0;
                ended[k] = m.entries[i].finish != AFD_NOT_FINISHED;
            }
            if (what == 8) afd_outbox_acknowledge(o, m.serial);
        } else if (what == 9 && r == 0 && !settle) {
            on_wire = 0; /* with all that was under way */
            connected = !connected;
            if (!connected) {
                afd_outbox_disconnected(o);
                continue;
            }
            for (uint64_t k = 0; k < SEQUENCES; k++) {
                if (ended[k])
                    afd_outbox_cancel(o, k + 1, 1);
                else
                    assert_int_equal(afd_outbox_resume(o, k + 1, 1, arrived[k]), AFD_OK);
            }
        } else if (settle && !connected) {
            connected = 1;
            for (uint64_t k = 0; k < SEQUENCES; k++) {
                if (ended[k])
                    afd_outbox_cancel(o, k + 1, 1);
                else
                    assert_int_equal(afd_outbox_resume(o, k + 1, 1, arrived[k]), AFD_OK);
            }
        }
        assert_true(afd_outbox_is_consistent(o));
    }
    for (uint64_t k = 0; k < SEQUENCES; k++) assert_true(ended[k] && arrived[k] == LENGTH);
    afd_outbox_destroy(o);
}

static void test_each_token_once_over_any_connections(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) run(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resumed_from_the_schedulers_position),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_each_token_once_over_any_connections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
