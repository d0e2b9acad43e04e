/* fuzz.h: what a fuzzer gives: a function that eats bytes from outside, and one good input to mutate.
 *
 * CTest links each with replay.c, which feeds it mutations of the good input, the same ones every time;
 * `fuzz_a2f --count 1000000 --seed 7` feeds more, and file names feed those. search.sh builds those of files
 * with search.c and clang's libFuzzer instead: a search that follows the code's branches. */
#ifndef AFD_TESTS_FUZZ_FUZZ_H
#define AFD_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
/* 1: all of the last input was accepted. The good input must be, or nothing behind the first check is tested.
 */
int afd_fuzz_was_taken(void);
/* A valid input, malloc'ed. */
uint8_t *afd_fuzz_good_input(size_t *bytes_out);

#endif
