/* fuzz.h: what a fuzzer gives: a function that eats bytes from outside, and one good input to mutate.
 *
 * CTest links each with replay.c, which feeds it mutations of the good input, the same ones every time. For a
 * longer search, compile it without replay.c by clang with -fsanitize=fuzzer,address,undefined. */
#ifndef AFD_TESTS_FUZZ_FUZZ_H
#define AFD_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
/* A valid input, malloc'ed. */
uint8_t *afd_fuzz_good_input(size_t *bytes_out);

#endif
