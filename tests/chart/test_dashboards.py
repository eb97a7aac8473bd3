"""Dashboards: one data source variable, every panel explained, every series one that the service exports."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pthserve.metrics import REGISTRY

from .conftest import CHART

DASHBOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))
}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
# Series of other exporters, which a panel names in its description.
FOREIGN = {"kube_horizontalpodautoscaler": "kube-state-metrics", "DCGM_": "DCGM"}


def series(promql: str) -> set[str]:
    """Names of the series in a query: words in front of a selector."""
    return set(re.findall(r"([A-Za-z_:][\w:]*)\{", promql))


def exported() -> set[str]:
    """Names of the series that the service exports."""
    names: set[str] = set()
    for metric in REGISTRY.collect():
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
            "summary": ("_sum", "_count"),
            "info": ("_info",),
        }.get(metric.type, ("",))
        names |= {metric.name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_a_name_that_stays(name: str) -> None:
    assert DASHBOARDS[name]["uid"] == f"pthserve-{name}"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_asks_for_its_source_then_namespace_release_and_pods(name: str) -> None:
    variables = DASHBOARDS[name]["templating"]["list"]
    assert [variable["name"] for variable in variables] == ["datasource", "namespace", "release", "pod"]
    assert [variable["type"] for variable in variables] == ["datasource", "query", "query", "query"]


@pytest.mark.slow
@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_the_chosen_source_for_the_chosen_release(panel: dict[str, Any]) -> None:
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        for selector in re.findall(r"\{([^{}]*)\}", target["expr"]):
            assert 'namespace="$namespace"' in selector
            assert "$release" in selector or "$pod" in selector


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_s_series_exist(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        found = series(target["expr"])
        assert found
        for name in found - exported():
            exporter = next((FOREIGN[prefix] for prefix in FOREIGN if name.startswith(prefix)), None)
            assert exporter, f"nobody exports {name}"
            assert exporter in panel["description"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_rate_is_taken_over_the_interval_that_grafana_gives(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        ranges = re.findall(r"(?:rate|increase)\([^[]*\[([^]]+)\]", target["expr"])
        assert set(ranges) <= {"$__rate_interval"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(numbers) == len(set(numbers))


def test_every_metric_is_on_a_dashboard() -> None:
    asked = {
        name for panel in PANELS for target in panel.values[0]["targets"] for name in series(target["expr"])
    }
    base = {re.sub("_(total|bucket|sum|count)$", "", name) for name in asked}
    own = {
        re.sub("_(total|bucket|sum|count)$", "", name) for name in exported() if name.startswith("pthserve_")
    }
    assert own <= base


@pytest.mark.slow
def test_every_query_is_promql(programs: Path, tmp_path: Path) -> None:
    queries = {target["expr"] for panel in PANELS for target in panel.values[0]["targets"]}
    rules = [
        {"record": f"query:{index}", "expr": query.replace("$__rate_interval", "1m")}
        for index, query in enumerate(sorted(queries))
    ]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    found = subprocess.run(
        [programs / "promtool", "check", "rules", tmp_path / "rules.json"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
