"""The objective of pretraining, through the network's one forward pass."""

import pytest
import torch
from torch import Tensor

from gemsmith.data.mixture import Batch
from gemsmith.model.transformer import Transformer
from gemsmith.train.initial import initial_weights
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from tiny import tiny_config

SPEC = LossSpec(softcap=3.0, z_weight=1e-4, chunk=7)


def a_batch(rows: int = 2, length: int = 24) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 300, (rows, length + 1), generator=generator)
    half = length // 2
    documents = (torch.arange(length) >= half).long().expand(rows, -1)
    positions = torch.arange(length).remainder(half).expand(rows, -1)
    mask = torch.rand(rows, length, generator=generator) < 0.8
    return Batch(ids[:, :-1], ids[:, 1:], mask, documents, positions)


def loss_and_gradients(family: str = "gemma2", **options: object) -> tuple[Tensor, dict[str, Tensor]]:
    weights = initial_weights(tiny_config(family), seed=1)
    loss = next_token_loss(tiny_config(family), SPEC, **options)(weights, a_batch())  # pyright: ignore[reportArgumentType]
    loss.backward()
    return loss.detach(), {name: w.grad for name, w in weights.items() if w.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_recomputation_changes_no_bit(family: str, dtype: torch.dtype) -> None:
    loss, gradients = loss_and_gradients(family, dtype=dtype)
    again, recomputed = loss_and_gradients(family, dtype=dtype, is_recomputed=True)
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


def test_recomputation_runs_every_block_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    network = Transformer(tiny_config())
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    network.is_recomputed = True
    network(torch.arange(3, 9)[None]).sum().backward()
    assert len(calls) == 2


def test_every_weight_gets_a_float32_gradient_of_a_bfloat16_pass() -> None:
    _, gradients = loss_and_gradients(dtype=torch.bfloat16)
    assert gradients.keys() == initial_weights(tiny_config(), seed=1).keys()
    assert {g.dtype for g in gradients.values()} == {torch.float32}


def test_table_sums_its_lookups_in_float32() -> None:
    """A piece seen thousands of times would lose most of a bfloat16 sum."""
    network = Transformer(tiny_config(vocab_size=4))
    table = network.embed_tokens.weight
    vectors = network.embed_tokens(torch.ones(5000, dtype=torch.long), dtype=torch.bfloat16)
    vectors.backward(torch.ones_like(vectors))
    assert table.grad is not None
    scale = torch.tensor(table.shape[1] ** 0.5).bfloat16()
    assert float(table.grad[1, 0]) == 5000 * float(scale)
