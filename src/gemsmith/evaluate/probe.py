"""Looks at a run from time to time: what held-out texts cost in bits per byte, and what it writes."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from gemsmith.evaluate.bpb import bits_per_byte
from gemsmith.infer.lm import LM
from gemsmith.infer.sample import Sampling
from gemsmith.train.journal import Row
from gemsmith.train.loop import StepReport, TrainState

_say = logging.getLogger("gemsmith.steps")
_SLICE_BYTES, _ALL_BYTES = 8_192, 131_072  # of one source, and of all together
_N_PROMPTS, _PROMPT_WORDS, _NEW_TOKENS = 3, 4, 48
_SAMPLING = Sampling(temperature=0.7, top_k=50, seed=1)


@dataclass(frozen=True)
class Looking:
    """What is looked at and when.

    Attributes:
        slices: Held-out texts by source.
        prompts: Beginnings the model writes on from.
        n_times: How many times in a run, in even steps of its progress, the end included.
        seen: Function (state) -> the weights to look at; the run's masters by default.
    """

    slices: Mapping[str, Sequence[str]]
    prompts: Sequence[str]
    n_times: int
    seen: Callable[[TrainState], Mapping[str, Tensor]] = attrgetter("weights")


class Probe:
    """Measures the model of a run; called after every step.

    A row with `held_out`, by source, and `bpb`, over all their bytes, goes to `write`, samples to a file of
    their own. Neither takes a random number of the run's, nor time that counts as training.

    Args:
        lm: A model of the run's shape, whose weights are replaced by the run's.
        write: Gets the row.
        samples: The file of samples.
        progress: Share of the run that is done.
        n_done: Looks that a run which goes on has had already.
    """

    def __init__(
        self,
        lm: LM,
        looking: Looking,
        *,
        write: Callable[[Row], None],
        samples: Path,
        progress: Callable[[TrainState], float],
        n_done: int = 0,
    ) -> None:
        self.lm, self.looking, self.n_done = lm, looking, n_done
        self.write, self.samples, self.progress = write, samples, progress

    def __call__(self, state: TrainState, report: StepReport) -> None:
        """Look where it is time."""
        due = int(self.progress(state) * self.looking.n_times)
        if due <= self.n_done:
            return
        self.n_done = due
        self._take(self.looking.seen(state))
        if self.looking.slices:
            self.write(self._measure(state))
        self._sample(state)

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.lm.network.named_parameters():
                parameter.copy_(weights[name])

    def _measure(self, state: TrainState) -> Row:
        found = {
            name: bits_per_byte(self.lm.network, self.lm.tokenizer, texts)
            for name, texts in self.looking.slices.items()
        }
        n_bytes = sum(one.n_bytes for one in found.values())
        bpb = sum(one.bpb * one.n_bytes for one in found.values()) / n_bytes
        each = {name: round(one.bpb, 5) for name, one in found.items()}
        _say.info("step %d: %.4f bits per byte of held-out text", state.step, bpb)
        place = {"step": state.step, "n_tokens": state.n_tokens, "seconds": round(state.seconds, 3)}
        return {**place, "bpb": round(bpb, 5), "held_out": each}

    def _sample(self, state: TrainState) -> None:
        room = max(1, min(_NEW_TOKENS, self.lm.config.max_seq_len // 2))
        with self.samples.open("a", encoding="utf-8") as file:
            for prompt in self.looking.prompts:
                text = self.lm.generate(prompt, max_new_tokens=room, sampling=_SAMPLING).text
                row = {"step": state.step, "n_tokens": state.n_tokens, "prompt": prompt, "text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def small_slices(held_out: Callable[[str], Iterable[str]], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the first few kilobytes of each source's held-out texts; sources that hold nothing out are left out."""
    limit = min(_SLICE_BYTES, _ALL_BYTES // max(1, len(names)))
    slices = {name: _first(held_out(name), limit) for name in names}
    return {name: texts for name, texts in slices.items() if texts}


def prompts_of(slices: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the first words of a held-out text of each of the first sources."""
    begun = [" ".join(texts[0].split()[:_PROMPT_WORDS]) for texts in slices.values()]
    return begun[:_N_PROMPTS] or ["The"]


def _first(texts: Iterable[str], limit: int) -> list[str]:
    taken: list[str] = []
    for text in texts:
        if not text.strip():
            continue
        taken.append(text[:limit])
        limit -= len(taken[-1].encode())
        if limit <= 0:
            break
    return taken
