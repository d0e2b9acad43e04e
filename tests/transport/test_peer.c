/* The pure core of a pair's life, by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "transport/peer.h"

static const struct afd_identity attn3 = {AFD_ROLE_ATTN, 3, 33}, ffn1 = {AFD_ROLE_FFN, 1, 11};

static struct afd_peer connector(void)
{
    struct afd_peer p;
    afd_peer_init(&p, 1, &attn3, AFD_MS(1000), AFD_MS(500));
    p.other = ffn1;
    return p;
}

static struct afd_peer acceptor(void)
{
    struct afd_peer p;
    afd_peer_init(&p, 0, &ffn1, AFD_MS(1000), AFD_MS(500));
    p.other = attn3;
    return p;
}

static void drive(struct afd_peer *p, const enum afd_peer_input *inputs, const enum afd_peer_action *actions,
                  int count)
{
    for (int i = 0; i < count; i++) assert_int_equal(afd_peer_on(p, inputs[i]), actions[i]);
}

/* Guards: the order of a normal life, on both sides. */
static void test_normal_life(void **state)
{
    (void)state;
    struct afd_peer c = connector(), a = acceptor();
    drive(&c, (enum afd_peer_input[]){AFD_PEER_PROVED, AFD_PEER_ACCEPTED, AFD_PEER_PATH, AFD_PEER_PATH},
          (enum afd_peer_action[]){AFD_PEER_SEND_HELLO, AFD_PEER_ATTACH, AFD_PEER_REPORT_OPEN,
                                   AFD_PEER_NOTHING},
          4);
    drive(
        &a, (enum afd_peer_input[]){AFD_PEER_PROVED, AFD_PEER_HELLO, AFD_PEER_ACCEPTED, AFD_PEER_PATH},
        (enum afd_peer_action[]){AFD_PEER_NOTHING, AFD_PEER_ASK_OWNER, AFD_PEER_ATTACH, AFD_PEER_REPORT_OPEN},
        4);
    assert_int_equal(c.state, AFD_PEER_OPEN);
    assert_int_equal(a.state, AFD_PEER_OPEN);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_END), AFD_PEER_REPORT_LOST);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_END), AFD_PEER_NOTHING); /* once */
    assert_int_equal(afd_peer_on(&c, AFD_PEER_CLOSE), AFD_PEER_NOTHING);
    assert_int_equal(c.state, AFD_PEER_FENCED);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_END), AFD_PEER_NOTHING);
    assert_int_equal(c.state, AFD_PEER_FENCED);
}

/* Guards: the data path may be faster than the accept on the hello connection. */
static void test_path_before_accept(void **state)
{
    (void)state;
    struct afd_peer c = connector();
    drive(&c, (enum afd_peer_input[]){AFD_PEER_PROVED, AFD_PEER_PATH, AFD_PEER_ACCEPTED},
          (enum afd_peer_action[]){AFD_PEER_SEND_HELLO, AFD_PEER_NOTHING, AFD_PEER_ATTACH_OPEN}, 3);
    assert_int_equal(c.state, AFD_PEER_OPEN);
    struct afd_peer a = acceptor(); /* nobody can know our path before our accept */
    drive(&a, (enum afd_peer_input[]){AFD_PEER_PROVED, AFD_PEER_HELLO, AFD_PEER_PATH},
          (enum afd_peer_action[]){AFD_PEER_NOTHING, AFD_PEER_ASK_OWNER, AFD_PEER_VIOLATED}, 3);
}

/* Guards: a message of the hello out of turn accepted, in any state. */
static void test_out_of_turn(void **state)
{
    (void)state;
    struct afd_peer c = connector(), a = acceptor();
    assert_int_equal(afd_peer_on(&c, AFD_PEER_ACCEPTED), AFD_PEER_VIOLATED);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_HELLO), AFD_PEER_VIOLATED);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_PATH), AFD_PEER_VIOLATED);
    assert_int_equal(afd_peer_on(&a, AFD_PEER_HELLO), AFD_PEER_VIOLATED);
    afd_peer_on(&c, AFD_PEER_PROVED), afd_peer_on(&a, AFD_PEER_PROVED);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_PROVED), AFD_PEER_VIOLATED);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_HELLO), AFD_PEER_VIOLATED);
    assert_int_equal(afd_peer_on(&a, AFD_PEER_ACCEPTED), AFD_PEER_VIOLATED);
    afd_peer_on(&c, AFD_PEER_ACCEPTED), afd_peer_on(&a, AFD_PEER_HELLO);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_ACCEPTED), AFD_PEER_VIOLATED);
    assert_int_equal(afd_peer_on(&a, AFD_PEER_HELLO), AFD_PEER_VIOLATED);
    afd_peer_on(&a, AFD_PEER_ACCEPTED);
    assert_int_equal(afd_peer_on(&a, AFD_PEER_ACCEPTED), AFD_PEER_VIOLATED);
}

/* Guards: an owner that hears of the end of something it never heard begin. */
static void test_end_before_hello(void **state)
{
    (void)state;
    struct afd_peer a = acceptor(), b = acceptor(), c = connector();
    assert_int_equal(afd_peer_on(&a, AFD_PEER_END), AFD_PEER_FORGET);
    afd_peer_on(&b, AFD_PEER_PROVED), afd_peer_on(&b, AFD_PEER_HELLO);
    assert_int_equal(afd_peer_on(&b, AFD_PEER_END), AFD_PEER_REPORT_LOST);
    assert_int_equal(afd_peer_on(&c, AFD_PEER_END), AFD_PEER_REPORT_LOST);
}

static void expect_expiry(const struct afd_peer *p, const char *words)
{
    struct afd_error error = {""};
    assert_int_equal(afd_peer_expire(p, AFD_MS(1499), &error), AFD_OK);
    assert_string_equal(error.text, "");
    assert_int_equal(afd_peer_expire(p, AFD_MS(1500), &error), AFD_ERR_DEADLINE);
    assert_string_equal(error.text, words);
}

/* Guards: a wait without end, or whose end does not say who waited for whom and what. */
static void test_expiry_words(void **state)
{
    (void)state;
    struct afd_peer c = connector(), a = acceptor();
    expect_expiry(&c, "attn/3 waited 500 ms for ffn/1 to finish the challenge");
    expect_expiry(&a, "ffn/1 waited 500 ms for a connection to finish the challenge");
    afd_peer_on(&c, AFD_PEER_PROVED), afd_peer_on(&a, AFD_PEER_PROVED);
    expect_expiry(&c, "attn/3 waited 500 ms for ffn/1 to answer the hello");
    expect_expiry(&a, "ffn/1 waited 500 ms for a connection to send its hello");
    afd_peer_on(&a, AFD_PEER_HELLO);
    expect_expiry(&a, "ffn/1 waited 500 ms for attn/3 to be accepted here");
    afd_peer_on(&a, AFD_PEER_ACCEPTED), afd_peer_on(&c, AFD_PEER_ACCEPTED);
    expect_expiry(&a, "ffn/1 waited 500 ms for attn/3 to speak on the data path");
    expect_expiry(&c, "attn/3 waited 500 ms for ffn/1 to speak on the data path");
    afd_peer_on(&c, AFD_PEER_PATH), afd_peer_on(&a, AFD_PEER_END);
    struct afd_error error;
    assert_int_equal(afd_peer_expire(&c, AFD_SECONDS(100), &error), AFD_OK);
    assert_int_equal(afd_peer_expire(&a, AFD_SECONDS(100), &error), AFD_OK);
}

/* Guards: an old attempt that takes the place of a newer one; a restarted rank kept out by its former self.
 */
static void test_generations(void **state)
{
    (void)state;
    struct afd_peer_book *book = calloc(1, sizeof *book);
    struct afd_identity other = {AFD_ROLE_ATTN, 4, 44}, again = attn3;
    struct afd_error error;
    assert_int_equal(afd_peer_book_check(book, &attn3, 0, &error),
                     AFD_OK); /* 0 is a generation like another */
    assert_int_equal(afd_peer_book_accept(book, &attn3, 0, 7), 0);
    assert_int_equal(afd_peer_book_check(book, &attn3, 0, &error), AFD_ERR_REFUSED);
    assert_int_equal(afd_peer_book_check(book, &attn3, 5, &error), AFD_OK);
    assert_int_equal(afd_peer_book_accept(book, &attn3, 5, 8), 7 + 1); /* pair 7 is fenced */
    assert_int_equal(afd_peer_book_check(book, &attn3, 4, &error), AFD_ERR_REFUSED);
    assert_int_equal(afd_peer_book_check(book, &attn3, 5, &error), AFD_ERR_REFUSED);
    assert_string_equal(error.text, "attn/3: generation 5 is not newer than 5, which was accepted");
    assert_int_equal(afd_peer_book_check(book, &other, 1, &error), AFD_OK);

    afd_peer_book_leave(book, &attn3, 7); /* the fenced one leaves late: it is not the live one */
    assert_int_equal(afd_peer_book_accept(book, &attn3, 6, 9), 8 + 1);
    afd_peer_book_leave(book, &attn3, 9);
    assert_int_equal(afd_peer_book_check(book, &attn3, 6, &error),
                     AFD_ERR_REFUSED); /* remembered after it left */
    again.incarnation++;
    assert_int_equal(afd_peer_book_check(book, &again, 1, &error), AFD_OK);
    assert_int_equal(afd_peer_book_accept(book, &again, 1, 2), 0);
    free(book);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normal_life),  cmocka_unit_test(test_path_before_accept),
        cmocka_unit_test(test_out_of_turn),  cmocka_unit_test(test_end_before_hello),
        cmocka_unit_test(test_expiry_words), cmocka_unit_test(test_generations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
