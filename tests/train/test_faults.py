"""A run dies at the point that was named, at the time that was named, and nowhere else."""

import signal
import subprocess
import sys

import pytest

from gemsmith.train.faults import reach

CODE = """
from gemsmith.train.faults import reach
for number in range(3):
    reach("one")
    reach("other")
    print(number, flush=True)
"""


@pytest.mark.parametrize(
    ("wanted", "n_lines"), [("one:1", 0), ("other:2", 1), ("one", 0), ("one:3", 2), ("one:4", None), ("on:1", None)]
)
def test_a_run_dies_where_it_was_told_to(wanted: str, n_lines: int | None) -> None:
    found = subprocess.run(
        [sys.executable, "-c", CODE], env={"GEMSMITH_DIE_AT": wanted}, capture_output=True, text=True, check=False
    )
    if n_lines is None:
        assert (found.returncode, found.stdout) == (0, "0\n1\n2\n")
    else:
        assert (found.returncode, len(found.stdout.splitlines())) == (-signal.SIGKILL, n_lines)


def test_nothing_happens_unasked() -> None:
    reach("one")
