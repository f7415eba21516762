"""From parameters and tokens to sizes, rates and batch."""

import math
from typing import Any

import pytest

from gemsmith.errors import DataError
from gemsmith.recipes.dial import Dial, derive, filled
from gemsmith.recipes.recipe import SECTIONS, Shape, to_recipe
from gemsmith.train.cost import token_cost

SOURCES = [{"name": "a", "path": "a.jsonl", "license": "CC0-1.0", "share": 1}]


def whole(params: int, tokens: int | None = None, *, vocab_size: int = 8192, **given: dict[str, Any]) -> Any:
    table = {"vocabulary": {"size": vocab_size}, "sources": SOURCES, **given}
    return filled(table, derive(table, Dial(params, tokens)))


@pytest.mark.parametrize("vocab_size", [1024, 8192, 32_768])
@pytest.mark.parametrize("millions", [3, 12, 36, 100, 200, 1000, 2600, 27_000])
def test_parameters_are_met_with_sizes_of_64(millions: int, vocab_size: int) -> None:
    recipe = to_recipe(whole(millions * 10**6, vocab_size=vocab_size))
    shape = recipe.model
    assert shape.config(vocab_size).n_params == pytest.approx(millions * 1e6, rel=0.05)
    assert shape.d_model % 64 == shape.d_ff % 64 == shape.n_layers % 2 == 0
    assert shape.n_heads == 2 * shape.n_kv_heads


@pytest.mark.parametrize("millions", [36, 100, 200, 1000, 2600, 9000])
def test_proportions_are_those_of_gemma_2(millions: int) -> None:
    shape = Shape(**whole(millions * 10**6)["model"])
    assert 60 < shape.d_model / shape.n_layers < 120
    assert 3 < shape.d_ff / shape.d_model < 5
    assert 0.8 < shape.n_heads * shape.head_dim / shape.d_model < 1.2
    assert shape.window == shape.max_seq_len // 2


def test_batch_and_rate_follow_the_compute() -> None:
    recipe = to_recipe(whole(12_000_000, 100_000_000))
    cost = token_cost(recipe.model.config(8192), row=1024)
    compute = (cost.blocks + cost.attention) * 1e8
    assert recipe.batch.tokens == pytest.approx(0.2920 * compute**0.3271, rel=0.05)
    assert recipe.optimizer.other_rate == pytest.approx(0.3118 * compute**-0.125, rel=0.01)
    assert recipe.optimizer.matrix_rate == recipe.optimizer.other_rate
    assert recipe.optimizer.warmup_steps == 40


def test_tokens_are_twenty_a_parameter() -> None:
    assert Dial(12_000_000).n_tokens == 240_000_000
    assert Dial(12_000_000, 5).n_tokens == 5
    assert Dial(None, 5).n_tokens == 5
    assert Dial().n_tokens is None


def test_short_runs_still_warm_up_for_a_part_only() -> None:
    recipe = to_recipe(whole(1_000_000, 200_000))
    steps = math.ceil(200_000 / recipe.batch.tokens)
    assert recipe.optimizer.warmup_steps == steps // 10


def test_what_the_recipe_says_stays_and_the_rest_follows() -> None:
    given = {"model": {"n_layers": 8, "max_seq_len": 512}, "batch": {"tokens": 8192}, "optimizer": {"clip": 2.0}}
    recipe = to_recipe(whole(12_000_000, **given))
    assert (recipe.model.n_layers, recipe.model.max_seq_len, recipe.model.window) == (8, 512, 256)
    assert (recipe.batch.tokens, recipe.batch.row, recipe.optimizer.clip) == (8192, 512, 2.0)
    assert recipe.model.config(8192).n_params == pytest.approx(12e6, rel=0.05)
    names = {(n.section, n.name) for n in derive({"vocabulary": {"size": 8192}, **given}, Dial(12_000_000))}
    assert not names & {("model", "n_layers"), ("batch", "tokens"), ("optimizer", "clip")}


def test_every_number_has_a_source_and_every_section_is_filled() -> None:
    numbers = derive({"vocabulary": {"size": 8192}}, Dial(12_000_000))
    assert all(number.source for number in numbers)
    assert {number.section for number in numbers} == set(SECTIONS) - {"vocabulary"}


def test_without_parameters_nothing_is_derived() -> None:
    assert derive({}, Dial(tokens=10)) == []


@pytest.mark.parametrize(
    ("params", "given", "message"),
    [
        (100_000, {}, r"got 100,000, and the nearest has 598,592. Ask for about 598,592"),
        (10**13, {}, r"got 10,000,000,000,000, and the nearest has .* Ask for about"),
        (12_000_000, {"model": {"d_model": 1024}}, r"and \{'d_model': 1024\}; got 12,000,000"),
        (12_000_000, {"model": {"head_dim": 33}}, r"\[model\] must leave sizes that fit; got \{'head_dim': 33\}"),
    ],
)
def test_parameters_out_of_reach_are_refused(params: int, given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        derive({"vocabulary": {"size": 8192}, **given}, Dial(params))


def test_a_vocabulary_is_needed_to_count_parameters() -> None:
    with pytest.raises(DataError, match=r"\[vocabulary\] must have the key 'size'; got none"):
        derive({}, Dial(12_000_000))
