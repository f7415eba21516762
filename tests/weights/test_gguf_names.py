"""Names of tensors, against the gguf package's own table of them."""

import gguf
import pytest

from gemsmith.model.transformer import Transformer
from gemsmith.weights.gguf_names import is_shifted, parameter_name, tensor_name
from tiny import tiny_config

ARCHITECTURES = {
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_parameter_has_the_name_the_package_gives_it(family: str) -> None:
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], 7)
    parameters = dict(Transformer(tiny_config(family), device="meta").named_parameters())
    theirs = {name: names.get_name(f"model.{name}", try_suffixes=(".weight",)) for name in parameters}
    assert {name: tensor_name(name, family) for name in parameters} == theirs
    assert {parameter_name(tensor_name(name, family), family) for name in parameters} == set(parameters)


def test_norms_alone_are_stored_with_one_more() -> None:
    parameters = dict(Transformer(tiny_config("gemma3"), device="meta").named_parameters())
    assert {name for name in parameters if is_shifted(name)} == {n for n, p in parameters.items() if p.dim() == 1}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("v.patch_embd.weight", None),
        ("mm.input_projection.weight", None),
        ("output.weight", "output.weight"),
        ("blk.01.attn_q.weight", "blk.01.attn_q.weight"),
        ("blk.0.attn_q.bias", "blk.0.attn_q.bias"),
        ("blk.0.attn_qkv.weight", "blk.0.attn_qkv.weight"),
    ],
)
def test_towers_are_passed_over_and_strangers_stay_strange(name: str, ours: str | None) -> None:
    assert parameter_name(name, "gemma3") == ours
