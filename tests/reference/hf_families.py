"""Fixtures of tests/reference/fixtures: random tiny checkpoints, and what Hugging Face transformers makes of them.

    python3 hf_families.py [NAME ..]

Made with Python 3.11, torch 2.2.2 (CPU), transformers 4.57.1, safetensors 0.6. Each folder then holds config.json,
model.safetensors (BF16) and expected.json: token ids, and for each position the float32 log-probabilities of eager
attention at chosen ids. The C test (tests/compute/test_families.c) needs no Python.
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import save_file

TOKENS = 40
VOCAB = 137
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
COMMON = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, max_position_embeddings=256)

FAMILIES = {
    # 6 heads over 2 KV heads, head_dim that is not hidden / heads, llama3 bands that all occur
    "llama": (
        "LlamaForCausalLM",
        dict(hidden_size=52, intermediate_size=76, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
             head_dim=20, rope_theta=500.0, rms_norm_eps=1e-5,
             rope_scaling=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=64)),
    ),
    "llama_tied": (
        "LlamaForCausalLM",
        dict(hidden_size=36, intermediate_size=60, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
             head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-5),
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        dict(hidden_size=44, intermediate_size=68, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
             head_dim=14, rope_theta=10000.0,
             rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    ),
    # layer 0 is dense by decoder_sparse_step, layer 3 by mlp_only_layers
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        dict(hidden_size=40, intermediate_size=56, moe_intermediate_size=28, num_hidden_layers=4,
             num_attention_heads=6, num_key_value_heads=2, head_dim=18, num_experts=7, num_experts_per_tok=3,
             norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3], rope_theta=10000.0),
    ),
    "qwen3_moe_all": (
        "Qwen3MoeForCausalLM",
        dict(hidden_size=36, intermediate_size=56, moe_intermediate_size=20, num_hidden_layers=2,
             num_attention_heads=3, num_key_value_heads=1, head_dim=16, num_experts=5, num_experts_per_tok=5,
             norm_topk_prob=False, rope_theta=10000.0),
    ),
    "qwen3_moe_sparse": (
        "Qwen3MoeForCausalLM",
        dict(hidden_size=36, intermediate_size=56, moe_intermediate_size=20, num_hidden_layers=2,
             num_attention_heads=6, num_key_value_heads=2, head_dim=16, num_experts=6, num_experts_per_tok=2,
             norm_topk_prob=True, rope_theta=10000.0),
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        dict(hidden_size=48, intermediate_size=72, moe_intermediate_size=28, num_hidden_layers=3,
             num_attention_heads=3, num_key_value_heads=3, q_lora_rank=26, kv_lora_rank=22, qk_nope_head_dim=14,
             qk_rope_head_dim=10, v_head_dim=18, n_routed_experts=12, num_experts_per_tok=3, n_group=4, topk_group=2,
             n_shared_experts=2, first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=2.5,
             rope_theta=10000.0, rope_interleave=True,
             rope_scaling=dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=32.0,
                               beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)),
    ),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        dict(hidden_size=40, intermediate_size=64, moe_intermediate_size=24, num_hidden_layers=3,
             num_attention_heads=3, num_key_value_heads=3, q_lora_rank=None, kv_lora_rank=20, qk_nope_head_dim=12,
             qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=9, num_experts_per_tok=3, n_group=3, topk_group=2,
             topk_method="group_limited_greedy", n_shared_experts=1, first_k_dense_replace=1, norm_topk_prob=False,
             routed_scaling_factor=1.5, rope_theta=10000.0),
    ),
}


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if "rotary" in name or "inv_freq" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "e_score_correction_bias" in name:
                tensor.copy_(0.1 * noise + 0.3)
            elif tensor.dim() == 1:
                tensor.copy_(1.0 + 0.2 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(noise)
            else:
                tensor.copy_(noise * 1.5 / tensor.shape[-1] ** 0.5)
            if "e_score_correction_bias" not in name:
                tensor.copy_(tensor.to(torch.bfloat16).to(torch.float32))


def make(name):
    architecture, fields = FAMILIES[name]
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**{**COMMON, **fields})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = model_class(config).eval().to(torch.float32)
    randomise(model, sum(name.encode()))
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCAB, (1, TOKENS), generator=generator)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(tokens).logits[0].double(), dim=-1)
    out = os.path.join(HERE, name)
    os.makedirs(out, exist_ok=True)
    state = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        bias = "e_score_correction_bias" in key
        state[key] = tensor.to(torch.float32 if bias else torch.bfloat16).contiguous()
    save_file(state, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    fields = json.loads(config.to_json_string(use_diff=False))
    keep = set(COMMON) | set(FAMILIES[name][1]) | {"rms_norm_eps", "rope_theta", "tie_word_embeddings", "hidden_act",
                                                   "attention_bias", "model_type"}
    config_out = {k: v for k, v in fields.items() if k in keep}
    config_out["architectures"] = [architecture]
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config_out, f, indent=1, sort_keys=True)
    ids = sorted(set(range(0, VOCAB, 8)))
    with open(os.path.join(out, "expected.json"), "w") as f:
        json.dump({"tokens": tokens[0].tolist(), "ids": ids,
                   "logprobs": [[round(float(row[i]), 7) for i in ids] for row in logprobs]}, f)
    print(name, sum(t.numel() for t in state.values()), "weights")


for family in sys.argv[1:] or FAMILIES:
    make(family)
