"""`gemsmith convert`: a model as one GGUF file, for llama.cpp and its kin."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gemsmith.cli.console import say, write, write_json
from gemsmith.cli.flags import AsJson


def convert(
    model: str,
    out: Path,
    /,
    *,
    kind: Annotated[Literal["f16", "bf16", "q8_0", "q4_0"], Parameter(name="--type")] = "q8_0",
    name: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Write a model as one GGUF file, vocabulary and chat template included. Its path goes to stdout.

    Args:
        model: The box ("pebble"), a folder, a GGUF file, or a pulled name.
        out: The file to write, something.gguf.
        kind: How matrices are stored: in 16, 8 or 4 bits.
        name: What to call the model in the file; by default what it is called here.
    """
    from gemsmith.errors import TokenizerError
    from gemsmith.weights.catalog import find_model
    from gemsmith.weights.gguf_write import save_gguf
    from gemsmith.weights.memory import in_gb
    from gemsmith.weights.opening import open_model

    place = find_model(model)
    loaded, tokenizer = open_model(place)
    if tokenizer is None:
        raise TokenizerError(
            f"model must have a tokenizer to be written as GGUF; got none in {str(place)!r}. "
            "Put its tokenizer.model there."
        )
    written = save_gguf(out, loaded.network, tokenizer=tokenizer, kind=kind, name=name or place.stem)
    if as_json:
        write_json({"path": str(written.path), "n_bytes": written.n_bytes, "formats": dict(written.formats)})
        return 0
    formats = ", ".join(f"{count} tensors in {name}" for name, count in written.formats.items())
    say(f"{in_gb(written.n_bytes)}: {formats}")
    write(str(written.path))
    return 0
