"""A model folder -> a network. Everything is checked by the headers before anything is allocated."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from gemsmith.config import ModelConfig
from gemsmith.errors import CheckpointError, ConfigError
from gemsmith.kernels.quantized import Scheme
from gemsmith.model.transformer import Transformer
from gemsmith.weights.compressed import parse_quantization
from gemsmith.weights.generation import read_generation_config
from gemsmith.weights.header import WEIGHT_DTYPES, Entry
from gemsmith.weights.json_file import read_json
from gemsmith.weights.keys import QUANTIZATION
from gemsmith.weights.manifest import Manifest, check_manifest
from gemsmith.weights.mapped import MappedFiles, stored_dtype
from gemsmith.weights.memory import DTYPE_BYTES, check_fits, check_plausible
from gemsmith.weights.names import EMBEDDING, HEAD, parameter_name
from gemsmith.weights.quantized import choose_schemes, load_quantized, n_bytes_of, paths_of, take_quantized
from gemsmith.weights.save import save_folder
from gemsmith.weights.tensors import find_tensors
from gemsmith.weights.wire import parse_config

__all__ = ["LoadReport", "LoadedNetwork", "count_few_bits", "load_network", "read_config", "save_folder"]

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class LoadReport:
    """What was done to load a network.

    Attributes:
        dtype: Of its parameters.
        n_bytes: Length of its tensors in the files.
        is_mapped: The parameters are views of the mapped files; memory holds what was touched only.
        skipped: Tensors passed over by name: image and audio towers, stored rotary tables, a tied head.
        cast: Tensors whose dtype in the file was another one.
        manifest: None for a folder published without one.
        schemes: How each quantized module is stored, by its name.
    """

    folder: Path
    dtype: str
    n_bytes: int
    is_mapped: bool
    skipped: tuple[str, ...]
    cast: tuple[str, ...]
    manifest: Manifest | None
    schemes: Mapping[str, Scheme] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its configuration, and how it was loaded.

    Attributes:
        files: Where its mapped parameters lie; `files.release` frees the memory of one after packing.
    """

    network: Transformer
    config: ModelConfig
    report: LoadReport
    files: MappedFiles


def read_config(folder: Path, *, allow_config_keys: Collection[str] = ()) -> ModelConfig:
    """Return the configuration of a model folder; ids that end a text come from both its config files.

    Raises:
        CheckpointError: The folder has no readable config.json.
        ConfigError: The configuration cannot be computed by this network, or has an unknown key.
    """
    path = folder / CONFIG_FILE
    raw = {key: value for key, value in read_json(path).items() if key != QUANTIZATION}
    config = parse_config(raw, allow_config_keys=allow_config_keys, source=str(path))
    more = [
        token_id for token_id in read_generation_config(folder).get("eos_ids", ()) if token_id not in config.eos_ids
    ]
    return config.replace(eos_ids=(*config.eos_ids, *more))


def read_schemes(folder: Path) -> frozenset[Scheme]:
    """Return the schemes the quantized tensors of a folder may have; none for a dense model.

    Raises:
        CheckpointError: The folder has no readable config.json.
        ConfigError: Its quantization is of another kind, or has a key that could change the numbers.
    """
    path = folder / CONFIG_FILE
    raw = read_json(path).get(QUANTIZATION)
    return frozenset() if raw is None else parse_quantization(raw, source=str(path))


def count_few_bits(folder: Path) -> tuple[int, int]:
    """Return how many weights of a folder are in few bits, and their bytes.

    Raises:
        CheckpointError: The tensors are not those of the configuration.
        ConfigError: Configuration or quantization is of another kind.
    """
    declared = read_schemes(folder)
    if not declared:
        return 0, 0
    entries = find_tensors(folder)
    config = read_config(folder)
    check_plausible(config, sum(entry.n_bytes for entry in entries.values()), source=f"config.json of {str(folder)!r}")
    network = Transformer(config, device="meta")
    stores, _ = take_quantized(entries, network)
    schemes = choose_schemes(stores, network, declared)
    n_weights = sum(network.get_parameter(f"{name}.weight").numel() for name in schemes)
    return n_weights, n_bytes_of({name: stores[name] for name in schemes})


def load_network(
    folder: Path | str,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    allow_config_keys: Collection[str] = (),
) -> LoadedNetwork:
    """Return the network a Hugging Face folder holds.

    On a CPU, in the dtype of the file, parameters are views of the mapped file: loading reads the
    headers only, and memory fills as layers are used.

    Args:
        dtype: Of the parameters; None keeps the file's (its most frequent one, by bytes).
        allow_config_keys: Keys of config.json to pass over although they could change the numbers.

    Raises:
        CheckpointError: A file is damaged, or a tensor is missing, doubled, misshapen or unexplained.
        ConfigError: The configuration or `dtype` is not one this network has.
        MemoryLimitError: The model does not fit; the dtype that would is named.
    """
    folder = Path(folder).expanduser()
    entries = find_tensors(folder)
    config = read_config(folder, allow_config_keys=allow_config_keys)
    n_stored = sum(entry.n_bytes for entry in entries.values())
    check_plausible(config, n_stored, source=f"config.json of {str(folder)!r}")
    network = Transformer(config, device="meta")
    declared = read_schemes(folder)
    stores, entries = take_quantized(entries, network) if declared else ({}, entries)
    schemes = choose_schemes(stores, network, declared)
    matched, skipped = _match(entries, network, folder, quantized=schemes)
    target = _target_dtype(dtype, matched)
    n_dense = sum(prod(entry.shape) for entry in matched.values())
    n_bytes = n_bytes_of(stores) + n_dense * DTYPE_BYTES[target] if schemes else None
    check_fits(config, target, device=str(device), name=f"model {str(folder)!r}", n_bytes=n_bytes)
    manifest = check_manifest(folder)
    files = MappedFiles([*paths_of(stores), *(entry.path for entry in matched.values())])
    load_quantized(network, stores, schemes, files=files, device=torch.device(device))
    head = matched.pop(HEAD, None)
    if head is not None:
        _check_tied(files.view(head), files.view(matched[EMBEDDING]), head.name, folder)
        files.release(files.view(head))
        skipped = (*skipped, head.name)
    for name, entry in matched.items():
        parent, _, leaf = name.rpartition(".")
        tensor = _load(entry, files, dtype=getattr(torch, target), device=torch.device(device))
        setattr(network.get_submodule(parent), leaf, nn.Parameter(tensor))
    cast = tuple(entry.name for entry in matched.values() if WEIGHT_DTYPES[entry.dtype] != target)
    report = LoadReport(
        folder=folder,
        dtype=target,
        n_bytes=n_bytes_of(stores) + sum(entry.n_bytes for entry in matched.values()),
        is_mapped=torch.device(device).type == "cpu" and len(cast) < len(matched),
        skipped=skipped,
        cast=cast,
        manifest=manifest,
        schemes=schemes,
    )
    return LoadedNetwork(network.eval(), config, report, files)


def _match(
    entries: Mapping[str, Entry], network: Transformer, folder: Path, *, quantized: Collection[str]
) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """Return the tensor of every dense parameter (and of a stored head), and the names passed over."""
    wanted = {
        name: tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        if name.removesuffix(".weight") not in quantized
    }
    # A stored head has the shape of the embedding, which it must equal.
    shapes = wanted | ({HEAD: wanted[EMBEDDING]} if EMBEDDING in wanted else {})
    matched: dict[str, Entry] = {}
    skipped = []
    for entry in entries.values():
        name = parameter_name(entry.name)
        if name is None:
            skipped.append(entry.name)
            continue
        if name not in shapes:
            raise CheckpointError(
                f"checkpoint must hold tensors of its configuration only; got the unexplained {entry.name!r} of shape "
                f"{list(entry.shape)} in {str(folder)!r}. Do config.json and weights belong together?"
            )
        if name in matched:
            raise CheckpointError(
                f"each tensor must stand once in a checkpoint; got {entry.name!r} and {matched[name].name!r} in "
                f"{str(folder)!r}. Remove one."
            )
        if entry.shape != shapes[name]:
            raise CheckpointError(
                f"tensor {entry.name!r} must have the shape {list(shapes[name])} of its configuration; got "
                f"{list(entry.shape)} in {str(folder)!r}. Do config.json and weights belong together?"
            )
        if entry.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"tensor {entry.name!r} must be of {', '.join(WEIGHT_DTYPES)}; got {entry.dtype} in {str(folder)!r}. "
                "Quantized weights need a quantization_config in config.json."
            )
        matched[name] = entry
    missing = [name for name in wanted if name not in matched]
    if missing:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has no tensor {missing[0]!r}; it holds {len(wanted) - len(missing)} of "
            f"{len(wanted)}. Was the save interrupted?"
        )
    return matched, tuple(skipped)


def _target_dtype(dtype: torch.dtype | str | None, matched: Mapping[str, Entry]) -> str:
    if dtype is None:
        bytes_of = dict.fromkeys(WEIGHT_DTYPES, 0)
        for entry in matched.values():
            bytes_of[entry.dtype] += entry.n_bytes
        return WEIGHT_DTYPES[max(bytes_of, key=lambda name: bytes_of[name])]
    name = str(dtype).removeprefix("torch.")
    if name not in WEIGHT_DTYPES.values():
        raise ConfigError(
            f"dtype must be one of {', '.join(WEIGHT_DTYPES.values())}; got {name!r}. Choose one of them, "
            "or None for the file's."
        )
    return name


def _check_tied(head: Tensor, embedding: Tensor, name: str, folder: Path) -> None:
    if head.dtype == embedding.dtype and torch.equal(head, embedding):
        return
    raise CheckpointError(
        f"tensor {name!r} must equal the embedding, as every Gemma ties its output head; got other values in "
        f"{str(folder)!r}. A model with a head of its own is not read by this version."
    )


def _load(entry: Entry, files: MappedFiles, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu" and stored_dtype(entry) == dtype:
        return files.view(entry)
    return files.read(entry, dtype=dtype, device=device)
