"""A prompt that was read once: its keys and values, kept in memory or in a file, to go on from.

The file is a safetensors file. Its header says what model, adapter and chat template it was made with,
so no other one takes it; every length is compared with the model before a byte of it is read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.errors import CacheError, CheckpointError, MemoryLimitError
from gemsmith.infer.fingerprint import Mark, fingerprint
from gemsmith.model.cache import KVCache
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.header import TORCH_DTYPES, Entry, read_header, read_metadata
from gemsmith.weights.mapped import MappedFiles, stored_dtype
from gemsmith.weights.memory import available_bytes, in_gb
from gemsmith.weights.shards import dense, write_shard
from gemsmith.weights.whole_file import replacing_file

FORMAT = "gemsmith prompt cache 1"
_IDS = "token_ids"
_WAY_OUT = "Delete it and read the prompt again."


@dataclass(frozen=True)
class PromptCache:
    """Keys and values of a prompt's tokens.

    Attributes:
        token_ids: The prompt.
        network: Whose keys and values they are.
        mark: The weights it had when they were computed.
        stores: "keys.3", "values.3", ...: what a cache keeps for layer 3 of the last tokens, in the
            order of their positions (dimension 1). A local layer has no more than its ring really held.
    """

    token_ids: tuple[int, ...]
    network: Transformer = field(repr=False, compare=False)
    mark: Mark = field(repr=False, compare=False)
    stores: dict[str, Tensor] = field(repr=False, compare=False)

    @classmethod
    def of(cls, cache: KVCache, token_ids: Sequence[int], *, network: Transformer, slot: int = 0) -> "PromptCache":
        """Return a copy of what a slot holds of the tokens it has read."""
        n_tokens, stores = len(token_ids), {}
        assert int(cache.lengths[slot]) == n_tokens
        for kind, layers in cache.stores.items():
            for layer, store in layers.items():
                positions = torch.arange(cache.first_held(layer, slot), n_tokens, device=store.device)
                stores[f"{kind}.{layer}"] = store[slot][:, positions % store.shape[2]]
        return cls(tuple(token_ids), network, Mark(network), stores)

    @property
    def n_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(x.nbytes for x in self.stores.values())

    def check_weights(self) -> None:
        """Refuse to go on where the network's weights or low-rank deltas are no longer those it was read with.

        Raises:
            CacheError: They are not.
        """
        name = self.mark.changed(self.network)
        if name is not None:
            raise CacheError(
                f"prompt_cache must be of the weights and adapters the model has now; got one of before {name!r} was "
                "changed. Read the prompt again."
            )

    def n_shared(self, prompt: Sequence[int]) -> int:
        """Return how many first tokens of another prompt need not be read again.

        All they have in common, but never the last of `prompt`, after which logits are wanted; none
        where a local layer no longer holds what the next token sees.
        """
        n = 0
        for ours, theirs in zip(self.token_ids, prompt[:-1], strict=False):
            if ours != theirs:
                break
            n += 1
        for name, store in self.stores.items():
            window = self.network.config.layers[int(name.partition(".")[2])].window
            first_held = len(self.token_ids) - store.shape[1]
            if first_held > (0 if window is None else max(0, n - window + 1)):
                return 0
        return n

    def fill(self, cache: KVCache, n_tokens: int, *, slot: int = 0) -> None:
        """Write the first `n_tokens` into an empty slot, as if they had just been read.

        Raises:
            CacheError: The cache keeps numbers of another kind.
        """
        starts: dict[int, int] = {}
        for kind, layers in cache.stores.items():
            for layer, target in layers.items():
                source = self.stores.get(f"{kind}.{layer}")
                if source is None or source.dtype != target.dtype:
                    raise CacheError(
                        f"prompt cache must be in the cache's {target.dtype} {kind}; got "
                        f"{'none' if source is None else source.dtype} for layer {layer}. Read the prompt again."
                    )
                places, first_held = target.shape[2], len(self.token_ids) - source.shape[1]
                starts[layer] = max(first_held, n_tokens - places)
                positions = torch.arange(starts[layer], n_tokens)
                target[slot][:, (positions % places).to(target.device)] = source[:, positions - first_held].to(
                    target.device
                )
        cache.resume(slot, n_tokens, first_held=starts)

    def save(self, path: Path | str, tokenizer: Tokenizer) -> Path:
        """Write a file that `load_prompt` takes, whole or not at all; return its path.

        Raises:
            CacheError: The network has been changed since.
            StorageError: The disk is full or not writable, or the place holds something else.
        """
        self.check_weights()  # or the file would name a network that it is not of
        ids = torch.tensor(self.token_ids, dtype=torch.int64)
        tensors = {_IDS: ids, **{name: x.contiguous() for name, x in sorted(self.stores.items())}}
        words = {
            "format": FORMAT,
            "writer": f"gemsmith {version('gemsmith')}",
            "sha256": _sha256(tensors),
            **asdict(fingerprint(self.network, tokenizer)),
        }
        path = Path(path).expanduser().resolve()
        with replacing_file(path, is_ours=_is_prompt_cache, n_bytes=self.n_bytes) as partial:
            write_shard(partial, {name: dense(x) for name, x in tensors.items()}, metadata=words)
        return path


def load_prompt(path: Path | str, *, network: Transformer, tokenizer: Tokenizer) -> PromptCache:
    """Return the prompt cache of a file.

    Raises:
        CacheError: It is no such file, is damaged, or belongs to another model, adapter or template.
    """
    path = Path(path).expanduser()
    entries, words = _read_head(path)
    ours = fingerprint(network, tokenizer)
    for part in ("model", "adapter", "template"):
        if words.get(part) != getattr(ours, part):
            raise CacheError(
                f"prompt cache must be of this {part}, {getattr(ours, part)[:12]}; got {words.get(part, '')[:12]!r} in "
                f"{str(path)!r}. Delete it, or load what it was made with."
            )
    _check_entries(path, entries, network.config)
    files = MappedFiles([path])
    try:
        tensors = {
            name: files.read(entry, dtype=stored_dtype(entry), device=torch.device("cpu"))
            for name, entry in entries.items()
        }
    except CheckpointError as error:
        raise _damaged(path, str(error)) from error
    if _sha256(tensors) != words.get("sha256"):
        raise _damaged(path, "contents that have changed since it was written")
    token_ids = tuple(tensors.pop(_IDS).tolist())
    if not all(0 <= i < network.config.vocab_size for i in token_ids):
        raise _damaged(path, f"ids that are not below {network.config.vocab_size}")
    return PromptCache(token_ids, network, Mark(network), {name: x.to(network.device) for name, x in tensors.items()})


def _read_head(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        entries, words = read_header(path), read_metadata(path)
    except OSError as error:
        raise CacheError(
            f"prompt cache must be readable; got {error.strerror!r} for {str(path)!r}. Check its name."
        ) from error
    except CheckpointError as error:
        raise _damaged(path, str(error)) from error
    if words.get("format") != FORMAT:
        raise CacheError(
            f"format must be {FORMAT!r}; got {words.get('format')!r} in {str(path)!r}. Is it a prompt cache of this "
            "version of gemsmith?"
        )
    return entries, words


def _check_entries(path: Path, entries: dict[str, Entry], config: ModelConfig) -> None:
    """Compare the table of a file with the model, before anything of that size is allocated."""
    ids = entries.get(_IDS)
    if ids is None or ids.dtype != "I64" or len(ids.shape) != 1 or not 0 < ids.shape[0] <= config.max_seq_len:
        found = None if ids is None else (ids.dtype, ids.shape)
        raise _damaged(path, f"{found} for its {_IDS} where 1 to {config.max_seq_len} are possible")
    own = {str(index): layer for index, layer in enumerate(config.layers) if layer.kv_source is None}
    missing = {f"{kind}.{index}" for kind in ("keys", "values") for index in own} - entries.keys()
    if missing:
        raise _damaged(path, f"no {min(missing)!r}")
    for name, entry in entries.items():
        if name == _IDS:
            continue
        kind, _, number = name.partition(".")
        layer = own.get(number)
        if layer is None or entry.dtype not in TORCH_DTYPES:
            raise _damaged(path, f"an unknown tensor {name!r}")
        tail = () if kind.endswith("scales") else (layer.head_dim,)
        n_held = entry.shape[1] if len(entry.shape) > 1 else 0
        least = ids.shape[0] if layer.window is None else min(ids.shape[0], layer.window)
        if entry.shape != (layer.n_kv_heads, n_held, *tail) or not least <= n_held <= ids.shape[0]:
            raise _damaged(path, f"shape {list(entry.shape)} for {name!r}")
    needed, free = sum(entry.n_bytes for entry in entries.values()), available_bytes()
    if needed > free:
        raise MemoryLimitError(
            f"prompt cache must fit into memory; got {in_gb(needed)} needed and {in_gb(free)} free for {str(path)!r}. "
            "Close other programs."
        )


def _is_prompt_cache(path: Path) -> bool:
    try:
        return read_metadata(path).get("format") == FORMAT
    except (OSError, CheckpointError):
        return False


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(memoryview(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def _damaged(path: Path, found: str) -> CacheError:
    return CacheError(f"prompt cache must be an intact file; got {found} in {str(path)!r}. {_WAY_OUT}")
