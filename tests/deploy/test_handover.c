/* Guards: a supervisor of another version that starts half of a cluster; a topology that arrives cut; hostile
 * or plain wrong bytes on its standard input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "deploy/handover.h"

static const struct afd_handover given = {
    .secret = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
    .topology = (char *)"model: { path: /m }\n",
    .bytes = 20};

static enum afd_status read_bytes(const char *bytes, size_t size, struct afd_handover *out,
                                  struct afd_error *error)
{
    FILE *f = tmpfile();
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    rewind(f);
    enum afd_status status = afd_handover_read(fileno(f), out, error);
    fclose(f);
    return status;
}

static void what_is_sent_arrives(void **state)
{
    (void)state;
    struct afd_handover got;
    struct afd_error error;
    size_t size;
    char *message = afd_handover_message(&given, &size);
    assert_int_equal(read_bytes(message, size, &got, &error), AFD_OK);
    assert_string_equal(got.secret, given.secret);
    assert_int_equal(got.bytes, given.bytes);
    assert_memory_equal(got.topology, given.topology, given.bytes);
    afd_handover_free(&got);
    free(message);
}

static void it_is_stored_for_nobody_else(void **state)
{
    (void)state;
    char dir[] = "/tmp/afd-handover-XXXXXX", command[64];
    struct afd_handover got;
    struct afd_error error = {""};
    assert_non_null(mkdtemp(dir));
    assert_int_equal(afd_handover_store(&given, dir, &error), AFD_OK);
    if (afd_handover_load(dir, &got, &error))
        fail_msg("%s", error.text); /* refuses a secret that others can read */
    assert_string_equal(got.secret, given.secret);
    assert_memory_equal(got.topology, given.topology, given.bytes);
    afd_handover_free(&got);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

static void another_version_is_told(void **state)
{
    (void)state;
    struct afd_handover got;
    struct afd_error error;
    const char *message =
        "afd 99.1.2 3 0\n00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n";
    assert_int_equal(read_bytes(message, strlen(message), &got, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "`afd up` is afd 99.1.2"));
    assert_non_null(strstr(error.text, "install the same on all hosts"));
}

/* Whatever is cut off or changed, the answer is no, with words; never half a topology. */
static void what_is_cut_or_changed_is_refused(void **state)
{
    (void)state;
    struct afd_handover got;
    size_t size;
    char *message = afd_handover_message(&given, &size);
    for (size_t n = 0; n < size; n++) {
        struct afd_error error = {""};
        assert_int_equal(read_bytes(message, n, &got, &error), AFD_ERR_CONFIG);
        assert_true(*error.text);
        assert_null(got.topology);
    }
    for (size_t n = 0; n < size - given.bytes; n++) {
        struct afd_error error = {""};
        char was = message[n];
        message[n] = (char)0xff;
        assert_int_equal(read_bytes(message, size, &got, &error), AFD_ERR_CONFIG);
        message[n] = was;
    }
    free(message);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_sent_arrives),
        cmocka_unit_test(it_is_stored_for_nobody_else),
        cmocka_unit_test(another_version_is_told),
        cmocka_unit_test(what_is_cut_or_changed_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
