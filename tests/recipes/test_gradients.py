"""Training for few bits: it beats rounding, resumes bit for bit, and what is exported is what was trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.errors import CheckpointError, ConfigError, DataError, ModelNotFoundError, TrainingError
from gemsmith.kernels.quantized import SCALE_DTYPE, Scheme, rounded
from gemsmith.model import ops
from gemsmith.model.rounded import round_in_training
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.gradients import Gradients, schemes_of
from gemsmith.recipes.options import Compute, Options, RunView, Watcher
from gemsmith.recipes.pretrain import run
from gemsmith.recipes.recipe import QuantizationSpec, read_recipe
from gemsmith.recipes.run_folder import digest
from gemsmith.tokenizer import Tokenizer
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import Budget, TrainState, fit
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import build_optimizers
from gemsmith.weights.folder import load_network, read_schemes, save_folder
from gemsmith.weights.manifest import read_manifest
from small_recipe import RECIPE, write_small_recipe

PLAIN = Compute(torch.float32, n_data_workers=0)
WIDE = RECIPE.replace("d_model = 16", "d_model = 32").replace("head_dim = 8", "head_dim = 16").replace("= 24", "= 64")
TRAINED = WIDE + '\n[quantization]\nscheme = "int4-g32"\nembedding = "int8"\nstart = 0.5\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_small_recipe(tmp_path).write_text(TRAINED)
    return tmp_path


def train(place: Path, out: str, steps: int, *, compute: Compute = PLAIN, options: Options = Options()) -> Path:  # noqa: B008
    return run(place / "recipe.toml", data_dir=place, out=place / out, steps=steps, compute=compute, options=options)


def language(seed: int, n_rows: int) -> Batch:
    """Return rows in which two tokens decide on the next, but for one in ten."""
    after = torch.randint(1, 64, (64, 64), generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(n_rows, 33, dtype=torch.long)
    ids[:, :2] = torch.randint(1, 9, (n_rows, 2), generator=generator)
    is_free = torch.rand(n_rows, 33, generator=generator) < 0.1
    free = torch.randint(1, 9, (n_rows, 33), generator=generator)
    for i in range(2, 33):
        ids[:, i] = torch.where(is_free[:, i], free[:, i], after[ids[:, i - 1], ids[:, i - 2]] % 8 + 1)
    row = torch.arange(32).expand(n_rows, 32)
    return Batch(ids[:, :-1], ids[:, 1:], torch.ones(n_rows, 32, dtype=torch.bool), row * 0, row)


def test_training_for_four_bits_beats_rounding_to_them(place: Path) -> None:
    layer = LayerSpec("local", 2, 1, 16, 64, attn_scale=0.25, window=8, attn_softcap=3.0)
    config = ModelConfig("gemma2", 64, 32, 32, (layer, layer), final_softcap=5.0)
    recipe = replace(read_recipe(place / "recipe.toml"), quantization=QuantizationSpec("int4", "int4", 0.6))
    schemes = schemes_of(recipe.quantization, config)
    spec = LossSpec(config.final_softcap)
    optimizer = replace(recipe.optimizer, decay_share=0.4)
    held_out = [language(10**6 + number, 64) for number in range(2)]

    def nll(weights: dict[str, torch.Tensor], *, is_rounded: bool) -> float:
        loss = next_token_loss(config, spec, schemes=schemes if is_rounded else None)
        with torch.no_grad():
            return sum(float(loss(weights, batch)) / batch.targets.numel() for batch in held_out) / len(held_out)

    def trained(wish: QuantizationSpec | None) -> dict[str, torch.Tensor]:
        weights = initial_weights(config, seed=0)
        state, budget = TrainState(weights, build_optimizers(weights, optimizer)), Budget(steps=200)
        gradients = Gradients(replace(recipe, quantization=wish), config, PLAIN)
        adder = gradients.accumulate(state, budget)
        batches = lambda state, _: [language(state.step, 8)]  # noqa: E731
        fit(state, batches, gradients.loss(), spec=optimizer, budget=budget, accumulate=adder)
        return weights

    dense = trained(None)
    floor = nll(dense, is_rounded=False)
    by_rounding, by_training = nll(dense, is_rounded=True) - floor, nll(trained(recipe.quantization), is_rounded=True)
    assert by_rounding > 2e-3
    assert by_training - floor < 0.6 * by_rounding


def test_what_is_exported_is_what_was_trained(place: Path) -> None:
    folder = train(place, "run", 8)
    assert read_schemes(folder) == {Scheme(4, 32), Scheme(8, None)}
    manifest = read_manifest(folder)
    assert manifest is not None
    wish = {"method": "training", "scheme": "int4-g32", "embedding": "int8", "start": 0.5}
    assert manifest.lineage["quantized"] == wish
    ids = torch.tensor([Tokenizer.load(folder).encode("Once a fox met a hare.")])
    served = load_network(folder, dtype="float32").network
    recipe = read_recipe(place / "recipe.toml")
    config = recipe.model.config(450)
    masters = _masters(place / "run")
    trained = Transformer(config)
    trained.load_state_dict(masters)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.ndim == 1:  # norms are given away in bfloat16
                parameter.copy_(parameter.bfloat16())
        round_in_training(trained, schemes_of(recipe.quantization, config))
        with ops.plain_only():
            assert torch.equal(trained(ids), served(ids))


def _masters(run_folder: Path) -> dict[str, torch.Tensor]:
    from gemsmith.train.checkpoint_files import checkpoints, read_checkpoint

    tensors = read_checkpoint(checkpoints(run_folder)[-1]).tensors
    return {name.removeprefix("weights/"): x for name, x in tensors.items() if name.startswith("weights/")}


def test_run_that_rounds_goes_on_to_the_same_bits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through = train(place, "through", 8)
    for stop in (4, 6):  # at the first rounded step, and among them
        monkeypatch.setattr("gemsmith.recipes.pretrain.export", _killed)
        with pytest.raises(KeyboardInterrupt):
            train(place, f"resumed_{stop}", 8, options=Options(save_every_steps=stop))
        monkeypatch.undo()
        shutil.rmtree(place / f"resumed_{stop}/step_00000008")
        resumed = train(place, f"resumed_{stop}", 8)
        assert (through / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
        last = [
            json.loads((place / run / "step_00000008/state.json").read_text()) for run in ("through", resumed.parent)
        ]
        assert last[0]["state"]["recent"] == last[1]["state"]["recent"]
        assert len(last[0]["state"]["recent"]) == 4  # losses before rounding are forgotten


def _killed(*_args: object) -> Path:
    raise KeyboardInterrupt


def test_rounding_begins_at_its_share_of_the_run(place: Path) -> None:
    seen: list[bool] = []

    def watchers(view: RunView) -> list[Watcher]:
        schemes = schemes_of(view.recipe.quantization, view.recipe.model.config(450))
        name = "layers.0.mlp.up_proj"

        def watch(state: TrainState, _report: object) -> None:
            given = view.seen(state)[f"{name}.weight"]
            master = state.weights[f"{name}.weight"].detach()
            is_stored = torch.equal(given, rounded(master, schemes[name], scale_dtype=SCALE_DTYPE))
            assert is_stored != torch.equal(given, master)
            seen.append(is_stored)

        return [watch]

    train(place, "run", 6, options=Options(watchers=watchers))
    assert seen == [False, False, True, True, True, True]  # after steps 1 to 6: what the next one is made with


def test_two_processes_round_as_one_does(place: Path) -> None:
    alone, shared = train(place, "one", 4), train(place, "two", 4, compute=replace(PLAIN, n_processes=2))
    for name, weight in _masters(alone.parent).items():
        torch.testing.assert_close(_masters(shared.parent)[name], weight, rtol=1e-3, atol=1e-4)


def test_a_run_starts_from_the_weights_of_a_model(place: Path) -> None:
    first = replace_quantization(place, WIDE)
    started = train(place, "finish", 1, options=Options(start=str(first)))
    lineage = read_manifest(started)
    assert lineage is not None
    assert lineage.lineage["start"] == str(first)
    assert read_recipe(place / "finish/recipe.toml").start is not None
    (session,) = json.loads((place / "finish/run.json").read_text())["sessions"]
    assert session["start"]["folder"] == str(first)
    assert len(session["start"]["sha256"]) == 64
    before, after = (load_network(folder, dtype="float32").network.state_dict() for folder in (first, started))
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.05  # one step of the warm-up
    assert Tokenizer.load(first).encode("a fox") == Tokenizer.load(started).encode("a fox")


def replace_quantization(place: Path, recipe: str, *, steps: int = 3) -> Path:
    """Train a dense model with the recipe, and leave the recipe as it was."""
    kept = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(recipe)
    folder = train(place, "first", steps)
    (place / "recipe.toml").write_text(WIDE if recipe == WIDE else kept)
    return folder


def test_another_start_or_scheme_does_not_go_on(place: Path) -> None:
    first = replace_quantization(place, WIDE)
    train(place, "finish", 1, options=Options(start=str(first)))
    (place / "recipe.toml").write_text(TRAINED)
    with pytest.raises(CheckpointError, match="recipe must be what the run folder was begun with"):
        train(place, "finish", 2, options=Options(start=str(first)))
    (place / "recipe.toml").write_text(WIDE)
    network = load_network(first, dtype="float32").network
    with torch.no_grad():
        network.norm.weight.add_(0.5)
    save_folder(first, network, tokenizer=Tokenizer.load(first), dtype="bfloat16")
    with pytest.raises(CheckpointError, match="start must be what the checkpoint was made with"):
        train(place, "finish", 2, options=Options(start=str(first)))
    with pytest.raises(CheckpointError, match=r"start must be .* got start 'None' instead of"):
        train(place, "finish", 2)


def test_training_for_few_bits_of_nothing_is_refused(place: Path) -> None:
    (place / "recipe.toml").write_text(TRAINED.replace('"int4-g32"', '"bf16"').replace('"int8"', '"bf16"'))
    with pytest.raises(ConfigError, match=r"must round the linears or the embedding; got 'bf16' and 'bf16'"):
        train(place, "a", 1)


def test_a_model_of_another_shape_vocabulary_or_few_bits_is_no_start(place: Path, tmp_path: Path) -> None:
    first = replace_quantization(place, WIDE)
    with pytest.raises(ModelNotFoundError):
        train(place, "a", 1, options=Options(start="nowhere/at-all"))
    (place / "recipe.toml").write_text(WIDE.replace("window = 8", "window = 16"))
    with pytest.raises(ConfigError, match="shape of \\[model\\]; got another layers in"):
        train(place, "b", 1, options=Options(start=str(first)))
    (place / "recipe.toml").write_text(TRAINED)
    small = train(place, "small", 1)
    with pytest.raises(
        ConfigError, match=r"folder of dense weights; got .*, a model in few bits.*: gemsmith convert MODEL FOL"
    ):
        train(place, "c", 1, options=Options(start=str(small)))
    (place / "stories.jsonl").write_text(
        "".join(json.dumps({"text": f"Hills {i} and rivers."}) + "\n" for i in range(99))
    )
    (place / "recipe.toml").write_text(WIDE)
    train(place, "other", 1)
    with pytest.raises(DataError, match="vocabulary must be that of the model in \\[start\\]"):
        run(place / "recipe.toml", data_dir=place / "other", out=place / "d", steps=1, compute=PLAIN,
            options=Options(start=str(first)))  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('"int4-g32"', '"int5"', ConfigError, "scheme must be .*; got 'int5'"),
        ("start = 0.5", "start = 1.0", TrainingError, "start must lie from 0 to below 1; got 1.0"),
        ("start = 0.5", "strat = 0.5", DataError, r"got 'strat' in \[quantization\]. Did you mean 'start'"),
        ("d_ff = 64", "d_ff = 40", ConfigError, "group must divide the inputs of every tensor; got 32 and 40"),
    ],
)
def test_mistakes_are_named_before_the_run_begins(
    place: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    (place / "recipe.toml").write_text(TRAINED.replace(old, new))
    with pytest.raises(error, match=message):
        train(place, "run", 1)
    assert not (place / "run").exists()


def test_recipes_without_the_new_sections_keep_their_digest(place: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE)
    assert digest(read_recipe(place / "recipe.toml")) == DIGEST


DIGEST = "23d5c94288b87acdbd84cdfecf45f390a33814aac2f22f56534fc9dd57669bb3"


def test_a_recipe_changes_keys_of_its_base(place: Path) -> None:
    (place / "finish.toml").write_text(
        'base = "recipe.toml"\n[optimizer]\nmatrix_rate = 0.5\n[start]\nmodel = "pebble"\n'
    )
    found, base = read_recipe(place / "finish.toml"), read_recipe(place / "recipe.toml")
    assert found.optimizer == replace(base.optimizer, matrix_rate=0.5)
    assert found == replace(base, optimizer=found.optimizer, start=found.start)
    assert found.start is not None
    (place / "third.toml").write_text('base = "finish.toml"\n')
    with pytest.raises(DataError, match="must have none itself; got one in"):
        read_recipe(place / "third.toml")
    (place / "finish.toml").write_text('base = "recipe.toml"\n[optimizer]\nmatrix_rat = 0.5\n')
    with pytest.raises(DataError, match=r"got 'matrix_rat' in \[optimizer\]"):
        read_recipe(place / "finish.toml")


def test_a_run_keeps_the_whole_recipe_of_one_with_a_base(place: Path) -> None:
    (place / "finish.toml").write_text('base = "recipe.toml"\n[batch]\nseed = 5\n')
    run(place / "finish.toml", data_dir=place, out=place / "run", steps=1, compute=PLAIN)
    assert read_recipe(place / "run/recipe.toml") == read_recipe(place / "finish.toml")


def test_finish_of_pebble_is_sound() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    finish, pebble = read_recipe(folder / "pebble_int4.toml"), read_recipe(folder / "pebble.toml")
    assert (finish.model, finish.sources) == (pebble.model, pebble.sources)
    assert finish.quantization is not None
    assert finish.quantization.start == 0.0
    assert schemes_of(finish.quantization, finish.model.config(finish.vocabulary.size))
