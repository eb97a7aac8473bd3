"""Options of a model: from nobody but the caller, with a CPU default that follows the cgroup."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from pthserve import options
from pthserve.options import ModelOptions, cpu_quota
from pthserve.settings import Settings


def test_options_are_not_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHSERVE_MAX_BATCH", "16")
    monkeypatch.setenv("PTHSERVE_PRECISION", "nonsense")
    assert ModelOptions().max_batch is None
    assert Settings.read({"precision": "fp32"}).max_batch == 16


@pytest.mark.parametrize("name", ["port", "model", "deadline", "api_keys", "prot"])
def test_what_only_a_service_has_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        ModelOptions(**{name: 1})


def test_threads_beat_the_quota() -> None:
    assert ModelOptions(threads=7).cpus == 7


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({}, 64),
    ],
    ids=["v2", "v2-under-one", "v2-unlimited", "v1", "v1-unlimited", "more-than-there-are", "no-cgroup"],
)
def test_the_quota_follows_the_cgroup(
    files: dict[str, str], granted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(options, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cpu_quota() == granted
