"""What a folder suggests for generation."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gemsmith.errors import CheckpointError
from gemsmith.weights.generation import read_generation_config, render_generation_config


def write(folder: Path, **raw: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(raw))
    return folder


def test_the_file_of_a_published_model_is_read(tmp_path: Path) -> None:
    ids = {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0}
    write(tmp_path, **ids, cache_implementation="hybrid", do_sample=True, temperature=1.0, top_k=64, top_p=0.95)
    found = read_generation_config(tmp_path)
    assert found == {"eos_ids": (1, 106), "temperature": 1.0, "top_k": 64, "top_p": 0.95}


def test_only_what_is_said_is_returned(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    assert read_generation_config(write(tmp_path, eos_token_id=1, top_k=None)) == {"eos_ids": (1,)}


def test_not_sampling_is_a_temperature_of_zero(tmp_path: Path) -> None:
    assert read_generation_config(write(tmp_path, do_sample=False, temperature=0.6)) == {"temperature": 0.0}


def test_what_is_rendered_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, **render_generation_config((1, 107), 2, 0, temperature=0.5, min_p=0.1))
    assert read_generation_config(tmp_path) == {"eos_ids": (1, 107), "temperature": 0.5, "min_p": 0.1}


WRONG = [
    ("temperature", -1), ("temperature", "hot"), ("top_k", 1.5), ("top_k", True), ("top_p", 0), ("top_p", 1.5),
    ("min_p", -0.1), ("repetition_penalty", 0), ("eos_token_id", "1"), ("eos_token_id", [1, -2]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_out_of_range_is_named(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"{key} must be in its range; got {value!r} in ")):
        read_generation_config(write(tmp_path, **{key: value}))
