"""docs/metrics.md is what the code measures."""

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase

from pthserve import metrics

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
SUFFIX = {"counter": "_total", "info": "_info"}


def test_the_page_lists_every_metric_with_its_type_labels_and_help() -> None:
    written = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), told)
        for name, kind, labels, told in re.findall(
            r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", PAGE, re.MULTILINE
        )
    }
    coded = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = family.name + SUFFIX.get(family.type, "")
            coded[name] = (family.type, metric._labelnames, family.documentation)
    assert written == coded


def test_every_metric_of_ours_is_in_the_registry_under_our_prefix() -> None:
    registered = {family.name for family in metrics.REGISTRY.collect()}
    assert {name for name in registered if not name.startswith("pthserve_")} <= {
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_cpu_seconds",
        "process_open_fds",
        "process_max_fds",
        "python_info",
    }


def test_no_series_says_when_a_counter_was_created() -> None:
    assert b"_created" not in generate_latest(metrics.REGISTRY)


def test_outputs_beyond_the_first_100_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_outputs_seen", set())
    metrics.VALUES.clear()
    for number in (*range(300), 0):
        metrics.count_value(f"output {number}", 2.5)
    (family,) = metrics.VALUES.collect()
    metrics.VALUES.clear()
    sums = {one.labels["output"]: one.value for one in family.samples if one.name.endswith("_sum")}
    assert sums == {"output 0": 5.0} | {f"output {number}": 2.5 for number in range(1, 100)}


def test_labels_beyond_the_first_100_share_a_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_labels_seen", set())
    metrics.PREDICTIONS.clear()
    for number in range(300):
        metrics.count_prediction(f"label {number}", 0.5)
    (family,) = metrics.PREDICTIONS.collect()
    metrics.PREDICTIONS.clear()
    series = {sample.labels["label"]: sample.value for sample in family.samples}
    assert len(series) == 101
    assert series["other"] == 200


def test_the_areas_of_labels_beyond_the_first_100_share_a_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_labels_seen", set())
    metrics.AREAS.clear()
    for number in range(104):
        metrics.count_area(f"label {number}", 0.25)
    (family,) = metrics.AREAS.collect()
    metrics.AREAS.clear()
    series = {sample.labels["label"]: sample.value for sample in family.samples}
    assert series == {f"label {number}": 0.25 for number in range(100)} | {"other": 1.0}


def test_the_page_explains_every_reason_for_which_a_request_is_turned_away() -> None:
    explained = PAGE.partition("\n- `reason`:")[2].partition("\n- ")[0]
    assert set(re.findall(r"`(\w+)`,", explained)) == set(metrics.Rejection)


def test_the_agreement_of_a_model_replaces_that_of_the_one_before() -> None:
    def shown() -> set[str]:
        lines = generate_latest(metrics.REGISTRY).decode().splitlines()
        return {line for line in lines if re.match("pthserve_model_(difference|same)", line)}

    metrics.show_agreement({"mean": 0.01, "largest": 0.05}, 0.95, 40, 39)
    assert shown() == {
        'pthserve_model_difference{statistic="mean"} 0.01',
        'pthserve_model_difference{statistic="largest"} 0.05',
        'pthserve_model_same_decisions_ratio{crops="all"} 0.95',
        'pthserve_model_same_decisions_ratio{crops="clear"} 0.975',
    }
    metrics.show_agreement({"mean": 0.02}, None, None, None)
    assert shown() == {'pthserve_model_difference{statistic="mean"} 0.02'}
    metrics.show_agreement({}, 0.95, 0, 0)
    assert shown() == {'pthserve_model_same_decisions_ratio{crops="all"} 0.95'}
    metrics.show_agreement({}, None, None, None)
    assert not shown()
