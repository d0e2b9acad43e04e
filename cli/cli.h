/* cli.h: what the commands of `afd` share: options, JSON and tables, a cluster's HTTP.
 *
 * A command is one function in one file and one row of the table in afd.c. It returns the exit status: 0
 * done, 1 failed (words were written to stderr), 2 the command line is wrong. Single-threaded; a command may
 * block. */
#ifndef AFD_CLI_CLI_H
#define AFD_CLI_CLI_H

#include <jansson.h>
#include <stdio.h>

#include "deploy/loading.h"
#include "deploy/topology.h"

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli_command {
    const char *name;
    const char *arguments;                                             /* "FILE [--context N]" */
    const char *summary;                                               /* NULL: hidden */
    int (*run)(const struct cli_command *self, int argc, char **argv); /* argv[0] is the command's name */
};

/* ---- options (options.c) */

enum cli_kind { CLI_FLAG, CLI_TEXT, CLI_COUNT, CLI_REAL };

struct cli_option {
    const char *name; /* "--json"; NULL ends the table */
    char letter;      /* 'n' for -n; 0: none */
    enum cli_kind kind;
    void *out; /* int, const char *, uint64_t, double */
    const char *help;
};

/* Reads options and at most `limit` positional arguments, in any order; "--" ends the options. Returns how
 * many positional ones there are, or -1 after words (and for --help after the help, with *help_out = 1). */
int cli_parse(const struct cli_command *command, int argc, char **argv, const struct cli_option *options,
              const char **positional, int limit, int *help_out);
/* What to return after -1. */
static inline int cli_parse_exit(int help)
{
    return help ? CLI_OK : CLI_USAGE;
}

/* ---- output (output.c) */

/* "afd NAME: words" to stderr; returns CLI_FAILED. */
int cli_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Prints the object, indented, and drops the reference. Returns CLI_OK. */
int cli_print_json(json_t *object);
/* "13.1 GiB"; `out` takes 32 bytes. */
const char *cli_bytes(uint64_t bytes, char out[32]);
/* What a device of each role takes for what lies between two operations, for afd_plan_options (workspace.c).
 */
struct afd_topology;
struct afd_model;
void cli_work_bytes(const struct afd_topology *topology, const struct afd_model *model,
                    uint64_t out[AFD_ROLE_COUNT]);
/* The checkpoint in `dir` (weights.c). Everything that a start would miss is refused by name: a file that is
 * cut short, a tensor that is not there or has another shape, no tokenizer. Reads headers alone. A directory
 * without weights is none to refuse: its topology can be planned, and `checkpoint` is then NULL. The caller
 * closes it, after a failure too. */
struct afd_checkpoint;
struct afd_error;
struct cli_weights {
    const char *dir;
    const struct afd_model *model;
    struct afd_error *error;
    struct afd_checkpoint *checkpoint;
};
enum afd_status cli_weights_open(const char *dir, struct cli_weights *weights);

/* A table of text: columns are as wide as their widest cell; numbers go right. */
struct cli_table;
struct cli_table *cli_table_create(uint32_t columns,
                                   const char *const *headers); /* "<name" left, ">name" right */
void cli_table_cell(struct cli_table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cli_table_print(struct cli_table *table, FILE *to); /* and destroys it */

/* The last `lines` lines of a file. */
void cli_print_tail(const char *path, uint32_t lines, FILE *to);

/* ---- a running cluster (http.c) */

enum { CLI_URL_BYTES = 512 };

/* "http://host:port" of the cluster: `url` if given, else of the state directory (found as afd_state_find
 * does). 0, or words and CLI_FAILED. */
int cli_url(const char *url, const char *state, char out[CLI_URL_BYTES]);
/* GET; the body of a 200, malloc'ed, or NULL with words. *code_out 0: nobody answers. */
char *cli_get_text(const char *base, const char *path, long *code_out, struct afd_error *error_out);
/* The same, parsed. */
json_t *cli_get_json(const char *base, const char *path, long *code_out, struct afd_error *error_out);
/* GET, whatever the body is, into a file. 0, or words and not 0. */
int cli_get_file(const char *base, const char *path, FILE *to, long timeout_s, struct afd_error *error_out);

/* POST of a JSON object; the parsed body of a 2xx, or NULL with words. */
json_t *cli_post_json(const char *base, const char *path, json_t *body, struct afd_error *error_out);

/* A streamed answer (text/event-stream): `event` is called with each "data:" object, not with [DONE]; it
 * stops the stream by returning non-zero. */
typedef int (*cli_event_fn)(json_t *event, void *user);
int cli_post_stream(const char *base, const char *path, json_t *body, cli_event_fn event, void *user,
                    struct afd_error *error_out);

/* The rows and stage table of GET /afd/v1/cluster (status.c), also for `afd up` and the quick start. */
void cli_print_cluster(const json_t *cluster, FILE *to);
/* The same for one of its ranks, how far it is with its weights; 0: it does not load. */
int cli_loading(const json_t *rank, char line[AFD_LOADING_LINE_BYTES]);

/* ---- the commands */

#define CLI_DECLARE(name) int cli_##name(const struct cli_command *self, int argc, char **argv)
CLI_DECLARE(check);
CLI_DECLARE(up);
CLI_DECLARE(down);
CLI_DECLARE(ps);
CLI_DECLARE(logs);
CLI_DECLARE(supervise);
CLI_DECLARE(render);
CLI_DECLARE(probe);
CLI_DECLARE(status);
CLI_DECLARE(trace);
CLI_DECLARE(top);
CLI_DECLARE(scale);
CLI_DECLARE(drain);
CLI_DECLARE(restart);
CLI_DECLARE(shards);
CLI_DECLARE(complete);
CLI_DECLARE(chat);
CLI_DECLARE(model);
CLI_DECLARE(bench);
CLI_DECLARE(bench_serve);
CLI_DECLARE(bench_stage);
CLI_DECLARE(bench_layer);
CLI_DECLARE(bench_transport);
CLI_DECLARE(plan);
CLI_DECLARE(sim);
CLI_DECLARE(help);

#endif
