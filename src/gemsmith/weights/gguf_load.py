"""A GGUF file -> a network and its tokenizer. Everything is checked by the head before anything is allocated."""

import logging
from collections.abc import Collection
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from gemsmith.config import ModelConfig
from gemsmith.errors import CheckpointError, ConfigError
from gemsmith.kernels import native
from gemsmith.kernels.quantized import Quantized, pack_nibbles
from gemsmith.kernels.quantized_linear import Packed, pack_blocks
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.folder import LoadedNetwork, LoadReport
from gemsmith.weights.gguf_blocks import dequantize_blocks, split_q4_0, split_q8_0
from gemsmith.weights.gguf_config import parse_metadata
from gemsmith.weights.gguf_header import GgufFile, GgufTensor, read_gguf
from gemsmith.weights.gguf_metadata import Metadata
from gemsmith.weights.gguf_names import EMBEDDING, OUTPUT, is_shifted, parameter_name
from gemsmith.weights.gguf_ollama import in_common_words
from gemsmith.weights.gguf_tensors import NATIVE
from gemsmith.weights.gguf_tokenizer import is_own_template, read_tokenizer, special_ids
from gemsmith.weights.header import Entry
from gemsmith.weights.mapped import MappedFiles
from gemsmith.weights.memory import DTYPE_BYTES, check_fits, check_plausible
from gemsmith.weights.quantized import put

_log = logging.getLogger("gemsmith")
_TEMPLATE = "tokenizer.chat_template"
_PIECE_ITEMS = 1 << 20


class GgufModel:
    """One file, its head read once.

    Attributes:
        file: What its head says.
        config: What its network is made of.
    """

    def __init__(self, path: Path | str, *, allow_config_keys: Collection[str] = ()) -> None:
        """Read the head of a file.

        Raises:
            CheckpointError: The file is damaged, has no embedding, or is far too short for its metadata.
            ConfigError: The model is of another kind, or a key is missing, unknown or wrong.
            TokenizerError: The file has no vocabulary of a Gemma.
        """
        self.file: GgufFile = in_common_words(read_gguf(Path(path).expanduser()))
        self._metadata = Metadata(self.file)
        self._allowed = allow_config_keys
        embedding = self.file.tensors.get(EMBEDDING)
        if embedding is None:
            raise CheckpointError(
                f"checkpoint {str(self.file.path)!r} has no tensor {EMBEDDING!r}; it holds {len(self.file.tensors)} "
                "others. Is it the file of the text model?"
            )
        self.config: ModelConfig = parse_metadata(
            self._metadata,
            n_rows=embedding.shape[0],
            special=special_ids(self._metadata),
            allow_config_keys=allow_config_keys,
        )
        check_plausible(self.config, sum(self.formats.values()), source=f"metadata of {str(self.file.path)!r}")

    def tokenizer(self) -> Tokenizer:
        """Return the file's vocabulary; a chat template of another family's is told in the log."""
        template = self._metadata.get(_TEMPLATE)
        if isinstance(template, str) and not is_own_template(template):
            _log.warning(
                "%s: its chat template is not Gemma's; conversations are written as Gemma was trained to read them",
                self.file.path.name,
            )
        return read_tokenizer(self._metadata, allow_config_keys=self._allowed)

    @property
    def formats(self) -> dict[str, int]:
        """Bytes of the file's tensors by format, the largest first."""
        n_bytes: dict[str, int] = {}
        for tensor in self.file.tensors.values():
            n_bytes[tensor.block.name] = n_bytes.get(tensor.block.name, 0) + tensor.n_bytes
        return dict(sorted(n_bytes.items(), key=lambda item: -item[1]))

    @property
    def stored_dtype(self) -> str:
        """The dtype most bytes are in: "float32", "float16", or "bfloat16" also for fewer bits."""
        return {"F32": "float32", "F16": "float16"}.get(next(iter(self.formats)), "bfloat16")

    @property
    def few_bits(self) -> tuple[int, int]:
        """How many weights stay in the bits they have in the file, Q8_0 or Q4_0, on a CPU; and their bytes."""
        kept = [
            tensor
            for name, tensor in self.file.tensors.items()
            if tensor.block.name in NATIVE and name != OUTPUT and parameter_name(name, self.config.family)
        ]
        return sum(prod(tensor.shape) for tensor in kept), sum(tensor.n_bytes for tensor in kept)

    @property
    def memory_bytes(self) -> int:
        """Bytes of its weights in memory on a CPU: Q8_0 and Q4_0 in their own bits, others in `stored_dtype`."""
        n_weights, n_bytes = self.few_bits
        return n_bytes + (self.config.n_params - n_weights) * DTYPE_BYTES[self.stored_dtype]

    def network(
        self,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        is_native: bool = True,
    ) -> LoadedNetwork:
        """Return the network.

        Args:
            dtype: Of what is not kept in few bits; None takes the file's.
            is_native: Keep matrices in Q8_0 and Q4_0 in their own bits; False makes them dense.

        Raises:
            CheckpointError: A tensor is missing, misshapen, unexplained, or the head is not tied.
            ConfigError: `dtype` is none of a network.
            MemoryLimitError: The model does not fit.
        """
        target = str(self.stored_dtype if dtype is None else dtype).removeprefix("torch.")
        if target not in DTYPE_BYTES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPE_BYTES)}; got {target!r}. Choose one of them.")
        network = Transformer(self.config, device="meta")
        matched, skipped = self._match(network)
        schemes = {
            name: NATIVE[tensor.block.name]
            for name, tensor in matched.items()
            if is_native and tensor.block.name in NATIVE and not is_shifted(name)
        }
        n_bytes = sum(
            tensor.n_bytes if name in schemes else prod(tensor.shape) * DTYPE_BYTES[target]
            for name, tensor in matched.items()
        )
        check_fits(self.config, target, device=str(device), name=f"model {str(self.file.path)!r}", n_bytes=n_bytes)
        files = MappedFiles([self.file.path])
        n_cast = 0
        for name, tensor in matched.items():
            if name in schemes:
                put(network, name.removesuffix(".weight"), _quantized(files, tensor, torch.device(device)))
                continue
            weight = _dense(files, tensor, getattr(torch, target), shift=is_shifted(name))
            n_cast += tensor.block.dtype != weight.dtype
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, nn.Parameter(weight.to(device)))
        report = LoadReport(
            folder=self.file.path,
            dtype=target,
            n_bytes=sum(tensor.n_bytes for tensor in matched.values()),
            is_mapped=torch.device(device).type == "cpu" and n_cast + len(schemes) < len(matched),
            skipped=skipped,
            cast=tuple(t.name for n, t in matched.items() if n not in schemes and str(t.block.dtype)[6:] != target),
            manifest=None,
            schemes={name.removesuffix(".weight"): scheme for name, scheme in schemes.items()},
        )
        return LoadedNetwork(network.eval(), self.config, report, files)

    def _match(self, network: Transformer) -> tuple[dict[str, GgufTensor], tuple[str, ...]]:
        """Return the tensor of every parameter, and the names passed over."""
        path, family = self.file.path, self.config.family
        wanted = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        matched: dict[str, GgufTensor] = {}
        skipped = []
        for tensor in self.file.tensors.values():
            name = parameter_name(tensor.name, family)
            if name is None or tensor.name == OUTPUT:
                skipped.append(tensor.name)
            elif name not in wanted:
                raise CheckpointError(
                    f"checkpoint must hold tensors of its metadata only; got the unexplained {tensor.name!r} of shape "
                    f"{list(tensor.shape)} in {str(path)!r}. Does another program know more of this file?"
                )
            elif tensor.shape != wanted[name]:
                raise CheckpointError(
                    f"tensor {tensor.name!r} must have the shape {list(wanted[name])} of its metadata; got "
                    f"{list(tensor.shape)} in {str(path)!r}. Convert the model again."
                )
            else:
                matched[name] = tensor
        missing = [name for name in wanted if name not in matched]
        if missing:
            raise CheckpointError(
                f"checkpoint {str(path)!r} has no tensor for {missing[0]!r}; it holds {len(matched)} of {len(wanted)}. "
                "Convert the model again."
            )
        if OUTPUT in self.file.tensors:
            self._check_tied(self.file.tensors[OUTPUT], self.file.tensors[EMBEDDING])
        return matched, tuple(skipped)

    def _check_tied(self, head: GgufTensor, embedding: GgufTensor) -> None:
        files = MappedFiles([self.file.path])
        is_alike = (head.block, head.shape) == (embedding.block, embedding.shape)
        if is_alike and torch.equal(_raw(files, head), _raw(files, embedding)):
            return
        raise CheckpointError(
            f"tensor {head.name!r} must equal the embedding, as every Gemma ties its output head; got other values in "
            f"{str(self.file.path)!r}. A model with a head of its own is not read by this version."
        )


def _raw(files: MappedFiles, tensor: GgufTensor) -> Tensor:
    """Return a tensor's bytes as a view of the mapped file."""
    return files.view(Entry(tensor.path, tensor.name, "U8", (tensor.n_bytes,), tensor.start, tensor.n_bytes))


def _dense(files: MappedFiles, tensor: GgufTensor, dtype: torch.dtype, *, shift: bool) -> Tensor:
    """Return a tensor's numbers, mapped where the file has them in this dtype."""
    block = tensor.block
    if shift:
        return (dequantize_blocks(_raw(files, tensor), block, dtype=torch.float32) - 1.0).to(dtype).view(tensor.shape)
    if block.dtype == dtype:
        return files.view(Entry(tensor.path, tensor.name, block.name, tensor.shape, tensor.start, tensor.n_bytes))
    raw = _raw(files, tensor)
    dense = dequantize_blocks(raw, block, dtype=dtype).view(tensor.shape)
    files.release(raw)
    return dense


def _quantized(files: MappedFiles, tensor: GgufTensor, device: torch.device) -> Quantized | Packed:
    """Return a matrix in the bits it has in the file, packed at once where there are kernels for it."""
    (d_out, d_in), scheme = tensor.shape, NATIVE[tensor.block.name]
    if device.type == "cpu" and native.is_loaded():
        raw = _raw(files, tensor)
        packed = pack_blocks(raw.view(d_out, -1), scheme)
        files.release(raw)
        return packed
    is_byte = scheme.bits == 8
    values = torch.empty(d_out, d_in if is_byte else d_in // 2, dtype=torch.int8 if is_byte else torch.uint8)
    scales = torch.empty(d_out, scheme.n_groups(d_in), dtype=torch.float16)
    raw = _raw(files, tensor)
    per_piece = max(1, _PIECE_ITEMS // d_in)
    pieces = raw.view(d_out, -1).split(per_piece)
    for into, steps, piece in zip(values.split(per_piece), scales.split(per_piece), pieces, strict=True):
        blocks = piece.reshape(-1, tensor.block.n_bytes)
        found, step = split_q8_0(blocks) if is_byte else split_q4_0(blocks)
        into.copy_((found if is_byte else pack_nibbles(found)).view(into.shape))
        steps.copy_(step.view(steps.shape))
    files.release(raw)
    return Quantized(scheme, (d_out, d_in), values.to(device), scales.to(device), None)
