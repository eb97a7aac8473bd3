"""Alerts: each fires when it should and not when it should not, and each has its runbook."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Helm
from .sets import SETS
from .test_dashboards import exported

pytestmark = pytest.mark.slow
CASES = Path(__file__).with_name("alerts.yaml")
OF_THE_CONTROLLER = "analysis_run_"
"""What the names of Argo Rollouts' own series begin with."""


@pytest.fixture(scope="module")
def groups(helm: Helm) -> list[Any]:
    rendered = helm.render(SETS["rollout"])
    found: list[Any] = rendered.one("PrometheusRule")["spec"]["groups"]
    return found


@pytest.fixture(scope="module")
def alerts(groups: list[Any]) -> dict[str, Any]:
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_alerts_fire_when_they_should(groups: list[Any], programs: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    shutil.copy(CASES, tmp_path)
    found = subprocess.run(
        [programs / "promtool", "test", "rules", tmp_path / "alerts.yaml"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_does_not(alerts: dict[str, Any]) -> None:
    cases = [
        (check["alertname"], bool(check.get("exp_alerts")))
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for check in case["alert_rule_test"]
    ]
    assert set(cases) == {(name, fires) for name in alerts for fires in (True, False)}


def test_promtool_finds_nothing_in_the_rules(groups: list[Any], programs: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    found = subprocess.run(
        [programs / "promtool", "check", "rules", "--lint-fatal", tmp_path / "rules.yaml"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_runbook_that_says_what_to_look_at_and_what_to_do(alerts: dict[str, Any]) -> None:
    written = (ROOT / "docs" / "operations.md").read_text()
    runbooks = dict(re.findall(r"^### (Pthserve\w+)\n(.+?)(?=^##|\Z)", written, re.MULTILINE | re.DOTALL))
    assert runbooks.keys() == alerts.keys()
    for name, text in runbooks.items():
        for part in ("It means", "Look at", "Do"):
            assert f"**{part}**" in text, f"{name} does not say: {part}"


def test_an_alert_points_to_its_runbook(helm: Helm) -> None:
    (group,) = helm.render(SETS["service monitor"]).one("PrometheusRule")["spec"]["groups"]
    for rule in group["rules"]:
        if "alert" in rule:
            address = f"https://docs.example/operations#{rule['alert'].lower()}"
            assert rule["annotations"]["runbook_url"] == address


def test_every_series_of_a_rule_exists_and_is_this_release_s(groups: list[Any]) -> None:
    known = exported() | {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    for group in groups:
        for rule in group["rules"]:
            asked = re.findall(r"([A-Za-z_:][\w:]*)\{([^}]*)\}", rule["expr"])
            assert asked
            for name, selector in asked:
                if name.startswith(OF_THE_CONTROLLER):
                    assert 'namespace="shop",name=~"cats-pthserve-.+"' in selector
                    continue
                assert name in known
                assert 'namespace="shop",release="cats"' in selector


def test_two_releases_do_not_share_a_group(groups: list[Any]) -> None:
    assert [group["name"] for group in groups] == ["pthserve.shop.cats"]


def test_the_objective_moves_the_budget(helm: Helm) -> None:
    rendered = helm.render({"monitoring": {"rules": {"enabled": True, "objective": 0.99}}})
    assert "> 14.4 * 0.01\n" in rendered.text
