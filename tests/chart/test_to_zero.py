"""No pods without requests: one value, and what the gateway and KEDA then get."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Helm, Rendered
from .sets import SETS

pytestmark = pytest.mark.slow

ONE_VALUE: dict[str, Any] = {
    "autoscaling": {"minReplicas": 0},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
}


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> Rendered:
    return helm.render(SETS["to zero"])


def test_one_value_is_enough_beside_a_route(helm: Helm) -> None:
    rendered = helm.render(ONE_VALUE)
    spec = rendered.one("ScaledObject")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"], spec["pollingInterval"]) == (0, 5, 1)
    assert "HorizontalPodAutoscaler" not in rendered.kinds
    assert "replicas" not in rendered.one("Deployment")["spec"]


def test_an_external_autoscaler_is_left_alone(helm: Helm) -> None:
    for minimum in (0, 1):
        values = {"autoscaling": {"enabled": True, "provider": "external", "minReplicas": minimum}}
        rendered = helm.render(values)
        assert not rendered.kinds & {"HorizontalPodAutoscaler", "ScaledObject", "Middleware"}
        assert "replicas" not in rendered.one("Deployment")["spec"]


def test_nothing_of_it_is_there_with_a_pod_at_least(helm: Helm) -> None:
    for name in ("defaults", "keda", "route"):
        assert not helm.render(SETS[name]).kinds & {"Middleware", "TraefikService", "ServersTransport"}


def test_the_gateway_holds_a_request_for_the_time_given(rendered: Rendered) -> None:
    retry = rendered.one("Middleware")["spec"]["retry"]
    assert retry["timeout"] == "20s"
    shortest = int(retry["initialInterval"].removesuffix("ms")) / 1000 / 2  # the pauses vary by half
    assert retry["attempts"] * shortest >= 20
    assert "status" not in retry  # an answer of a pod is an answer


def test_a_request_that_is_held_finds_the_pod_by_an_address_that_stays(rendered: Rendered) -> None:
    (rule,) = rendered.one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [{"group": "traefik.io", "kind": "TraefikService", "name": "cats-pthserve"}]
    (held,) = rule["filters"]
    assert held["extensionRef"]["name"] == rendered.one("Middleware")["metadata"]["name"]
    (service,) = rendered.one("TraefikService")["spec"]["weighted"]["services"]
    assert service == {
        "name": rendered.one("Service")["metadata"]["name"],
        "port": 80,
        "nativeLB": True,
        "serversTransport": rendered.one("ServersTransport")["metadata"]["name"],
    }


def test_several_pods_share_requests_not_connections(rendered: Rendered) -> None:
    assert rendered.one("ServersTransport")["spec"]["maxIdleConnsPerHost"] == -1


def test_the_filters_of_the_values_come_first(helm: Helm) -> None:
    own = {"type": "ExtensionRef", "extensionRef": {"group": "traefik.io", "kind": "Middleware", "name": "x"}}
    route = {**ONE_VALUE["httpRoute"], "filters": [own]}
    (rule,) = helm.render({**ONE_VALUE, "httpRoute": route}).one("HTTPRoute")["spec"]["rules"]
    assert [found["extensionRef"]["name"] for found in rule["filters"]] == ["x", "cats-pthserve"]


def test_calls_over_grpc_are_held_too(helm: Helm) -> None:
    rendered = helm.render(SETS["to zero over gRPC"])
    (rule,) = rendered.one("GRPCRoute")["spec"]["rules"]
    (held,) = rule["filters"]
    assert held["extensionRef"]["kind"] == "Middleware"
    assert rule["backendRefs"] == [{"name": "cats-pthserve", "port": 8001}]
    annotations = rendered.one("Service")["metadata"]["annotations"]
    assert annotations == {"traefik.io/service.nativelb": "true"}
    requests = rendered.one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    assert "|grpcroute-shop-cats-pthserve-.+@kubernetesgateway" in requests


@pytest.mark.parametrize(("idle", "window", "cooldown"), [(10, 10, 0), (60, 60, 0), (300, 60, 240)])
def test_the_last_pod_goes_when_the_time_has_passed_since_the_last_request(
    idle: int, window: int, cooldown: int, helm: Helm
) -> None:
    autoscaling = {**ONE_VALUE["autoscaling"], "toZero": {"idleSeconds": idle}}
    spec = helm.render({**ONE_VALUE, "autoscaling": autoscaling}).one("ScaledObject")["spec"]
    # KEDA asks for the last full second; the offset adds what came since.
    assert f"[{window}s] offset -1s" in spec["triggers"][0]["metadata"]["query"]
    assert spec["cooldownPeriod"] == cooldown
    assert spec["initialCooldownPeriod"] == idle  # a new release starts with a pod, which shows that it works


def test_where_no_one_can_see_requests_a_pod_runs(rendered: Rendered) -> None:
    spec = rendered.one("ScaledObject")["spec"]
    requests, load = spec["triggers"]
    assert requests["metadata"]["ignoreNullValues"] == load["metadata"]["ignoreNullValues"] == "false"
    assert spec["fallback"] == {
        "failureThreshold": 30,  # seconds
        "replicas": 1,
        "behavior": "currentReplicasIfHigher",
    }


def test_no_pods_are_no_load_of_pods(rendered: Rendered) -> None:
    _, load = rendered.one("ScaledObject")["spec"]["triggers"]
    assert load["metadata"]["query"].endswith(" or vector(0)")


def test_a_pod_gets_the_request_before_a_probe_has_found_it_ready(rendered: Rendered) -> None:
    """So it must refuse connections until it can answer."""
    assert rendered.one("Service")["spec"]["publishNotReadyAddresses"]
    assert rendered.environment["PTHSERVE_LISTEN"] == "ready"


def test_the_last_pod_may_be_drained(rendered: Rendered) -> None:
    assert "PodDisruptionBudget" not in rendered.kinds


# What the query gives, by Prometheus itself.

HELD = 'traefik_service_requests_total{{service="{}",code="504",method="POST"}}'
OWN = "shop-cats-pthserve-80@kubernetescrd"
RELOADS = {"series": "traefik_config_reloads_total", "values": "3x60"}


@pytest.mark.parametrize(
    ("series", "value"),
    [
        ([RELOADS], 0),
        ([RELOADS, {"series": HELD.format(OWN), "values": "7x60"}], 0),
        ([RELOADS, {"series": HELD.format(OWN), "values": "7x58 8 9"}], 1),
        ([RELOADS, {"series": HELD.format(OWN), "values": "_x58 1 2"}], 1),
        ([RELOADS, {"series": HELD.format(OWN), "values": "0+1x20 20x40"}], 0),
        (
            [
                RELOADS,
                {"series": HELD.format("shop-dogs-pthserve-80@kubernetescrd"), "values": "0+1x60"},
            ],
            0,
        ),
        ([], None),
    ],
    ids=[
        *("no request ever", "none of late", "one is held", "the first ever is held", "the last is long ago"),
        *("another release", "no gateway is scraped"),
    ],
)
def test_a_release_is_woken_by_its_requests(
    series: list[dict[str, str]], value: int | None, rendered: Rendered, programs: Path, tmp_path: Path
) -> None:
    query = rendered.one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    expected = [] if value is None else [{"labels": "{}", "value": value}]
    case: dict[str, Any] = {
        "interval": "1s",
        "input_series": series,
        "promql_expr_test": [{"expr": query, "eval_time": "60s", "exp_samples": expected}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    found = subprocess.run(
        [programs / "promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_alert_about_no_pod_needs_a_request(rendered: Rendered) -> None:
    (group,) = rendered.one("PrometheusRule")["spec"]["groups"]
    (alert,) = (rule for rule in group["rules"] if rule.get("alert") == "PthserveNoReadyPod")
    query = rendered.one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    assert re.fullmatch(r"absent\(.+\) and on \(\) \(" + re.escape(query) + r"\) == 1", alert["expr"])
