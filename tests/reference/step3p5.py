"""Fixture step3p5: a random tiny Step-3.5 checkpoint, and a float32 implementation of its equations that shares nothing
with the C code. (The released transformers do not run here: the family's modeling file wants a newer torch.)

    python3 step3p5.py

Made with Python 3.11, torch 2.2.2 (CPU), safetensors 0.8. Source of the equations: the configuration and modeling files
published beside the weights of stepfun-ai/Step-3.5-Flash.
"""
import json
import math
import os

import torch
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "step3p5")
TOKENS, VOCAB, H, LAYERS = 150, 137, 44, 5
SLIDING = [False, True, True, True, False]
CONFIG = dict(
    architectures=["Step3p5ForCausalLM"], model_type="step3p5", hidden_size=H, intermediate_size=52,
    num_hidden_layers=LAYERS, vocab_size=VOCAB, max_position_embeddings=256, rms_norm_eps=1e-5,
    num_attention_heads=4, num_attention_groups=2, head_dim=20,
    attention_other_setting=dict(attention_type="sliding_attention", num_attention_heads=6, num_attention_groups=2,
                                 head_dim=20, true_head_dim=20),
    # two entries more than layers: those of layers for multi-token prediction
    layer_types=["sliding_attention" if s else "full_attention" for s in SLIDING + [True, True]],
    sliding_window=70, rope_theta=[5000.0, 100.0, 100.0, 100.0, 5000.0, 100.0, 100.0],
    partial_rotary_factors=[0.6, 1.0, 1.0, 1.0, 0.6, 1.0, 1.0],
    rope_scaling=dict(rope_type="llama3", factor=2.0, original_max_position_embeddings=64, low_freq_factor=1.0,
                      high_freq_factor=8.0),
    yarn_only_types=["full_attention"], use_rope_layers=[], use_qk_norm=True, use_head_wise_attn_gate=True,
    zero_centered=True, sink=False, moe_layers_enum="1,2,4", moe_num_experts=7, moe_top_k=3, moe_intermediate_size=20,
    share_expert_dim=28, moe_router_activation="sigmoid", use_moe_router_bias=True, norm_expert_weight=True,
    moe_router_scaling_factor=3.0, swiglu_limits=[0, None, 0.3, 0.0, 0.4, 0, 0],
    swiglu_limits_shared=[0, None, 0.5, 0.35, 0.0, 0, 0], tie_word_embeddings=False, bos_token_id=0,
    eos_token_id=[1, 2, 130], num_nextn_predict_layers=2)
MOE = {1, 2, 4}
D = 20
generator = torch.Generator().manual_seed(11)
state = {}


def weight(name, *shape, mean=0.0, deviation=None, dtype=torch.bfloat16):
    deviation = 1.5 / shape[-1] ** 0.5 if deviation is None else deviation
    state[name] = (torch.randn(shape, generator=generator) * deviation + mean).to(dtype)


weight("model.embed_tokens.weight", VOCAB, H, deviation=1.0)
for n in range(LAYERS):
    p = f"model.layers.{n}."
    heads = 6 if SLIDING[n] else 4
    for norm in ["input_layernorm", "post_attention_layernorm"]:
        weight(f"{p}{norm}.weight", H, deviation=0.2)
    for norm in ["q_norm", "k_norm"]:
        weight(f"{p}self_attn.{norm}.weight", D, deviation=0.2)
    weight(f"{p}self_attn.q_proj.weight", heads * D, H)
    weight(f"{p}self_attn.k_proj.weight", 2 * D, H)
    weight(f"{p}self_attn.v_proj.weight", 2 * D, H)
    weight(f"{p}self_attn.g_proj.weight", heads, H)
    weight(f"{p}self_attn.o_proj.weight", H, heads * D)
    if n in MOE:
        weight(f"{p}moe.gate.weight", 7, H)
        weight(f"{p}moe.router_bias", 7, deviation=0.3, dtype=torch.float32)
        weight(f"{p}moe.gate_proj.weight", 7, 20, H)
        weight(f"{p}moe.up_proj.weight", 7, 20, H)
        weight(f"{p}moe.down_proj.weight", 7, H, 20)
    for kind, out in [("gate", 28), ("up", 28), ("down", H)]:
        if n in MOE:
            weight(f"{p}share_expert.{kind}_proj.weight", out, H if kind != "down" else 28)
        else:
            weight(f"{p}mlp.{kind}_proj.weight", out if kind == "down" else 52, H if kind != "down" else 52)
weight("model.norm.weight", H, deviation=0.2)
weight("lm_head.weight", VOCAB, H)


def get(name):
    return state[name].float()


def norm(x, name):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (1.0 + get(name))


def angles(theta, dims, scaled):
    out = []
    for i in range(dims // 2):
        step = theta ** (-2 * i / dims)
        wave = 2 * math.pi / step
        if scaled and wave > 64 / 1.0:
            step = step / 2.0
        elif scaled and wave >= 64 / 8.0:
            t = (64 / wave - 1.0) / (8.0 - 1.0)
            step = (1 - t) * step / 2.0 + t * step
        out.append(step)
    return torch.arange(TOKENS, dtype=torch.float64)[:, None] * torch.tensor(out, dtype=torch.float64)


def rotate(x, angle):
    """x [tokens, heads, D]: the first channels, in halves."""
    half = angle.shape[1]
    cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
    a, b = x[..., :half], x[..., half:2 * half]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half:]], dim=-1)


def attention(x, n):
    p = f"model.layers.{n}.self_attn."
    heads, dims = (6, 20) if SLIDING[n] else (4, 12)
    angle = angles(100.0 if SLIDING[n] else 5000.0, dims, not SLIDING[n])
    q = norm((x @ get(p + "q_proj.weight").T).view(TOKENS, heads, D), p + "q_norm.weight")
    k = norm((x @ get(p + "k_proj.weight").T).view(TOKENS, 2, D), p + "k_norm.weight")
    v = (x @ get(p + "v_proj.weight").T).view(TOKENS, 2, D)
    q, k = rotate(q, angle), rotate(k, angle).repeat_interleave(heads // 2, 1)
    v = v.repeat_interleave(heads // 2, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(D)
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None]
    hidden = (distance < 0) | ((distance >= 70) & SLIDING[n])
    o = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -math.inf).softmax(-1), v)
    o = o * torch.sigmoid(x @ get(p + "g_proj.weight").T)[..., None]
    return o.reshape(TOKENS, -1) @ get(p + "o_proj.weight").T


def swiglu(x, gate, up, down, limit):
    g, u = torch.nn.functional.silu(x @ gate.T), x @ up.T
    if limit:
        g, u = g.clamp(max=limit), u.clamp(min=-limit, max=limit)
    return (g * u) @ down.T


def ffn(x, n):
    p = f"model.layers.{n}."
    shared = CONFIG["swiglu_limits_shared"][n]
    part = "share_expert" if n in MOE else "mlp"
    y = swiglu(x, *(get(f"{p}{part}.{k}_proj.weight") for k in ("gate", "up", "down")), shared)
    if n not in MOE:
        return y
    scores = torch.sigmoid(x @ get(p + "moe.gate.weight").T)
    chosen = torch.topk(scores + get(p + "moe.router_bias"), 3, dim=-1).indices
    gate, up, down = (get(f"{p}moe.{k}_proj.weight") for k in ("gate", "up", "down"))
    for t in range(TOKENS):
        w = scores[t, chosen[t]]
        w = 3.0 * w / (w.sum() + 1e-20)
        for e, factor in zip(chosen[t], w):
            y[t] = y[t] + factor * swiglu(x[t:t + 1], gate[e], up[e], down[e], CONFIG["swiglu_limits"][n])[0]
    return y


tokens = torch.randint(3, VOCAB, (TOKENS,), generator=generator)
h = get("model.embed_tokens.weight")[tokens]
for n in range(LAYERS):
    h = h + attention(norm(h, f"model.layers.{n}.input_layernorm.weight"), n)
    h = h + ffn(norm(h, f"model.layers.{n}.post_attention_layernorm.weight"), n)
logprobs = torch.log_softmax((norm(h, "model.norm.weight") @ get("lm_head.weight").T).double(), -1)
os.makedirs(OUT, exist_ok=True)
save_file(state, os.path.join(OUT, "model.safetensors"), metadata={"format": "pt"})
with open(os.path.join(OUT, "config.json"), "w") as f:
    json.dump(CONFIG, f, indent=1, sort_keys=True)
ids = list(range(0, VOCAB, 16))
with open(os.path.join(OUT, "expected.json"), "w") as f:
    json.dump({"tokens": tokens.tolist(), "ids": ids,
               "logprobs": [[round(float(row[i]), 7) for i in ids] for row in logprobs]}, f)
