"""Rows of packed documents train as the documents alone would, and no gradient goes where no attention may."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.train.initial import initial_weights
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from packed_rows import alone, packed, stacked
from tiny import WINDOW, tiny_config, tiny_network

GEMMA2 = tiny_config("gemma2")
ONLY_LOCAL = GEMMA2.replace(layers=tuple(replace(layer, kind="local", window=WINDOW) for layer in GEMMA2.layers))
CONFIGS = {"gemma2": GEMMA2, "only_local": ONLY_LOCAL, **{name: tiny_config(name) for name in ("gemma", "gemma3")}}
# Documents of one token, shorter than a window, as long as one, and far longer.
LENGTHS = (1, 5, WINDOW, 40, 23)


def lively_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Return weights large enough for caps, norms and attention to matter."""
    weights = initial_weights(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, weight in weights.items():
        weight.data.mul_(3.0 if "layers" in name else 1.0).add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return weights


def loss_and_gradient(config: ModelConfig, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """Return the summed loss of some batches and its gradient by name."""
    weights, loss_fn = lively_weights(config), next_token_loss(config, LossSpec(config.final_softcap, 1e-4, chunk=16))
    total = 0.0
    for batch in batches:
        loss = loss_fn(weights, batch)
        loss.backward()
        total += float(loss.detach())
    return total, {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def off(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return the largest difference of two gradients as a share of the largest value of its tensor."""
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted)


@pytest.mark.parametrize("scored", [1.0, 0.4])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_loss_equals_unpacked_loss(name: str, scored: float) -> None:
    """Also for windows shorter than documents, and for conversations, where only some targets count."""
    rows = [packed(LENGTHS, row=80, seed=1, scored=scored), packed(LENGTHS[::-1], row=80, seed=2, scored=scored)]
    documents = [document for row in rows for document in alone(row)]
    assert len(documents) >= 8
    assert {document.token_ids.shape[1] for document in documents} >= {5, WINDOW, 40, 23}
    together, gradient = loss_and_gradient(CONFIGS[name], [stacked(rows)])
    apart, wanted = loss_and_gradient(CONFIGS[name], documents)
    assert together == pytest.approx(apart, rel=1e-6)
    assert off(gradient, wanted) < 1e-5


def test_filler_changes_nothing() -> None:
    row = packed(LENGTHS, row=80, seed=1)
    other = replace(row, token_ids=torch.where(row.documents == len(LENGTHS), 7, row.token_ids))
    assert not torch.equal(other.token_ids, row.token_ids)
    (loss, gradient), (same, same_gradient) = (loss_and_gradient(GEMMA2, [batch]) for batch in (row, other))
    assert loss == same
    assert off(same_gradient, gradient) == 0


def reached(config: ModelConfig, row: Batch, place: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the places whose embeddings the loss at one place of a packed row depends on.

    Every place has a piece of its own, so that the gradient of the table tells places apart; the head
    is cut off the gradient, for it would reach every piece.
    """
    token_ids = torch.arange(row.token_ids.shape[1])[None]
    only = torch.zeros_like(row.loss_mask)
    only[0, place] = True
    seen = []
    loss_fn = next_token_loss(config, LossSpec(config.final_softcap))
    from gemsmith.train import next_token

    real = next_token.chunked_loss

    def headless(hidden: Tensor, head: Tensor, targets: Tensor, **options: object) -> Tensor:
        seen.append(int(options["loss_mask"].sum()))  # pyright: ignore[reportAttributeAccessIssue]
        return real(hidden, head.detach(), targets, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(next_token, "chunked_loss", headless)
    weights = dict(tiny_network(config.family, seed=3).named_parameters())
    loss_fn(weights, replace(row, token_ids=token_ids, loss_mask=only)).backward()
    assert seen == [1]
    table = weights["embed_tokens.weight"].grad
    assert table is not None
    return table.abs().sum(-1)[: token_ids.shape[1]].nonzero()[:, 0].tolist()


def test_loss_has_no_gradient_for_later_tokens_or_other_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    row = packed((20, 45, 10), row=80)
    for place, first in ((0, 0), (19, 0), (20, 20), (50, 20), (64, 20), (70, 65)):
        assert reached(GEMMA2, row, place, monkeypatch) == list(range(first, place + 1))


def test_loss_has_no_gradient_beyond_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of local layers sees window - 1 tokens further back with each."""
    row, depth = packed((20, 45, 10), row=80), len(ONLY_LOCAL.layers)
    reach = depth * (WINDOW - 1)
    assert reach < 44
    assert reached(ONLY_LOCAL, row, 64, monkeypatch) == list(range(64 - reach, 65))
    assert reached(ONLY_LOCAL, row, 30, monkeypatch) == list(range(20, 31))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_recomputation_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    config, rows = CONFIGS[name], stacked([packed(LENGTHS, row=80, seed=seed) for seed in (1, 2)])
    results = []
    for is_recomputed in (False, True):
        weights = lively_weights(config)
        spec = LossSpec(config.final_softcap, 1e-4)
        loss = next_token_loss(config, spec, dtype=dtype, is_recomputed=is_recomputed)(weights, rows)
        loss.backward()
        results.append((float(loss.detach()), {name: weight.grad for name, weight in weights.items()}))
    assert results[0][0] == results[1][0]
    for key, gradient in results[0][1].items():
        assert gradient is not None
        assert torch.equal(gradient, results[1][1][key]), key


def test_recomputation_keeps_less() -> None:
    """What autograd holds between the passes, counted as it is packed away."""
    config, rows = GEMMA2, packed(LENGTHS, row=80)
    kept = []
    for is_recomputed in (False, True):
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = lively_weights(config)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            next_token_loss(config, LossSpec(), is_recomputed=is_recomputed)(weights, rows)
        kept.append(sum(sizes.values()) - sum(sizes.get(w.untyped_storage().data_ptr(), 0) for w in weights.values()))
    assert kept[1] < kept[0] / 3
