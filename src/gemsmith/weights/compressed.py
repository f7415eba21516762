"""quantization_config of config.json, in the compressed-tensors layout <-> our schemes.

Source: the classes QuantizationConfig, QuantizationScheme and QuantizationArgs of
vllm-project/compressed-tensors 0.20.
"""

from collections.abc import Collection, Mapping
from typing import Any

from gemsmith.errors import ConfigError
from gemsmith.kernels.quantized import Scheme
from gemsmith.weights.keys import QUANTIZATION
from gemsmith.weights.names import EMBEDDING_MODULE, HEAD_MODULE, tensor_name

METHOD = "compressed-tensors"
# How values lie in a file: dense in 32-bit words, or one by one as int8.
PACKED, PLAIN = "pack-quantized", "naive-quantized"
_FORMATS = (PACKED, PLAIN, "int-quantized", "mixed-precision", None)
_EMPTY = (None, {}, [])

# Key -> the values it may have, None for any: the ones that never change a number, or are read here.
_TOP: dict[str, tuple[object, ...] | None] = {
    "quant_method": (METHOD,), "format": _FORMATS, "quantization_status": ("compressed",), "config_groups": None,
    "ignore": None, "global_compression_ratio": None, "version": None, "kv_cache_scheme": _EMPTY,
    "sparsity_config": _EMPTY, "transform_config": _EMPTY, "moe_sparsity_config": _EMPTY,
}  # fmt: skip
_GROUP: dict[str, tuple[object, ...] | None] = {
    "targets": None, "weights": None, "format": (*_FORMATS[:3], None), "input_activations": (None,),
    "output_activations": (None,),
}  # fmt: skip
_WEIGHTS: dict[str, tuple[object, ...] | None] = {
    "num_bits": (4, 8), "type": ("int",), "symmetric": (True, False), "strategy": ("group", "channel"),
    "group_size": None, "dynamic": (False,), "block_structure": (None,), "actorder": (None, False, "weight", "static"),
    "observer": None, "observer_kwargs": None, "scale_dtype": None, "zp_dtype": None,
}  # fmt: skip


def render_quantization(schemes: Mapping[str, Scheme], linears: Collection[str]) -> dict[str, Any]:
    """Return the quantization_config of a network.

    Args:
        schemes: Module name, such as "layers.0.mlp.up_proj" or "embed_tokens", to how it is stored.
        linears: Names of all linears; those without a scheme are listed as dense.
    """
    names: dict[Scheme, list[str]] = {}
    for name in linears:
        if name in schemes:
            names.setdefault(schemes[name], []).append(tensor_name(name))
    groups = [
        _render_group(scheme, ["Linear"] if len(names) == 1 else targets, PACKED) for scheme, targets in names.items()
    ]
    ignore = [tensor_name(name) for name in linears if name not in schemes]
    table = schemes.get(EMBEDDING_MODULE)
    if table is None:
        ignore.append(HEAD_MODULE)
    else:
        # transformers ties the head to the table by its name "weight", which only 8 bits keep.
        targets = [tensor_name(EMBEDDING_MODULE), HEAD_MODULE]
        groups.append(_render_group(table, targets, table_format(table)))
    formats = {group["format"] for group in groups}
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "ignore": ignore,
    }


def table_format(scheme: Scheme) -> str:
    """Return how an embedding lies in a file."""
    return PLAIN if scheme.bits == 8 else PACKED


def _render_group(scheme: Scheme, targets: list[str], layout: str) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.is_symmetric,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
        "dynamic": False,
    }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": layout,
    }


def parse_quantization(raw: Any, *, source: str = "config.json") -> frozenset[Scheme]:
    """Return the schemes a quantization_config allows its tensors to have.

    Which module has which one is read from the shapes of its tensors; the patterns in `targets`, which
    a stranger wrote, are never run.

    Raises:
        ConfigError: It is of another method, or has a key or value that could change the numbers.
    """
    top = _checked(raw, _TOP, f"{QUANTIZATION} of {source}")
    groups = top.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError(f"config_groups must be an object of groups; got {groups!r} in {source}. Fetch it again.")
    return frozenset(_parse_group(group, f"config_groups.{name} of {source}") for name, group in groups.items())


def _parse_group(raw: Any, source: str) -> Scheme:
    group = _checked(raw, _GROUP, source)
    weights = _checked(group.get("weights"), _WEIGHTS, f"weights of {source}")
    size = weights.get("group_size")
    is_grouped = weights.get("strategy", "group" if size not in (None, -1) else "channel") == "group"
    is_size = type(size) is int and size > 0
    if is_grouped != is_size and not (not is_grouped and size in (None, -1)):
        raise ConfigError(f"group_size must be a count for groups alone; got {size!r} in {source}. Correct the file.")
    bits = weights.get("num_bits", 8)
    return Scheme(bits, size if is_grouped else None, weights.get("symmetric", True) is not False)


def _checked(raw: Any, known: Mapping[str, tuple[object, ...] | None], source: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"quantization must be described by an object; got {raw!r:.60} in {source}. Fetch it again.")
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(
                f"quantization must have known keys only; got {key!r} = {value!r:.60} in {source}, which could change "
                "the numbers. Use a folder without it."
            )
        allowed = known[key]
        # 1 == True and 0 == False: a number is no switch.
        if allowed is not None and not any(value == other and type(value) is type(other) for other in allowed):
            raise ConfigError(
                f"{key} must be {' or '.join(map(repr, allowed))}; got {value!r:.60} in {source}. "
                "Other forms are not read by this version."
            )
    return raw
