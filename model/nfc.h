/* nfc.h: Unicode normalization form C (Unicode Standard Annex 15; inside the model folder only).
 *
 * Pure functions over valid UTF-8. A run of combining marks is sorted by counting: a hostile one takes time
 * linear in its length. */
#ifndef AFD_MODEL_NFC_H
#define AFD_MODEL_NFC_H

#include "model/normalizer.h"

/* 1: the text is certainly in form C already. */
int afd_nfc_is(const char *text, size_t bytes);
enum afd_status afd_nfc(const char *text, size_t bytes, struct afd_buffer *out);

#endif
