/* Guards: words that a shell on the way changes; a secret that must be among the words because input gets
 * lost; a host that hangs and holds the others up; a failure without the host's own words; a Slurm step that
 * takes CPUs away.
 *
 * Instead of ssh a script that runs the line here, as a login shell there would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "deploy/remote.h"

static char folder[] = "/tmp/afd-rXXXXXX";
static struct afd_topology topology;

static int setup(void **state)
{
    (void)state;
    char path[64];
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/ssh", folder);
    FILE *f = fopen(path, "w");
    if (!f) return -1;
    fprintf(f, "#!/bin/sh\n"
               "[ \"$1\" = -q ] || exit 9\n" /* our own word of launch.ssh */
               "while [ \"$1\" != -- ]; do shift; done\n"
               "[ \"$2\" != away ] || { echo 'ssh: connect to host away: No route to host' >&2; exit 255; }\n"
               "exec sh -c \"$3\"\n");
    fclose(f);
    topology.launch.by = AFD_LAUNCH_SSH;
    topology.launch.ssh_count = 2;
    strcpy(topology.launch.ssh[0], path);
    strcpy(topology.launch.ssh[1], "-q");
    return chmod(path, 0700);
}

static int teardown(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "%s/ssh", folder);
    return unlink(path) | rmdir(folder);
}

static void words_arrive_as_they_are(void **state)
{
    (void)state;
    static const char *const hostile[] = {"printf", "%s|",  "a b", "it's", "$(id)", "\"",
                                          "\\",     "`id`", ";",   "*",    "",      NULL};
    struct afd_remote_call call = {.host = "h", .words = hostile};
    assert_int_equal(afd_remote_run(&topology, 0, &call, 1, 20000), AFD_OK);
    assert_string_equal(call.output, "a b|it's|$(id)|\"|\\|`id`|;|*||");
    free(call.output);
}

static void input_arrives_whole(void **state)
{
    (void)state;
    enum { BYTES = 300000 }; /* more than a pipe holds */
    static const char *const words[] = {"wc", "-c", NULL};
    char *input = calloc(1, BYTES);
    struct afd_remote_call calls[3];
    for (int i = 0; i < 3; i++)
        calls[i] =
            (struct afd_remote_call){.host = "h", .words = words, .input = input, .input_bytes = BYTES};
    assert_int_equal(afd_remote_run(&topology, 0, calls, 3, 20000), AFD_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(atoi(calls[i].output), BYTES);
        free(calls[i].output);
    }
    free(input);
}

static void each_failure_has_its_words(void **state)
{
    (void)state;
    static const char *const says[] = {"sh", "-c", "echo one >&2; echo two >&2; exit 3", NULL};
    static const char *const none[] = {"/nowhere/afd", "ps", NULL};
    static const char *const hangs[] = {"sleep", "600", NULL}, *const good[] = {"echo", "yes", NULL};
    struct afd_remote_call calls[] = {{.host = "h", .words = says},
                                      {.host = "h", .words = none},
                                      {.host = "away", .words = good},
                                      {.host = "h", .words = hangs},
                                      {.host = "h", .words = good}};
    assert_int_equal(afd_remote_run(&topology, 0, calls, 5, 2000), AFD_ERR_PEER);
    assert_int_equal(calls[0].exit_status, 3);
    assert_string_equal(calls[0].words_out, "two");
    assert_int_equal(calls[1].exit_status, AFD_REMOTE_UNREACHED);
    assert_non_null(strstr(calls[1].words_out, "/nowhere/afd cannot be run there (launch.dir)"));
    assert_int_equal(calls[2].exit_status, AFD_REMOTE_UNREACHED);
    assert_non_null(
        strstr(calls[2].words_out, "cannot be reached by ssh: ssh: connect to host away: No route"));
    assert_int_equal(calls[3].exit_status, AFD_REMOTE_UNREACHED);
    assert_string_equal(calls[3].words_out, "no answer in time");
    assert_int_equal(calls[4].exit_status, 0);
    assert_string_equal(calls[4].output, "yes\n");
    for (int i = 0; i < 5; i++) free(calls[i].output);
}

static void a_slurm_step_shares_and_no_shell_is_between(void **state)
{
    (void)state;
    static const char *const words[] = {"/opt/afd", "a b", NULL};
    struct afd_topology t = {.launch.by = AFD_LAUNCH_SLURM};
    struct afd_remote_command c;
    struct afd_error error;
    char line[512] = "";
    assert_int_equal(afd_remote_command(&t, 17, "n3", words, &c, &error), AFD_OK);
    for (uint32_t i = 0; i < c.count; i++) strcat(strcat(line, c.argv[i]), "|");
    assert_null(c.argv[c.count]);
    assert_string_equal(line,
                        "srun|--jobid=17|--overlap|--quiet|--nodes=1|--ntasks=1|--input=none|--nodelist=n3|"
                        "/opt/afd|a b|");
}

static void what_is_too_long_is_refused(void **state)
{
    (void)state;
    char *word = calloc(1, AFD_REMOTE_TEXT_BYTES);
    memset(word, '\'', AFD_REMOTE_TEXT_BYTES / 2); /* it grows when it is quoted */
    const char *words[] = {"echo", word, NULL};
    struct afd_remote_call call = {.host = "h", .words = words};
    assert_int_equal(afd_remote_run(&topology, 0, &call, 1, 2000), AFD_ERR_PEER);
    assert_non_null(strstr(call.words_out, "too long"));
    assert_null(call.output);
    free(word);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_arrive_as_they_are),
        cmocka_unit_test(input_arrives_whole),
        cmocka_unit_test(each_failure_has_its_words),
        cmocka_unit_test(a_slurm_step_shares_and_no_shell_is_between),
        cmocka_unit_test(what_is_too_long_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
