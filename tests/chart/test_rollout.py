"""A rollout: what replaces the Deployment, what its gates ask Prometheus, and when a measurement passes."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Helm, Rendered
from .sets import SETS

pytestmark = pytest.mark.slow

PINNED = "x-pthserve-release"
CANARY = 'namespace="shop",rollouts_pod_template_hash="new",pod="a"'


@pytest.fixture
def rendered(helm: Helm) -> Rendered:
    return helm.render(SETS["rollout"])


def _gates(helm: Helm, **gates: float) -> dict[str, Any]:
    values = SETS["rollout"]
    rollout = {**values["rollout"], "gates": {**values["rollout"]["gates"], **gates}}
    metrics = helm.render({**values, "rollout": rollout}).one("AnalysisTemplate")["spec"]["metrics"]
    return {metric["name"]: metric for metric in metrics}


def test_a_rollout_has_the_deployment_s_place_and_its_pods(rendered: Rendered, helm: Helm) -> None:
    values = {key: value for key, value in SETS["rollout"].items() if key != "rollout"}
    without = helm.render(values)
    assert not rendered.all("Deployment")
    old, new = without.one("Deployment")["spec"], rendered.one("Rollout")["spec"]
    assert new["selector"] == old["selector"]
    assert new["template"]["metadata"]["labels"] == old["template"]["metadata"]["labels"]
    assert rendered.environment.items() >= without.environment.items()


def test_settings_are_part_of_the_pod_so_that_the_stable_release_keeps_its_own(rendered: Rendered) -> None:
    assert "envFrom" not in rendered.container
    assert [found["metadata"]["name"] for found in rendered.all("ConfigMap")] == ["cats-pthserve-test"]


def test_the_canary_compares_with_the_stable_release_and_has_the_key_for_it(rendered: Rendered) -> None:
    environment = rendered.environment
    assert environment["PTHSERVE_COMPARE_WITH"] == "http://cats-pthserve.shop:80"
    assert environment["PTHSERVE_COMPARE_SHARE"] == "1"
    assert environment["PTHSERVE_COMPARE_API_KEY"] == environment["PTHSERVE_API_KEYS"]


def test_only_the_controller_selects_the_pods_of_the_stable_and_the_canary_service(
    rendered: Rendered,
) -> None:
    strategy = rendered.one("Rollout")["spec"]["strategy"]["canary"]
    services = {found["metadata"]["name"]: found["spec"] for found in rendered.all("Service")}
    for role in ("stableService", "canaryService"):
        spec = services[strategy[role]]
        assert "selector" not in spec
        assert {port["name"] for port in spec["ports"]} == {"http", "grpc"}


@pytest.mark.parametrize(
    ("kind", "key", "port"), [("HTTPRoute", "httpRoutes", 80), ("GRPCRoute", "grpcRoutes", 8001)]
)
def test_the_controller_splits_both_routes_and_all_traffic_is_the_stable_release_s_at_first(
    kind: str, key: str, port: int, rendered: Rendered
) -> None:
    (rule,) = rendered.one(kind)["spec"]["rules"]
    assert [(found["name"], found["port"], found["weight"]) for found in rule["backendRefs"]] == [
        ("cats-pthserve", port, 100),
        ("cats-pthserve-canary", port, 0),
    ]
    (plugin,) = rendered.one("Rollout")["spec"]["strategy"]["canary"]["trafficRouting"]["plugins"].values()
    assert plugin[key] == [{"name": "cats-pthserve"}]
    assert plugin["namespace"] == "shop"


@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute"])
def test_clients_can_choose_a_version_by_a_header_in_routes_that_the_controller_leaves_alone(
    kind: str, rendered: Rendered
) -> None:
    route = rendered.one(kind, "-pinned")
    chosen = {
        match["headers"][0]["value"]: [found["name"] for found in rule["backendRefs"]]
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
        if match["headers"][0]["name"] == PINNED
    }
    assert chosen == {"stable": ["cats-pthserve"], "canary": ["cats-pthserve-canary"]}
    assert route["spec"]["hostnames"] == rendered.one(kind)["spec"]["hostnames"]


def test_every_step_sets_a_weight_and_then_waits_for_the_gates(rendered: Rendered) -> None:
    steps = rendered.one("Rollout")["spec"]["strategy"]["canary"]["steps"]
    assert [step["setWeight"] for step in steps[::2]] == [10, 50]
    template = rendered.one("AnalysisTemplate")
    for step in steps[1::2]:
        assert step["analysis"]["templates"] == [{"templateName": template["metadata"]["name"]}]
        assert [found["name"] for found in step["analysis"]["args"]] == ["canary", "stable"]


@pytest.mark.parametrize(
    "values", [{"autoscaling": {"provider": "hpa"}}, {"autoscaling": {"provider": "keda"}}]
)
def test_the_autoscaler_scales_the_rollout(values: dict[str, Any], helm: Helm) -> None:
    autoscaling = {**SETS["rollout"]["autoscaling"], **values["autoscaling"]}
    rendered = helm.render({**SETS["rollout"], "autoscaling": autoscaling})
    (scaler,) = rendered.all("HorizontalPodAutoscaler") + rendered.all("ScaledObject")
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "name": "cats-pthserve",
    }
    assert "replicas" not in rendered.one("Rollout")["spec"]


def test_pods_may_ask_each_other_and_the_name_server_and_nobody_else(rendered: Rendered) -> None:
    pods = {"podSelector": rendered.one("Rollout")["spec"]["selector"]}
    policy = rendered.one("NetworkPolicy")["spec"]
    asked, named = policy["egress"]
    assert asked == {"to": [pods], "ports": [{"port": 8000}]}
    assert {port["port"] for port in named["ports"]} == {53}
    assert pods in policy["ingress"][0]["from"]


def test_metrics_tell_the_canary_from_the_stable_release(rendered: Rendered) -> None:
    assert rendered.one("PodMonitor")["spec"]["podTargetLabels"] == ["rollouts-pod-template-hash"]


def test_a_gate_of_0_is_off(helm: Helm) -> None:
    gates = {
        "agreement": "agreement",
        "agreementSameWeights": "agreement-same-weights",
        "accuracy": "accuracy",
        "errorRate": "error-rate",
        "latency": "latency",
        "memory": "memory",
    }
    everything = {*gates.values(), "requests", "restarts"}
    assert _gates(helm).keys() == everything
    for gate, name in gates.items():
        assert _gates(helm, **{gate: 0}).keys() == everything - {name}


def _series(name: str, value: float, labels: str = "") -> dict[str, str]:
    return {"series": f"{name}{{{CANARY}{labels}}}", "values": f"{value}x2"}


def _bounds(part: int, whole: int) -> list[float]:
    """The Wilson score interval, by its textbook formula."""
    z, share = 1.96, part / whole
    middle = (share + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z / (1 + z * z / whole) * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    return [middle - half, middle + half]


def _verdict(gate: dict[str, Any], result: list[float]) -> str:
    """What Argo Rollouts makes of a measurement: its conditions are Python but for two words."""
    fails, passes = (
        eval(
            gate[f"{name}Condition"].replace("&&", "and").replace("||", "or"),
            {"result": result, "false": False},
        )
        for name in ("failure", "success")
    )
    return "fails" if fails else "passes" if passes else "decides nothing"


@pytest.mark.parametrize(
    ("agreed", "disagreed", "verdict"),
    [
        (0, 0, "decides nothing"),
        (19, 0, "decides nothing"),
        (40, 0, "passes"),
        (95, 5, "decides nothing"),
        (970, 30, "passes"),
        (0, 1, "decides nothing"),
        (0, 20, "fails"),
        (80, 20, "fails"),
    ],
)
def test_agreement_passes_or_fails_on_evidence_alone(
    agreed: int, disagreed: int, verdict: str, helm: Helm, programs: Path, tmp_path: Path
) -> None:
    gate = _gates(helm)["agreement"]
    counted = {"agreed": agreed, "disagreed": disagreed}
    series = [
        _series("pthserve_rollout_comparisons_total", count, f',result="{result}"')
        for result, count in counted.items()
        if count
    ]
    result = _bounds(agreed, agreed + disagreed) if agreed + disagreed >= 20 else []
    _ask(gate, series, dict(zip(("-", "+"), result, strict=False)), programs, tmp_path)
    assert _verdict(gate, result) == verdict


@pytest.mark.parametrize(
    ("weights", "agreed", "disagreed", "verdict"),
    [
        ("same", 19, 0, "decides nothing"),
        ("same", 100, 0, "decides nothing"),
        ("same", 130, 0, "passes"),
        ("same", 98, 2, "decides nothing"),
        # What a retrained model may do: a relabelled or wrongly preprocessed one may not.
        ("same", 92, 8, "fails"),
        ("same", 0, 20, "fails"),
        ("other", 19, 0, "decides nothing"),
        ("other", 92, 8, "passes"),
        ("other", 0, 20, "passes"),
    ],
)
def test_a_canary_with_the_same_weights_must_agree_more(
    weights: str, agreed: int, disagreed: int, verdict: str, helm: Helm, programs: Path, tmp_path: Path
) -> None:
    gate = _gates(helm)["agreement-same-weights"]
    series = [
        _series("pthserve_rollout_comparisons_total", count, f',weights="{weights}",result="{result}"')
        for result, count in (("agreed", agreed), ("disagreed", disagreed))
        if count
    ]
    whole = agreed + disagreed
    if whole < 20:
        expected: dict[str, float] = {}
    elif weights == "same":
        expected = dict(zip(("-", "+"), _bounds(agreed, whole), strict=True))
    else:  # one value, of which only the presence counts
        expected = {"": whole}
    _ask(gate, series, expected, programs, tmp_path)
    assert _verdict(gate, list(expected.values())) == verdict


@pytest.mark.parametrize(
    ("good", "failed", "verdict"),
    [
        (0, 0, "decides nothing"),
        (19, 0, "decides nothing"),
        (20, 0, "passes"),
        (99, 1, "passes"),
        (45, 5, "fails"),
    ],
)
def test_the_error_rate_fails_where_it_surely_is_too_high(
    good: int, failed: int, verdict: str, helm: Helm, programs: Path, tmp_path: Path
) -> None:
    gate = _gates(helm)["error-rate"]
    series = [
        _series("pthserve_requests_total", count, f',route="/predict",code="{code}"')
        for code, count in ((200, good), (500, failed))
        if count
    ]
    # Probes are no requests.
    series.append(_series("pthserve_requests_total", 500, ',route="/readyz",code="503"'))
    result = _bounds(failed, good + failed)[:1] if good + failed >= 20 else []
    _ask(gate, series, dict(zip([""], result, strict=False)), programs, tmp_path)
    assert _verdict(gate, result) == verdict


@pytest.mark.parametrize(
    ("values", "new", "verdict"),
    [
        ("_ 5", 5, "passes"),
        ("5 9", 4, "passes"),
        ("9 9", 0, "decides nothing"),
        ("_ _", None, "decides nothing"),
    ],
)
def test_a_step_needs_requests_of_its_own(
    values: str, new: float | None, verdict: str, helm: Helm, programs: Path, tmp_path: Path
) -> None:
    """Where the gateway is away, what a canary has shown before it went does not promote it."""
    gate = _gates(helm)["requests"]
    series = [
        {"series": f'pthserve_requests_total{{{CANARY},route="/predict",code="200"}}', "values": values}
    ]
    result = {} if new is None else {"": new}
    _ask(gate, series, result, programs, tmp_path)
    assert _verdict(gate, list(result.values())) == verdict


def _ask(
    gate: dict[str, Any], series: list[Any], expected: dict[str, float], programs: Path, folder: Path
) -> None:
    """Prometheus' answer to the gate's query is `expected`, by the label `bound`."""
    query = gate["provider"]["prometheus"]["query"].replace("{{args.canary}}", "new")
    samples = [
        {"labels": f'{{bound="{bound}"}}' if bound else "{}", "value": round(value, 6)}
        for bound, value in expected.items()
    ]
    check = {"expr": f"round({query}, 0.000001)", "eval_time": "1m", "exp_samples": samples}
    case = {
        "fuzzy_compare": True,
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [check]}],
    }
    (folder / "gate.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(case))))
    found = subprocess.run(
        [programs / "promtool", "test", "rules", folder / "gate.yaml"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
