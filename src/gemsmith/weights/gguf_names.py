"""Tensor names: as GGUF files spell them <-> as the network's parameters are called.

Source: gguf/constants.py and gguf/tensor_mapping.py of ggml-org/llama.cpp.
"""

import re

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
# Not of a block.
_OUTER = {EMBEDDING: "embed_tokens.weight", "output_norm.weight": "norm.weight"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# In Gemma 1 the norm before the feed-forward has the name of what in later ones follows attention.
_PRE_NORMS = {"ffn_norm": "post_attention_layernorm"}
_SANDWICH_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(\w+)\.weight")
# Image towers some programs keep in the same file.
_TOWERS = ("v.", "mm.")


def parameter_name(tensor_name: str, family: str) -> str | None:
    """Return what the network calls a tensor of a file.

    None stands for the tensors of image towers. A stored head, and a name nobody knows, stay as they are.
    """
    if tensor_name.startswith(_TOWERS):
        return None
    found = _BLOCK.fullmatch(tensor_name)
    if found is None:
        return _OUTER.get(tensor_name, tensor_name)
    inner = _inner(family).get(found[2])
    return tensor_name if inner is None else f"layers.{found[1]}.{inner}.weight"


def tensor_name(parameter_name: str, family: str) -> str:
    """Return what a file calls a parameter of the network."""
    outer = {ours: theirs for theirs, ours in _OUTER.items()}
    if parameter_name in outer:
        return outer[parameter_name]
    _, index, inner = parameter_name.removesuffix(".weight").split(".", 2)
    theirs = {ours: theirs for theirs, ours in _inner(family).items()}
    return f"blk.{index}.{theirs[inner]}.weight"


def is_shifted(parameter_name: str) -> bool:
    """Tell whether a file holds 1 more than the parameter: norms multiply by 1 + weight, there by the weight."""
    return parameter_name.removesuffix(".weight").endswith("norm")


def _inner(family: str) -> dict[str, str]:
    return _INNER | (_PRE_NORMS if family == "gemma" else _SANDWICH_NORMS)
