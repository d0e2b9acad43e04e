#include "compute/cpu/panels.h"

#include <emmintrin.h>

/* 16 vectors, one of each row, become the same elements column by column. Seen as an index (row, column in
 * the vector), one round of unpacking vectors i and i + 8 rotates its bits by one to the left, whatever the
 * size of an element; four rounds bring the four bits of the row to the end. */
#define TRANSPOSE(unpack_low, unpack_high)                                                                   \
    for (int round = 0; round < 4; round++) {                                                                \
        __m128i out[16];                                                                                     \
        for (int i = 0; i < 8; i++) {                                                                        \
            out[2 * i] = unpack_low(v[i], v[i + 8]);                                                         \
            out[2 * i + 1] = unpack_high(v[i], v[i + 8]);                                                    \
        }                                                                                                    \
        memcpy(v, out, sizeof out);                                                                          \
    }

static inline __attribute__((always_inline)) void transpose(uint32_t element, const char *const *rows,
                                                            size_t at, char *to)
{
    __m128i v[16];
    for (int i = 0; i < 16; i++) v[i] = _mm_loadu_si128((const __m128i *)(const void *)(rows[i] + at));
    if (element == 1)
        TRANSPOSE(_mm_unpacklo_epi8, _mm_unpackhi_epi8)
    else if (element == 2)
        TRANSPOSE(_mm_unpacklo_epi16, _mm_unpackhi_epi16)
    else
        TRANSPOSE(_mm_unpacklo_epi32, _mm_unpackhi_epi32)
    for (int i = 0; i < 16; i++) _mm_store_si128((__m128i *)(void *)to + i, v[i]);
}

/* 16 rows of `bytes` each, from the rows' begin. */
static inline __attribute__((always_inline)) void pack_rows(uint32_t element, const char *const *rows,
                                                            size_t bytes, char *to)
{
    size_t at = 0;
    for (; at + 16 <= bytes; at += 16) transpose(element, rows, at, to + at * 16);
    for (; at < bytes; at += element)
        for (size_t i = 0; i < 16; i++) memcpy(to + at * 16 + i * element, rows[i] + at, element);
}

void afd_panels_pack(const struct afd_weight_view *view, uint32_t begin, uint32_t end, void *panels)
{
    uint32_t element = view->quant ? 1 : afd_dtype_bytes(view->dtype);
    size_t bytes = afd_weight_row_bytes(view);
    for (uint32_t p = begin; p < end; p++) {
        char *to = (char *)panels + p * afd_panel_bytes(view);
        const char *rows[AFD_PANEL];
        uint32_t first = p * AFD_PANEL;
        uint32_t count = view->rows - first < AFD_PANEL ? view->rows - first : AFD_PANEL;
        for (uint32_t i = 0; i < AFD_PANEL; i++) /* past the last row: it again, then zeros in its place */
            rows[i] = (const char *)view->data + (first + (i < count ? i : count - 1)) * view->row_bytes;
        if (element == 1)
            pack_rows(1, rows, bytes, to);
        else if (element == 2)
            pack_rows(2, rows, bytes, to);
        else
            pack_rows(4, rows, bytes, to);
        for (size_t k = 0; k < bytes / element && count < AFD_PANEL; k++)
            memset(to + (k * AFD_PANEL + count) * element, 0, (AFD_PANEL - count) * element);
    }
}
