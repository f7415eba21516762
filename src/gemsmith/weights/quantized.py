"""The quantized modules of a network <-> the tensors of a checkpoint."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from gemsmith.errors import CheckpointError
from gemsmith.kernels.quantized import Quantized, Scheme
from gemsmith.kernels.quantized_linear import Packed
from gemsmith.model.quantized import QuantizedEmbedding, QuantizedLinear
from gemsmith.model.transformer import Transformer
from gemsmith.weights.compressed import PACKED, table_format
from gemsmith.weights.compressed_tensors import LEAVES, read_scheme, restore, store
from gemsmith.weights.header import Entry
from gemsmith.weights.keys import PACKED_WEIGHT, SCALE, WEIGHT, ZERO
from gemsmith.weights.mapped import MappedFiles, stored_dtype
from gemsmith.weights.names import EMBEDDING_MODULE, HEAD_MODULE, parameter_name, tensor_name
from gemsmith.weights.shards import Stored

Stores = dict[str, dict[str, Entry]]


def quantized_modules(network: Transformer) -> dict[str, Quantized]:
    """Return the matrices a network holds in few bits, by the names of their modules."""
    return {
        name: module.quantized
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }


def put(network: Transformer, name: str, q: Quantized | Packed) -> None:
    """Put a matrix in few bits into the place of a linear or of the embedding."""
    new = QuantizedEmbedding(q) if name == EMBEDDING_MODULE else QuantizedLinear(q)
    new.train(network.get_submodule(name).training)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)


def check_whole(network: Transformer) -> list[str]:
    """Return the names of a configuration's parameters, once a network has them, dense or in few bits, and no others.

    Raises:
        CheckpointError: It has others, such as an adapter that is not merged.
    """
    wanted = {name: tuple(p.shape) for name, p in Transformer(network.config, device="meta").named_parameters()}
    found = {name: tuple(p.shape) for name, p in network.named_parameters()}
    found |= {f"{name}.{WEIGHT}": q.shape for name, q in quantized_modules(network).items()}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"network must hold the parameters of its configuration; got {name!r} of shape {found.get(name)} where "
                f"{wanted.get(name)} is expected. Merge adapters before saving."
            )
    return list(wanted)


def store_module(name: str, q: Quantized) -> dict[str, Stored]:
    """Return the tensors of a module by their published names.

    The scales of an 8-bit embedding stand under the head's name too: transformers ties the values
    alone.
    """
    is_table = name == EMBEDDING_MODULE
    tensors = store(q, table_format(q.scheme) if is_table else PACKED)
    found = {f"{tensor_name(name)}.{leaf}": tensor for leaf, tensor in tensors.items()}
    if is_table and PACKED_WEIGHT not in tensors:
        found |= {f"{HEAD_MODULE}.{leaf}": tensors[leaf] for leaf in (SCALE, ZERO) if leaf in tensors}
    return found


def take_quantized(entries: Mapping[str, Entry], network: Transformer) -> tuple[Stores, dict[str, Entry]]:
    """Split the tensors of a checkpoint into those of quantized modules, by module and last part, and the rest."""
    modules = {name.removesuffix(f".{WEIGHT}") for name, _ in network.named_parameters()}
    places = {entry.name: (parameter_name(entry.name) or "").rpartition(".") for entry in entries.values()}
    quantized = {
        module
        for entry in entries.values()
        for module, _, leaf in (places[entry.name],)
        if module in modules and (leaf == PACKED_WEIGHT or (leaf == WEIGHT and entry.dtype == "I8"))
    }
    if EMBEDDING_MODULE in quantized:
        quantized.add(HEAD_MODULE)
    stores: Stores = {}
    rest = {}
    for entry in entries.values():
        module, _, leaf = places[entry.name]
        if module not in quantized or leaf not in LEAVES:
            rest[entry.name] = entry
            continue
        store_of = stores.setdefault(module, {})
        if leaf in store_of:
            raise CheckpointError(
                f"each tensor must stand once in a checkpoint; got {entry.name!r} and {store_of[leaf].name!r} in "
                f"{str(entry.path.parent)!r}. Remove one."
            )
        store_of[leaf] = entry
    return stores, rest


def choose_schemes(stores: Stores, network: Transformer, declared: Collection[Scheme]) -> dict[str, Scheme]:
    """Return the scheme of every quantized module, all checked by the headers.

    Raises:
        CheckpointError: Tensors are missing or fit no declared scheme, or the head is not the embedding.
    """
    schemes = {}
    for name, stored in stores.items():
        if name != HEAD_MODULE:
            d_out, d_in = network.get_parameter(f"{name}.{WEIGHT}").shape
            schemes[name] = read_scheme(name, stored, (d_out, d_in), declared)
    for leaf, entry in stores.get(HEAD_MODULE, {}).items():
        table = stores[EMBEDDING_MODULE].get(leaf)
        if leaf not in (SCALE, ZERO) or table is None or (entry.shape, entry.dtype) != (table.shape, table.dtype):
            raise CheckpointError(
                f"tensor {entry.name!r} must belong to a head tied to the embedding; got {entry.dtype} of shape "
                f"{list(entry.shape)} in {str(entry.path)!r}. A model with a head of its own is not read by this "
                "version."
            )
    return schemes


def load_quantized(
    network: Transformer,
    stores: Stores,
    schemes: Mapping[str, Scheme],
    *,
    files: MappedFiles,
    device: torch.device,
) -> None:
    """Put every quantized module into its place; on a CPU in 4 bits as views of the mapped files.

    Raises:
        CheckpointError: A recorded shape, or a scale of the head, is another one.
    """
    for name, scheme in schemes.items():
        stored = stores[name]
        on_cpu = device.type == "cpu"
        tensors = {
            leaf: files.view(entry) if on_cpu else files.read(entry, dtype=stored_dtype(entry), device=device)
            for leaf, entry in stored.items()
        }
        d_out, d_in = network.get_parameter(f"{name}.{WEIGHT}").shape
        q = restore(name, tensors, (d_out, d_in), scheme)
        if PACKED_WEIGHT in tensors and scheme.bits == 8:
            files.release(tensors[PACKED_WEIGHT])
        put(network, name, q)
    for leaf, entry in stores.get(HEAD_MODULE, {}).items():
        if not torch.equal(files.view(entry), files.view(stores[EMBEDDING_MODULE][leaf])):
            raise CheckpointError(
                f"tensor {entry.name!r} must equal the embedding's, as every Gemma ties its output head; got other "
                f"values in {str(entry.path)!r}. A model with a head of its own is not read by this version."
            )


def paths_of(stores: Stores) -> set[Path]:
    """Return the files quantized modules lie in."""
    return {entry.path for stored in stores.values() for entry in stored.values()}


def n_bytes_of(stores: Stores) -> int:
    """Return how long the tensors of quantized modules are."""
    return sum(entry.n_bytes for stored in stores.values() for entry in stored.values())
