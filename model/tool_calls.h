/* tool_calls.h: one block of a model's text to tool calls (inside the model folder only). Pure but for
 * memory. */
#ifndef AFD_MODEL_TOOL_CALLS_H
#define AFD_MODEL_TOOL_CALLS_H

#include "model/answer.h"

/* The marks that a block begins and ends with. */
struct afd_call_marks {
    const char *begin, *end;
};
/* In the order in which they are looked for; ends with an entry without `begin`. */
const struct afd_call_marks *afd_call_marks(enum afd_call_style style);

/* Calls of a block, its marks included, to the sink; how many there were. */
size_t afd_calls_read(enum afd_call_style style, const char *text, size_t bytes, const struct json_t *tools,
                      afd_answer_sink sink, void *user);

#endif
