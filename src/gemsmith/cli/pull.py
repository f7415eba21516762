"""`gemsmith pull`: the one verb that opens a connection."""

from gemsmith.cli.console import say, write


def pull(name: str, /) -> int:
    """Download a model, or complete a download that broke off. The folder it is kept in goes to stdout.

    Args:
        name: A name on the Hugging Face hub such as google/gemma-2-2b-it, or "kaggle:" and a handle.
    """
    from gemsmith.weights.hub import pull as download

    folder = download(name)
    say(f"{name} is here. Try: gemsmith chat --model {name}")
    write(str(folder))
    return 0
