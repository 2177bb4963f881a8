"""Small GGUF files, written with gguf's own writer from random models of transformers.

The layouts are those of llama.cpp's conversion, written here in the direction opposite to the one that is
tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = (Path(__file__).parent / "test_layers.py").read_text(encoding="utf-8")
ROWS = 320
WIDTH, HEADS, LAYERS = 64, 4, 2


def reference(architecture: str, **changes: Any) -> Any:
    """A random model of transformers, all of whose parameters differ from their defaults."""
    import transformers as hf

    common = {"vocab_size": ROWS, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    long = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    short = {"n_layer": LAYERS, "n_head": HEADS}
    kinds = {
        "llama": (
            hf.LlamaConfig,
            {**long, "num_key_value_heads": 2, "intermediate_size": 96, "rms_norm_eps": 1e-5},
        ),
        "gpt2": (hf.GPT2Config, {**short, "n_embd": WIDTH, "n_positions": 128, "n_inner": 96}),
        "gptneox": (hf.GPTNeoXConfig, {**long, "intermediate_size": 96, "max_position_embeddings": 128}),
        "bloom": (hf.BloomConfig, {**short, "hidden_size": WIDTH}),
    }
    config, own = kinds[architecture]
    torch.manual_seed(5)
    model = hf.AutoModelForCausalLM.from_config(config(**{**common, **own, **changes})).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter) * 0.1
        parameter.data = noise + (1 if "norm" in name or "ln_" in name else 0) * (parameter.dim() == 1)
    model.tie_weights()
    return model


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Row by row: of each head the first of the one half, the first of the other, the second, ..."""
    size = weight.shape[0] // heads
    order = [
        h * size + half * size // 2 + j for h in range(heads) for j in range(size // 2) for half in (0, 1)
    ]
    return weight[order]


def in_thirds(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of all queries, of all keys, of all values, out of rows ordered by heads."""
    size = weight.shape[0] // heads // 3
    return weight[[(h * 3 + part) * size + j for part in range(3) for h in range(heads) for j in range(size)]]


NAMES = {
    "llama": {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    "gpt2": {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "gptneox": {
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.final_layer_norm": "output_norm",
        "embed_out": "output",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    "bloom": {
        "transformer.word_embeddings": "token_embd",
        "transformer.word_embeddings_layernorm": "token_embd_norm",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
}


def spelled(architecture: str, name: str) -> str:
    """A parameter's name in transformers -> in GGUF."""
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".")
    layer = next((part for part in parts if part.isdecimal()), None)
    if layer is None:
        return f"{NAMES[architecture][stem]}.{kind}"
    inner = ".".join(parts[parts.index(layer) + 1 :])
    return f"blk.{layer}.{NAMES[architecture][inner]}.{kind}"


def rounded(architecture: str, model: Any, kind: Type) -> dict[str, np.ndarray]:
    """Quantise the model's matrices in place; the tensors as GGUF holds them, by their names there.

    Rows are quantised each by itself, so it does not matter that some layouts move them.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        turned = architecture == "gpt2" and ".c_" in name and parameter.dim() == 2
        matrix = parameter.data.t().contiguous() if turned else parameter.data
        if matrix.dim() == 2 and kind != Type.F32:
            packed = gguf.quantize(matrix.numpy(), kind)
            matrix = torch.from_numpy(gguf.dequantize(packed, kind).astype(np.float32))
            parameter.data = matrix.t().contiguous() if turned else matrix
        if name.endswith(("q_proj.weight", "q_proj.bias")):
            matrix = interleaved(matrix, HEADS)
        elif name.endswith(("k_proj.weight", "k_proj.bias")):
            matrix = interleaved(matrix, model.config.num_key_value_heads)
        elif "query_key_value" in name:
            matrix = in_thirds(matrix, HEADS)
        tensors[spelled(architecture, name)] = matrix.numpy()
    model.tie_weights()
    return tensors


def parameters(architecture: str, config: Any) -> dict[str, Any]:
    """The file's keys without the prefix: a method of the writer -> what it is given."""
    epsilon = "rms_norm_eps" if architecture == "llama" else "layer_norm_eps"
    own: dict[str, Any] = {
        "context_length": getattr(config, "max_position_embeddings", 128),
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "head_count": HEADS,
        "feed_forward_length": 4 * WIDTH if architecture == "bloom" else 96,
    }
    if architecture == "llama":
        own |= {"head_count_kv": config.num_key_value_heads, "rope_dimension_count": WIDTH // HEADS}
        own |= {"layer_norm_rms_eps": config.rms_norm_eps}
    else:
        own |= {"layer_norm_eps": getattr(config, epsilon, getattr(config, "layer_norm_epsilon", 1e-5))}
    if architecture == "gptneox":
        own |= {"rope_dimension_count": 4, "parallel_residual": config.use_parallel_residual}
    return own


def trained(cut: Any) -> Library:
    """A byte-level tokenizer, trained on this package's own tests."""
    library = Library(models.BPE())
    library.pre_tokenizer = cut
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|user|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    return library


def write(
    file: Path,
    architecture: str,
    tensors: dict[str, np.ndarray],
    keys: dict[str, Any],
    *,
    kind: Type = Type.F32,
    library: Library | None = None,
    endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
    **further: Any,
) -> Path:
    """`further`: keys of the file with their values, `__` for the dots."""
    writer = gguf.GGUFWriter(file, architecture, endianess=endian)
    for name, value in keys.items():
        getattr(writer, f"add_{name}")(value)
    if library is not None:
        _write_tokenizer(writer, library)
    for name, value in further.items():
        adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        adders.get(type(value), writer.add_string)(name.replace("__", "."), value)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and kind != Type.F32:
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_tokenizer(writer: gguf.GGUFWriter, library: Library) -> None:
    import json

    said = json.loads(library.to_str())
    special = {token["content"] for token in said["added_tokens"]}
    tokens = [library.id_to_token(number) for number in range(library.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in said["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
