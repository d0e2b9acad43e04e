#include "attn_node/step_list.h"

#include <string.h>

enum { SEGMENT_WORDS = 3 };

uint64_t afd_step_list_words(const struct afd_step_list_limits *l)
{
    return 1 + (uint64_t)l->max_rows * (SEGMENT_WORDS + (uint64_t)l->kv_groups * l->max_blocks);
}

uint64_t afd_step_list_write(const struct afd_step_list_limits *l, const struct afd_step *step,
                             uint32_t *words)
{
    uint64_t at = 0;
    words[at++] = step->segment_count;
    for (uint32_t i = 0; i < step->segment_count; i++) {
        const struct afd_segment *s = &step->segments[i];
        words[at++] = s->rows;
        words[at++] = s->first_position;
        words[at++] = s->block_count;
        for (uint32_t g = 0; g < l->kv_groups; g++, at += s->block_count)
            memcpy(words + at, s->blocks + (size_t)g * s->group_stride, s->block_count * sizeof *words);
    }
    return at;
}

enum afd_status afd_step_list_read(const struct afd_step_list_limits *l, const uint32_t *words,
                                   uint64_t count, uint32_t rows, struct afd_segment *segments,
                                   struct afd_step *out)
{
    uint64_t at = 1;
    uint32_t next_row = 0;
    if (!count || !words[0] || words[0] > l->max_rows) return AFD_ERR_PROTOCOL;
    for (uint32_t i = 0; i < words[0]; i++) {
        if (count - at < SEGMENT_WORDS) return AFD_ERR_PROTOCOL;
        segments[i] = (struct afd_segment){.first_row = next_row,
                                           .rows = words[at],
                                           .first_position = words[at + 1],
                                           .block_count = words[at + 2],
                                           .group_stride = words[at + 2],
                                           .blocks = words + at + SEGMENT_WORDS};
        at += SEGMENT_WORDS;
        uint64_t tables = (uint64_t)segments[i].block_count * l->kv_groups;
        if (segments[i].block_count > l->max_blocks || tables > count - at ||
            segments[i].rows > rows - next_row)
            return AFD_ERR_PROTOCOL;
        next_row += segments[i].rows;
        at += tables;
    }
    if (next_row != rows) return AFD_ERR_PROTOCOL;
    *out = (struct afd_step){.rows = rows, .segment_count = words[0], .segments = segments};
    return AFD_OK;
}
