"""From text to a shipped folder with one call; mistakes in recipes are named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gemsmith.data.prepared import prepare
from gemsmith.data.vocabulary import Learning
from gemsmith.errors import CheckpointError, DataError, MemoryLimitError, TokenizerError, TrainingError
from gemsmith.recipes.dial import Dial
from gemsmith.recipes.options import Compute, Options, RunView, Watcher
from gemsmith.recipes.pretrain import micro_batches, next_batches, run
from gemsmith.recipes.recipe import read_recipe
from gemsmith.tokenizer import Tokenizer
from gemsmith.train.journal import read_rows
from gemsmith.train.loop import TrainState
from gemsmith.weights.folder import load_network

PLAIN = Compute(torch.float32, n_data_workers=0)
RECIPE = """
[model]
d_model = 16
n_layers = 2
n_heads = 2
n_kv_heads = 1
head_dim = 8
d_ff = 24
window = 8
max_seq_len = 64

[vocabulary]
size = 450
sample_megabytes = 1

[optimizer]
matrix_rate = 0.01
other_rate = 0.01
warmup_steps = 2
decay_share = 0.5

[batch]
tokens = 128
row = 64
late_row = 64
late_share = 0.4
seed = 3

[[sources]]
name = "stories"
path = "stories.jsonl"
license = "CC0-1.0"
share = 3
held_out = 10
max_epochs = 1000

[[sources]]
name = "chats"
path = "chats.jsonl"
form = "instruction"
license = "CC0-1.0"
share = 1
max_epochs = 1000
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a recipe and its data."""
    animals = ("fox", "hare", "owl", "bear", "cat", "dog", "goat", "crow")
    stories = [
        f"Once a {a} met a {b}. They ran over hill {i} to the river." for i, a in enumerate(animals) for b in animals
    ]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stories))
    chats = [{"instruction": f"What is a {a}?", "input": "", "output": "An animal."} for a in animals]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def train(place: Path, out: str, steps: int, *, compute: Compute = PLAIN, options: Options = Options()) -> Path:  # noqa: B008
    recipe = place / "recipe.toml"
    return run(recipe, data_dir=place, out=place / out, steps=steps, compute=compute, options=options)


def test_text_becomes_a_folder_that_loads(place: Path) -> None:
    folder = train(place, "run", 12)
    loaded = load_network(folder)
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_against(loaded.config)
    assert loaded.network.embed_tokens.weight.dtype == torch.bfloat16
    assert loaded.config.vocab_size == tokenizer.vocab_size == 450
    assert (loaded.config.layers[0].window, loaded.config.layers[1].window) == (8, None)
    rows = [json.loads(line) for line in (place / "run/log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 10
    assert rows[-1]["is_late"]
    facts = json.loads((place / "run/step_00000012/state.json").read_text())["state"]
    assert (facts["step"], facts["n_tokens"], facts["late_step"]) == (12, 12 * 128, 8)


def test_last_part_begins_with_its_own_first_row(place: Path) -> None:
    recipe = read_recipe(place / "recipe.toml")
    mixture = prepare(recipe.sources, Learning(450, 1.0), data_dir=place, out=place).mixture(recipe.sources, seed=3)
    state = TrainState({}, {}, step=5)
    (before,) = next_batches(mixture, recipe, state, 0.5)
    (first,) = next_batches(mixture, recipe, state, 0.6)
    assert state.late_step == 5
    state.step = 6
    (second,) = next_batches(mixture, recipe, state, 0.1)  # it stays, whatever the clock says
    late = mixture.stage(row=64, is_late=True)
    for batch, wanted in (
        (before, mixture.batch(mixture.stage(row=64), 10, 2)),
        (first, mixture.batch(late, 0, 2)),
        (second, mixture.batch(late, 2, 2)),
    ):
        assert torch.equal(batch.token_ids, wanted.token_ids)


def test_run_goes_on_from_its_checkpoint_to_the_same_weights(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through = train(place, "through", 6)
    monkeypatch.setattr("gemsmith.recipes.pretrain.export", _killed)
    with pytest.raises(KeyboardInterrupt):
        train(place, "resumed", 6, options=Options(save_every_steps=5))
    monkeypatch.undo()
    shutil.rmtree(place / "resumed/step_00000006")
    resumed = train(place, "resumed", 6)
    name = "model.safetensors"
    assert (through / name).read_bytes() == (resumed / name).read_bytes()


def _killed(*_args: object) -> Path:
    raise KeyboardInterrupt


def test_minutes_of_a_running_run_can_be_shortened(place: Path) -> None:
    out = place / "run"
    out.mkdir()
    (out / "minutes").write_text("0.0001")
    run(place / "recipe.toml", data_dir=place, out=out, minutes=1000.0, compute=PLAIN)
    assert (out / "step_00000010").is_dir()


def test_run_that_cannot_fit_is_refused_before_it_begins(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.train.memory.available_bytes", lambda: 1_000_000)
    with pytest.raises(MemoryLimitError, match=r"and 1\.0 MB free\. No setting would do"):
        train(place, "run", 1)
    assert not (place / "run").exists()


def test_changed_recipe_does_not_continue_a_run(place: Path) -> None:
    train(place, "run", 2)
    (place / "recipe.toml").write_text(RECIPE.replace("seed = 3", "seed = 4"))
    with pytest.raises(CheckpointError, match="recipe must be what the run folder was begun with"):
        train(place, "run", 4)


@pytest.mark.parametrize(
    ("minutes", "steps"),
    [(None, None), (1.0, 5), (0.0, None), (-1.0, None), (float("nan"), None), (float("inf"), None)],
)
def test_run_needs_one_length(place: Path, minutes: float | None, steps: int | None) -> None:
    with pytest.raises(TrainingError, match=f"got {minutes} minutes, {steps} steps, None tokens"):
        run(place / "recipe.toml", data_dir=place, out=place / "run", minutes=minutes, steps=steps)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d_model = 16", "d_modle = 16", r"got 'd_modle' in \[model\]. Did you mean 'd_model'"),
        ("[vocabulary]", "[vocabluary]", "got 'vocabluary' in the recipe. Did you mean 'vocabulary'"),
        ("d_ff = 24\n", "", r"\[model\] must have the key 'd_ff'"),
        ("n_layers = 2", "n_layers = 'two'", "n_layers must be of type int; got 'two'"),
        ("share = 3", "share = nan", "share must be of type float; got nan in source 'stories'"),
        ("share = 3", "share = -3", "share must be 0 or more; got -3.0 in source 'stories'"),
        ("late_row = 64", "late_row = 48", "late_row must divide the batch's 128 tokens and fit max_seq_len; got 48"),
        ("row = 64", "row = 128", "row must divide .* got 128"),
        ('form = "instruction"', 'form = "insturction"', "got 'insturction' in source 'chats'"),
        ("matrix_rate = 0.01", "matrix_rate = 0", "matrix_rate must be a number above 0; got 0.0"),
        ("[model]", "[model", "recipe must be a TOML file"),
    ],
)
def test_mistakes_in_a_recipe_are_named(place: Path, old: str, new: str, message: str) -> None:
    path = place / "recipe.toml"
    path.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises((DataError, TrainingError), match=message):
        read_recipe(path)


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got '.*none\.toml'"):
        read_recipe(tmp_path / "none.toml")


def test_recipe_of_pebble_is_sound() -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes/pebble.toml")
    assert recipe.model.config(recipe.vocabulary.size).n_params <= 12_000_000
    shares = {source.name: source.share for source in recipe.sources}
    stories = sum(shares[n] for n in ("tinystories", "fables", "fairytales", "storyweaver", "african_storybook"))
    assert stories / sum(shares.values()) == pytest.approx(0.3, abs=0.02)
    assert all(source.max_epochs <= 10 and source.license for source in recipe.sources)


def test_a_run_says_how_it_goes(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="gemsmith"):
        train(place, "run", 10)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("step 10: ") and "nats a token" in line for line in said), said


@pytest.mark.parametrize(("tokens", "n_processes", "sizes"), [(64, 1, [1] * 6), (256, 1, [4, 2]), (100, 2, [2] * 3)])
def test_micro_batches_are_rows_of_the_step(place: Path, tokens: int, n_processes: int, sizes: list[int]) -> None:
    recipe = read_recipe(place / "recipe.toml")
    dataset = prepare(recipe.sources, Learning(450, 1.0), data_dir=place, out=place)
    mixture = dataset.mixture(recipe.sources, seed=3)
    whole = mixture.batch(mixture.stage(row=64), 0, 6)
    compute = Compute(n_processes=n_processes, micro_batch_tokens=tokens)
    parts = micro_batches([whole], compute)
    assert [len(part.token_ids) for part in parts] == sizes
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert micro_batches([whole], PLAIN) == [whole]


@pytest.mark.parametrize("changes", [{"micro_batch_tokens": 64}, {"is_recomputed": True}, {"n_data_workers": 2}])
def test_the_way_of_computing_changes_no_weight(place: Path, changes: dict) -> None:
    (place / "recipe.toml").write_text(RECIPE.replace("tokens = 128", "tokens = 384"))
    weights = [
        load_network(train(place, out, 4, compute=compute), dtype=torch.float32).network.state_dict()
        for out, compute in (("whole", PLAIN), ("other", replace(PLAIN, **changes)))
    ]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-2, atol=1e-4)  # one step of bfloat16


def test_a_resumed_log_is_that_of_a_run_that_never_stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(place, "through", 30, options=Options(save_every_steps=15))
    monkeypatch.setattr("gemsmith.recipes.pretrain.export", _killed)
    with pytest.raises(KeyboardInterrupt):
        train(place, "resumed", 30, options=Options(save_every_steps=15))
    monkeypatch.undo()
    shutil.rmtree(place / "resumed/step_00000030")
    train(place, "resumed", 30, options=Options(save_every_steps=15))
    timeless = ("step", "nll", "grad_norm", "rate", "n_tokens", "is_late", "n_skipped")
    logs = [
        [{name: row[name] for name in timeless} for row in read_rows(place / run / "log.jsonl")]
        for run in ("through", "resumed")
    ]
    assert [row["step"] for row in logs[0]] == [10, 20, 30]
    assert logs[0] == logs[1]


def test_tokens_are_a_length(place: Path) -> None:
    run(place / "recipe.toml", data_dir=place, out=place / "run", compute=PLAIN, options=Options(Dial(tokens=300)))
    assert (place / "run/step_00000003").is_dir()


def test_a_recipe_without_sizes_takes_them_from_the_dial(place: Path) -> None:
    sizes, rest = RECIPE.index("[model]"), RECIPE.index("[vocabulary]")
    optimizer, batch = RECIPE.index("[optimizer]"), RECIPE.index("[[sources]]")
    (place / "recipe.toml").write_text(RECIPE[:sizes] + RECIPE[rest:optimizer] + RECIPE[batch:])
    with pytest.raises(DataError, match=r"must have the key 'model'; got .* let --params derive it"):
        train(place, "run", 1)
    folder = train(place, "run", 1, options=Options(Dial(200_000)))
    assert load_network(folder).config.n_params == pytest.approx(200_000, rel=0.05)
    assert read_recipe(place / "run/recipe.toml").batch.row == 1024


def test_a_dataset_that_was_built_is_trained_on(place: Path) -> None:
    recipe = read_recipe(place / "recipe.toml")
    prepare(recipe.sources, Learning(450, 1.0), data_dir=place, out=place / "dataset")
    folder = run(place / "recipe.toml", data_dir=place / "dataset", out=place / "run", steps=1, compute=PLAIN)
    assert load_network(folder).config.vocab_size == 450
    assert not (place / "run/shards").exists()


def test_a_vocabulary_of_another_size_is_refused(place: Path) -> None:
    recipe = read_recipe(place / "recipe.toml")
    prepare(recipe.sources, Learning(450, 1.0), data_dir=place, out=place / "dataset")
    (place / "recipe.toml").write_text(RECIPE.replace("size = 450", "size = 460"))
    with pytest.raises(DataError, match="must be that of the dataset's, 450; got 460"):
        run(place / "recipe.toml", data_dir=place / "dataset", out=place / "run", steps=1, compute=PLAIN)


def test_a_vocabulary_without_needed_pieces_is_refused(place: Path) -> None:
    import sentencepiece

    texts = iter(["a fox met an owl", "a bear met a crow"])
    with (place / "plain.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=file, vocab_size=300, model_type="bpe", byte_fallback=True,
            pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2, add_dummy_prefix=False,
            normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
            pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        )  # fmt: skip
    text = RECIPE.replace("size = 450\nsample_megabytes = 1", 'size = 300\npath = "plain.model"')
    (place / "recipe.toml").write_text(text)
    with pytest.raises((DataError, TokenizerError), match="start_of_turn"):
        train(place, "run", 1)


def test_watchers_see_the_run_before_its_first_step_and_after_every_one(place: Path) -> None:
    views: list[RunView] = []
    seen: list[int] = []

    def watchers(view: RunView) -> list[Watcher]:
        views.append(view)
        return [lambda state, report: seen.append(report.step)]

    train(place, "run", 3, options=Options(watchers=watchers))
    (view,) = views
    assert seen == [1, 2, 3]
    assert view.tokenizer.vocab_size == 450
    assert len(list(view.held_out("stories"))) > 0
    assert list(view.held_out("chats")) == []
