"""Settings: one frozen object, from the environment, with a CPU default that follows the cgroup."""

import math
import os
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from pthserve import settings
from pthserve.settings import Settings, cpu_quota


def test_a_setting_is_read_from_its_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHSERVE_MAX_BATCH", "16")
    assert Settings().max_batch == 16


def test_an_argument_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHSERVE_PORT", "1234")
    assert Settings(port=4321).port == 4321


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Settings(prot=8000)


def test_an_empty_host_is_refused() -> None:
    """It would be every address that the machine has."""
    with pytest.raises(ValidationError, match="host"):
        Settings(host="")


NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)}
]


def test_there_are_numbers_among_the_settings() -> None:
    assert {"port", "deadline", "max_body", "threads"} <= set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -1, 10**18, 10**400])
def test_a_number_beyond_all_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_the_largest_number_that_is_allowed_is_in_the_schema_of_the_chart(name: str) -> None:
    field = Settings.model_json_schema()["properties"][name]
    number = next((kind for kind in field.get("anyOf", ()) if "maximum" in kind), field)
    assert Settings(**{name: number["maximum"]})


def test_every_setting_has_a_description() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


def test_threads_beat_the_quota() -> None:
    assert Settings(threads=7).cpus == 7


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
    monkeypatch.setattr(settings, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cpu_quota() == granted


def test_the_modules_whose_code_is_allowed_are_listed_with_commas() -> None:
    assert Settings().code_modules == frozenset()
    assert Settings(allow_code="zoo,their_own.nets").code_modules == {"zoo", "their_own.nets"}


@pytest.mark.parametrize("wrong", ["", "zoo:Net", "zoo,", "zoo nets", "../zoo", "zoo..nets", "*"])
def test_what_is_no_list_of_modules_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="allow_code"):
        Settings(allow_code=wrong)


@pytest.mark.parametrize("wrong", ["a\nb", "\x1b[2J", "caf\udce9"])
def test_a_name_that_is_not_printable_text_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        Settings(name=wrong)
