"""What is generated is what its sources say; run charts/generate.py where it is not."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pthserve.settings import Settings

from .conftest import CHART, ROOT

sys.path.insert(0, str(ROOT / "charts"))
import generate

MANIFESTS = ROOT / "k8s" / "manifests" / "pthserve.yaml"


@pytest.mark.parametrize(
    "path", sorted(generate.GENERATED.keys() - {MANIFESTS}), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_generated_file_is_what_its_source_says(path: Path) -> None:
    assert path.read_text() == generate.GENERATED[path]()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_the_manifests_are_the_chart_with_its_defaults(
    program: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helm").symlink_to(programs / program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert MANIFESTS.read_text() == generate.manifests()


def test_every_dashboard_file_has_a_source() -> None:
    assert {path.stem for path in (CHART / "dashboards").iterdir()} == generate.dashboards.DASHBOARDS.keys()


def test_every_value_is_documented_where_it_stands() -> None:
    silent = [value.path for value in generate.values() if not value.comment]
    assert not silent


def test_every_constraint_is_of_a_value() -> None:
    ends = {
        ".".join(parts[first:])
        for parts in (value.path.split(".") for value in generate.values())
        for first in range(len(parts))
    }
    assert generate.CONSTRAINTS.keys() <= ends


def _objects(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield path, schema
        for name, inner in schema.items():
            yield from _objects(inner, f"{path}.{name}")


def test_the_schema_is_closed() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    objects = dict(_objects(schema))
    assert len(objects) > 20
    assert not [path for path, found in objects.items() if found["additionalProperties"] is not False]


def test_the_chart_takes_every_setting_of_the_service_and_no_other() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    taken = {
        "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
        for name in schema["properties"]["settings"]["properties"]
    }
    assert taken == Settings.model_fields.keys()


@pytest.mark.parametrize("name", ["deadline", "drainSeconds"])
def test_the_times_that_the_drain_is_checked_with_are_the_service_s_own(name: str) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
    field = {"deadline": "deadline", "drainSeconds": "drain_seconds"}[name]
    assert values[name] == Settings.model_fields[field].default


def test_the_values_are_few() -> None:
    assert sum(value.leaf for value in generate.values()) < 168
