import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gemsmith.errors import KernelError
from gemsmith.kernels import compiled, native

needs_library = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let the library be looked for where it is not."""
    monkeypatch.setattr(native, "PATH", tmp_path / "_gemsmith.so")
    monkeypatch.delenv("GEMSMITH_REQUIRE_KERNELS", raising=False)
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_without_a_library_the_plain_path_is_taken_and_said_once(
    missing: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "gemsmith"):
        assert [native.library(), native.library()] == [None, None]
    assert [record.message for record in caplog.records] == [
        "Computing with plain torch: _gemsmith.so is not there (install with a C++ compiler, or run make kernels)."
    ]
    assert (native.isa(), native.available()) == ("none", [])
    assert not native.has(torch.float32)
    assert not native.serves(torch.ones(3))


def test_operators_without_a_library_say_what_to_do(missing: None) -> None:
    with pytest.raises(KernelError, match=r"must have compiled kernels; got none"):
        native.need()


def test_demanded_but_missing_library_is_an_error(missing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMSMITH_REQUIRE_KERNELS", "1")
    with pytest.raises(KernelError, match=r"GEMSMITH_REQUIRE_KERNELS is set; _gemsmith\.so is not there"):
        native.library()


def test_file_that_is_no_library_is_not_used(missing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    native.PATH.write_text("nothing")
    monkeypatch.setenv("GEMSMITH_REQUIRE_KERNELS", "1")
    with pytest.raises(KernelError, match=r"cannot be loaded"):
        native.library()


@needs_library
def test_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    version = native.need().gs_abi()
    monkeypatch.setattr(compiled, "ABI", -1)
    assert compiled.load(compiled.PATH) == (None, f"_gemsmith.so has version {version}, not -1 (run make kernels)")


@needs_library
def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(KernelError, match=r"GEMSMITH_ISA must be one of portable, avx2, avx512, amx; got 'sse9'"):
        native._choose(native.need(), "sse9")
    with pytest.raises(KernelError, match=r"must be one of .*portable.*; got 'sse9'"):
        native.select("sse9")


@needs_library
def test_instruction_set_the_processor_lacks_is_refused() -> None:
    lacking = [name for name, sets in native._ISA_NAMES.items() if not set(sets) & set(native.available())]
    if not lacking:
        pytest.skip("this processor has every instruction set")
    with pytest.raises(KernelError, match=rf"what this processor can run \(portable.*\); got '{lacking[0]}'"):
        native._choose(native.need(), lacking[0])


@needs_library
def test_best_instruction_set_is_chosen_by_itself() -> None:
    assert native.isa() == native.available()[-1]


@needs_library
def test_environment_forces_an_instruction_set() -> None:
    code = "from gemsmith.kernels import native; print(native.isa())"
    environment = os.environ | {"GEMSMITH_ISA": "portable"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "portable"


@needs_library
def test_only_float_tensors_with_whole_rows_are_served() -> None:
    x = torch.ones(4, 6)
    assert native.serves(x, x.bfloat16(), x[:, 1:3], torch.ones(()))
    for other in (x.half(), x.double(), x.long(), x.T, x[:, ::2], x.to("meta")):
        assert not native.serves(other)


def test_help_opens_without_the_library() -> None:
    code = (
        "import sys\nfrom gemsmith.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'gemsmith.kernels.native'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
