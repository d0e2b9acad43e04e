"""Compares afd's tokenizer with Hugging Face tokenizers (0.23.3) on mixed text.

    python3 tests/reference/tokenizers_compare.py TOOL FOLDER... [--mb 10]

TOOL is afd-reference-text; each FOLDER holds a tokenizer.json (tokenizers_families.py makes them). The text is the same
every time: source code and pages of this repository and of Python's library, sequences of random tokens of the
tokenizer itself (words of all its languages, emoji, halves of characters, which become U+FFFD), random Unicode, runs of
white space, and special tokens in between. Then random ids are decoded by both, broken UTF-8 included.

Code points that Unicode added after 14.0, and U+180E, are left out: the classes of PCRE2 10.42 and of the
library's Oniguruma are of different versions there; so are the combining marks that Unicode 10 to 14 added, which
the library's NFC does not know. <0x41> tokens are not among the random ids: where a run of them is broken UTF-8 the
library replaces all of it, afd only what is broken."""
import argparse
import pathlib
import random
import struct
import subprocess
import sys
import sysconfig
import unicodedata

import tokenizers


class Tool:
    def __init__(self, path, what, folder):
        self.p = subprocess.Popen([path, what, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, body):
        self.p.stdin.write(struct.pack("<I", len(body)) + body)
        self.p.stdin.flush()
        return self.p.stdout.read(struct.unpack("<I", self.p.stdout.read(4))[0])


def files():
    root = pathlib.Path(__file__).parents[2]
    paths = [*root.glob("*/*.[ch]"), *root.glob("docs/*.md")]
    paths += sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for p in sorted(paths):
        text = p.read_bytes().decode("utf-8", errors="replace")
        for i in range(0, len(text), 3000):
            yield text[i:i + 3000]


NEW_MARKS = {0x7FD, 0x8D3, 0x9FE, 0xAFC, 0xC3C, 0xD3B, 0xD3C, 0xEBA, 0x1715, 0x10EAB, 0x10EAC, 0x11070, 0x1133B, 0x1145E,
             0x11839, 0x1183A, 0x11935, 0x11938, 0x1193D, 0x1193E, 0x11943, 0x119E0, 0x11A34, 0x11A47, 0x11A99,
             0x11D42, 0x11D44, 0x11D45, 0x11D97, 0x16FF0, 0x16FF1, 0x1E2AE, *range(0x898, 0x8A0),
             *range(0x8CA, 0x8D3), *range(0x1ABF, 0x1ACF), *range(0x1DF6, 0x1DFB), *range(0x10A0D, 0x10A10),
             *range(0x10F46, 0x10F51), *range(0x10F82, 0x10F86), *range(0x1E130, 0x1E137), *range(0x1E2EC, 0x1E2F0)}


def known(c):
    return c != 0x180E and c not in NEW_MARKS and not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) != "Cn"


def documents(tok, rng, special, limit):
    code = list(files())
    rng.shuffle(code)
    size, pool = tok.get_vocab_size(), [c for c in range(0x110000) if known(c)]
    bmp = [c for c in pool if c < 0x3100]
    total = 0
    while total < limit:
        kind = rng.randrange(6)
        if kind <= 1:
            text = rng.choice(code)
        elif kind <= 3:
            text = tok.decode([rng.randrange(size) for _ in range(400)], skip_special_tokens=False)
            text = "".join(c if known(ord(c)) else " " for c in text)
        elif kind == 4:
            text = "".join(chr(rng.choice(pool if rng.random() < 0.3 else bmp)) for _ in range(rng.randrange(800)))
        else:
            text = "".join(rng.choice([" ", "  ", "\n", "\t", "\r\n", "a", "1", "é", "e\u0301", "!", "'S", "12345", "日"])
                           for _ in range(rng.randrange(600)))
        if special and rng.random() < 0.3:
            for _ in range(4):
                at = rng.randrange(len(text) + 1)
                text = text[:at] + rng.choice(special) + text[at:]
        total += len(text.encode())
        yield text


def compare(tool, folder, megabytes):
    tok = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
    special = [t.content for t in tok.get_added_tokens_decoder().values()][:40]
    rng, ours = random.Random(7), Tool(tool, "encode", folder)
    total = tokens = different = 0
    for text in documents(tok, rng, special, megabytes * 1000000):
        expected = tok.encode(text, add_special_tokens=False).ids
        raw = ours.ask(text.encode())
        got = list(struct.unpack("<%dI" % (len(raw) // 4), raw))
        total, tokens = total + len(text.encode()), tokens + len(got)
        if got != expected:
            different += 1
            if different <= 3:
                at = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
                print("  differs at token %d: %r, expected %r" % (at, [tok.id_to_token(i) for i in got[at - 2:at + 4]],
                                                                  [tok.id_to_token(i) for i in expected[at - 2:at + 4]]))
    back, broken, size = Tool(tool, "decode", folder), 0, tok.get_vocab_size(with_added_tokens=True)
    usable = [i for i in range(size) if not (tok.id_to_token(i) or "").startswith("<0x")]
    for _ in range(2000):
        ids = [rng.choice(usable) for _ in range(rng.randrange(1, 200))]
        expected = tok.decode(ids, skip_special_tokens=False)
        got = back.ask(struct.pack("<%dI" % len(ids), *ids)).decode()
        broken += got != expected
        if got != expected and broken <= 2:
            at = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), 0)
            print("  decodes %r, expected %r" % (got[max(0, at - 5):at + 9], expected[max(0, at - 5):at + 9]))
    print("%s: %.1f MB, %d tokens: %d documents differ; of 2000 random sequences %d decode differently"
          % (folder, total / 1e6, tokens, different, broken))
    return different + broken


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("tool")
    p.add_argument("folders", nargs="+")
    p.add_argument("--mb", type=float, default=10)
    a = p.parse_args()
    print("tokenizers", tokenizers.__version__)
    sys.exit(1 if sum(compare(a.tool, f, a.mb) for f in a.folders) else 0)
