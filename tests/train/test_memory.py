"""What training needs is counted part by part, and what cannot fit is refused with the setting that helps."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.errors import MemoryLimitError
from gemsmith.train.initial import initial_weights
from gemsmith.train.memory import StepLoad, check_memory, training_bytes
from gemsmith.train.optimizer import OptimizerSpec, build_optimizers, update
from gemsmith.weights.memory import in_gb
from tiny import tiny_config

_LOCAL = LayerSpec("local", 4, 2, 64, 1024, attn_scale=64**-0.5, window=64, attn_softcap=50.0)
SMALL = ModelConfig(
    "gemma2", 16_384, 256, 512, (_LOCAL, replace(_LOCAL, kind="global", window=None)) * 3, final_softcap=30.0
)
SPEC = OptimizerSpec(matrix_rate=0.01, other_rate=0.01)
LOAD = StepLoad(n_rows=8, row=64, dtype=torch.float32, is_saved=False)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weights_and_optimizer_are_counted_to_the_byte(optimizer: str) -> None:
    config, spec = tiny_config("gemma2"), replace(SPEC, optimizer=optimizer)
    weights = initial_weights(config, seed=0)
    optimizers = build_optimizers(weights, spec)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    update(optimizers.values(), factor=1.0, grad_scale=1.0)
    state = [part for o in optimizers.values() for parts in o.state.values() for part in parts.values()]
    needed = training_bytes(config, spec, load=LOAD)
    assert needed.weights == sum(weight.nbytes for weight in weights.values())
    assert needed.optimizer == sum(part.nbytes for part in state if part.ndim)


def test_activations_grow_with_rows_layers_and_width_of_numbers() -> None:
    activations = {
        name: training_bytes(config, SPEC, load=load).activations
        for name, config, load in (
            ("usual", SMALL, LOAD),
            ("rows", SMALL, replace(LOAD, n_rows=16)),
            ("bfloat16", SMALL, replace(LOAD, dtype=torch.bfloat16)),
            ("deep", SMALL.replace(layers=SMALL.layers * 4), LOAD),
            ("again", SMALL, replace(LOAD, is_recomputed=True)),
        )
    }
    assert activations["rows"] == 2 * activations["usual"]
    assert 0.4 < activations["bfloat16"] / activations["usual"] < 0.8
    assert 3 < activations["deep"] / activations["usual"] <= 4
    assert activations["again"] < activations["usual"] / 2


def test_rounding_needs_the_table_several_times_over_in_every_process() -> None:
    load = replace(LOAD, n_processes=2)
    dense, rounded = (training_bytes(SMALL, SPEC, load=replace(load, is_rounded=x)) for x in (False, True))
    assert rounded.others - dense.others >= 2 * 4 * 4 * SMALL.vocab_size * SMALL.d_model
    assert replace(rounded, others=dense.others) == dense


def test_what_fits_is_let_through() -> None:
    needed = training_bytes(SMALL, SPEC, load=LOAD)
    assert check_memory(SMALL, SPEC, load=LOAD, available=needed.total) == needed


def test_smaller_micro_batches_are_named_first() -> None:
    needed = training_bytes(SMALL, SPEC, load=LOAD)
    enough = training_bytes(SMALL, SPEC, load=replace(LOAD, n_rows=2, n_micro_batches=4)).total
    with pytest.raises(
        MemoryLimitError,
        match=rf"got {in_gb(needed.total)} needed \(weights \d+\.\d MB, gradients .*loss .*\) and "
        rf"{in_gb(enough)} free\. Set micro_batch_tokens to 128; the step stays the same\.",
    ):
        check_memory(SMALL, SPEC, load=LOAD, available=enough)


def test_recomputation_is_named_where_rows_cannot_be_split() -> None:
    load = replace(LOAD, n_rows=1, row=512)
    enough = training_bytes(SMALL, SPEC, load=replace(load, is_recomputed=True)).total
    with pytest.raises(MemoryLimitError, match=r"free\. Set is_recomputed, for a third more arithmetic\."):
        check_memory(SMALL, SPEC, load=load, available=enough)


def test_one_process_is_named_where_several_are_too_many() -> None:
    load = replace(LOAD, n_processes=2)
    enough = training_bytes(SMALL, SPEC, load=replace(LOAD, n_rows=1, n_micro_batches=8, is_recomputed=True)).total
    with pytest.raises(MemoryLimitError, match=r"Use one process, is_recomputed and micro_batch_tokens of 64\."):
        check_memory(SMALL, SPEC, load=load, available=enough)


def test_network_too_large_for_the_machine_is_refused() -> None:
    with pytest.raises(MemoryLimitError, match=r"and 50\.0 MB free\. No setting would do: choose a smaller network"):
        check_memory(SMALL, SPEC, load=LOAD, available=50_000_000)


def test_network_beyond_the_machine_is_not_tried_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_args: object) -> None:
        raise AssertionError("a pass was made")

    monkeypatch.setattr("gemsmith.train.memory._row_bytes", forbidden)
    monster = SMALL.replace(d_model=100_000)
    with pytest.raises(MemoryLimitError, match=r"got \d+\.\d GB needed .* and 8\.0 GB free\. No setting would do"):
        check_memory(monster, SPEC, load=LOAD, available=8_000_000_000)


_PEAK = """
import json, sys
import torch
from test_memory import SMALL, SPEC
from gemsmith.data.mixture import Batch
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import TrainState, train_step
from gemsmith.train.loss import LossSpec
from gemsmith.train.memory import StepLoad, training_bytes
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import build_optimizers

def memory(line):
    with open("/proc/self/status") as file:
        return next(int(text.split()[1]) * 1024 for text in file if text.startswith(line))

def batch(n_rows, row):
    ids, place = torch.randint(0, SMALL.vocab_size, (n_rows, row)), torch.arange(row).expand(n_rows, row)
    return Batch(ids, ids.roll(-1, 1), torch.ones(n_rows, row, dtype=torch.bool), place * 0, place)

n_rows, row, n_micro, is_recomputed = json.loads(sys.argv[1])
load = StepLoad(n_rows, row, n_micro, is_recomputed=is_recomputed, is_saved=False)
loss_fn = next_token_loss(SMALL, LossSpec(SMALL.final_softcap), dtype=load.dtype, is_recomputed=is_recomputed)
before = memory("VmRSS")
weights = initial_weights(SMALL, seed=0)
state = TrainState(weights, build_optimizers(weights, SPEC))
for _ in range(2):
    train_step(state, [batch(n_rows, row) for _ in range(n_micro)], loss_fn, spec=SPEC)
measured = memory("VmHWM") - before
estimate = training_bytes(SMALL, SPEC, load=load)  # last, for it takes memory to count what is kept
print(json.dumps([estimate.total, measured, str(estimate)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("shape", [(16, 512, 1, False), (16, 512, 1, True), (4, 512, 2, False)])
def test_estimate_is_near_the_measured_peak(shape: tuple[int, int, int, bool]) -> None:
    paths = [str(__file__).rpartition("/")[0], str(__file__).rpartition("/train/")[0]]
    code = f"import sys; sys.path[:0] = {paths!r}\n{_PEAK}"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(shape)], capture_output=True, text=True, check=True)
    estimate, measured, parts = json.loads(done.stdout)
    print(f"{shape}: estimated {estimate / 1e6:.0f} MB ({parts}), measured {measured / 1e6:.0f} MB")
    assert 0.85 < estimate / measured < 1.25
