"""`gemsmith convert`: a model as one GGUF file, for llama.cpp and its kin, or as a folder of dense weights."""

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
    kind: Annotated[Literal["f16", "bf16", "f32", "q8_0", "q4_0"] | None, Parameter(name="--type")] = None,
    name: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Write a model as one GGUF file or as a Hugging Face folder of dense weights. Its path goes to stdout.

    Matrices in few bits are kept as they are where a GGUF file has the same (int8-g32 in q8_0, int4-g32 in
    q4_0) and rounded anew otherwise. A folder gets the weights that few bits stand for: it can be trained
    and quantized, but is no better than what it was made of.

    Args:
        model: The box ("pebble"), a folder, a GGUF file, or a pulled name.
        out: What to write: a file if it ends in .gguf, else a folder.
        kind: How matrices are stored: f16, bf16, q8_0 or q4_0 in a GGUF file, by default q8_0; f16, bf16 or
            f32 in a folder, by default as in the model.
        name: What to call the model in the GGUF file; by default what it is called here.
    """
    from gemsmith.weights.catalog import find_model
    from gemsmith.weights.converting import to_folder, to_gguf
    from gemsmith.weights.memory import in_gb

    place = find_model(model)
    if out.suffix == ".gguf":
        written = to_gguf(place, out, kind=kind or "q8_0", name=name or place.stem)
    else:
        written = to_folder(place, out, kind=kind)
    if as_json:
        write_json({"path": str(written.path), "n_bytes": written.n_bytes, "formats": dict(written.formats)})
        return 0
    formats = ", ".join(f"{count} tensors in {name}" for name, count in written.formats.items())
    say(f"{in_gb(written.n_bytes)}: {formats}")
    write(str(written.path))
    return 0
