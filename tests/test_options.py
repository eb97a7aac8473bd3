"""Options of a model: from nobody but the caller."""

import pytest
from pydantic import ValidationError

from pthserve.cpus import cpu_quota
from pthserve.options import ModelOptions
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
    assert ModelOptions().cpus == cpu_quota()
