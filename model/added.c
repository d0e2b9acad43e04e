#include "model/added.h"

#include <stdlib.h>

static uint32_t find_child(const struct afd_added *added, uint32_t node, unsigned char byte)
{
    if (!node) return added->first[byte];
    uint32_t child = added->nodes[node].child;
    while (child && added->nodes[child].byte != byte) child = added->nodes[child].sibling;
    return child;
}

static uint32_t add_child(struct afd_added *added, uint32_t node, unsigned char byte)
{
    if (added->count + 1 >= added->room) {
        uint32_t room = added->room ? 2 * added->room : 256;
        struct afd_added_node *grown = realloc(added->nodes, room * sizeof *grown);
        if (!grown) return 0;
        added->nodes = grown;
        added->room = room;
    }
    uint32_t child = ++added->count;
    added->nodes[child] = (struct afd_added_node){.id = UINT32_MAX, .byte = byte};
    if (node) {
        added->nodes[child].sibling = added->nodes[node].child;
        added->nodes[node].child = child;
    } else
        added->first[byte] = child;
    return child;
}

enum afd_status afd_added_put(struct afd_added *added, const char *text, uint32_t id, int special)
{
    uint32_t node = 0;
    for (; *text; text++) {
        uint32_t child = find_child(added, node, (unsigned char)*text);
        if (!child) child = add_child(added, node, (unsigned char)*text);
        if (!child) return AFD_ERR_MEMORY;
        node = child;
    }
    added->nodes[node].id = id;
    added->nodes[node].special = special != 0;
    return AFD_OK;
}

size_t afd_added_match(const struct afd_added *added, const char *text, size_t bytes, int special,
                       uint32_t *id_out)
{
    size_t longest = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < bytes && (node = find_child(added, node, (unsigned char)text[i])); i++) {
        const struct afd_added_node *n = &added->nodes[node];
        if (n->id == UINT32_MAX || (n->special && !special)) continue;
        longest = i + 1;
        *id_out = n->id;
    }
    return longest;
}

void afd_added_fini(struct afd_added *added)
{
    free(added->nodes);
    added->nodes = NULL;
}
