/* split.c: messages of two pieces over regions of one (backend.h). */
#include <stdlib.h>

#include "transport/backend.h"

enum { REST = 1, HEAD = 2, KINDS }; /* of a region, by its number / count; 0: a head alone */

/* Of the message that a region of ours waits for. */
struct arrived {
    uint16_t head_sequence, rest_sequence;
    uint8_t has_head, has_rest;
    uint32_t rest_bytes;
};

/* Of the peer's region: the rest of this message is on its way, the head was not taken yet. */
struct sent {
    uint16_t sequence;
    uint8_t has_rest;
};

struct afd_split {
    uint32_t count, head;
    struct sent sent[AFD_MAX_SPLIT_REGIONS];
    struct arrived arrived[]; /* [count] */
};

enum afd_status afd_split_regions(struct afd_pair *pair, const struct afd_region *regions,
                                  uint32_t *count_inout, struct afd_region **out, struct afd_error *error_out)
{
    uint32_t count = *count_inout;
    *out = NULL;
    if (count > AFD_MAX_SPLIT_REGIONS)
        return afd_fail(error_out, AFD_ERR_REQUEST, "%u regions in two pieces: at most %d", count,
                        AFD_MAX_SPLIT_REGIONS);
    for (uint32_t i = 0; i < count; i++)
        if (!regions[i].head || regions[i].head != regions[0].head || regions[i].bytes < regions[i].head)
            return afd_fail(error_out, AFD_ERR_REQUEST, "region %u is not cut as region 0 is", i);
    pair->split = calloc(1, sizeof *pair->split + count * sizeof *pair->split->arrived);
    *out = calloc((size_t)KINDS * count, sizeof **out);
    if (!pair->split || !*out) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    *count_inout = KINDS * count;
    pair->split->count = count;
    pair->split->head = regions[0].head;
    for (uint32_t i = 0; i < count; i++) {
        (*out)[i] = (*out)[HEAD * count + i] =
            (struct afd_region){.base = regions[i].base, .bytes = regions[i].head};
        (*out)[REST * count + i] =
            (struct afd_region){.base = regions[i].rest, .bytes = regions[i].bytes - regions[i].head};
    }
    return AFD_OK;
}

int afd_split_join(struct afd_pair *pair, struct afd_notice_event *event)
{
    struct afd_split *split = pair->split;
    uint32_t kind = event->region / split->count;
    struct arrived *a = &split->arrived[event->region % split->count];
    event->region = (uint16_t)(event->region % split->count);
    if (kind != REST && kind != HEAD) return 1;
    if (kind == REST) {
        a->has_rest = 1;
        a->rest_sequence = event->sequence;
        a->rest_bytes = event->bytes;
    } else if (event->bytes != split->head) {
        afd_pair_fail(pair, AFD_ERR_PROTOCOL, "a head of %u bytes in region %u: expected %u", event->bytes,
                      event->region, split->head);
        return 0;
    } else {
        a->has_head = 1;
        a->head_sequence = event->sequence;
    }
    if (!a->has_head || !a->has_rest || a->head_sequence != a->rest_sequence) return 0;
    event->bytes = split->head + a->rest_bytes;
    a->has_head = a->has_rest = 0;
    return 1;
}

enum afd_status afd_pair_put_split(struct afd_pair *pair, uint16_t region, const void *from, uint32_t head,
                                   const void *rest, uint32_t rest_bytes, uint16_t sequence)
{
    uint32_t count = pair->peer_region_count / KINDS;
    if (!pair->split || region >= count || count > AFD_MAX_SPLIT_REGIONS) return AFD_ERR_REQUEST;
    if (!rest_bytes) return afd_pair_put(pair, region, from, head, sequence);
    struct sent *sent = &pair->split->sent[region];
    enum afd_status status = AFD_OK;
    if (!sent->has_rest || sent->sequence != sequence)
        status = afd_pair_put(pair, (uint16_t)(REST * count + region), rest, rest_bytes, sequence);
    if (status) return status;
    *sent = (struct sent){sequence, 1};
    status = afd_pair_put(pair, (uint16_t)(HEAD * count + region), from, head, sequence);
    if (!status) sent->has_rest = 0;
    return status;
}
