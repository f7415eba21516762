"""A network trained for few bits computes what it will be in few bits."""

from collections.abc import Mapping

import pytest
import torch

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.kernels.quantized import SCALE_DTYPE, Scheme
from gemsmith.model import ops
from gemsmith.model.linear import Linear
from gemsmith.model.quantized import quantize_network
from gemsmith.model.rounded import RoundedEmbedding, round_in_training
from gemsmith.model.transformer import Transformer
from gemsmith.train.initial import initial_weights
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss

_LAYER = LayerSpec("local", 2, 1, 16, 64, attn_scale=0.25, window=4, attn_softcap=3.0)
CONFIG = ModelConfig("gemma2", 64, 32, 32, (_LAYER, _LAYER), final_softcap=5.0)


def schemes_of(scheme: Scheme, table: Scheme) -> dict[str, Scheme]:
    names = [name for name, module in Transformer(CONFIG, device="meta").named_modules() if isinstance(module, Linear)]
    return dict.fromkeys(names, scheme) | {"embed_tokens": table}


SCHEMES = schemes_of(Scheme(4, 32), Scheme(8, None))


def network() -> Transformer:
    made = Transformer(CONFIG)
    made.load_state_dict(initial_weights(CONFIG, seed=0))
    return made.eval()


def quantized(schemes: Mapping[str, Scheme]) -> Transformer:
    return quantize_network(network(), lambda name, _: schemes.get(name), scale_dtype=SCALE_DTYPE)


def batch() -> Batch:
    ids = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(1))
    row = torch.arange(16).expand(2, 16)
    return Batch(ids[:, :-1], ids[:, 1:], torch.ones(2, 16, dtype=torch.bool), row * 0, row)


@torch.no_grad()
@pytest.mark.parametrize("schemes", [SCHEMES, schemes_of(Scheme(8, None), Scheme(4, 32)), {}], ids=["4", "8", "none"])
def test_logits_equal_those_of_the_quantized_network(schemes: dict[str, Scheme]) -> None:
    ids = batch().token_ids
    with ops.plain_only():
        found, wanted = round_in_training(network(), schemes)(ids), quantized(schemes)(ids)
        dense = network()(ids)
    assert torch.equal(found, wanted)
    assert bool((found == dense).all()) != bool(schemes)
    served = quantized(schemes)  # in the order and with the kernels of this machine
    served.pack()
    torch.testing.assert_close(found, served(ids), rtol=1e-3, atol=1e-3)


def test_loss_is_that_of_the_quantized_network_and_reaches_every_master() -> None:
    weights, spec = initial_weights(CONFIG, seed=0), LossSpec(CONFIG.final_softcap)
    loss = next_token_loss(CONFIG, spec, schemes=SCHEMES)(weights, batch())
    with torch.no_grad(), ops.plain_only():
        logprobs = quantized(SCHEMES)(batch().token_ids).log_softmax(-1)
    wanted = -logprobs.gather(-1, batch().targets[..., None]).sum()
    torch.testing.assert_close(loss.detach(), wanted, rtol=1e-5, atol=0)
    loss.backward()
    for name, weight in weights.items():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_recomputing_blocks_changes_no_gradient() -> None:
    found = []
    for is_recomputed in (False, True):
        weights = initial_weights(CONFIG, seed=0)
        loss_fn = next_token_loss(CONFIG, LossSpec(5.0), is_recomputed=is_recomputed, schemes=SCHEMES)
        loss_fn(weights, batch()).backward()
        found.append({name: weight.grad for name, weight in weights.items()})
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name]), name


def test_parameters_keep_their_names_and_other_modules_stay_dense() -> None:
    some = {"layers.0.mlp.up_proj": Scheme(4, 32)}
    made = round_in_training(network(), some)
    assert {name for name, _ in made.named_parameters()} == {name for name, _ in network().named_parameters()}
    assert not isinstance(made.embed_tokens, RoundedEmbedding)
    assert type(made.get_submodule("layers.1.mlp.up_proj")) is Linear
