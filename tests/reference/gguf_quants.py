"""fixtures/quants.json: blocks of every quantized format, and the values that the gguf package decodes them to.

Made with Python 3.11, numpy 1.26.4, gguf 0.17.1 (gguf.quants, the Python twin of ggml's dequantize_row functions).
Blocks are random bytes with f16 scales of ordinary size.
"""
import json
import os

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T

# where the f16 scales of a block are
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0]}

rng = np.random.default_rng(5)
out = {}
for kind, at in SCALES.items():
    values, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (256 // values * 2, size), dtype=np.uint8)
    for offset in at:
        scale = rng.uniform(-0.05, 0.05, len(blocks)).astype(np.float16)
        blocks[:, offset:offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    decoded = quants.dequantize(blocks.reshape(1, -1), kind).reshape(-1).astype(np.float32)
    out[kind.name] = {"bytes": blocks.tobytes().hex(), "values": [float(f"{v:.9g}") for v in decoded]}
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "quants.json")
with open(path, "w") as f:
    json.dump(out, f)
