/* file.h: what the fuzzers of files share (file.c): the input as a file in a directory of its own, and an
 * account of the memory that reading it takes.
 *
 * A fuzzer says what the file is called and how much memory its reading may take, and supplies two functions.
 * Counted is what the code under test allocates, the JSON library included; mappings and the memory of other
 * libraries are not. What is not free again after an input is a leak, and ends the fuzzer. One thread. */
#ifndef AFD_TESTS_FUZZ_FILE_H
#define AFD_TESTS_FUZZ_FILE_H

#include "base/error.h"
#include "tests/fuzz/fuzz.h"

struct afd_fuzz_form {
    const char *name; /* "config.json" */
    size_t multiple;  /* at most multiple * the file's bytes + fixed, at any time while it is read */
    size_t fixed;
};
extern const struct afd_fuzz_form afd_fuzz_form;

/* NULL: refused, with words. `dir` holds the file alone. */
void *afd_fuzz_open(const char *dir, const char *path, struct afd_error *error_out);
/* Uses what was read, without the account's bound, and frees it. */
void afd_fuzz_use(void *opened, const char *dir);

/* Reads every byte: the sanitizer sees one that is not there, the system one behind a mapping. */
void afd_fuzz_touch(const void *data, size_t bytes);

#endif
