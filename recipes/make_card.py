"""Write the model card of a trained folder: its answers to twenty fixed prompts, its data, its numbers.

    python recipes/make_card.py MODEL SLICES.json RECIPE RUN [RECIPE RUN ...]

MODEL is the folder to ship, SLICES.json what `benchmarks/bench_pebble_quality.py` found ("-" for nothing); then the
recipe and the run folder of each run of `gemsmith pretrain` that led to it, the first one first.
"""

import json
import sys
from pathlib import Path

import gemsmith as gs
from gemsmith.data.sources import check_shipping
from gemsmith.recipes.recipe import Recipe, read_recipe

TEXTS = (
    "Once upon a time",
    "Once upon a time, in a small village by the sea,",
    "One day, a little boy named Tom found a key.",
    "The old owl looked at the mouse and said,",
    "Alice opened the door and",
    "It was a dark night, and the wind",
    "The French Revolution was",
    "Mount Everest is",
    "A neural network is",
    "def add(a, b):",
)
QUESTIONS = (
    "Tell me a story about a brave fox.",
    "Tell me a story about a girl who finds a dragon.",
    "Write a short story about a kind robot.",
    "What is the capital of France?",
    "Why is the sky blue?",
    "What is the opposite of hot?",
    "Give me three ideas for a birthday party.",
    "Rewrite the sentence in the passive voice: The cat chased the mouse.",
    "I would like to book a table for two.",
    "Who are you?",
)
MAX_NEW_TOKENS = 300
SEED = 1
SHARE_ALIKE = ("CC-BY-SA", "CDLA-Sharing")


def main(model: Path, slices: Path | None, runs: list[tuple[Path, Path]]) -> None:
    """Write MODEL/README.md; a folder with a card is one to give away, so sources must allow it."""
    recipes = [read_recipe(path) for path, _ in runs]
    for recipe in recipes:
        check_shipping(recipe.sources)
    lm = gs.load(str(model))
    ends = [json.loads((run / "log.jsonl").read_text().splitlines()[-1]) for _, run in runs]
    parts = (
        head(lm, recipes[0], sum(end["n_tokens"] for end in ends)),
        "" if slices is None else numbers(json.loads(slices.read_text())),
        data(recipes[0]),
        how(list(zip(recipes, ends, (path for path, _ in runs), strict=True))),
        LIMITS,
        answers(lm),
    )
    (model / "README.md").write_text("\n".join(part.rstrip() + "\n" for part in parts if part))


def head(lm: gs.LM, recipe: Recipe, n_tokens: int) -> str:
    """Return the title and what the model is."""
    shape = recipe.model
    return f"""---
license: cc-by-sa-4.0
language: en
library_name: gemsmith
---
# pebble, the model in the box

{lm.config.n_params / 1e6:.1f} million parameters in bfloat16: Gemma 2's architecture at d_model {shape.d_model},
{shape.n_layers} layers, {shape.n_heads} heads of {shape.head_dim} with {shape.n_kv_heads} for keys and values,
context {shape.max_seq_len}, a window of {shape.window} in every other layer, and
a vocabulary of its own with {recipe.vocabulary.size} pieces.
Trained from scratch by this project on {n_tokens / 1e6:.1f} million tokens, on two CPU cores.
It exists so that everything here can be tried and tested without a download: it tells simple stories, and
knows next to nothing.

    gemsmith chat
    gemsmith generate "Once upon a time"
"""


def numbers(rows: list[dict[str, object]]) -> str:
    """Return the table of bits per byte."""
    lines = [
        f"| {row['name']} | {row['n_documents']} | {row['n_bytes']:,} "
        f"| {row['pebble']:.3f} | {row['ngram']:.3f} | {row['xz']:.3f} |"
        for row in rows
    ]
    return "\n".join(
        (
            "## Bits per byte on documents it never saw\n",
            "The 5-gram model (interpolated Kneser-Ney over pebble's pieces) has counted every training text once; "
            "`xz -9e` packs each slice by itself. Lower is better.\n",
            "| held-out slice | documents | bytes | pebble | 5-gram | xz |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        )
    )


def data(recipe: Recipe) -> str:
    """Return sources, shares and licences."""
    total = sum(source.share for source in recipe.sources)
    late = sum(source.weight(is_late=True) for source in recipe.sources)
    lines = [
        f"| {s.name} | {s.path} | {s.share / total:.1%} | {s.weight(is_late=True) / late:.1%} | {s.license} |"
        for s in recipe.sources
    ]
    shared = ", ".join(s.name for s in recipe.sources if s.license.startswith(SHARE_ALIKE))
    return "\n".join(
        (
            "## Data and licence\n",
            "| source | file | share of tokens | in the last fifth | licence |",
            "|---|---|---|---|---|",
            *lines,
            "",
            SOURCES,
            f"Share-alike sources: {shared}. The weights are therefore under CC BY-SA 4.0 "
            "(https://creativecommons.org/licenses/by-sa/4.0/); the code around them stays Apache-2.0.",
            "No benchmark's test questions were trained on. Held-out documents are chosen by a hash of their text "
            "or title; conversations made from a held-out story are held out with it.",
            "",
        )
    )


def how(runs: list[tuple[Recipe, dict[str, float], Path]]) -> str:
    """Return each run's recipe in words, and the commands that repeat them."""
    parts, commands = ["## Recipe and compute\n"], []
    for recipe, last, path in runs:
        batch, rates, minutes = recipe.batch, recipe.optimizer, f"{last['seconds'] / 60:.0f}"
        if rates.schedule == "wsd":
            decay = f"a constant rate, then a straight line to 0 over the last {rates.decay_share:.0%}"
        else:
            decay = "then a straight line to 0"
        parts.append(
            f"""{"Then, from these weights on, again" if commands else "First"} {last["step"]:,} steps of
{batch.tokens:,} packed tokens, {minutes} minutes in steps on two cores of an AMD EPYC that other work shared;
bfloat16 arithmetic over float32 masters. Rows of {batch.row} tokens, of {batch.late_row} in the last
{batch.late_share:.0%}; documents do not see each other.
Muon at {rates.matrix_rate} for matrices, AdamW at {rates.other_rate} for the rest, weight decay {rates.weight_decay};
{rates.warmup_steps} steps of warm-up, {decay}.
"""
        )
        start = " --from RUN/model" if commands else ""
        data = " --data DIR" if not commands else " --data DATASET"
        commands.append(
            f"    gemsmith pretrain {path}{start}{data} --out RUN{len(commands) + 1} --minutes {minutes} --processes 2"
        )
    commands = [command.replace("--from RUN/", f"--from RUN{i}/") for i, command in enumerate(commands)]
    if len(commands) > 1:
        commands.insert(1, f"    gemsmith data build {runs[0][2]} --data DIR --vocabulary RUN1/model --out DATASET")
    return "\n".join(
        [*parts, "Answers alone count in conversations. Again, from raw text to this folder:\n", *commands, ""]
    )


def answers(lm: gs.LM) -> str:
    """Return all twenty answers as they come, whatever they are."""
    options = {"max_new_tokens": MAX_NEW_TOKENS, "seed": SEED}
    parts = [
        "## Twenty prompts, uncut\n",
        f"Sampled once, with the folder's own settings ({settings(lm)}) and seed {SEED}; no answer was chosen or "
        "mended. The repetition penalty was set after earlier answers to these prompts had looped. "
        f"An answer that has not ended after {MAX_NEW_TOKENS} tokens is marked [...].\n",
    ]
    for text in TEXTS:
        completion = lm.generate(text, **options)
        parts.append(f"**{text}** (to be continued)\n\n{quoted(completion)}\n")
    for question in QUESTIONS:
        completion = lm.generate([gs.Turn("user", question)], **options)
        parts.append(f"**{question}** (chat)\n\n{quoted(completion)}\n")
    return "\n".join(parts)


def settings(lm: gs.LM) -> str:
    """Return the sampling the folder suggests."""
    chosen = lm.sampling
    return (
        f"temperature {chosen.temperature}, top_k {chosen.top_k}, top_p {chosen.top_p}, "
        f"repetition_penalty {chosen.repetition_penalty}"
    )


def quoted(completion: gs.Completion) -> str:
    """Return an answer as a quotation, marked where it was not at its end."""
    text = completion.text + (" [...]" if completion.finish_reason == "length" else "")
    return "\n".join(f"> {line}".rstrip() for line in text.strip("\n").splitlines()) or "> (nothing)"


SOURCES = """\
Stories: TinyStories (Eldan and Li, the first 5,000, re-cased), fables of klusai/tinyfabulist written by Mistral, Phi-3,
Qwen2.5 and SmolLM2, tales of uci-soe/FairytaleQAData, Pratham Books' StoryWeaver and the African Storybook (both by
way of global-asp). Books: the corpora of mahlberg-lab and computationalstylistics, out of copyright. Leads of English
Wikipedia, 2015. Conversations: databricks-dolly-15k, instructions of rasbt/LLMs-from-scratch, FairytaleQA,
dstc8-schema-guided-dialogue, and requests made from the stories and fables. Python code and documentation from
TheAlgorithms/Python and 29 more repositories, under their licences.
"""

LIMITS = """\
## Limits

It is tiny. It makes up facts, names and dates, loses the thread after a few sentences, cannot count or reason, and
speaks English only. Its books are of the nineteenth century and say what was said then about people; nothing was
filtered but by choosing sources. It has had no safety training. Use it to learn, to test and to demonstrate; do not
use it to inform or to decide anything.
"""

if __name__ == "__main__":
    model_folder, slices_file, *rest = map(Path, sys.argv[1:])
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    main(model_folder, None if str(slices_file) == "-" else slices_file, pairs)
