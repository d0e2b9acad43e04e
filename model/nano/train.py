#!/usr/bin/env python3
"""Train step3-nano: a small, real Step3TextForCausalLM on one text file.

One command does everything: the tokenizer, the training, the evaluation, the export.

    python3 train.py tinyshakespeare.txt --out . --work /tmp/nano

Needs torch, numpy and tokenizers; no GPU.  --work holds a checkpoint, from which the same
command goes on if it was stopped.  Written to --out: config.json, generation_config.json,
tokenizer.json, tokenizer_config.json, model.safetensors (the best held-out weights so far, bf16),
curve.csv, curve.svg and, at the end, eval.json.

Shapes in comments: B windows, T tokens a window, H hidden, h heads, d head_dim, E experts, I width.
"""
import argparse
import json
import math
import os
import struct
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = {
    "architectures": ["Step3TextForCausalLM"],
    "model_type": "step3_text",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_attention_groups": 1,
    "head_dim": 32,
    "share_q_dim": 64,
    "moe_layers_enum": "1,2",
    "moe_num_experts": 8,
    "moe_top_k": 3,
    "moe_intermediate_size": 96,
    "share_expert_dim": 128,
    "norm_expert_weight": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embedding": 512,
    "max_seq_len": 512,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
EOT = "<|endoftext|>"  # id 0: the first special token the trainer is given

# The schedule.  A phase is (steps, context, windows a step): 2,048 tokens a step in both.  Short
# windows first because attention costs less there; the long ones teach positions up to 511.
PHASES = [(4000, 128, 16), (750, 512, 4)]
# The learning rate follows a cosine that would end at HORIZON, and in the last phase goes straight
# down to END_LR.
PEAK_LR, END_LR, WARMUP, HORIZON = 2.5e-3, 5e-5, 200, 6000
WEIGHT_DECAY, DROPOUT_256, CLIP = 0.1, 26, 1.0  # dropout in 256ths, on what enters the residual stream
BALANCE = 0.01       # weight of the load-balancing loss
BOS_SHARE = 0.25     # share of windows that begin with <|endoftext|> at the start of a speech
EVAL_EVERY = 250
SEED = 1337


# ---------------------------------------------------------------------------------- the model
class MatmulT(torch.autograd.Function):
    """x @ w^T, never handing BLAS a transposed right-hand side: OpenBLAS was seen to take
    almost twice as long for it (4096x128 by 768x128: 19 ms against 11), and training is all products."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.transpose(-1, -2).contiguous()

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.transpose(-1, -2) @ x


class Reorder(torch.autograd.Function):
    """x[order], for a permutation; its gradient is a gather too, not a scatter-add."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


matmul_t = MatmulT.apply
reorder = Reorder.apply


def dropout(x, on):
    """Zero 26/256 = 10.2% of x: one random byte each (F.dropout draws a double each: ten times slower)."""
    if not on:
        return x
    draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-2 ** 63, None)
    keep = draws.view(torch.uint8)[:x.numel()].view(x.shape) >= DROPOUT_256
    return x * keep.float().mul_(256 / (256 - DROPOUT_256))


class Linear(nn.Module):
    """No bias, as everywhere in Step3."""

    def __init__(self, width_in, width_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))

    def forward(self, x):
        y = matmul_t(x.reshape(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], -1)


class RMSNorm(nn.Module):
    """Plain: y = w * x / sqrt(mean(x^2) + eps)."""

    def __init__(self, width, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rope_tables(positions, dim, theta):
    """cos and sin, [T, d/2] each, for the half-split layout: pair (i, i + d/2)."""
    freq = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * freq
    return angle.cos().float(), angle.sin().float()


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class MFA(nn.Module):
    """Multi-matrix factorised attention: a low-rank, normed query; one key and one value head."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.dim = c["num_attention_heads"], c["head_dim"]
        hidden, rank = c["hidden_size"], c["share_q_dim"]
        self.q_proj = Linear(hidden, rank)
        self.k_proj = Linear(hidden, self.dim)
        self.v_proj = Linear(hidden, self.dim)
        self.inter_norm = RMSNorm(rank, c["rms_norm_eps"])
        self.wq = Linear(rank, self.heads * self.dim)
        self.o_proj = Linear(self.heads * self.dim, hidden)

    def forward(self, x, cos, sin, mask):
        B, T, _ = x.shape
        q = self.wq(self.inter_norm(self.q_proj(x)))
        q = rope(q.view(B, T, self.heads, self.dim).transpose(1, 2), cos, sin)  # [B, h, T, d]
        k = rope(self.k_proj(x), cos, sin)                                      # [B, T, d]
        # All heads share k and v, so the heads are simply more query rows of one product.
        s = matmul_t(q.reshape(B, self.heads * T, self.dim) * self.dim ** -0.5, k)
        p = (s.view(B, self.heads, T, T) + mask).softmax(-1)
        o = matmul_t(p.view(B, self.heads * T, T), self.v_proj(x).transpose(1, 2).contiguous())
        return self.o_proj(o.view(B, self.heads, T, self.dim).transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Stacked(nn.Module):
    """The experts' matrices of one kind: weight [E, out, in]."""

    def __init__(self, experts, width_out, width_in):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width_out, width_in))


class MoE(nn.Module):
    """Routed experts: softmax over all E, the k largest, weights NOT renormalised."""

    def __init__(self, c):
        super().__init__()
        E, I, H = c["moe_num_experts"], c["moe_intermediate_size"], c["hidden_size"]
        self.top_k = c["moe_top_k"]
        self.gate = Linear(H, E)
        self.gate_proj, self.up_proj = Stacked(E, I, H), Stacked(E, I, H)
        self.down_proj = Stacked(E, H, I)

    def forward(self, x):
        E, I, H = self.gate_proj.weight.shape
        x = x.reshape(-1, H)                                              # [N, H]
        p = self.gate(x).softmax(-1)                                      # [N, E]
        weight, expert = p.topk(self.top_k, -1)                           # [N, k] each
        counts = torch.bincount(expert.flatten(), minlength=E)
        # Load balance (Switch Transformer, 2.2): E * sum over e of share of slots * mean probability.
        self.usage = counts / expert.numel()
        self.balance = E * (self.usage * p.mean(0)).sum()
        # One row for each (token, slot), sorted by expert, so that an expert reads its rows together.
        order = expert.flatten().argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        rows = reorder(x[:, None].expand(-1, self.top_k, -1).reshape(-1, H), order, inverse)
        out = [matmul_t(F.silu(matmul_t(r, g)) * matmul_t(r, u), d) for r, g, u, d in zip(
            rows.split(counts.tolist()), self.gate_proj.weight.unbind(), self.up_proj.weight.unbind(),
            self.down_proj.weight.unbind())]
        out = reorder(torch.cat(out), inverse, order).view(-1, self.top_k, H)
        return (out * weight[:, :, None]).sum(1)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.self_attn = MFA(c)
        self.routed = str(index) in c["moe_layers_enum"].split(",")
        if self.routed:
            self.moe = MoE(c)
            self.share_expert = SwiGLU(hidden, c["share_expert_dim"])
        else:
            self.mlp = SwiGLU(hidden, c["intermediate_size"])

    def forward(self, x, cos, sin, mask):
        a = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + dropout(a, self.training)
        m = self.post_attention_layernorm(x)
        y = self.moe(m).view_as(m) + self.share_expert(m) if self.routed else self.mlp(m)
        return x + dropout(y, self.training)


class Step3(nn.Module):
    """Attribute names make the state dict's names those of a Step3 checkpoint."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.model.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = Linear(c["hidden_size"], c["vocab_size"])
        for name, p in self.named_parameters():
            if p.dim() > 1:  # fan-in scale; what adds to the residual stream starts smaller
                std = p.shape[-1] ** -0.5
                if "embed" in name or "lm_head" in name:
                    std = 0.02
                elif "o_proj" in name or "down_proj" in name:
                    std *= (2 * c["num_hidden_layers"]) ** -0.5
                nn.init.normal_(p, 0, std)

    def forward(self, ids):
        """ids [B, T] -> logits [B, T, V]; position 0 is the first column."""
        c, T = self.config, ids.shape[1]
        cos, sin = rope_tables(T, c["head_dim"], c["rope_theta"])
        mask = torch.full((T, T), float("-inf")).triu(1)
        x = dropout(self.model.embed_tokens(ids), self.training)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return self.lm_head(self.model.norm(x))

    def routers(self):
        return {i: layer.moe for i, layer in enumerate(self.model.layers) if layer.routed}


# ---------------------------------------------------------------------------------- files
def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def save_safetensors(path, state):
    """8 bytes header length, the JSON header padded to 8, then the tensors; all bf16."""
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name in sorted(state):
        # numpy has no bf16: the bits travel as int16.
        blob = state[name].to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(state[name].shape),
                        "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".part", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    os.replace(path + ".part", path)


def load_safetensors(path):
    """What save_safetensors wrote, widened to float32."""
    with open(path, "rb") as f:
        data = f.read()
    size = struct.unpack("<Q", data[:8])[0]
    state = {}
    for name, t in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            first, last = (8 + size + o for o in t["data_offsets"])
            bits = torch.frombuffer(bytearray(data[first:last]), dtype=torch.bfloat16)
            state[name] = bits.float().view(t["shape"])
    return state


def make_tokenizer(text, out):
    """A byte-level BPE: <|endoftext|>, the 256 bytes, and as many merges as the vocabulary holds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=[EOT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert t.get_vocab_size() == CONFIG["vocab_size"] and t.token_to_id(EOT) == 0
    t.save(os.path.join(out, "tokenizer.json"))
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOT, "eos_token": EOT,
        "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_seq_len"]})
    write_json(os.path.join(out, "config.json"), CONFIG)
    write_json(os.path.join(out, "generation_config.json"), {
        "bos_token_id": 0, "eos_token_id": 0, "do_sample": True, "temperature": 0.8})
    return t


# ---------------------------------------------------------------------------------- evaluation
@torch.no_grad()
def held_out_loss(model, ids, chars, context, stride):
    """Nats per character, and the share of routed slots each expert took in each MoE layer.

    The held-out tokens, with <|endoftext|> before them, are read in windows of `context` inputs
    that start `stride` apart.  Each token is scored once: a window scores only what the one before
    it did not, so a token has at least context - stride tokens before it, except near the
    beginning.  Positions start at 0 in each window.
    """
    model.eval()
    stream = torch.cat((torch.tensor([0]), ids))
    starts = list(range(0, max(1, len(ids) - context + stride), stride))
    nats, scored = 0.0, 0
    usage = {i: torch.zeros(CONFIG["moe_num_experts"]) for i in model.routers()}
    for i in starts:
        inputs, targets = stream[i:i + context], stream[i + 1:i + context + 1]
        inputs = inputs[:len(targets)]
        logits = model(inputs[None])[0]
        for layer, moe in model.routers().items():
            usage[layer] += moe.usage * len(inputs)
        new = slice(scored - i, None)
        nats += F.cross_entropy(logits[new].double(), targets[new], reduction="sum").item()
        scored = i + len(targets)
    assert scored == len(ids)
    return nats / chars, {i: (u / u.sum()).tolist() for i, u in usage.items()}


@torch.no_grad()
def sample(model, tokenizer, prompt, count, temperature, seed):
    model.eval()
    rng = torch.Generator().manual_seed(seed)
    ids = [0] + tokenizer.encode(prompt).ids
    for _ in range(count):
        logits = model(torch.tensor([ids[-CONFIG["max_seq_len"]:]]))[0, -1]
        ids.append(torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng).item())
        if ids[-1] == 0:
            break
    return tokenizer.decode(ids)


def write_curve(out, rows):
    """curve.csv and a plot of it."""
    with open(os.path.join(out, "curve.csv"), "w") as f:
        f.write("step,seconds,train_nats_per_char,heldout_nats_per_char\n")
        f.writelines("%d,%.0f,%.4f,%.4f\n" % r for r in rows)
    if len(rows) < 2:
        return
    W, H, left, foot, low, high = 720, 360, 50, 40, 1.2, 2.4
    last = rows[-1][0]
    px = lambda step: left + (W - left - 10) * step / last
    py = lambda v: 10 + (H - foot - 10) * (high - min(max(v, low), high)) / (high - low)
    svg = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" '
           'font-size="12"><rect width="100%%" height="100%%" fill="white"/>' % (W, H)]
    for k in range(7):
        v = low + k * (high - low) / 6
        svg.append('<path d="M%d %.1fH%d" stroke="#ddd"/><text x="18" y="%.1f">%.1f</text>'
                   % (left, py(v), W - 10, py(v) + 4, v))
    for k in range(5):
        svg.append('<text x="%.1f" y="%d" text-anchor="%s">%d</text>'
                   % (px(last * k / 4), H - 22, "end" if k == 4 else "middle", last * k / 4))
    for column, colour, label, y in ((2, "#999", "training text (with dropout)", 30),
                                     (3, "#c33", "held-out text (128-token windows)", 48)):
        points = " ".join("%.1f,%.1f" % (px(r[0]), py(r[column])) for r in rows)
        svg.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>'
                   '<text x="%d" y="%d" fill="%s">%s</text>' % (points, colour, W - 260, y, colour, label))
    svg.append('<text x="%d" y="%d">step (2,048 tokens each); nats per character</text></svg>\n'
               % (left, H - 5))
    with open(os.path.join(out, "curve.svg"), "w") as f:
        f.write("\n".join(svg))


# ---------------------------------------------------------------------------------- training
def phase_of(step):
    """(context, windows) at a step."""
    for steps, context, windows in PHASES:
        if step < steps:
            return context, windows
        step -= steps
    return context, windows


def learning_rate(step):
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    total = sum(p[0] for p in PHASES)
    last = total - PHASES[-1][0]  # where the last phase begins
    at = (min(step, last) - WARMUP) / (HORIZON - WARMUP)
    rate = END_LR + (PEAK_LR - END_LR) * (0.5 + 0.5 * math.cos(math.pi * at))
    return rate if step < last else END_LR + (rate - END_LR) * (total - step) / (total - last)


def batch(ids, speeches, context, windows, rng):
    """Inputs and targets [B, T].  Some windows are <|endoftext|> and the start of a speech."""
    rows = []
    for _ in range(windows):
        if torch.rand(1, generator=rng).item() < BOS_SHARE:
            at = speeches[torch.randint(len(speeches), (1,), generator=rng).item()]
            at = min(at, len(ids) - context)
            rows.append(torch.cat((torch.tensor([0]), ids[at:at + context])))
        else:
            at = torch.randint(len(ids) - context, (1,), generator=rng).item()
            rows.append(ids[at:at + context + 1])
    rows = torch.stack(rows)
    return rows[:, :-1], rows[:, 1:]


def train(model, train_ids, chars_per_token, held_ids, held_chars, speeches, args):
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": WEIGHT_DECAY},
                                   {"params": plain, "weight_decay": 0.0}],
                                  lr=PEAK_LR, betas=(0.9, 0.99), foreach=True)
    rng = torch.Generator().manual_seed(SEED)
    total = sum(p[0] for p in PHASES)
    step, spent, best, rows = 0, 0.0, float("inf"), []
    saved = os.path.join(args.work, "checkpoint.pt")
    best_path = os.path.join(args.work, "best.pt")
    if os.path.exists(saved):
        s = torch.load(saved)
        model.load_state_dict(s["model"])
        optimiser.load_state_dict(s["optimiser"])
        rng.set_state(s["rng"])
        torch.set_rng_state(s["dropout_rng"])
        step, spent, best, rows = s["step"], s["spent"], s["best"], s["rows"]
    began, losses = time.time() - spent, []
    while step < total:
        context, windows = phase_of(step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        inputs, targets = batch(train_ids, speeches, context, windows, rng)
        model.train()
        logits = model(inputs)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        balance = sum(moe.balance for moe in model.routers().values())
        optimiser.zero_grad(set_to_none=True)
        (loss + BALANCE * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        step += 1
        losses.append(loss.item())
        if step % 20 == 0:
            print("step %d/%d  %.0f s  train %.4f nats/token  balance %.3f" % (
                step, total, time.time() - began, sum(losses[-20:]) / len(losses[-20:]),
                balance.item()), flush=True)
        if step % EVAL_EVERY and step != total:
            continue
        held, usage = held_out_loss(model, held_ids, held_chars, 128, 128)
        spent = time.time() - began
        rows.append((step, spent, sum(losses) / len(losses) / chars_per_token, held))
        losses = []
        print("  held-out %.4f nats/char; least used expert %.3f" % (
            held, min(min(u) for u in usage.values())), flush=True)
        if held < best:
            best = held
            torch.save(model.state_dict(), best_path)
            save_safetensors(os.path.join(args.out, "model.safetensors"), model.state_dict())
        write_curve(args.out, rows)
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(),
                    "rng": rng.get_state(), "dropout_rng": torch.get_rng_state(), "step": step,
                    "spent": spent, "best": best, "rows": rows}, saved + ".part")
        os.replace(saved + ".part", saved)
    model.load_state_dict(torch.load(best_path))
    return {"steps": step, "seconds": round(spent),
            "best_step": min(rows, key=lambda r: r[3])[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", help="the training text; its last tenth is held out")
    parser.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--work", required=True, help="folder for the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    os.makedirs(args.work, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)

    with open(args.text, encoding="utf-8", newline="") as f:
        text = f.read()
    cut = int(0.9 * len(text))
    tokenizer = make_tokenizer(text[:cut], args.out)  # the held-out tenth is never seen by it
    train_ids = torch.tensor(tokenizer.encode(text[:cut]).ids)
    held_ids = torch.tensor(tokenizer.encode(text[cut:]).ids)
    newline = tokenizer.token_to_id("Ċ")
    ends = train_ids == newline  # a speech begins after an empty line
    speeches = [0] + ((ends[:-1] & ends[1:]).nonzero()[:, 0] + 2).tolist()
    model = Step3(CONFIG)
    print("%d characters, %d + %d tokens, %d speeches, %d parameters" % (
        len(text), len(train_ids), len(held_ids), len(speeches),
        sum(p.numel() for p in model.parameters())), flush=True)

    result = train(model, train_ids, cut / len(train_ids), held_ids, len(text) - cut, speeches, args)
    result["parameters"] = sum(p.numel() for p in model.parameters())
    result["heldout_chars"], result["heldout_tokens"] = len(text) - cut, len(held_ids)
    shipped = Step3(CONFIG)
    shipped.load_state_dict(load_safetensors(os.path.join(args.out, "model.safetensors")))
    result["heldout_nats_per_char"] = table = {}
    for context, stride in ((128, 128), (256, 256), (512, 512), (512, 256)):
        f32, _ = held_out_loss(model, held_ids, len(text) - cut, context, stride)
        bf16, usage = held_out_loss(shipped, held_ids, len(text) - cut, context, stride)
        table["context %d, stride %d" % (context, stride)] = {"f32": f32, "bf16": bf16}
    result["expert_usage_bf16"] = usage
    result["sample_temperature_0.8"] = sample(shipped, tokenizer, "ROMEO:\n", 300, 0.8, 1)
    write_json(os.path.join(args.out, "eval.json"), result)
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
