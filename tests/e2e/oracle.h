/* oracle.h: an independent implementation of Step3's equations, for tests.
 *
 * It shares no code with the project: its own reader of safetensors and of number formats, plain loops,
 * float32 activations with double sums, no batching, no cache: the whole sequence is computed at once. So a
 * mistake in a loader, a kernel, a message or the order of a pipeline shows as a difference. Source of the
 * equations: the Step-3 report (arXiv 2507.19427), sections 2 and 5, and the published configuration. */
#ifndef AFD_TESTS_E2E_ORACLE_H
#define AFD_TESTS_E2E_ORACLE_H

#include <stddef.h>
#include <stdint.h>

struct oracle;

enum { ORACLE_FP8_ROWS = 1, ORACLE_BF16_SUMS = 2 };

/* Aborts the test with words when the checkpoint cannot be read. */
struct oracle *oracle_open(const char *dir);
void oracle_close(struct oracle *oracle);
uint32_t oracle_vocab(const struct oracle *oracle);

/* Teacher-forced: logprobs_out[i] is log p(tokens[i] | tokens[0..i-1]), natural; entry 0 is 0. margins_out[i]
 * is the smallest gap, over the MoE layers and the positions 0..i-1 that the value depends on through
 * attention, between the probability of the last chosen and the first rejected expert (INFINITY without MoE
 * layers). `rounding`: the FFN's input is rounded as an FP8 A2F message rounds it, its output as a bf16 F2A
 * message. */
void oracle_score(struct oracle *oracle, const uint32_t *tokens, size_t count, unsigned rounding,
                  double *logprobs_out, double *margins_out);

#endif
