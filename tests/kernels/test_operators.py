"""The kernels as torch sees them: schemas, shapes, gradients, recomputation, compilation."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from against_plain import numbers
from gemsmith.kernels import fused_geglu, fused_loss, fused_norm, fused_rope, native
from gemsmith.model import ops

pytestmark = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")
MODULES = (fused_geglu, fused_loss, fused_norm, fused_rope)  # importing them registers the operators


def calls() -> dict[str, tuple[Any, ...]]:
    """Return arguments for every operator."""
    x, y = numbers(5, 8, seed=1).requires_grad_(), numbers(5, 8, seed=2).requires_grad_()
    weight, both = numbers(8, seed=3).requires_grad_(), numbers(5, 16, seed=4).requires_grad_()
    angles = ops.rope_angles(torch.arange(5), head_dim=4, theta=100.0, factor=1.0)
    with torch.no_grad():
        fixed = [tensor.detach() for tensor in (x, y, both)]
    return {
        "rms_norm": (x, weight, 1e-6),
        "norm_add": (x, y, weight, 1e-6),
        "rms_norm_backward": (*fixed[:2], weight.detach(), 1e-6),
        "gated_gelu": (x, y),
        "gated_gelu_backward": (fixed[0], *fixed[:2]),
        "gated_gelu_joined": (both,),
        "gated_gelu_joined_backward": (fixed[0], fixed[2]),
        "rotate": (numbers(5, 2, 4, seed=5).requires_grad_(), *angles, 0.5, 1.0),
        "loss_and_gradient": (fixed[0].clone(), torch.tensor([0, 1, 2, 3, 4]), 30.0, 1e-4),
    }


@pytest.mark.parametrize("name", calls())
def test_operator_keeps_its_promises(name: str) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.gemsmith, name).default, calls()[name], test_utils=checks)


@pytest.mark.slow
@pytest.mark.parametrize("name", calls())
def test_operator_can_be_traced(name: str) -> None:
    torch.library.opcheck(
        getattr(torch.ops.gemsmith, name).default, calls()[name], test_utils=("test_aot_dispatch_dynamic",)
    )


def test_operators_work_on_the_meta_device() -> None:
    for name, arguments in calls().items():
        operator = getattr(torch.ops.gemsmith, name).default
        on_meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments]
        real, found = operator(*arguments), operator(*on_meta)
        for a, b in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (real, found)), strict=True):
            assert (a.shape, a.dtype, a.stride(), b.device.type) == (b.shape, b.dtype, b.stride(), "meta"), name


def test_recomputation_gives_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    x, weight = numbers(5, 8, seed=1).requires_grad_(), numbers(8, seed=3).requires_grad_()

    def block(x: torch.Tensor) -> torch.Tensor:
        y = fused_norm.rms_norm(x, weight, 1e-6)
        return fused_norm.norm_add(x, fused_geglu.gated_gelu(y, x), weight, 1e-6)

    direct = torch.autograd.grad(block(x).square().sum(), (x, weight))
    again = checkpoint(block, x, use_reentrant=False)
    assert isinstance(again, torch.Tensor)
    for a, b in zip(direct, torch.autograd.grad(again.square().sum(), (x, weight)), strict=True):
        assert torch.equal(a, b)


# Without the shape checks of the test run, which the compiler cannot look through.
COMPILED = """
import torch
from gemsmith.kernels import fused_geglu, fused_norm, fused_rope, native
from gemsmith.model import ops
turn = ops.rope_angles(torch.arange(6), head_dim=8, theta=100.0, factor=1.0)
def block(x, weight):
    assert fused_norm.is_suitable(x, weight)
    y = fused_norm.rms_norm(x, weight, 1e-6)
    y = fused_rope.rotate(y.view(6, 4, 8), turn, factor=0.5).reshape(6, 32)
    return fused_norm.norm_add(x, fused_geglu.gated_gelu(y, x), weight, 1e-6)
x, weight = torch.randn(6, 32, requires_grad=True), torch.randn(32, requires_grad=True)
results = []
for function in (block, torch.compile(block, fullgraph=True)):
    out = function(x, weight)
    results.append((out, *torch.autograd.grad(out.square().sum(), (x, weight))))
for a, b in zip(*results):
    torch.testing.assert_close(a, b)
print("same")
"""


@pytest.mark.slow
def test_compiled_blocks_have_no_breaks_and_equal_direct_ones() -> None:
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "same", result.stderr[-2000:]
