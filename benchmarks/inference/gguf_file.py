"""GGUF files for llama.cpp out of ordinary folders with random weights: GPT-2, GPT-NeoX and BLOOM.

The names are those of the gguf package's own table. The layouts are those that llama.cpp expects: outputs
first, and queries, keys and values one after another. There is no tokenizer: llama.cpp's "no_vocab".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFReader, GGUFWriter
from safetensors import safe_open

ARCHITECTURES = {"gpt2": MODEL_ARCH.GPT2, "gpt_neox": MODEL_ARCH.GPTNEOX, "bloom": MODEL_ARCH.BLOOM}
KINDS = {
    MODEL_ARCH.GPT2: ("n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon"),
    MODEL_ARCH.GPTNEOX: (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "layer_norm_eps",
    ),
    MODEL_ARCH.BLOOM: ("hidden_size", "n_layer", "n_head", "seq_length", "layer_norm_epsilon"),
}
"""How config.json calls width, layers, heads, context and epsilon."""


def write(folder: Path, file: Path, format: str) -> None:
    """All matrices in `format` (as `llama-quantize --pure` does), the vectors in float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = ARCHITECTURES[config["model_type"]]
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    heads = _describe(writer, architecture, config)
    names = gguf.get_tensor_name_map(architecture, config[KINDS[architecture][1]])
    kind = GGMLQuantizationType[format]
    with safe_open(folder / "model.safetensors", "np") as tensors:
        for theirs in tensors.keys():  # noqa: SIM118  it is no dict
            name = names.get_name(theirs.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
            assert name is not None, theirs
            value = arranged(tensors.get_tensor(theirs), name, architecture, heads)
            plain = value.ndim == 1 or name == "position_embd.weight"
            packed = value if plain else gguf.quants.quantize(value, kind)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.F32 if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: GGUFWriter, architecture: MODEL_ARCH, config: Mapping[str, Any]) -> int:
    """What config.json says, in the file's words. Returns the number of heads."""
    width, layers, heads, context, epsilon = (config[key] for key in KINDS[architecture])
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(epsilon)
    writer.add_feed_forward_length(config.get("n_inner") or config.get("intermediate_size") or 4 * width)
    if architecture == MODEL_ARCH.GPTNEOX:
        writer.add_rope_dimension_count(round(config["rotary_pct"] * width / heads))
        writer.add_rope_freq_base(config["rotary_emb_base"])
        writer.add_parallel_residual(config["use_parallel_residual"])
    if architecture == MODEL_ARCH.BLOOM:
        writer.add_max_alibi_bias(8.0)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    return int(heads)


def arranged(value: np.ndarray, name: str, architecture: MODEL_ARCH, heads: int) -> np.ndarray:
    """A tensor of the folder as llama.cpp wants it."""
    if architecture == MODEL_ARCH.GPT2:
        turned = value.ndim == 2 and name.startswith("blk.")  # stored inputs first
        return np.ascontiguousarray(value.T) if turned else value
    if ".attn_qkv." in name:  # stored head by head
        parts = value.reshape(heads, 3, -1, *value.shape[1:])
        return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(value.shape)
    return value


def bytes_read(file: Path) -> int:
    """Of the weights that a token needs: not the tables of which it reads a row."""
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(file).tensors}
    rows = {"position_embd.weight"} | ({"token_embd.weight"} if "output.weight" in tensors else set())
    return sum(size for name, size in tensors.items() if name not in rows)
