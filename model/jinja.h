/* jinja.h: the templates that checkpoints write their prompts with.
 *
 * The part of Jinja that chat templates use, as Hugging Face transformers sets it up: blocks trimmed, loop
 * controls, tojson that leaves Unicode alone, raise_exception, strftime_now, no access to anything outside. A
 * compiled template is immutable and belongs to whoever compiled it; any thread may render it. Rendering
 * takes memory and steps up to the limits below and blocks on nothing; a failure ends that rendering alone.
 *
 * Every byte of the output knows whether it came from the context (a client's text) or from the template and
 * what the operator trusts: that is what keeps clients from writing control tokens. */
#ifndef AFD_MODEL_JINJA_H
#define AFD_MODEL_JINJA_H

#include <jansson.h>
#include <stddef.h>
#include <time.h>

#include "base/error.h"

enum {
    AFD_JINJA_SOURCE_BYTES = 1 << 20,
    AFD_JINJA_DEPTH = 100,              /* of nested blocks and expressions, and of calls */
    AFD_JINJA_STEPS = 20 * 1000 * 1000, /* expressions evaluated; long texts count more */
    AFD_JINJA_OUTPUT_BYTES = 64 << 20,
    AFD_JINJA_MEMORY_BYTES = 256 << 20,
};

struct afd_jinja;

/* AFD_ERR_CONFIG with the line at fault. */
enum afd_status afd_jinja_compile(const char *source, size_t bytes, struct afd_jinja **out,
                                  struct afd_error *error_out);
void afd_jinja_destroy(struct afd_jinja *template); /* NULL is allowed */

struct afd_jinja_output {
    char *text;           /* malloc'ed, UTF-8 if the context was, ended by a 0 that `bytes` does not count */
    unsigned char *marks; /* malloc'ed: 1 where the byte came from the context */
    size_t bytes;
};

/* `context` and `trusted` are objects whose keys are the template's variables (`trusted` may be NULL; its
 * strings count as the template's own). `now` is what strftime_now writes. AFD_ERR_REQUEST with words: the
 * template refused the context (raise_exception) or does not fit it; AFD_ERR_LIMIT: one of the limits above.
 */
enum afd_status afd_jinja_render(const struct afd_jinja *template, const json_t *context,
                                 const json_t *trusted, time_t now, struct afd_jinja_output *out,
                                 struct afd_error *error_out);
void afd_jinja_output_fini(struct afd_jinja_output *output);

#endif
