"""Settings: one frozen object, from the environment."""

import math
from typing import get_args

import pytest
from pydantic import ValidationError

from pthserve.settings import Settings


def test_a_setting_is_read_from_its_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHSERVE_MAX_BATCH", "16")
    assert Settings.read({}).max_batch == 16


def test_an_argument_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHSERVE_PORT", "1234")
    assert Settings.read({"port": 4321}).port == 4321


def test_a_default_of_the_caller_gives_way_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.read({}, precision="fp32").precision == "fp32"
    monkeypatch.setenv("PTHSERVE_PRECISION", "bf16")
    assert Settings.read({}, precision="fp32").precision == "bf16"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_environment_variable_is_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PTHSERVE_{name.upper()}", "")
    assert Settings.read({}) == Settings()


def test_only_the_settings_asked_for_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHSERVE_PORT", "1234")
    monkeypatch.setenv("PTHSERVE_MAX_BATCH", "many")
    assert Settings.read({}, names=["port"]) == Settings(port=1234)


def test_the_environment_is_read_by_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHSERVE_PORT", "1234")
    assert Settings().port == 8000


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


def test_the_order_of_the_table_has_every_setting_once() -> None:
    assert sorted(Settings.in_order()) == sorted(Settings.model_fields)


def test_every_setting_has_a_description() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


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
