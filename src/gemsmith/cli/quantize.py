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
        scheme: Of the linears: int8, int4 (32 inputs share a scale), or with a group and -asym, as in int4-g64-asym;
            int4 when left out.
        embedding: Of the embedding and output head, int8 when left out; bf16 leaves it as it is. vLLM reads no Gemma
            whose embedding is in few bits, transformers none where it is int4.
        size: Most bytes the weights may take, such as 24MB, in place of both: each tensor gets the bits that lose
            least.
    """

    scheme: str | None = None
    embedding: str | None = None
    size: str | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TextFlags:
    """The texts to calibrate and to measure on: JSON lines, plain or packed.

    Attributes:
        calibrate: Texts whose inputs the rounding is fitted to (GPTQ); plain rounding when left out.
        calibrate_tokens: How many of their tokens to read at most; 32,768, or as many as the widest input of a tensor
            has numbers, when left out.
        text: Texts to measure the loss of quality on, others than those of --calibrate.
        text_tokens: How many of their tokens to score at most, and of one text a tenth of them.
        field: The field of each line that holds the text.
        cache: The small model is measured with keys and values kept in this; int8 shows what both cost together.
    """

    calibrate: Path | None = None
    calibrate_tokens: int | None = None
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
    """Write a model in 4 or 8 bits, in the layout of compressed-tensors. The new folder's path goes to stdout.

    Args:
        model: The box ("pebble"), a folder, or a pulled name.
        out: The new folder, or one that quantize has written before.
        report: Show bits, size and error of every tensor, and with --text the change in perplexity and the divergence.
        plot: With --report, draw it into this PNG too.
    """
    _check(texts, report, plot)
    from gemsmith.recipes.budget import parse_size
    from gemsmith.recipes.quantized_folder import Text, Wish, quantize_folder

    wish = Wish(schemes.scheme, schemes.embedding, None if schemes.size is None else parse_size(schemes.size))
    calibration = None
    if texts.calibrate is not None:
        calibration = Text(texts.calibrate, texts.field, texts.calibrate_tokens)
    losses = quantize_folder(model, out, wish, calibration=calibration, tell=_tell)
    found = _measure(model, out, texts) if texts.text is not None else None
    if as_json:
        write_json({"model": model, "out": str(out), "tensors": _rows(losses), **_fields(found)})
    elif report:
        write("\n".join(describe(losses, found)))
    else:
        write(str(out))
    if plot is not None:
        from gemsmith.evaluate.loss_plot import plot_losses

        plot_losses(losses, found, plot, title=f"{model} in few bits: {out}")
    return 0


def _check(texts: TextFlags, report: bool, plot: Path | None) -> None:
    """Refuse what could not be told or drawn, before the long work."""
    for name, path in (("--plot", plot), ("--text", texts.text)):
        if path is not None and not report:
            raise UsageError(f"{name} must come with --report; got {str(path)!r} alone. Add --report.")
    for name, count, least in (("calibrate", texts.calibrate_tokens, 1), ("text", texts.text_tokens, 2)):
        if count is not None and count < least:
            raise UsageError(f"--{name}-tokens must be at least {least}; got {count}. Leave it out.")
    if plot is not None:
        from gemsmith.recipes.plot import check_place

        check_place(plot)
    if texts.text is not None:
        from gemsmith.evaluate.divergence import check_file

        check_file(texts.text, texts.field)


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
