/* weights.h: what a rank does with a checkpoint that it took: views every weight of both roles and reads the
 * first and the last values of each. What is refused must be refused with words; the sanitizer sees a view
 * that lies outside. */
#ifndef AFD_TESTS_FUZZ_WEIGHTS_H
#define AFD_TESTS_FUZZ_WEIGHTS_H

#include "model/weights.h"

void fuzz_read_weights(const struct afd_model *model, const struct afd_checkpoint *checkpoint);

#endif
