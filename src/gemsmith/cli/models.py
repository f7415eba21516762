"""`gemsmith models`: what is on this machine, and whether it fits."""

from dataclasses import asdict

from gemsmith.cli.console import table, write, write_json
from gemsmith.cli.flags import AsJson


def models(*, as_json: AsJson = False) -> int:
    """List the models on this machine: the box, folders and GGUF files here, the Hugging Face cache and pulled ones."""
    from gemsmith.weights.catalog import list_models
    from gemsmith.weights.memory import in_gb

    entries = list_models()
    if as_json:
        write_json({"models": [{**asdict(entry), "path": str(entry.path)} for entry in entries]})
        return 0
    rows = [("name", "parameters", "size", "here", "found in")]
    for entry in entries:
        n_params = "?" if entry.n_params is None else f"{entry.n_params / 1e6:,.0f}M"
        rows.append((entry.name, n_params, in_gb(entry.n_bytes), entry.note, entry.place))
    write(table(rows))
    return 0
