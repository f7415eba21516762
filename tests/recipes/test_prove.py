"""Kill -9 at twenty points loses nothing, and a proof that finds a difference says where."""

from pathlib import Path

import pytest

from gemsmith.data.prepared import SHARDS, prepare
from gemsmith.data.vocabulary import Learning
from gemsmith.errors import TrainingError
from gemsmith.recipes.prove import Proof, prove_resume, shortened
from gemsmith.recipes.recipe import read_recipe
from gemsmith.train.kill_points import Kill
from small_recipe import write_small_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_small_recipe(tmp_path)


def proved(recipe: Path, data: Path, n_kills: int) -> tuple[Proof, list[str]]:
    lines: list[str] = []
    return prove_resume(recipe, data_dir=data, n_kills=n_kills, tell=lines.append), lines


def test_a_few_kills_are_bit_equal(recipe: Path) -> None:
    proof, lines = proved(recipe, recipe.parent, 6)
    assert str(proof) == "6 of 6 kills, bit-equal", "\n".join(lines)


@pytest.mark.slow
def test_twenty_kills_are_bit_equal(recipe: Path) -> None:
    proof, lines = proved(recipe, recipe.parent, 20)
    assert proof.is_bit_equal, "\n".join(lines)
    assert str(proof) == "20 of 20 kills, bit-equal"
    assert len(lines) == 21
    assert sum("an epoch of the data turns: bit-equal" in line for line in lines) == 2


def test_a_built_dataset_is_used_as_it_is(recipe: Path, tmp_path: Path) -> None:
    built = tmp_path / "built"
    prepare(read_recipe(recipe).sources, Learning(450, 1.0), data_dir=recipe.parent, out=built)
    before = {path: path.stat().st_mtime_ns for path in (built / SHARDS).iterdir()}
    (recipe.parent / "stories.jsonl").unlink()
    proof, _ = proved(recipe, built, 1)
    assert str(proof) == "1 of 1 kills, bit-equal"
    assert {path: path.stat().st_mtime_ns for path in (built / SHARDS).iterdir()} == before


def test_a_proof_names_the_first_difference() -> None:
    proof = Proof((None, "kill 2, before the first update: tensor 'weights/a'", "kill 3, x: tensor 'b'"))
    assert not proof.is_bit_equal
    assert str(proof).startswith("1 of 3 kills are bit-equal; first difference: kill 2, before the first update: ")


def test_a_point_the_run_never_reaches_is_no_proof(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.recipes.prove.kill_points", lambda *_a, **_k: [Kill("nowhere", "no_such_point", 1)])
    with pytest.raises(TrainingError, match="must come to its death; got exit status 0 for the one killed nowhere"):
        proved(recipe, recipe.parent, 1)


def test_the_short_recipe_keeps_model_and_vocabulary(recipe: Path) -> None:
    whole = read_recipe(recipe)
    short = shortened(whole, 10)
    assert (short.model, short.vocabulary, short.optimizer) == (whole.model, whole.vocabulary, whole.optimizer)
    assert short.batch.tokens == 128
    assert [source.held_out for source in short.sources] == [0.0, 0.0]
    assert short.sources[0].megabytes < 0.001 < short.sources[1].megabytes
