/* error.h: words for a failure.
 *
 * A function that reads what comes from outside (YAML, a checkpoint, a peer, a client) takes a
 * `struct afd_error *error_out`, owned by the caller, never NULL. On a negative status the text says what is
 * wrong, where, and what was expected; on success it is untouched. */
#ifndef AFD_BASE_ERROR_H
#define AFD_BASE_ERROR_H

#include "base/status.h"

struct afd_error {
    char text[1024];
};

/* Writes the words and returns `status`, so that a caller can `return afd_fail(e, AFD_ERR_CONFIG, "...")`.
 * Control characters and invalid bytes that came from outside are replaced by '?'. */
enum afd_status afd_fail(struct afd_error *error_out, enum afd_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text already there. */
void afd_error_prefix(struct afd_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
