#!/usr/bin/env python3
"""Make the fixtures that the C tests hold step3-nano against.

    python3 make_fixtures.py tinyshakespeare.txt --out ../../tests/fixtures/nano

logprobs.json: for some prompts the ids by the `tokenizers` package, the log-probability of each id
given those before it (so one less than there are ids), the five most likely next ids, and the
greedy continuation.  The forward pass is PyTorch's in float32 with the shipped bf16 weights widened;
the log-softmax of its logits is taken in float64.

tokenizer_cases.json: strings and their ids, by the `tokenizers` package.

Two float32 implementations differ by rounding, and twice a rounding can be seen as more than that:
where the two most likely tokens nearly tie (a continuation stops before such a step: `greedy` may
be shorter than 32), and where the third and fourth expert of a token nearly tie (`router_margin`
is the least such difference of probabilities over the MoE layers and the tokens of the prompt and
its continuation).  Excerpts of the held-out text are the first speeches where it is over 2e-5.
"""
import argparse
import hashlib
import json
import os

import tokenizers
import torch

import train

GREEDY, MARGIN, ROUTER_MARGIN = 32, 1e-3, 2e-5

TOKENIZER_CASES = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\r\n", " \n ", "a", " a", "a ", "  a", "a  b",
    "a   b    c", "a\tb", "a\n\nb", "tail   ", "tail\n", "\n lead", " \t mixed \t\n white  \n",
    "ROMEO:", "ROMEO:\nO, speak again, bright angel!", "First Citizen:\nWe are accounted poor citizens,",
    "the the the", "thethethe", "THE The tHe", "0", "7", "1623", "3.14159", "1,000,000", "2nd of 10th",
    "abc123def456", "I'll we've he'd you're it's I'm don't 'tis", "I'LL WE'VE HE'D", "'s 't 're 've 'm 'll 'd",
    "o'er th' ne'er", "''quoted''", "\"double\" and `back`", "!?.,;:", "... --- ***", "a-b_c/d\\e", "$€£¥",
    "(x[0]{y}<z>)", "e\u0301 \u00e9", "na\u00efve caf\u00e9 - \u4f60\u597d \U0001f642", "\u4f60\u597d\u4e16\u754c",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f4bb\U0001f642", "\u00a0nbsp\u00a0x", "\u2003em\u3000wide  ", "x\u00b2 \u00bd \u0663\u0664 \u216b",
    "\x01\x02\x7f", "<|endoftext|>", "<|endoftext|>ROMEO:", "a<|endoftext|> b", "<|endoftext|><|endoftext|>",
    "<|endoftext|", "< |endoftext|>", "<|ENDOFTEXT|>", "x" * 40, "Zwischenf\u00e4lle \u00df",
]


PROMPTS = [  # text that is not in the training data's style, and the least there can be
    ("one token", "R"),
    ("bos alone", train.EOT),
    ("bos and a speaker", train.EOT + "ROMEO:\n"),
    ("odd ascii", "{\"key\": [1, 2.5e-3, null]}\t// 100% & <b>#!</b>\n\n\n   ~end~"),
    ("utf-8", "na\u00efve caf\u00e9 - \u4f60\u597d \U0001f642"),
]
EXCERPTS = [("held-out line", 60), ("held-out speech", 210), ("held-out page", 420)]


def margin(values, k):
    """The least difference, over rows, of the k-th and the next largest value."""
    top = values.topk(k + 1, -1).values
    return (top[..., k - 1] - top[..., k]).min().item()


@torch.no_grad()
def run(model, ids):
    """Log-probabilities [T, V] in float64 and the least router margin."""
    gates, hooks = [], []
    for moe in model.routers().values():
        hooks.append(moe.gate.register_forward_hook(lambda m, i, out: gates.append(out.softmax(-1))))
    logits = model(torch.tensor([ids]))[0]
    for hook in hooks:
        hook.remove()
    return logits.double().log_softmax(-1), min(margin(g, train.CONFIG["moe_top_k"]) for g in gates)


def case(model, tokenizer, name, text):
    ids = tokenizer.encode(text).ids
    logp, _ = run(model, ids)
    given = logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:], dtype=torch.long)]
    best = logp[-1].topk(5)
    greedy, least = [], None
    while len(greedy) < GREEDY:
        row = run(model, ids + greedy)[0][-1]
        if margin(row, 1) <= MARGIN:
            break
        least = margin(row, 1) if least is None else min(least, margin(row, 1))
        greedy.append(row.argmax().item())
        if greedy[-1] == train.CONFIG["eos_token_id"]:
            break
    router_margin = run(model, ids + greedy)[1]
    return {"name": name, "text": text, "ids": ids, "logprobs": given.tolist(),
            "next_ids": best.indices.tolist(), "next_logprobs": best.values.tolist(),
            "router_margin": router_margin, "greedy": greedy, "greedy_margin": least,
            "greedy_text": tokenizer.decode(greedy, skip_special_tokens=False)}


def write_rows(path, head, rows):
    """JSON with a case a line, so that a change to one shows as one."""
    with open(path, "w", encoding="utf-8") as f:
        f.write("{\n")
        for key, value in head.items():
            f.write("%s: %s,\n" % (json.dumps(key), json.dumps(value)))
        f.write('"cases": [\n')
        f.write(",\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
        f.write("\n]\n}\n")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", help="the text that the model was trained on")
    parser.add_argument("--model", default=here)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    torch.set_num_threads(1)

    weights = os.path.join(args.model, "model.safetensors")
    model = train.Step3(train.CONFIG).eval()
    model.load_state_dict(train.load_safetensors(weights))
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    with open(weights, "rb") as f:
        head = {"model_sha256": hashlib.sha256(f.read()).hexdigest(),
                "torch": torch.__version__, "tokenizers": tokenizers.__version__}
    with open(args.text, encoding="utf-8", newline="") as f:
        text = f.read()

    held = text[int(0.9 * len(text)):]
    rows = [case(model, tokenizer, *p) for p in PROMPTS]
    at = 0
    for name, size in EXCERPTS:
        while True:
            at = held.index("\n\n", at) + 2  # the start of a speech
            row = case(model, tokenizer, name, held[at:at + size])
            if row["router_margin"] > ROUTER_MARGIN:
                break
        rows.append(row)
        at += size
    write_rows(os.path.join(args.out, "logprobs.json"), head, rows)
    for r in rows:
        print("%-18s %3d ids  greedy %2d  margin %s  router margin %.1e" % (
            r["name"], len(r["ids"]), len(r["greedy"]), r["greedy_margin"], r["router_margin"]))

    rows = []
    for text in TOKENIZER_CASES:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text, text
        rows.append({"text": text, "ids": ids})
    write_rows(os.path.join(args.out, "tokenizer_cases.json"),
               {"tokenizers": tokenizers.__version__}, rows)
    print(len(rows), "tokenizer cases")


if __name__ == "__main__":
    main()
