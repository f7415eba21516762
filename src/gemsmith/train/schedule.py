"""The course of a rate over a run: a pure function of the step and the share of the run that is done."""

import math
from collections.abc import Callable

# name -> function (share of the way from the end of the warm-up to the end of the run, decay share) -> height
_SHAPES: dict[str, Callable[[float, float], float]] = {
    "cosine": lambda done, _: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done, _: 1.0 - done,
    "wsd": lambda done, decay_share: min(1.0, (1.0 - done) / decay_share),
}
SCHEDULES = tuple(_SHAPES)


def rate_share(
    step: int, progress: float, *, schedule: str, warmup_steps: int, decay_share: float, floor_share: float
) -> float:
    """Return the share of the peak rate a step takes: a straight rise, then the fall of the schedule.

    The rise is counted in steps. "cosine" and "linear" fall from its end to the end of the run; "wsd"
    (warm-up, stable, decay) stays at the peak and falls in a straight line in the last part only.

    Args:
        step: Number of the step, the first being 0.
        progress: Share of the run that is done before the step, by steps, tokens or time.
        decay_share: Last share of the run in which "wsd" falls.
        floor_share: What is left of the peak at the end.

    Source: cosine: SGDR, arXiv:1608.03983, section 3, to a tenth of the peak in Chinchilla,
    arXiv:2203.15556, appendix B; linear, to nothing: arXiv:2502.15938; wsd: MiniCPM, arXiv:2404.06395,
    section 4.
    """
    rising = min(1.0, (step + 1) / (warmup_steps + 1))
    done = progress if schedule == "wsd" else _since_warmup(step, progress, warmup_steps)
    height = _SHAPES[schedule](done, decay_share)
    return max(0.0, min(rising, floor_share + (1.0 - floor_share) * height))


def _since_warmup(step: int, progress: float, warmup_steps: int) -> float:
    """Return the share done of what follows the warm-up, supposing steps of one length.

    For a run counted in steps that is exact; for one counted in seconds it grows with step and
    progress all the same, so the rate never rises again.
    """
    if step <= warmup_steps and progress < 1.0:
        return 0.0
    at_its_end = progress * warmup_steps / max(step, 1)
    return 1.0 if progress >= 1.0 else (progress - at_its_end) / (1.0 - at_its_end)
