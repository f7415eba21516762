"""What is shipped: a wheel with the model in the box, built without torch, and files that say what they should."""

import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_build_needs_no_torch() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert [re.split("[<>=]", name)[0] for name in build["requires"]] == ["hatchling"]


def test_torch_has_an_upper_bound() -> None:
    assert any(re.fullmatch(r"torch>=[\d.]+,<[\d.]+", name) for name in PROJECT["dependencies"])


def test_every_dependency_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {re.split("==", line)[0].lower().replace("-", "_") for line in lines if "==" in line}
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    wanted = {re.split(r"[<>=\[]", name)[0].lower().replace("-", "_") for name in (*PROJECT["dependencies"], *extras)}
    assert wanted - pinned - {"gemsmith"} == set()


def test_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_readme_begins_with_the_main_job_and_the_tests() -> None:
    first, second = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)[:2]
    assert "venv" in first
    assert first.endswith('gemsmith generate "Once upon a time"')
    assert second.endswith("-m pytest -n 2")


def test_readme_names_only_verbs_that_exist() -> None:
    from gemsmith.cli.app import VERBS

    blocks = "\n".join(re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL))
    called = set(re.findall(r"(?:^|\| )gemsmith ([a-z]+)", blocks, re.MULTILINE))
    assert called == set(VERBS)


def test_wheel_holds_the_box_and_no_rubbish(tmp_path: Path) -> None:
    """Without isolation, so that nothing is fetched."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, str(ROOT)], check=True, capture_output=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("gemsmith-*.whl")))
    names = set(wheel.namelist())
    box = {path.name for path in (ROOT / "src/gemsmith/pebble").iterdir() if path.is_file()}
    assert {f"gemsmith/pebble/{name}" for name in box} <= names
    weights = (ROOT / "src/gemsmith/pebble/model.safetensors").read_bytes()
    shipped = wheel.read("gemsmith/pebble/model.safetensors")
    assert hashlib.sha256(shipped).digest() == hashlib.sha256(weights).digest()
    assert not [name for name in names if name.endswith(".pyc") or "/tests/" in name]
    assert "gemsmith.cli.main:main" in wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
