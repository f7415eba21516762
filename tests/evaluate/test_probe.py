"""A run is looked at in even steps, with its own weights, without changing it."""

import json
from pathlib import Path

import pytest
import torch

from gemsmith.evaluate.bpb import bits_per_byte
from gemsmith.evaluate.probe import Looking, Probe, prompts_of, small_slices
from gemsmith.infer.lm import LM
from gemsmith.tokenizer import Tokenizer, train_tokenizer
from gemsmith.train.initial import initial_weights
from gemsmith.train.journal import Row
from gemsmith.train.loop import StepReport, TrainState
from tiny import tiny_config, tiny_network

SLICES = {"tales": ["A fox ran home."], "notes": ["Rain fell.", "An owl slept."]}
STEPS = 12


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.evaluate.probe._NEW_TOKENS", 4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a fox met an owl, a bear and a crow"], vocab_size=430, n_threads=1)


def probe(tokenizer: Tokenizer, place: Path, rows: list[Row], *, n_times: int = 3, n_done: int = 0) -> Probe:
    lm = LM(tiny_network(vocab_size=430), tokenizer)
    looking = Looking(SLICES, ["A fox"], n_times)
    return Probe(
        lm, looking, write=rows.append, samples=place / "samples.jsonl", progress=lambda state: state.step / STEPS,
        n_done=n_done,
    )  # fmt: skip


def go(watch: Probe, first: int = 1) -> TrainState:
    state = TrainState(initial_weights(tiny_config(vocab_size=430), seed=1), {})
    for step in range(first, STEPS + 1):
        state.step, state.n_tokens, state.seconds = step, step * 10, step * 0.1
        watch(state, StepReport(step, 1.0, 1.0, 0.1, step * 10))
    return state


def test_looks_come_in_even_steps_and_at_the_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows: list[Row] = []
    go(probe(tokenizer, tmp_path, rows))
    assert [row["step"] for row in rows] == [4, 8, 12]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in samples] == [(4, "A fox"), (8, "A fox"), (12, "A fox")]
    assert all(row["text"] for row in samples)


def test_a_run_that_goes_on_looks_where_it_would_have(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows: list[Row] = []
    go(probe(tokenizer, tmp_path, rows, n_done=1), first=7)
    assert [row["step"] for row in rows] == [8, 12]


def test_numbers_are_bits_per_byte_of_the_runs_weights(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows: list[Row] = []
    state = go(probe(tokenizer, tmp_path, rows, n_times=1))
    network = tiny_network(vocab_size=430)
    network.load_state_dict({name: weight.detach() for name, weight in state.weights.items()})
    wanted = {name: bits_per_byte(network, tokenizer, texts) for name, texts in SLICES.items()}
    (row,) = rows
    assert row["held_out"] == {name: pytest.approx(found.bpb, abs=1e-4) for name, found in wanted.items()}
    n_bytes = {name: found.n_bytes for name, found in wanted.items()}
    mean = sum(row["held_out"][name] * n_bytes[name] for name in SLICES) / sum(n_bytes.values())
    assert row["bpb"] == pytest.approx(mean, abs=1e-4)


def test_looking_changes_neither_weights_nor_random_numbers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    after = go(probe(tokenizer, tmp_path, [])).weights
    assert torch.equal(torch.get_rng_state(), state)
    before = initial_weights(tiny_config(vocab_size=430), seed=1)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_slices_are_small_and_fixed() -> None:
    texts = {"long": ["x" * 20_000, "y"], "many": ["z" * 3000] * 9, "none": [], "blank": [" \n"]}
    slices = small_slices(texts.__getitem__, list(texts))
    assert {name: sum(map(len, found)) for name, found in slices.items()} == {"long": 8192, "many": 8192}
    assert slices == small_slices(texts.__getitem__, list(texts))


def test_prompts_begin_held_out_texts() -> None:
    assert prompts_of({"a": ["One two three four five"], "b": ["Six"]}) == ["One two three four", "Six"]
    assert prompts_of({}) == ["The"]
