"""Writes model/unicode_nfc.inc: what canonical normalization needs of the Unicode Character Database.

    python3 tests/reference/unicode_nfc.py > model/unicode_nfc.inc

The version is that of Python's unicodedata, and stands in the file's first line."""
import sys
import unicodedata as u

HANGUL = range(0xAC00, 0xD7A4)


def canonical(c):
    d = u.decomposition(chr(c))
    return [int(x, 16) for x in d.split()] if d and not d.startswith("<") and c not in HANGUL else []


def rows(items, per):
    for i in range(0, len(items), per):
        print("    " + " ".join(items[i:i + per]))


chars = range(sys.maxunicode + 1)
pairs = {c: canonical(c) for c in chars if canonical(c)}
print(f"/* Unicode {u.unidata_version}. Written by tests/reference/unicode_nfc.py. */")
print("static const uint32_t nfc_decompositions[][3] = { /* character, its parts (the second may be 0) */")
rows(["{0x%x, 0x%x, 0x%x}," % (c, d[0], d[1] if len(d) > 1 else 0) for c, d in pairs.items()], 4)
print("};")
composed = sorted((d[0], d[1], c) for c, d in pairs.items()
                  if len(d) == 2 and u.normalize("NFC", "".join(map(chr, d))) == chr(c))
print("static const uint32_t nfc_compositions[][3] = { /* first, second, what they make; ascending */")
rows(["{0x%x, 0x%x, 0x%x}," % t for t in composed], 4)
print("};")
runs = []
for c in chars:
    k = u.combining(chr(c))
    if not k:
        continue
    if runs and runs[-1][1] == c - 1 and runs[-1][2] == k:
        runs[-1][1] = c
    else:
        runs.append([c, c, k])
print("static const struct {\n    uint32_t first, last;\n    uint8_t order;\n} nfc_classes[] = { /* combining classes that are not 0 */")
rows(["{0x%x, 0x%x, %d}," % tuple(r) for r in runs], 5)
print("};")
# Characters that may change or be changed by what stands beside them: not "NFC_Quick_Check=Yes", or a class.
seconds = {b for _, b, _ in composed} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
touched = []
for c in chars:
    if 0xD800 <= c < 0xE000:
        continue
    if u.combining(chr(c)) or u.normalize("NFC", chr(c)) != chr(c) or c in seconds:
        if touched and touched[-1][1] >= c - 1:
            touched[-1][1] = c
        else:
            touched.append([c, c])
print("static const uint32_t nfc_touched[][2] = { /* ranges that a text without is normalized already */")
rows(["{0x%x, 0x%x}," % tuple(r) for r in touched], 7)
print("};")
