/* step_list.h: a slot's step as member 0 of an attention group gives it to the others: who its rows belong
 * to, where, and the blocks of their KV cache. 32-bit words:
 *
 *   segments | for each: rows, first position, blocks of a table | tables [KV groups][blocks]
 *
 * Pure functions over the caller's memory; what is read is checked as bytes from outside. */
#ifndef AFD_ATTN_NODE_STEP_LIST_H
#define AFD_ATTN_NODE_STEP_LIST_H

#include "compute/compute.h"

struct afd_step_list_limits {
    uint32_t max_rows, kv_groups, max_blocks; /* blocks: of one table */
};

/* The most words that a list takes. */
uint64_t afd_step_list_words(const struct afd_step_list_limits *limits);
/* Writes the step, which is within the limits; returns how many words. */
uint64_t afd_step_list_write(const struct afd_step_list_limits *limits, const struct afd_step *step,
                             uint32_t *words_out);
/* `segments` [max_rows] point into `words`, which are as many as `count`. AFD_ERR_PROTOCOL: they are no list
 * of a step of `rows` rows. The device checks positions and block numbers. */
enum afd_status afd_step_list_read(const struct afd_step_list_limits *limits, const uint32_t *words,
                                   uint64_t count, uint32_t rows, struct afd_segment *segments,
                                   struct afd_step *step_out);

#endif
