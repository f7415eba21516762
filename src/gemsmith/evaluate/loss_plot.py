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
    figure.suptitle("\n".join((title, *([] if quality is None else quality.words()))), fontsize="medium")
    _fill(errors, losses, [x.error for x in losses], "relative error")
    _fill(bits, losses, [x.bits for x in losses], "bits per weight, scales and all")
    errors.legend(frameon=False, fontsize="small")
    if len(losses) <= _MANY:
        bits.set_xticks(range(len(losses)), [x.name for x in losses], rotation=90, fontsize=6)
    else:
        bits.set_xlabel("tensors in the order of the data")
    return save(figure, path)


def _fill(axes: "Axes", losses: Sequence[TensorLoss], heights: Sequence[float], label: str) -> None:
    """Draw a bar for each tensor, coloured by its scheme."""
    for number, scheme in enumerate(dict.fromkeys(x.scheme for x in losses)):
        places = [place for place, x in enumerate(losses) if x.scheme == scheme]
        axes.bar(places, [heights[place] for place in places], color=f"C{number}", label=scheme)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3, axis="y")
