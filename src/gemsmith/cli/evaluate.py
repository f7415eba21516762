"""`gemsmith eval`: what a model is worth, in numbers."""

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
