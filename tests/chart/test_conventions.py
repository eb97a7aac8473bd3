"""What platform teams expect of any chart: labels, extra parts, mirrors, routes, Artifact Hub's metadata."""

import base64
import json
import re
from typing import Any

import pytest
import yaml

from .conftest import CHART, ROOT, Helm
from .sets import SETS

pytestmark = pytest.mark.slow

RARE = SETS["everything rare"]


def _everything(helm: Helm) -> Any:
    return helm.render(RARE)


def test_common_labels_and_annotations_are_on_every_resource_and_pod(helm: Helm) -> None:
    rendered = _everything(helm)
    pod = rendered.one("Deployment")["spec"]["template"]
    for found in [*rendered.own, pod]:
        assert found["metadata"]["labels"]["team"] == "cats"
        assert found["metadata"]["annotations"]["owner"] == "cats@shop.example"


def test_common_labels_do_not_change_what_the_service_selects(helm: Helm) -> None:
    values = {"commonLabels": {"team": "cats", "app.kubernetes.io/name": "other"}}
    for kind, path in (
        ("Service", ["spec", "selector"]),
        ("Deployment", ["spec", "selector", "matchLabels"]),
    ):
        found, expected = helm.render(values).one(kind), helm.render().one(kind)
        for key in path:
            found, expected = found[key], expected[key]
        assert found == expected
    pod = helm.render(values).one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert pod["app.kubernetes.io/name"] == "pthserve"


def test_annotations_of_the_deployment_are_not_those_of_the_pod(helm: Helm) -> None:
    deployment = _everything(helm).one("Deployment")
    assert deployment["metadata"]["annotations"]["reloader.example/auto"] == "true"
    assert "reloader.example/auto" not in deployment["spec"]["template"]["metadata"]["annotations"]


def test_the_folder_of_the_dashboards_stays_beside_common_annotations(helm: Helm) -> None:
    found = _everything(helm).one("ConfigMap", "-dashboard-model")
    assert found["metadata"]["annotations"] == {"grafana_folder": "Models", "owner": "cats@shop.example"}


def test_the_deployment_has_the_rollout_s_numbers(helm: Helm) -> None:
    spec = _everything(helm).one("Deployment")["spec"]
    numbers = spec["revisionHistoryLimit"], spec["minReadySeconds"], spec["progressDeadlineSeconds"]
    assert numbers == (3, 5, 300)


def test_pods_have_the_scheduler_and_the_user_namespace(helm: Helm) -> None:
    for pod in _everything(helm).pods:
        assert pod["schedulerName"] == "bin-packer"
        assert pod["hostUsers"] is False
    for pod in helm.render().pods:
        assert not pod.keys() & {"schedulerName", "hostUsers"}


def test_extra_containers_init_containers_and_environments_are_added(helm: Helm) -> None:
    rendered = _everything(helm)
    assert [found["name"] for found in rendered.pod["containers"]] == ["pthserve", "proxy"]
    assert [found["name"] for found in rendered.pod["initContainers"]] == ["wait"]
    assert rendered.container["envFrom"] == [
        {"configMapRef": {"name": "cats-pthserve"}},
        {"secretRef": {"name": "more"}},
    ]


def test_extra_init_containers_come_before_the_download(helm: Helm) -> None:
    values = {**SETS["download"], "extraInitContainers": RARE["extraInitContainers"]}
    assert [found["name"] for found in helm.render(values).pod["initContainers"]] == ["wait", "fetch"]


def test_extra_objects_are_rendered_as_templates(helm: Helm) -> None:
    rendered = _everything(helm)
    assert rendered.one("ConfigMap", "cats-notes")["data"] == {"a": "b"}
    assert rendered.one("Secret", "cats-pthserve-more")["stringData"] == {"TZ": "UTC"}


# Mirrors.


@pytest.mark.parametrize(
    ("repository", "mirrored"),
    [
        ("registry.example/team/cats", "team/cats"),
        ("registry.example:5000/cats", "cats"),
        ("localhost/pthserve", "pthserve"),
        ("team/cats", "team/cats"),
        ("cats", "cats"),
    ],
)
def test_a_mirror_takes_the_registry_s_place(repository: str, mirrored: str, helm: Helm) -> None:
    values = {"global": {"imageRegistry": "mirror.example:5000/cache"}, "image": {"repository": repository}}
    rendered = helm.render(values)
    for pod in rendered.pods:
        assert [found["image"] for found in pod["containers"]] == [
            f"mirror.example:5000/cache/{mirrored}:0.1.0-full"
        ]


# Routes.


def test_routes_have_filters_timeouts_and_further_backends(helm: Helm) -> None:
    values = SETS["routes"]
    rendered = helm.render(values)
    for kind, name, port in (("HTTPRoute", "httpRoute", 80), ("GRPCRoute", "grpcRoute", 8001)):
        (rule,) = rendered.one(kind)["spec"]["rules"]
        assert rule["filters"] == values[name]["filters"]
        assert rule["backendRefs"] == [
            {"name": "cats-pthserve", "port": port, "weight": 90},
            {"name": "cats-canary-pthserve", "port": port, "weight": 10},
        ]
    assert rendered.one("HTTPRoute")["spec"]["rules"][0]["timeouts"] == values["httpRoute"]["timeouts"]
    assert rendered.one("GRPCRoute")["spec"]["hostnames"] == ["grpc.cats.example"]


# GPUs.


def test_a_claim_of_dynamic_resources_replaces_the_device_plugin(helm: Helm) -> None:
    rendered = helm.render(SETS["dynamic resources"])
    assert rendered.pod["resourceClaims"] == SETS["dynamic resources"]["gpu"]["resourceClaims"]
    assert rendered.container["resources"]["claims"] == [{"name": "gpu"}]
    assert "nvidia.com/gpu" not in rendered.container["resources"]["limits"]
    assert rendered.environment["PTHSERVE_DEVICE"] == "cuda"


@pytest.mark.parametrize(
    ("name", "resource"),
    [("gpu-mig.yaml", "nvidia.com/mig-1g.10gb"), ("gpu-time-slicing.yaml", "nvidia.com/gpu.shared")],
)
def test_the_examples_of_shared_gpus_ask_for_their_resource(name: str, resource: str, helm: Helm) -> None:
    values = {**SETS["gpu.yaml"], "gpu": {**SETS["gpu.yaml"]["gpu"], **SETS[name]["gpu"]}}
    limits = helm.render(values).container["resources"]["limits"]
    assert limits[resource] == "1"
    assert "nvidia.com/gpu" not in limits


def test_the_example_of_dynamic_resources_makes_the_template_that_it_names(helm: Helm) -> None:
    rendered = helm.render(SETS["gpu-dra.yaml"])
    (claim,) = rendered.pod["resourceClaims"]
    template = rendered.one("ResourceClaimTemplate", claim["resourceClaimTemplateName"])
    assert template["apiVersion"] == "resource.k8s.io/v1"


# Vertical scaling.


def test_a_vertical_autoscaler_has_its_bounds(helm: Helm) -> None:
    values = SETS["vertical"]["verticalPodAutoscaler"]
    spec = helm.render(SETS["vertical"]).one("VerticalPodAutoscaler")["spec"]
    assert spec["updatePolicy"] == {"updateMode": "Initial"}
    assert spec["resourcePolicy"]["containerPolicies"] == [
        {
            "containerName": "pthserve",
            **{key: values[key] for key in ("controlledResources", "minAllowed", "maxAllowed")},
        }
    ]


def test_a_vertical_autoscaler_of_memory_fits_an_autoscaler_of_cpu(helm: Helm) -> None:
    only_memory = {"verticalPodAutoscaler": {"enabled": True}, "autoscaling": {"enabled": True}}
    assert helm.render(only_memory).one("VerticalPodAutoscaler")


# GitOps.


def test_the_same_values_render_the_same_text_and_look_nothing_up(helm: Helm) -> None:
    name = "everything rare"
    first, second = (helm._template(json.dumps(SETS[name]), "1.37.2").stdout for _ in range(2))
    assert first == second
    for path in CHART.glob("templates/**/*"):
        if path.is_file():
            calls = re.findall(r"\b(lookup|now|rand\w+|uuidv4|gen\w+)\s", _code(path.read_text()))
            assert not calls, (path, calls)


def _code(template: str) -> str:
    """What stands in the actions of a template, without comments."""
    return " ".join(
        action for action in re.findall(r"\{\{(.*?)\}\}", template, re.DOTALL) if "/*" not in action
    )


# Artifact Hub, https://artifacthub.io/docs/topics/annotations/helm/


def _chart() -> dict[str, Any]:
    chart: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return chart


def test_the_chart_says_who_keeps_it_and_what_it_looks_like() -> None:
    chart = _chart()
    assert all(person["name"] for person in chart["maintainers"])
    kind, _, data = chart["icon"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data, validate=True).startswith(b"<svg ")


def test_the_annotations_have_artifact_hub_s_format() -> None:
    annotations = _chart()["annotations"]
    assert all(isinstance(value, str) for value in annotations.values())
    hub = {key.removeprefix("artifacthub.io/"): yaml.safe_load(value) for key, value in annotations.items()}
    assert hub["category"] == "ai-machine-learning"
    assert hub["license"] == "Apache-2.0"
    assert hub["operator"] is False
    assert hub["prerelease"] is True
    assert {change["kind"] for change in hub["changes"]} <= {
        *("added", "changed", "deprecated", "removed", "fixed", "security"),
    }
    assert all(change["description"] for change in hub["changes"])
    assert {image["name"] for image in hub["images"]} == {"full", "cuda", "slim"}
    assert all(image["image"].endswith(f":0.1.0-{image['name']}") for image in hub["images"])


def test_the_changes_of_the_chart_stand_in_the_changelog() -> None:
    changelog = re.sub(r"\s+", " ", (ROOT / "CHANGELOG.md").read_text())
    for change in yaml.safe_load(_chart()["annotations"]["artifacthub.io/changes"]):
        assert change["description"] in changelog
