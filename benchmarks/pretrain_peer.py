"""Pretrain with a plain transformers loop: the curve that `gemsmith pretrain` is held against.

    python benchmarks/pretrain_peer.py RECIPE --data DIR --out RUN --minutes 30

Same shards, batches in the same order, initial weights, optimizers, rates and time in steps as
`gemsmith pretrain RECIPE`. What differs is the loop itself: transformers' Gemma 2 with eager attention
(the only one it has with a cap) under bfloat16 autocast, rows without document masks, torch's cross
entropy over all scores at once. RUN gets the same log, so `gemsmith plot` draws both.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from contenders import CLIP
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from gemsmith.data.prepared import prepare
from gemsmith.data.vocabulary import Learning
from gemsmith.evaluate.probe import Looking, Probe, prompts_of, small_slices
from gemsmith.infer.allocator import tune_allocator
from gemsmith.infer.lm import LM
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.pretrain import next_batches
from gemsmith.recipes.recipe import Recipe, read_recipe
from gemsmith.train.initial import initial_weights
from gemsmith.train.journal import Journal, Pace
from gemsmith.train.loop import Budget, StepReport, TrainState
from gemsmith.train.optimizer import build_optimizers, rate_factor

_PREFIX = "model."


def peer_model(recipe: Recipe, initial: dict[str, Tensor]) -> Gemma2ForCausalLM:
    """Return transformers' model of the recipe's shape with our initial weights."""
    shape = recipe.model
    config = Gemma2Config(
        vocab_size=recipe.vocabulary.size, hidden_size=shape.d_model, num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads, head_dim=shape.head_dim,
        intermediate_size=shape.d_ff, sliding_window=shape.window, max_position_embeddings=shape.max_seq_len,
        query_pre_attn_scalar=shape.head_dim, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    missing, unexpected = model.load_state_dict({_PREFIX + n: w.detach() for n, w in initial.items()}, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    return model.train()


def train(recipe: Recipe, data_dir: Path, out: Path, minutes: float) -> None:
    out.mkdir(parents=True)
    learning = Learning(recipe.vocabulary.size, recipe.vocabulary.sample_megabytes)
    dataset = prepare(recipe.sources, learning, data_dir=data_dir, out=out)
    mixture = dataset.mixture(recipe.sources, seed=recipe.batch.seed)
    config = recipe.model.config(recipe.vocabulary.size)
    model = peer_model(recipe, initial_weights(config, seed=recipe.batch.seed))
    weights = {n.removeprefix(_PREFIX): p for n, p in model.named_parameters()}
    state = TrainState(weights, build_optimizers(weights, recipe.optimizer))
    for optimizer in state.optimizers.values():
        assert type(optimizer).__module__.startswith(("torch.", "gemsmith.kernels"))
    budget = Budget(seconds=minutes * 60)
    journal = Journal(out / "log.jsonl", Pace(1.0, None, budget.progress))
    slices = small_slices(dataset.held_out, [source.name for source in recipe.sources])
    lm = LM(Transformer(config, dtype=torch.bfloat16), dataset.tokenizer, name="peer")
    probe = Probe(
        lm, Looking(slices, prompts_of(slices), 10),
        write=journal.write, samples=out / "samples.jsonl", progress=budget.progress,
    )  # fmt: skip
    while (progress := budget.progress(state)) < 1.0:
        start = time.perf_counter()
        (batch,) = next_batches(mixture, recipe, state, progress)
        targets = batch.targets.masked_fill(~batch.loss_mask, -100)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch.token_ids).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True))
        factor = rate_factor(state.step, progress, recipe.optimizer)
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        nll = float(loss.detach())
        state.step += 1
        state.n_tokens += batch.token_ids.numel()
        state.recent = [*state.recent[-127:], [nll, norm]]
        state.seconds += time.perf_counter() - start
        report = StepReport(
            step=state.step, nll=nll, grad_norm=norm, rate=recipe.optimizer.matrix_rate * factor,
            n_tokens=state.n_tokens, n_targets=int(batch.loss_mask.sum()), is_skipped=False,
        )  # fmt: skip
        journal(state, report)
        probe(state, report)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    given = parser.parse_args()
    tune_allocator(for_training=True)
    train(read_recipe(given.recipe), given.data, given.out, given.minutes)


if __name__ == "__main__":
    main()
