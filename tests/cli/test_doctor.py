"""doctor says what is there, and advises only where something is gained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gemsmith.cli.doctor import Accelerator, Machine, Memory, advise, describe, examine, fitting_models
from gemsmith.cli.machine import CPU_FEATURES, Cpu
from gemsmith.cli.main import main

GOOD = Machine(
    system="Linux 6 x86_64",
    python="3.12.1",
    torch="2.13.0+cpu",
    cpu=Cpu("a processor", dict.fromkeys(CPU_FEATURES, True), n_cores=8, quota=None),
    memory=Memory(total=64 * 10**9, available=60 * 10**9, limit=None),
    n_threads=8,
    accelerators=(),
    has_nvidia_driver=False,
    kernels="avx2",
    kernel_choices=("portable", "avx2"),
    openmp=("/a/libgomp.so.1",),
    disk_free=10**12,
    model_folder="/models",
    has_hub_token=True,
)


def slow_cpu(**features: bool) -> Cpu:
    return replace(GOOD.cpu, features=dict.fromkeys(CPU_FEATURES, False) | features)


def test_a_good_machine_needs_no_advice() -> None:
    assert advise(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"has_nvidia_driver": True}, "torch 2.13.0\\+cpu cannot use it"),
        ({"system": "Darwin 24 x86_64 (Rosetta)"}, "arm64 Python"),
        ({"n_threads": 1}, "1 of 8 cores"),
        ({"cpu": replace(GOOD.cpu, quota=2.0)}, "8 threads on 2 cores: set OMP_NUM_THREADS=2"),
        ({"openmp": ("/a/libgomp.so.1", "/b/libiomp5.so")}, "/a/libgomp.so.1 and /b/libiomp5.so compete"),
        ({"kernels": "none"}, "No kernels are compiled"),
        ({"cpu": slow_cpu(avx512=True)}, "no bfloat16"),
        ({"cpu": slow_cpu(bf16=True)}, "none of AVX-512"),
        ({"memory": Memory(64 * 10**9, 10**9, None)}, "More than half of the memory"),
        ({"memory": Memory(64 * 10**9, 10**9, 4 * 10**9)}, "grants 4.0 GB of 64.0 GB"),
    ],
)
def test_what_slows_a_machine_down_is_named(changes: dict, words: str) -> None:
    import re

    advice = advise(replace(GOOD, **changes))
    assert len(advice) == 1
    assert re.search(words, advice[0])


def test_a_gpu_makes_processor_advice_needless() -> None:
    gpu = Accelerator("cuda:0", "a GPU", 24 * 10**9)
    assert advise(replace(GOOD, cpu=slow_cpu(), accelerators=(gpu,), has_nvidia_driver=True)) == []


def test_two_copies_of_one_openmp_have_threads_each() -> None:
    (advice,) = advise(replace(GOOD, openmp=("/a/libgomp.so.1", "/b/libgomp-6a29c32d.so.1")))
    assert "libgomp-6a29c32d.so.1 compete" in advice


def test_models_that_fit_are_listed() -> None:
    small = replace(GOOD, memory=Memory(8 * 10**9, 6 * 10**9, None))
    assert "gemma-2-2b" in fitting_models(small)
    assert "gemma-3-4b" not in fitting_models(small)


def test_description_has_every_row() -> None:
    rows = dict(describe(replace(GOOD, accelerators=(Accelerator("mps", "Apple GPU", None),), has_hub_token=False)))
    assert rows["GPU"] == "Apple GPU (mps)"
    assert "hf auth login" in rows["hub token"]
    assert "60.0 GB available" in rows["memory"]
    assert rows["kernels"] == "avx2 in use, of portable, avx2"
    assert dict(describe(replace(GOOD, kernels="none")))["kernels"] == "not compiled; torch computes"


def test_doctor_examines_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_user")
    assert main(["doctor", "--json"]) == 0
    said = capsys.readouterr().out
    found = json.loads(said)
    assert found["has_hub_token"] is True
    assert "hf_secret" not in said
    assert set(found["cpu"]["features"]) == set(CPU_FEATURES)
    assert found["memory"]["total"] >= found["memory"]["available"] > 0
    assert found["torch"].startswith("2.")
    assert found["kernels"] in (*found["kernel_choices"], "none")
    assert all("omp" in Path(path).name for path in found["openmp"])


def test_doctor_speaks_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["system", "python, torch", "processor"]


def test_disk_is_measured_where_models_will_be_kept() -> None:
    assert examine().disk_free > 0
