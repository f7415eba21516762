"""`gemsmith quantize`: a model in few bits, and what that costs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from gemsmith.cli.console import UsageError, say, table, write, write_json
from gemsmith.cli.flags import AsJson

if TYPE_CHECKING:
    from gemsmith.evaluate.divergence import Divergence
    from gemsmith.recipes.quantize import TensorLoss


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SchemeFlags:
    """How few bits, and where.

    Attributes:
        scheme: Of the linears: int8, int4 (32 inputs share a scale), or with a group and -asym, as in int4-g64-asym.
        embedding: Of the embedding and output head; bf16 leaves it as it is, which vLLM wants. transformers reads
            no int4 here.
        size: Most bytes the weights may take, such as 24MB: each tensor then gets the bits that lose least.
    """

    scheme: str = "int4"
    embedding: str = "int8"
    size: str | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TextFlags:
    """The texts to calibrate and to measure on: JSON lines, plain or packed.

    Attributes:
        calibrate: Texts whose inputs the rounding is fitted to (GPTQ); plain rounding when left out.
        calibrate_tokens: How many of their tokens to read at most.
        text: Texts to measure the loss of quality on, others than those of --calibrate.
        text_tokens: How many of their tokens to score at most.
        field: The field of each line that holds the text.
        cache: The small model is measured with keys and values kept in this; int8 shows what both cost together.
    """

    calibrate: Path | None = None
    calibrate_tokens: int = 32_768
    text: Path | None = None
    text_tokens: int = 100_000
    field: str = "text"
    cache: Literal["int8", "bfloat16", "float32"] | None = None


def quantize(
    model: str,
    out: Path,
    /,
    *,
    schemes: SchemeFlags = SchemeFlags(),
    texts: TextFlags = TextFlags(),
    report: bool = False,
    plot: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Write a model in 4 or 8 bits, in the layout vLLM and transformers load. The new folder's path goes to stdout.

    Args:
        model: The box ("pebble"), a folder, or a pulled name.
        out: The new folder.
        report: Show bits, size and error of every tensor, and with --text the change in perplexity and the divergence.
        plot: With --report, draw it into this PNG too.
    """
    if plot is not None and not report:
        raise UsageError(f"--plot must come with --report; got {str(plot)!r} alone. Add --report.")
    if texts.text is not None and not report:
        raise UsageError(f"--text must come with --report; got {str(texts.text)!r} alone. Add --report.")
    for name in ("calibrate_tokens", "text_tokens"):
        if getattr(texts, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0; got {getattr(texts, name)}. Leave it out.")
    from gemsmith.recipes.budget import parse_size
    from gemsmith.recipes.quantized_folder import Text, Wish, quantize_folder

    wish = Wish(schemes.scheme, schemes.embedding, None if schemes.size is None else parse_size(schemes.size))
    calibration = None
    if texts.calibrate is not None:
        calibration = Text(texts.calibrate, texts.field, texts.calibrate_tokens)
    losses = quantize_folder(model, out, wish, calibration=calibration, tell=_tell)
    found = _measure(model, out, texts) if texts.text is not None else None
    if plot is not None:
        from gemsmith.evaluate.loss_plot import plot_losses

        plot_losses(losses, found, plot, title=f"{model} in few bits: {out}")
    if as_json:
        write_json({"model": model, "out": str(out), "tensors": _rows(losses), **_fields(found)})
    elif report:
        write("\n".join(describe(losses, found)))
    else:
        write(str(out))
    return 0


def _tell(loss: "TensorLoss") -> None:
    say(f"gemsmith: {loss.name} {loss.scheme}")


def _measure(model: str, out: Path, texts: TextFlags) -> "Divergence":
    """Compare both models as they are served: packed, with inputs rounded."""
    from gemsmith.evaluate.divergence import file_divergence
    from gemsmith.infer.load import load

    assert texts.text is not None
    original, changed = load(model), load(out, cache_dtype=texts.cache)
    return file_divergence(
        original.network,
        changed.network,
        original.tokenizer,
        texts.text,
        field=texts.field,
        n_tokens=texts.text_tokens,
        cache_dtype=changed.cache_dtype,
    )


def _rows(losses: list["TensorLoss"]) -> list[dict[str, Any]]:
    return [{**asdict(loss), "bits": loss.bits} for loss in losses]


def _fields(found: "Divergence | None") -> dict[str, Any]:
    return {} if found is None else {"quality": asdict(found)}


def describe(losses: list["TensorLoss"], found: "Divergence | None") -> list[str]:
    """Return the report in words."""
    rows = [("tensor", "scheme", "bits", "bytes", "relative error")]
    rows += [(x.name, x.scheme, f"{x.bits:.2f}", f"{x.n_bytes:,}", f"{x.error:.4f}") for x in losses]
    n_bytes, n_items = sum(x.n_bytes for x in losses), sum(x.n_items for x in losses)
    if losses:
        rows.append(("all", "", f"{8 * n_bytes / n_items:.2f}", f"{n_bytes:,}", ""))
    return [table(rows), *([] if found is None else found.words())]
