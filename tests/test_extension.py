"""The network grows from outside the package: a new kind of layer, and new storages of a linear."""

from dataclasses import replace

import torch
from torch import nn

from gemsmith.model.layers import Block, build_layer
from gemsmith.model.layout import Layout
from gemsmith.model.linear import Linear, LowRank
from gemsmith.model.transformer import Transformer
from tiny import tiny_config, tiny_network


# -- 40 lines of somebody else's project: a layer kind, int8 storage, a low-rank adapter ---------
class Parallel(Block):
    """Attention and feed-forward side by side, as in PaLM."""

    def forward(self, x, step):
        normed = self.input_layernorm(x)
        return x + self.self_attn(normed, step) + self.mlp(normed, step)


def with_parallel(config, index, **factory):
    if config.layers[index].kind != "parallel":
        return build_layer(config, index, **factory)
    usual = build_layer(config.replace(layers=(replace(config.layers[index], kind="global"),)), 0, **factory)
    parts = {name: usual.get_submodule(name) for name in ("input_layernorm", "self_attn", "mlp")}
    parts["self_attn"].source = index
    return Parallel(parts, ())


class Int8Linear(Linear):
    def __init__(self, dense):
        super().__init__(dense.d_in, dense.d_out, device="meta")
        scale = dense.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((dense.weight / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale[:, 0])
        self.delta = dense.delta

    def product(self, x):
        return (x @ self.weight.to(x.dtype).T) * self.scale.to(x.dtype)


def with_low_rank(_, linear):
    a = torch.randn(1, 4, linear.d_in) * linear.d_in**-0.5
    linear.delta = LowRank(a, torch.zeros(1, linear.d_out, 4), torch.ones(1))
    return linear


# ------------------------------------------------------------------------------------------------
def test_a_layer_kind_can_be_added_from_outside() -> None:
    config = tiny_config("gemma2")
    config = config.replace(layers=(config.layers[0], replace(config.layers[1], kind="parallel"), *config.layers[2:]))
    network = Transformer(config, build_layer=with_parallel)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert isinstance(network.layers[1], Parallel)
    token_ids = torch.arange(12)
    hidden = network.hidden(token_ids, Layout.packed([12]))
    hidden[5].sum().backward()
    assert network.layers[1].mlp.up_proj.weight.grad.abs().sum() > 0
    torch.testing.assert_close(network.hidden(token_ids[:6], Layout.packed([6])), hidden[:6])


def test_every_linear_can_be_int8() -> None:
    network, token_ids = tiny_network(), torch.arange(20)[None]
    with torch.inference_mode():
        dense = network(token_ids)
    network.replace_linears(lambda _, linear: Int8Linear(linear))
    assert sum(isinstance(m, Int8Linear) for m in network.modules()) == 7 * network.config.n_layers
    with torch.inference_mode():
        small = network(token_ids)
    assert 0 < (small - dense).square().mean().sqrt() < 0.1 * dense.std()


def test_every_linear_can_have_a_low_rank_delta_that_alone_is_trained() -> None:
    network, token_ids = tiny_network(), torch.arange(20)[None]
    with torch.inference_mode():
        before = network(token_ids)
    network.requires_grad_(False)
    network.replace_linears(with_low_rank)
    torch.testing.assert_close(network(token_ids), before)  # lora_b starts at zero
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * network.config.n_layers
    network(token_ids).square().mean().backward()
    assert network.layers[0].self_attn.q_proj.delta.lora_b.grad.abs().max() > 0
    assert network.layers[0].self_attn.q_proj.weight.grad is None
