"""data build makes a folder to train from; data verify tells whether it is still what was built."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from corpora import write_corpora
from gemsmith.cli.main import main
from gemsmith.recipes.recipe import read_sources, read_table
from vocab import SMALL

RECIPE = """
[vocabulary]
size = 480
sample_megabytes = 1

[[sources]]
name = "stories"
path = "stories.jsonl"
license = "CC0-1.0"
repository = "a/stories"
commit = "0123abcd"
share = 3
held_out = 10

[[sources]]
name = "chats"
path = "chats.jsonl"
license = "CC0-1.0"
share = 1
form = "instruction"
ships = false

[[sources]]
name = "code"
path = "code"
include = ["**/*.py"]
license = "MIT"
share = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_corpora(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


def build(recipe: Path, *more: str) -> int:
    return main(
        ["data", "build", str(recipe), "--data", str(recipe.parent), "--out", str(recipe.parent / "out"), *more]
    )


def test_build_writes_the_folder_and_tells_what_became_of_each_source(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(recipe) == 0
    said = capsys.readouterr()
    assert said.out == f"{recipe.parent / 'out'}\n"
    rows = {line.split()[0]: line.split()[1:] for line in said.err.splitlines()}
    assert rows["stories"][3] == "1"  # one repeated
    assert rows["all"][0] == "150"  # 162 rows less 2 repeated and 11 held out, guide.md not being in the recipe
    assert "weights trained on chats must not be shipped" in said.err
    assert (recipe.parent / "out/shards/index.json").is_file()


def test_build_in_json_is_the_same_with_two_workers(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(recipe, "--json") == 0
    one = json.loads(capsys.readouterr().out)
    assert one["n_pieces"] == 480
    assert one["sources"]["code"]["n_documents"] == 12
    assert one["totals"]["n_tokens"] == sum(row["n_tokens"] for row in one["sources"].values())
    (recipe.parent / "out/shards/index.json").unlink()
    for path in (recipe.parent / "out/shards").iterdir():
        path.unlink()
    assert build(recipe, "--json", "--workers", "2") == 0
    assert json.loads(capsys.readouterr().out) == one


def test_another_vocabulary_is_used_when_given(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(recipe, "--vocabulary", str(SMALL), "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_pieces"] == 2048
    (recipe.parent / "small.model").write_bytes(SMALL.read_bytes())
    recipe.write_text(RECIPE.replace("[vocabulary]", '[vocabulary]\npath = "small.model"'))
    assert build(recipe) == 1
    assert "the 480 pieces the recipe says; got 2048" in capsys.readouterr().err


def test_verify_finds_what_changed(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(recipe) == 0
    out = recipe.parent / "out"
    capsys.readouterr()
    assert main(["data", "verify", str(out)]) == 0
    assert main(["data", "verify", str(out / "shards")]) == 0
    path = out / "shards/code.00000.tokens"
    path.write_bytes(bytes(path.stat().st_size))
    assert main(["data", "verify", str(out)]) == 1
    assert "shard 'code.00000.tokens' must have the SHA-256" in capsys.readouterr().err


def test_recipe_with_a_broken_line_fails_with_its_place(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (recipe.parent / "chats.jsonl").open("a") as file:
        file.write("{broken\n")
    assert build(recipe) == 1
    assert "near line 32 of chats.jsonl" in capsys.readouterr().err


def test_sources_of_a_recipe_keep_what_it_says(recipe: Path) -> None:
    stories, chats, code = read_sources(read_table(recipe))
    assert (stories.repository, stories.commit, stories.ships) == ("a/stories", "0123abcd", True)
    assert not chats.ships
    assert code.include == ("**/*.py",)


def test_tokenizing_processes_start_without_torch() -> None:
    """Each would otherwise need its seconds and megabytes."""
    code = "import sys, gemsmith.data.tokenize; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert found.stdout == "False\n"
