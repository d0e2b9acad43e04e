"""GGUF files that `afd model convert` wrote, read by llama.cpp.

    python3 gguf_llama_cpp.py BIN SCORE MODEL.gguf TEXT [TOKENS]     BIN: folder of the built `afd`; SCORE: the built
                                                                     afd-reference-score
    python3 gguf_llama_cpp.py BIN tokenizer DIR TEXT...              DIR: holds a tokenizer.json

The first turns the model (SmolLM2's GGUF file) into safetensors in float32, that into GGUF of every type, and for
each has llama.cpp and afd score TOKENS (400) tokens of a text: perplexities, mean KL between the two, whether llama.cpp
cuts the text into the same tokens as in the source file, and whether the 32 tokens that it generates greedily are
those that afd would (a token counts where afd's margin exceeds 0.05 nat; after the first that differs none is compared).
Beside it the time that the conversion took and the error that it reports. The second makes a tiny Llama with that tokenizer, turns it into GGUF, and compares
llama.cpp's tokens of the texts with those of Hugging Face's library, document by document of 1,000 characters.

Made with Python 3.11, torch 2.2.2, tokenizers 0.22.2, llama-cpp-python 0.3.16.
"""
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from llama_cpp import Llama

TYPES = ["q8_0", "q4_k", "q6_k", "q4_0", "q4_1", "q5_0", "q5_1", "bf16", "f16", "f32"]
GENERATED = 32
GGML_TYPE_F32 = 0


def afd(bin, *arguments):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    out = subprocess.run([os.path.join(bin, "afd"), *arguments], check=True, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return out, time.monotonic() - start, cpu


def score(program, path, tokens, vocab):
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "tokens"), "w") as f:
            f.write("\n".join(map(str, tokens)))
        subprocess.run([program, path, os.path.join(d, "tokens"), os.path.join(d, "out")], check=True)
        logits = np.fromfile(os.path.join(d, "out"), dtype=np.float32).reshape(len(tokens), vocab)
    return torch.from_numpy(logits).log_softmax(-1)


def perplexity(logprobs, tokens):
    return float((-logprobs[:-1].gather(1, torch.tensor(tokens[1:])[:, None]).mean()).exp())


def look(program, path, text, tokens):
    llm = Llama(model_path=path, n_ctx=len(tokens) + GENERATED + 8, n_batch=512, logits_all=True, verbose=False,
                n_threads=2, n_threads_batch=2)
    same_cut = llm.tokenize(text.encode(), add_bos=False, special=False)[:len(tokens)] == tokens
    llm.eval(tokens)
    theirs = torch.from_numpy(np.array(llm.scores[:len(tokens)], dtype=np.float32)).log_softmax(-1)
    generated = []
    while len(generated) < GENERATED:
        generated.append(int(np.argmax(llm.scores[llm.n_tokens - 1])))
        llm.eval(generated[-1:])
    ours = score(program, path, tokens + generated, theirs.shape[1])
    kl = float((theirs.exp() * (theirs - ours[:len(tokens)])).sum(-1).mean())
    equal = 0
    for i, token in enumerate(generated):
        best = ours[len(tokens) - 1 + i].topk(2)
        if int(best.indices[0]) != token and float(best.values[0] - best.values[1]) > 0.05:
            break
        equal += 1
    return perplexity(theirs, tokens), perplexity(ours[:len(tokens)], tokens), kl, equal, same_cut


def convert(bin, source, to, *arguments):
    report, wall, cpu = afd(bin, "model", "convert", source, "-o", to, "--json", *arguments)
    tensors = [t for t in json.loads(report)["tensors"] if t["rms_relative_error"] > 0]
    worst = max(tensors, key=lambda t: t["rms_relative_error"]) if tensors else None
    return wall, cpu, f"{100 * worst['rms_relative_error']:.3g}% ({worst['name']}, {worst['to']})" if worst else "none"


def models(bin, program, source, text, count):
    text = open(text, encoding="utf-8").read()[:count * 16]
    tokens = Llama(model_path=source, vocab_only=True, verbose=False).tokenize(text.encode(), add_bos=False,
                                                                               special=False)[:count]
    row = lambda name, wall, cpu, size, worst, looked: print(
        f"{name}: converted in {wall:.1f} s ({cpu:.1f} s of CPU), {size / 1e6:.0f} MB, worst rms error {worst}; perplexity "
        f"llama.cpp {looked[0]:.4f}, afd {looked[1]:.4f}, KL {looked[2]:.2g}; {looked[3]} of {GENERATED} generated tokens "
        f"are afd's; the text's tokens {'are the same' if looked[4] else 'DIFFER'}", flush=True)
    row("source", 0, 0, os.path.getsize(source), "none", look(program, source, text, tokens))
    with tempfile.TemporaryDirectory() as d:
        wide = os.path.join(d, "wide")
        wall, cpu, worst = convert(bin, source, wide, "--to", "safetensors", "--type", "f32")
        print(f"safetensors f32: converted in {wall:.1f} s ({cpu:.1f} s of CPU), worst rms error {worst}; afd's perplexity "
              f"{perplexity(score(program, wide, tokens, 49152), tokens):.4f}", flush=True)
        for kind in TYPES:
            path = os.path.join(d, kind + ".gguf")
            wall, cpu, worst = convert(bin, wide, path, "--to", "gguf", "--type", kind)
            row(kind, wall, cpu, os.path.getsize(path), worst, look(program, path, text, tokens))
            os.remove(path)


def tokenizer(bin, folder, paths):
    import tokenizers
    source = os.path.join(folder, "tokenizer.json")
    hf = tokenizers.Tokenizer.from_file(source)
    with tempfile.TemporaryDirectory() as d:
        tiny, path = os.path.join(d, "tiny"), os.path.join(d, "tiny.gguf")
        afd(bin, "model", "make", tiny, "--family", "llama", "--vocab", str(hf.get_vocab_size()), "--hidden", "32",
            "--layers", "1")
        for name in os.listdir(tiny):
            if name.startswith("tokenizer"):
                os.remove(os.path.join(tiny, name))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if os.path.exists(os.path.join(folder, name)):
                shutil.copy(os.path.join(folder, name), tiny)
        afd(bin, "model", "convert", tiny, "-o", path, "--to", "gguf")
        llm = Llama(model_path=path, vocab_only=True, verbose=False)
        documents = differ = count = 0
        for name in paths:
            text = open(name, encoding="utf-8", errors="replace").read()
            for at in range(0, len(text), 1000):
                part = text[at:at + 1000].replace("\x00", " ")
                want = hf.encode(part, add_special_tokens=False).ids
                got = llm.tokenize(part.encode(), add_bos=False, special=False)
                documents += 1
                count += len(want)
                if got != want and differ < 3:
                    k = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
                    print(f"{name} at {at}: {[hf.id_to_token(i) for i in want[k - 1:k + 4]]}, "
                          f"llama.cpp {[hf.id_to_token(i) for i in got[k - 1:k + 4]]}")
                differ += got != want
        print(f"{documents} documents, {count} tokens: {differ} documents differ")


if sys.argv[2] == "tokenizer":
    tokenizer(sys.argv[1], sys.argv[3], sys.argv[4:])
else:
    models(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]) if len(sys.argv) > 5 else 400)
