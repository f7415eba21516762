"""Every test that asks for `isa` runs once on each instruction set of this processor."""

from collections.abc import Iterator

import pytest

from gemsmith.kernels import native


@pytest.fixture(params=native.available() or ["none"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Select an instruction set for one test."""
    if request.param == "none":
        pytest.skip("no compiled kernels here; make kernels builds them")
    before = native.isa()
    native.select(request.param)
    yield request.param
    native.select(before)
