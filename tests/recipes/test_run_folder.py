"""What a run folder tells about its run."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from gemsmith.errors import CheckpointError, TrainingError
from gemsmith.recipes import run_folder
from gemsmith.recipes.dial import Dial, derive, filled
from gemsmith.recipes.options import Compute
from gemsmith.recipes.recipe import Recipe, Table, read_recipe, read_table, to_recipe
from gemsmith.recipes.run_folder import begin, digest, read_facts, render
from small_recipe import write_small_recipe

DIALLED = """
[vocabulary]
size = 1024
[model]
n_layers = 2
[[sources]]
name = "tales"
path = "tales \\"1\\".jsonl"
license = "CC0-1.0"
share = 3
ships = false
include = ["*.txt", "*.md"]
"""


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Recipe, Table]:
    path = write_small_recipe(tmp_path)
    return path, read_recipe(path), read_table(path)


def test_recipe_command_versions_and_machine_are_kept(small: tuple[Path, Recipe, Table], tmp_path: Path) -> None:
    path, recipe, table = small
    for n_cores in (2, 4):
        begin(tmp_path, path, recipe=recipe, table=table, derived=[], facts={"n_cores": n_cores})
    assert (tmp_path / "recipe.toml").read_text() == path.read_text()
    facts = read_facts(tmp_path)
    assert facts["recipe_sha256"] == digest(recipe)
    assert facts["n_params"] == recipe.model.config(450).n_params
    assert [session["n_cores"] for session in facts["sessions"]] == [2, 4]
    session = facts["sessions"][0]
    assert session["command"]
    assert session["started"].endswith("+00:00")
    assert set(session) >= {"gemsmith", "commit", "torch", "threads", "kernels"}


def test_the_commit_is_that_of_the_source_tree(tmp_path: Path) -> None:
    tree = Path(run_folder.__file__).parent
    if subprocess.run(["git", "-C", str(tree), "rev-parse"], capture_output=True, check=False).returncode:
        pytest.skip("no working tree")
    head = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert run_folder._commit(tree) in (head.stdout.strip(), f"{head.stdout.strip()}-dirty")
    assert run_folder._commit(tmp_path) is None


def test_a_dialled_recipe_is_written_whole_and_reads_as_the_same(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(DIALLED)
    table = read_table(tmp_path / "short.toml")
    derived = derive(table, Dial(1_000_000, 2_000_000))
    whole = filled(table, derived)
    begin(tmp_path, tmp_path / "short.toml", recipe=to_recipe(whole), table=whole, derived=derived, facts={})
    again = read_recipe(tmp_path / "recipe.toml")
    assert again == to_recipe(whole)
    text = (tmp_path / "recipe.toml").read_text()
    assert "2 / (1 - beta2)" in text
    assert tomllib.loads(render(whole, derived)) == whole


def test_a_folder_of_another_recipe_is_refused(small: tuple[Path, Recipe, Table], tmp_path: Path) -> None:
    path, recipe, table = small
    (tmp_path / "run.json").write_text(json.dumps({"recipe_sha256": "0123456789abcdef"}))
    begin(tmp_path, path, recipe=recipe, table=table, derived=[], facts={})  # nothing was trained there yet
    (tmp_path / "run.json").write_text(json.dumps({"recipe_sha256": "0123456789abcdef"}))
    (tmp_path / "step_00000002").mkdir()
    with pytest.raises(CheckpointError, match="recipe must be what the run folder was begun with, '0123456789ab'; got"):
        begin(tmp_path, path, recipe=recipe, table=table, derived=[], facts={})


def test_a_damaged_file_of_facts_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert read_facts(tmp_path) == {}


@pytest.mark.parametrize("name", ["n_processes", "micro_batch_tokens", "n_data_workers"])
def test_counts_of_compute_are_checked(name: str) -> None:
    with pytest.raises(TrainingError, match=f"{name} must be at least .; got -1"):
        Compute(**{name: -1})
