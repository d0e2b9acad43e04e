"""Writes tests/fixtures/tokenizers.json: a tiny tokenizer of each family's form, trained and run by Hugging Face
tokenizers (0.23.3): what it encodes texts to, and what it decodes ids to.

    pip install tokenizers==0.23.3
    python3 tests/reference/tokenizers_fixtures.py > tests/fixtures/tokenizers.json"""
import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"]

CORPUS = ["The attention ranks hold the keys and values; the FFN ranks hold the experts, and the rows go between them.",
          "int main(int argc, char **argv)\n{\n    return argc > 1 ? 0 : 1;\n}\n", "for i in range(10):\n    print(i, i ** 2)\n",
          "注意力和前馈网络在不同的机器上。模型有很多专家。", "日本語のテキストもあります。", "It's 12345 and we'll see, I'M sure they'd agree.",
          "été naïve Ωmega привет мир", "🙂🙂 🎉 ok", "    indented\n\n\n  text\t\ttabs"] * 3
TEXTS = CORPUS[:9] + ["", " ", "  ", "a", "\n", "\r\n\r\n x", "e\u0301 \u0041\u030a \u1100\u1161\u11a8 \u0344\u0323\u0307q\u0307\u0323", "é", "Å",
                      "x<|end|>y", "<|end|><|end|>", "a <tool> b", "a<tool>b", "the the<mask> the", "word wordy word!", "it <strip>  x  <strip>\n",
                      "\u2581x \u2581", "1234567 12 1", "I'LL we'll 'S", "\u0007\u007f", "日本語abc漢字、。", "한국어 텍스트", "a\u00a0b\u3000c\u2003d",
                      "🙂👩‍👩‍👧‍👦🇩🇪", "ﬁ ½ ²", "\ufffd\ufffd", "مرحبا", "ไทย", "\u200b\u200d\ufeff", "AbC123aBc!?.,", "''''''", "<|en", "d|>", "tool>", "word", "sword word's"]


def added(t):
    t.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    t.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<strip>", lstrip=True, rstrip=True, normalized=False),
                  AddedToken("word", single_word=True, normalized=True), AddedToken("\u00c5x", normalized=True)])
    return t


def byte_level(splits, normalizer=None, ignore_merges=False, prefix=False, use_regex=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        t.normalizer = normalizer
    steps = [s if not isinstance(s, str) else pre_tokenizers.Split(Regex(s), "isolated") for s in splits]
    t.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                      show_progress=False))
    return added(t)


def spaced(metaspace):
    t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prepend = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.normalizer = prepend
    bytes_ = ["<0x%02X>" % b for b in range(256)]
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *bytes_], show_progress=False))
    made = json.loads(t.to_str())
    made["added_tokens"] = made["added_tokens"][:1]
    if metaspace:
        made["normalizer"] = None
        made["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": metaspace, "split": metaspace == "always"}
    t = Tokenizer.from_str(json.dumps(made))
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    return added(t)


FORMS = {
    "deepseek": lambda: byte_level(DEEPSEEK),
    "qwen": lambda: byte_level([LLAMA3.replace("{1,3}", "")], normalizers.NFC()),
    "llama3": lambda: byte_level([LLAMA3], ignore_merges=True),
    "gpt2": lambda: byte_level([], prefix=True, use_regex=True),
    "smollm": lambda: byte_level([pre_tokenizers.Digits(individual_digits=True)], use_regex=True),
    "llama2": lambda: spaced(None),
    "metaspace-first": lambda: spaced("first"),
    "metaspace-always": lambda: spaced("always"),
}


def main():
    out, rng = [], random.Random(3)
    for name, make in FORMS.items():
        t = make()
        shown = [i for i, a in t.get_added_tokens_decoder().items() if a.normalized]
        # The library shows added tokens through its byte alphabet, or normalized; afd as they are written.
        usable = [i for i in range(t.get_vocab_size()) if not t.id_to_token(i).startswith("<0x")
                  and i not in shown]
        ids = [[rng.choice(usable) for _ in range(30)] for _ in range(12)]
        made = json.loads(t.to_str())
        made["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in made["model"]["merges"]]
        out.append({"name": name, "tokenizer": made,
                    "texts": [{"text": x, "ids": t.encode(x, add_special_tokens=False).ids} for x in TEXTS],
                    "ids": [{"ids": x, "text": t.decode(x, skip_special_tokens=False)} for x in ids]})
    body = ",\n".join(json.dumps(x, ensure_ascii=False, separators=(",", ":")) for x in out)
    print('{"made_by":"tests/reference/tokenizers_fixtures.py, tokenizers 0.23.3","forms":[\n%s\n]}' % body)


if __name__ == "__main__":
    main()
