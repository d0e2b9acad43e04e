"""GGUF twins of the fixtures that hf_families.py makes: the same weights under llama.cpp's names and layouts, so that
expected.json of the original holds for them.

    python3 gguf_families.py

Made with Python 3.11, numpy 1.26.4, torch 2.2.2, safetensors 0.8, gguf 0.17.1. What each holds beside the plain case:
    llama.gguf              q and k permuted, rope_freqs.weight, F32, alignment 64
    llama_tied.gguf         no output.weight, F16, in two files (NAME-00001-of-00002.gguf)
    qwen3_moe_sparse.gguf   stacked experts, BF16
    deepseek_v3.gguf        attn_k_b and attn_v_b, exp_probs_b
    deepseek_v2.gguf        attn_kv_b whole
"""
import json
import math
import os

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp",
}


def permute(w, heads):
    """Rows (i, i + d/2) become neighbours: convert_hf_to_gguf.py, LlamaModel.permute."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def tensors_of(name, config, arch, split_kv_b):
    state = {k: v.float().numpy() for k, v in load_file(os.path.join(HERE, name, "model.safetensors")).items()}
    out, experts = {}, {}
    for key, value in sorted(state.items()):
        part = key.removesuffix(".weight")
        layer = ""
        if part.startswith("model.layers."):
            number, part = part.removeprefix("model.layers.").split(".", 1)
            layer = f"blk.{number}."
        if arch == "llama" and part == "self_attn.q_proj":
            value = permute(value, config["num_attention_heads"])
        if arch == "llama" and part == "self_attn.k_proj":
            value = permute(value, config["num_key_value_heads"])
        if part.startswith("mlp.experts."):
            _, _, e, kind = part.split(".")
            experts.setdefault(f"{layer}ffn_{kind.removesuffix('_proj')}_exps.weight", {})[int(e)] = value
            continue
        if part.endswith("e_score_correction_bias"):
            out[f"{layer}exp_probs_b.bias"] = value
            continue
        if part == "self_attn.kv_b_proj" and split_kv_b:
            n, v = config["qk_nope_head_dim"], config["v_head_dim"]
            heads = value.reshape(config["num_attention_heads"], n + v, -1)
            out[f"{layer}attn_k_b.weight"] = np.ascontiguousarray(heads[:, :n].swapaxes(1, 2))
            out[f"{layer}attn_v_b.weight"] = np.ascontiguousarray(heads[:, n:])
            continue
        out[f"{layer}{NAMES[part]}.weight"] = value
    for key, parts in experts.items():
        out[key] = np.stack([parts[e] for e in range(len(parts))])
    return out


def llama3_factors(config):
    s, d = config["rope_scaling"], config["head_dim"]
    out = []
    for i in range(d // 2):
        step = config["rope_theta"] ** (-2 * i / d)
        wave, n = 2 * math.pi / step, s["original_max_position_embeddings"]
        low, high = n / s["low_freq_factor"], n / s["high_freq_factor"]
        if wave < high:
            out.append(1.0)
        elif wave > low:
            out.append(s["factor"])
        else:
            t = (n / wave - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
            out.append(1 / ((1 - t) / s["factor"] + t))
    return np.array(out, dtype=np.float32)


def metadata(w, config, arch):
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config["rope_theta"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    if arch == "deepseek2":
        rope, nope = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
        w.add_head_count_kv(1)
        w.add_key_length(config["kv_lora_rank"] + rope)
        w.add_value_length(config["kv_lora_rank"])
        w.add_key_length_mla(nope + rope)
        w.add_value_length_mla(config["v_head_dim"])
        w.add_rope_dimension_count(rope)
        w.add_kv_lora_rank(config["kv_lora_rank"])
        if config.get("q_lora_rank"):
            w.add_q_lora_rank(config["q_lora_rank"])
        w.add_leading_dense_block_count(config["first_k_dense_replace"])
        w.add_expert_count(config["n_routed_experts"])
        w.add_expert_used_count(config["num_experts_per_tok"])
        w.add_expert_shared_count(config["n_shared_experts"])
        w.add_expert_feed_forward_length(config["moe_intermediate_size"])
        w.add_expert_weights_scale(config["routed_scaling_factor"])
        w.add_expert_weights_norm(config["norm_topk_prob"])
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX if "topk_method" in config
                                 else gguf.ExpertGatingFuncType.SIGMOID)
        w.add_uint32("deepseek2.expert_group_count", config["n_group"])
        w.add_uint32("deepseek2.expert_group_used_count", config["topk_group"])
    else:
        w.add_head_count_kv(config["num_key_value_heads"])
        w.add_key_length(config["head_dim"])
        w.add_value_length(config["head_dim"])
        w.add_rope_dimension_count(config["head_dim"])
    if arch == "qwen3moe":
        w.add_expert_count(config["num_experts"])
        w.add_expert_used_count(config["num_experts_per_tok"])
        w.add_expert_feed_forward_length(config["moe_intermediate_size"])
    s = config.get("rope_scaling")
    if s and s["rope_type"] == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(s["factor"])
        w.add_rope_scaling_orig_ctx_len(s["original_max_position_embeddings"])
        if "mscale_all_dim" in s:
            w.add_rope_scaling_yarn_log_mul(0.1 * s["mscale_all_dim"])


def make(name, arch, kind, split_kv_b=False, parts=1):
    with open(os.path.join(HERE, name, "config.json")) as f:
        config = json.load(f)
    folder = os.path.join(HERE, name + "_gguf")
    os.makedirs(folder, exist_ok=True)
    tensors = tensors_of(name, config, arch, split_kv_b)
    if arch == "llama" and config.get("rope_scaling"):
        tensors["rope_freqs.weight"] = llama3_factors(config)
    keys = list(tensors)
    for part in range(parts):
        tail = f"-{part + 1:05d}-of-{parts:05d}" if parts > 1 else ""
        w = gguf.GGUFWriter(os.path.join(folder, f"{name}{tail}.gguf"), arch)
        if name == "llama":
            w.add_custom_alignment(64)
        if part == 0:
            metadata(w, config, arch)
        if parts > 1:
            w.add_uint16("split.no", part)
            w.add_uint16("split.count", parts)
            w.add_int32("split.tensors.count", len(keys))
        for key in keys[part * len(keys) // parts:(part + 1) * len(keys) // parts]:
            value = tensors[key]
            wide = value.ndim == 1 or "_inp" in key or kind == "F32"
            if wide:
                w.add_tensor(key, value.astype(np.float32))
            elif kind == "F16":
                w.add_tensor(key, value.astype(np.float16))
            else:
                data = gguf.quants.quantize(value, gguf.GGMLQuantizationType.BF16)
                w.add_tensor(key, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
    print(name, len(keys), "tensors")


make("llama", "llama", "F32")
make("llama_tied", "llama", "F16", parts=2)
make("qwen3_moe_sparse", "qwen3moe", "BF16")
make("deepseek_v3", "deepseek2", "BF16", split_kv_b=True)
make("deepseek_v2", "deepseek2", "BF16")
