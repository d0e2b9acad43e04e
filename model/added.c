#include "model/added.h"

#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/utf8.h"

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

enum afd_status afd_added_put(struct afd_added *added, const char *text, size_t bytes, uint32_t id,
                              unsigned flags)
{
    uint32_t node = 0;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t child = find_child(added, node, (unsigned char)text[i]);
        if (!child) child = add_child(added, node, (unsigned char)text[i]);
        if (!child) return AFD_ERR_MEMORY;
        node = child;
    }
    added->nodes[node].id = id;
    added->nodes[node].flags = (unsigned char)flags;
    return AFD_OK;
}

/* The longest token that begins at `at`; its bytes, 0: none. */
static size_t match_at(const struct afd_added *added, const char *text, size_t bytes, size_t at, int special,
                       const unsigned char *marks, const struct afd_added_node **node_out)
{
    size_t longest = 0;
    uint32_t node = 0;
    for (size_t i = at; i < bytes && !(marks && marks[i]); i++) {
        node = find_child(added, node, (unsigned char)text[i]);
        if (!node) break;
        const struct afd_added_node *n = &added->nodes[node];
        if (n->id == UINT32_MAX || (n->flags & AFD_ADDED_SPECIAL && !special)) continue;
        longest = i + 1 - at;
        *node_out = n;
    }
    return longest;
}

/* White_Space of the Unicode Character Database. */
static int is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

static size_t before(const char *text, size_t at)
{
    do at--;
    while (at && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

static uint32_t character(const char *text, size_t bytes, size_t at, size_t *next)
{
    uint32_t c = 0;
    *next = at + afd_utf8_decode((const unsigned char *)text + at, bytes - at, &c);
    return c;
}

/* Letters, marks, digits, connectors and joiners, by PCRE2's tables. */
static int is_word(const char *text, size_t begin, size_t end)
{
    static const char class[] = "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}]";
    int code;
    PCRE2_SIZE where;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR) class, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &where, NULL);
    pcre2_match_data *match = re ? pcre2_match_data_create(1, NULL) : NULL;
    int yes = match && pcre2_match(re, (PCRE2_SPTR)text + begin, end - begin, 0, 0, match, NULL) > 0;
    pcre2_match_data_free(match);
    pcre2_code_free(re);
    return yes;
}

static int is_single(const char *text, size_t bytes, size_t begin, size_t end)
{
    size_t next = end;
    if (begin && is_word(text, before(text, begin), begin)) return 0;
    if (end < bytes) character(text, bytes, end, &next);
    return end == bytes || !is_word(text, end, next);
}

static void strip(const char *text, size_t bytes, size_t from, unsigned flags, struct afd_added_match *m)
{
    size_t next;
    while (flags & AFD_ADDED_LSTRIP && m->begin > from &&
           is_space(character(text, bytes, before(text, m->begin), &next)))
        m->begin = before(text, m->begin);
    while (flags & AFD_ADDED_RSTRIP && m->end < bytes && is_space(character(text, bytes, m->end, &next)))
        m->end = next;
}

int afd_added_next(const struct afd_added *added, const char *text, size_t bytes, size_t from, int special,
                   const unsigned char *marks, struct afd_added_match *out)
{
    if (!added->count) return 0;
    for (size_t at = from; at < bytes;) {
        const struct afd_added_node *node;
        size_t length = 0;
        if (added->first[(unsigned char)text[at]])
            length = match_at(added, text, bytes, at, special, marks, &node);
        if (!length) {
            at++;
            continue;
        }
        if (node->flags & AFD_ADDED_SINGLE_WORD && !is_single(text, bytes, at, at + length)) {
            at += length;
            continue;
        }
        *out = (struct afd_added_match){at, at + length, node->id};
        strip(text, bytes, from, node->flags, out);
        return 1;
    }
    return 0;
}

int64_t afd_added_find(const struct afd_added *added, const char *text, size_t bytes)
{
    const struct afd_added_node *node;
    return bytes && match_at(added, text, bytes, 0, 1, NULL, &node) == bytes ? (int64_t)node->id : -1;
}

void afd_added_fini(struct afd_added *added)
{
    free(added->nodes);
    added->nodes = NULL;
}
