"""What tells one model from another: hashes of its weights, its adapters and its chat template.

In files, weights are told apart by their norms, some rows of the table and some columns of every matrix, which
costs one reading of the weights at most; a change that leaves all of these alone is not seen.
In memory a mark does, which looks at no number: it sees which tensors there are, and how often torch changed each.
"""

import hashlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from gemsmith.chat import Turn, compile_chat
from gemsmith.errors import ChatError
from gemsmith.model.linear import Linear, LowRank
from gemsmith.model.norm import RMSNorm
from gemsmith.model.quantized import QuantizedLinear
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer

_N_SAMPLES = 8
_TALK = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("model", "Hello!"), Turn("user", "1 + 1?"))


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 of a network, of its low-rank deltas, and of a conversation in its template."""

    model: str
    adapter: str
    template: str


class Mark:
    """The weights and low-rank deltas a network has at this moment.

    What is written through `.data` or a pointer goes unseen, and so does a change of tensors made in inference mode.
    """

    def __init__(self, network: Transformer) -> None:
        # Weak references keep no weights alive, and none of a tensor that is gone equals one that took its place.
        self._seen = [(name, weakref.ref(x), _state(x)) for name, x in _tensors(network)]

    def changed(self, network: Transformer) -> str | None:
        """Return the name of a tensor that is new, gone, moved or changed since; None where all are as they were."""
        left = {name: (seen, state) for name, seen, state in self._seen}
        for name, x in _tensors(network):
            seen, state = left.pop(name, (None, None))
            if seen is None or seen() is not x or state != _state(x):
                return name
        return next(iter(left), None)


def _tensors(network: Transformer) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())


def _state(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), 0 if x.is_inference() else x._version


@torch.inference_mode()
def fingerprint(network: Transformer, tokenizer: Tokenizer) -> Fingerprint:
    """Return what a network and a tokenizer are known by, however their weights are packed."""
    model, adapter = hashlib.sha256(f"{network.config!r} {network.dtype}".encode()), hashlib.sha256()
    rows = _places(network.config.vocab_size).to(network.device)
    _add(model, "embed_tokens", network.embed_tokens.look_up(rows, None))
    for name, module in network.named_modules():
        if isinstance(module, RMSNorm):
            _add(model, name, module.weight)
        elif isinstance(module, LowRank):
            for part in (module.lora_a, module.lora_b, module.scale):
                _add(adapter, name, part)
        elif isinstance(module, Linear):
            for part in _sample(module, network):
                _add(model, name, part)
    return Fingerprint(model.hexdigest(), adapter.hexdigest(), _template(network, tokenizer))


def _sample(linear: Linear, network: Transformer) -> list[Tensor]:
    """Return parts of a matrix that are the same in plain and in packed order."""
    if isinstance(linear, QuantizedLinear):
        q = linear.matrix.plain(_places(linear.d_out).to(network.device))
        return [x for x in (q.values, q.scales, q.zeros) if x is not None]
    # Products with unit vectors are columns of the matrix, exactly, in whatever order it lies.
    columns = _places(linear.d_in)
    units = torch.zeros(len(columns), linear.d_in, dtype=network.dtype)
    units[torch.arange(len(columns)), columns] = 1
    return [linear.product(units.to(network.device))]


def _places(n: int) -> Tensor:
    """Return some indices below `n`, spread evenly."""
    return torch.arange(min(n, _N_SAMPLES)) * n // min(n, _N_SAMPLES)


def _add(digest: "hashlib._Hash", name: str, x: Tensor) -> None:
    digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
    digest.update(memoryview(x.detach().cpu().contiguous().view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]


def _template(network: Transformer, tokenizer: Tokenizer) -> str:
    try:
        token_ids = compile_chat(_TALK, tokenizer, family=network.config.family, open_answer=True).token_ids
    except ChatError:  # a vocabulary without turn markers holds no conversations
        token_ids = tokenizer.encode("".join(turn.text for turn in _TALK))
    return hashlib.sha256(repr(token_ids).encode()).hexdigest()
