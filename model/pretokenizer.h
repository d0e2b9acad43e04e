/* pretokenizer.h: text to pieces, as tokenizer.json's "pre_tokenizer" says (inside the model folder only).
 *
 * A chain of regular expressions; each cuts every piece of the one before into matches and what lies between.
 * Built once, then read-only; a cutter is one thread's. */
#ifndef AFD_MODEL_PRETOKENIZER_H
#define AFD_MODEL_PRETOKENIZER_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/json.h"

enum { AFD_PRETOKENIZER_STEPS = 8 };

struct afd_pretokenizer {
    pcre2_code *steps[AFD_PRETOKENIZER_STEPS];
    int count;
    int byte_level;   /* the step at which ByteLevel begins; `count` when it does not split */
    int prefix_space; /* ByteLevel puts a space before a piece that does not begin with one */
};

struct afd_cutter {
    const struct afd_pretokenizer *pretokenizer;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    enum afd_status (*each)(const char *piece, size_t bytes, void *user);
    void *user;
    char *prefixed;
    size_t prefixed_room;
};

enum afd_status afd_pretokenizer_init(struct afd_pretokenizer *p, const json_t *config,
                                      struct afd_error *error_out);
void afd_pretokenizer_fini(struct afd_pretokenizer *p);

enum afd_status afd_cutter_init(struct afd_cutter *cutter, const struct afd_pretokenizer *p,
                                enum afd_status (*each)(const char *piece, size_t bytes, void *user),
                                void *user);
void afd_cutter_fini(struct afd_cutter *cutter);
/* `text` is valid UTF-8. Stops at the first status that is not 0. AFD_ERR_LIMIT when an expression gives up.
 */
enum afd_status afd_cutter_cut(struct afd_cutter *cutter, const char *text, size_t bytes);

#endif
