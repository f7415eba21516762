"""`gemsmith eval`: what a model is worth, in numbers."""

from dataclasses import asdict, replace
from pathlib import Path

from cyclopts import App

from gemsmith.cli.console import UsageError, write, write_json
from gemsmith.cli.flags import AsJson, PlaceFlags

app = App(name="eval", help="Measure a model.")


@app.command
def bpb(
    model: str,
    /,
    *files: Path,
    field: str = "text",
    place: PlaceFlags = PlaceFlags(),  # noqa: B008 (frozen)
    as_json: AsJson = False,
) -> int:
    """Show how many bits a model needs per byte of text; fewer is better, and vocabularies do not matter.

    Args:
        model: The box ("pebble"), a folder, or a pulled name.
        files: JSON lines, plain or packed as .xz, .gz or .bz2; a line of results for each.
        field: The field of each line that holds the text.
    """
    if not files:
        raise UsageError("eval bpb must have a file of texts; got none. Name one or more.")
    from gemsmith.evaluate.bpb import file_bits_per_byte

    lm = place.load(model)
    for file in files:
        found = file_bits_per_byte(lm.network, lm.tokenizer, file, field=field, cache_dtype=lm.cache_dtype)
        if as_json:
            counts = {"n_documents": found.n_documents, "n_bytes": found.n_bytes, "n_tokens": found.n_tokens}
            write_json({"model": model, "file": str(file), "bpb": found.bpb, **counts})
        else:
            size = f"{found.n_bytes:,} bytes, {found.n_tokens:,} tokens, {found.n_documents:,} texts"
            write(f"{found.bpb:.4f} bits per byte ({size})" + (f" {file}" if len(files) > 1 else ""))
    return 0


@app.command
def divergence(
    model: str,
    file: Path,
    /,
    *,
    original: str | None = None,
    field: str = "text",
    tokens: int = 100_000,
    place: PlaceFlags = PlaceFlags(),  # noqa: B008 (frozen)
    as_json: AsJson = False,
) -> int:
    """Show what a changed model, or a cache in fewer bits, loses: perplexity and divergence, with intervals.

    Args:
        model: The changed model; it alone is rounded to --bits, and reads keys and values from a cache of --cache.
        file: JSON lines, plain or packed as .xz, .gz or .bz2.
        original: The model to compare with; the same one, as it is stored and without a cache, when left out.
        field: The field of each line that holds the text.
        tokens: How many tokens to score at most, and of one text a tenth of them.
    """
    if tokens < 2:
        raise UsageError(f"--tokens must be at least 2; got {tokens}. Leave it out.")
    if original is None and place.cache is None and place.bits is None:
        raise UsageError(
            f"eval divergence must have two things to compare; got {model!r} alone. Name the model it was made from "
            "with --original, or a cache with --cache, or --bits."
        )
    from gemsmith.evaluate.divergence import check_same_vocabulary, file_divergence

    changed = place.load(model)
    is_same = original is None and place.bits is None
    before = changed if is_same else replace(place, bits=None, cache=None).load(original or model)
    check_same_vocabulary(before.tokenizer, changed.tokenizer)
    found = file_divergence(
        before.network,
        changed.network,
        before.tokenizer,
        file,
        field=field,
        n_tokens=tokens,
        cache_dtype=changed.cache_dtype,
    )
    if as_json:
        write_json({"model": model, "original": original or model, "cache": place.cache, **asdict(found)})
    else:
        write("\n".join(found.words()))
    return 0


@app.command
def perplexity(
    model: str,
    file: Path,
    /,
    *,
    field: str = "text",
    context: int | None = None,
    place: PlaceFlags = PlaceFlags(),  # noqa: B008 (frozen)
    as_json: AsJson = False,
) -> int:
    """Show the perplexity per token of a file, with the interval that covers it with 95%.

    A file of text is read as one text, JSON lines as a text each: after BOS, in windows that move by half a
    context, so that each token is scored once.

    Args:
        model: The box ("pebble"), a folder, a GGUF file, or a pulled name.
        file: A text, or JSON lines, plain or packed as .xz, .gz or .bz2.
        field: The field of each line that holds the text.
        context: Tokens of a window; the model's own context when left out.
    """
    from gemsmith.evaluate.perplexity import file_perplexity

    lm = place.load(model)
    found = file_perplexity(lm.network, lm.tokenizer, file, field=field, context=context, cache_dtype=lm.cache_dtype)
    if as_json:
        fields = asdict(found)
        interval = fields.pop("perplexity")
        write_json({
            "model": model, "file": str(file), "perplexity": interval["value"], "low": interval["low"],
            "high": interval["high"], "n_units": interval["n_units"], "bpb": found.bpb, **fields,
        })  # fmt: skip
        return 0
    interval = found.perplexity
    write(f"perplexity {interval.value:.4f} per token ({interval.words('.4f')}), {found.bpb:.4f} bits per byte")
    size = f"{found.n_tokens:,} tokens, {found.n_bytes:,} bytes, {found.n_texts:,} texts"
    write(f"{size}, windows of {found.context:,} tokens")
    return 0
