"""Fixtures llama_awq and llama_gptq: the same random int4 weights as AutoAWQ (gemm) and as AutoGPTQ write them, and what
Hugging Face transformers makes of the dequantized ones.

    python3 int4.py

Made with Python 3.11, torch 2.2.2 (CPU), transformers 4.57.1, safetensors 0.8. The packing follows AutoAWQ's
WQLinear_GEMM.from_linear and AutoGPTQ's QuantLinear.pack.
"""
import json
import os

import torch
import transformers
from safetensors.torch import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
TOKENS, VOCAB, GROUP = 40, 137, 128
FIELDS = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, max_position_embeddings=256, hidden_size=128,
              intermediate_size=384, num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=2, head_dim=64,
              rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False)
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
generator = torch.Generator().manual_seed(3)


def pack(values, axis, order):
    """int4 values into int32 words along an axis: bits 4i .. of a word are value order[i] of its 8."""
    values = values.movedim(axis, -1)
    values = values.reshape(*values.shape[:-1], -1, 8).to(torch.int64)
    words = sum(values[..., order[i]] << 4 * i for i in range(8))
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return words.movedim(-1, axis).contiguous()


config = transformers.LlamaConfig(**FIELDS)
config._attn_implementation = "eager"
model = transformers.LlamaForCausalLM(config).eval().float()
awq, gptq = {}, {}
with torch.no_grad():
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if "_proj" not in name:
            tensor.copy_((noise * (0.2 if tensor.dim() == 1 else 0.1) + (tensor.dim() == 1)).to(torch.float16).float())
            awq[name] = gptq[name] = tensor.to(torch.float16).clone()
            continue
        out, inputs = tensor.shape
        q = torch.randint(0, 16, (inputs, out), generator=generator)
        zero = torch.randint(5, 12, (inputs // GROUP, out), generator=generator)
        scale = (torch.rand(inputs // GROUP, out, generator=generator) * 0.03 + 0.005).to(torch.float16)
        wide = (q - zero.repeat_interleave(GROUP, 0)).float() * scale.float().repeat_interleave(GROUP, 0)
        tensor.copy_(wide.T)
        stem = name.removesuffix("weight")
        awq[stem + "qweight"], awq[stem + "qzeros"] = pack(q, 1, ORDER), pack(zero, 1, ORDER)
        gptq[stem + "qweight"], gptq[stem + "qzeros"] = pack(q, 0, range(8)), pack(zero - 1, 1, range(8))
        gptq[stem + "g_idx"] = (torch.arange(inputs) // GROUP).to(torch.int32)
        awq[stem + "scales"] = gptq[stem + "scales"] = scale
    tokens = torch.randint(3, VOCAB, (1, TOKENS), generator=generator)
    logprobs = torch.log_softmax(model(tokens).logits[0].double(), dim=-1)

ids = list(range(0, VOCAB, 8))
for name, state, quantization in [
        ("llama_awq", awq, dict(quant_method="awq", bits=4, group_size=GROUP, version="gemm", zero_point=True)),
        ("llama_gptq", gptq, dict(quant_method="gptq", bits=4, group_size=GROUP, desc_act=False, sym=False))]:
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    save_file({k: v.clone() for k, v in state.items()}, os.path.join(folder, "model.safetensors"),
              metadata={"format": "pt"})
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump({"architectures": ["LlamaForCausalLM"], **FIELDS, "quantization_config": quantization}, f, indent=1)
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump({"tokens": tokens[0].tolist(), "ids": ids,
                   "logprobs": [[round(float(row[i]), 7) for i in ids] for row in logprobs]}, f)
