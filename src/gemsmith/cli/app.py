"""The verbs of the command line. A verb's module is imported when the verb is called, torch when it works."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, Parameter

from gemsmith.cli.console import UsageError, say, shown_log, write
from gemsmith.cli.main import WRONG_CALL

FIVE_THINGS = """\
gemsmith runs, makes and measures Gemma-family language models on this machine. Five things to try:

  gemsmith generate "Once upon a time"      write on with pebble, the model in the box
  gemsmith chat                             talk with it
  gemsmith info gemma-2-2b --context 8192   what a model of the family needs in memory
  gemsmith doctor                           what this machine has, and what would make it faster
  gemsmith pull google/gemma-2-2b-it        fetch a larger model (needs the network)

gemsmith --help lists every verb."""

# Verb -> (where it lives, its line in --help).
VERBS = {
    "generate": ("gemsmith.cli.generate:generate", "Write on from a text."),
    "chat": ("gemsmith.cli.chat:chat", "Talk with a model, turn by turn."),
    "models": ("gemsmith.cli.models:models", "List the models on this machine."),
    "pull": ("gemsmith.cli.pull:pull", "Download a model."),
    "info": ("gemsmith.cli.info:info", "Show a model's size, layers and memory."),
    "verify": ("gemsmith.cli.verify:verify", "Check that two models are the same, or that a folder is intact."),
    "convert": ("gemsmith.cli.convert:convert", "Write a model as one GGUF file."),
    "quantize": ("gemsmith.cli.quantize:quantize", "Write a model in 4 or 8 bits."),
    "eval": ("gemsmith.cli.evaluate:app", "Measure a model."),
    "bench": ("gemsmith.cli.bench:bench", "Measure a model's speed beside what this machine does at most."),
    "data": ("gemsmith.cli.data:app", "Turn texts into shards to train from."),
    "pretrain": ("gemsmith.cli.pretrain:pretrain", "Train a model from a recipe and a folder of text."),
    "plot": ("gemsmith.cli.plot:plot", "Draw the curves of runs."),
    "doctor": ("gemsmith.cli.doctor:doctor", "Show what this machine has and what would make it faster."),
}


def build_app() -> App:
    """Return the command line with every verb registered by name only."""
    app = App(
        name="gemsmith",
        help="Run, make and measure Gemma-family language models.",
        version=lambda: version("gemsmith"),
        default_parameter=Parameter(negative=()),
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    for verb, (place, line) in VERBS.items():
        app.command(place, name=verb, help=line)
    app.register_install_completion_command()
    return app


def run(argv: Sequence[str]) -> int:
    """Run one command line and return the verb's exit status.

    Raises:
        UsageError: stdin or stdout is closed.
    """
    if sys.stdout is None or sys.stdin is None:
        raise UsageError(
            "stdin and stdout must be open; got one that is closed. Use /dev/null where nothing is wanted."
        )
    if sys.stdout.encoding.lower() != "utf-8" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue]
    if not argv:
        write(FIVE_THINGS)
        return 0
    app = build_app()
    try:
        with shown_log():
            return app(list(argv)) or 0
    except CycloptsError as error:
        say(f"gemsmith: {error}")
        say(f"gemsmith {'' if argv[0] not in VERBS else argv[0] + ' '}--help shows how it is called.")
        return WRONG_CALL
