"""What few bits cost a model, as a picture: the error and the bits of every tensor, and the change in quality."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemsmith.evaluate.divergence import Divergence
from gemsmith.recipes.plot import blank, save
from gemsmith.recipes.quantize import TensorLoss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MANY = 40  # tensors that still have their names below them


def plot_losses(losses: Sequence[TensorLoss], quality: Divergence | None, path: Path, *, title: str) -> Path:
    """Draw relative error and bits per weight of every tensor, the change in quality above them.

    Raises:
        DataError: matplotlib is missing.
    """
    figure, (errors, bits) = blank(2)
    figure.suptitle("\n".join((title, *words(quality))), fontsize="medium")
    _fill(errors, losses, [x.error for x in losses], "relative error")
    _fill(bits, losses, [x.bits for x in losses], "bits per weight, scales and all")
    errors.legend(frameon=False, fontsize="small")
    if len(losses) <= _MANY:
        bits.set_xticks(range(len(losses)), [x.name for x in losses], rotation=90, fontsize=6)
    else:
        bits.set_xlabel("tensors in the order of the data")
    return save(figure, path)


def words(quality: Divergence | None) -> list[str]:
    """Return the change in quality in two lines; none where it was not measured."""
    if quality is None:
        return []
    change, kl = quality.change, quality.kl
    return [
        f"perplexity {change.value:+.3%} (95%: {change.low:+.3%} to {change.high:+.3%})",
        f"divergence {kl.value:.3e} nats per token (95%: {kl.low:.3e} to {kl.high:.3e}), {quality.n_tokens:,} tokens",
    ]


def _fill(axes: "Axes", losses: Sequence[TensorLoss], heights: Sequence[float], label: str) -> None:
    """Draw a bar for each tensor, coloured by its scheme."""
    for number, scheme in enumerate(dict.fromkeys(x.scheme for x in losses)):
        places = [place for place, x in enumerate(losses) if x.scheme == scheme]
        axes.bar(places, [heights[place] for place in places], color=f"C{number}", label=scheme)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3, axis="y")
