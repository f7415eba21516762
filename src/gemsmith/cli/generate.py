"""`gemsmith generate`: a text in, its continuation out."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gemsmith.cli.console import say, write, write_json, write_piece
from gemsmith.cli.flags import AsJson, EndFlags, ModelName, PlaceFlags, SamplingFlags, SourceFlags
from gemsmith.cli.machine import peak_rss_bytes, seconds_since_start
from gemsmith.cli.main import INTERRUPTED
from gemsmith.cli.source import read_prompt
from gemsmith.cli.speech import speak, summary

if TYPE_CHECKING:
    from gemsmith.infer.completion import Completion
    from gemsmith.infer.lm import LM
    from gemsmith.infer.prompt_cache import PromptCache
    from gemsmith.infer.settings import Options


def generate(
    text: str | None = None,
    /,
    *,
    source: SourceFlags = SourceFlags(),  # noqa: B008 (frozen)
    model: ModelName = "pebble",
    place: PlaceFlags = PlaceFlags(),  # noqa: B008 (frozen)
    end: EndFlags = EndFlags(),  # noqa: B008 (frozen)
    sampling: SamplingFlags = SamplingFlags(),  # noqa: B008 (frozen)
    as_json: AsJson = False,
) -> int:
    """Write on from a text: the argument, a file, or stdin. Only the new text goes to stdout.

    Args:
        text: What to write on from; "-" or nothing reads stdin.
    """
    prompt = read_prompt(text, source.file)
    started = time.perf_counter()
    lm = place.load(model)
    load_s = time.perf_counter() - started
    started_s = seconds_since_start()
    if not as_json and sys.stdout.isatty() and sys.stderr.isatty():
        say(prompt, end="")
    options: Options = {
        "max_new_tokens": end.max_new_tokens,
        "stop": end.stop,
        "sampling": sampling.over(lm.sampling),
        "prompt_cache": None if source.prompt_cache is None else kept_prompt(lm, prompt, source.prompt_cache),
    }
    completion = speak(
        lm,
        prompt,
        options,
        show=(lambda piece: None) if as_json else write_piece,
    )
    if as_json:
        write_json({"model": lm.name, **report(completion, load_s=load_s, started_s=started_s)})
    else:
        write("")
        say(summary(completion))
    return INTERRUPTED if completion.finish_reason == "cancelled" else 0


def kept_prompt(lm: "LM", prompt: str, path: Path) -> "PromptCache":
    """Return the prompt a file keeps; where there is no file, read this one and make it."""
    if path.exists():
        return lm.load_prompt(path)
    known = lm.read_prompt(prompt)
    say(f"gemsmith: {len(known.token_ids)} tokens kept in {lm.save_prompt(known, path)}")
    return known


def report(completion: "Completion", *, load_s: float, started_s: float | None) -> dict[str, object]:
    """Return what --json prints about a completion.

    Args:
        started_s: Seconds between the start of the process and the call, None where unknown.
    """
    since_start = None if started_s is None or completion.ttft_s is None else started_s + completion.ttft_s
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "n_prompt_tokens": completion.n_prompt_tokens,
        "n_cached_tokens": completion.n_cached_tokens,
        "n_tokens": completion.n_tokens,
        "seed": completion.seed,
        "load_s": load_s,
        "ttft_s": completion.ttft_s,
        "first_token_since_start_s": since_start,
        "total_s": completion.total_s,
        "tokens_per_s": completion.tokens_per_s,
        "peak_rss_bytes": peak_rss_bytes(),
    }
