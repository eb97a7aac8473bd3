"""Whatever values are given, what is rendered is valid, secure, and the same from Helm 3 and 4."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import CHART, ROOT, Helm
from .schemas import NEWEST, OLDEST
from .sets import SETS

pytestmark = pytest.mark.slow
NEWER = {"image volume", "dynamic resources", "gpu-dra.yaml", "everything rare", "scale-to-zero.yaml"}
"""Sets that need what Kubernetes got after the oldest version that is supported."""
SCHEMAS = Path(__file__).parent / "schemas"


def _sets(kubernetes: str) -> dict[str, dict[str, Any]]:
    """Those that this Kubernetes supports."""
    return {name: values for name, values in SETS.items() if kubernetes == NEWEST or name not in NEWER}


@pytest.mark.parametrize("program", ["helm", "helm3"])
@pytest.mark.parametrize("name", ["defaults", "cpu-production.yaml", "gpu.yaml"])
def test_helm_lint_finds_nothing(program: str, name: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(program).run(
        "lint", "--strict", str(CHART), "--kube-version", NEWEST, "--values", "-", values=SETS[name]
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", SETS)
def test_helm_3_renders_what_helm_4_renders(name: str, helm: Helm, helm3: Helm) -> None:
    def ordered(rendered: Any) -> list[str]:
        return sorted(json.dumps(document, sort_keys=True) for document in rendered.documents)

    assert ordered(helm3.render(SETS[name])) == ordered(helm.render(SETS[name]))


@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
def test_every_resource_fits_its_schema(kubernetes: str, helm: Helm, programs: Path) -> None:
    rendered = [helm.render(values, kubernetes).text for values in _sets(kubernetes).values()]
    written = [
        ROOT / "k8s" / "examples" / "hostpath-claim.yaml",
        ROOT / "k8s" / "examples" / "score.yaml",
        ROOT / "k8s" / "examples" / "score-kueue.yaml",
        ROOT / "k8s" / "manifests" / "pthserve.yaml",
        ROOT / "k8s" / "knative" / "service.yaml",
    ]
    found = subprocess.run(
        [
            *(programs / "kubeconform", "-strict", "-summary", "-output", "json"),
            *("-kubernetes-version", kubernetes),
            *("-skip", "InterceptorRoute"),  # of a module that is not on every Go module proxy
            "-schema-location",
            f"{SCHEMAS}/{{{{.NormalizedKubernetesVersion}}}}-standalone{{{{.StrictSuffix}}}}/"
            "{{.ResourceKind}}{{.KindSuffix}}.json",
            *("-schema-location", f"{SCHEMAS}/custom/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"),
        ],
        input="\n---\n".join([*rendered, *(path.read_text() for path in written)]),
        capture_output=True,
        text=True,
    )
    answer = json.loads(found.stdout)
    assert not answer["resources"]
    assert answer["summary"]["valid"] > 5 * len(rendered)
    assert answer["summary"]["skipped"] == 1


# What kube-score calls critical and is right all the same, with the reason.
PULL = "a tag names one version for good, and a pod must start while the registry is away"
EXPLAINED = {
    "Deployment/cats-pthserve container-image-pull-policy": PULL,
    "Pod/cats-pthserve-test container-image-pull-policy": PULL,
    "Pod/cats-pthserve-test pod-networkpolicy": "nobody calls it; the policy of the serving pods lets it in",
}


@pytest.mark.parametrize(
    "name", ["defaults", "pack", "download", "cpu-production.yaml", "gpu.yaml", "keda.yaml"]
)
def test_kube_score_finds_nothing_critical(name: str, helm: Helm, programs: Path) -> None:
    found = subprocess.run(
        [programs / "kube-score", "score", "--output-format", "json", "-"],
        input=helm.render(SETS[name]).text,
        capture_output=True,
        text=True,
    )
    critical = {
        f"{scored['type_meta']['kind']}/{scored['object_meta']['name']} {check['check']['id']}": check[
            "comments"
        ]
        for scored in json.loads(found.stdout)
        for check in scored["checks"]
        if check["grade"] == 1 and not check["skipped"]
    }
    assert critical
    assert not {name: comments for name, comments in critical.items() if name not in EXPLAINED}


@pytest.mark.parametrize("name", SETS)
def test_every_pod_fits_the_restricted_standard(name: str, helm: Helm) -> None:
    for pod in helm.render(SETS[name]).pods:
        own = pod["securityContext"]
        assert own["runAsNonRoot"]
        assert min(own["runAsUser"], own["runAsGroup"]) > 10000
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "image"}
        assert all(volume.keys() & allowed for volume in pod.get("volumes", []))
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"]
            assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", SETS)
def test_every_mount_has_its_volume_and_every_volume_a_mount(name: str, helm: Helm) -> None:
    for pod in helm.render(SETS[name]).pods:
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        containers = [*pod["containers"], *pod.get("initContainers", [])]
        assert volumes == {mount["name"] for container in containers for mount in container["volumeMounts"]}


@pytest.mark.parametrize("name", SETS)
def test_every_resource_names_its_namespace_and_its_release(name: str, helm: Helm) -> None:
    for document in helm.render(SETS[name]).own:
        assert document["metadata"]["namespace"] == "shop"
        assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "cats"
        assert document["metadata"]["labels"]["helm.sh/chart"] == "pthserve-0.1.0"


def test_one_template_makes_one_resource() -> None:
    for template in (CHART / "templates").rglob("*.yaml"):
        kinds = re.findall(r"^kind: ", template.read_text(), re.MULTILINE)
        assert len(kinds) == (template.name != "extraobjects.yaml"), template.name


def test_every_kind_of_template_is_rendered_by_some_set(helm: Helm) -> None:
    rendered = {found["kind"] for values in SETS.values() for found in helm.render(values).own}
    written = {
        kind
        for template in (CHART / "templates").rglob("*.yaml")
        for kind in re.findall(r"^kind: (\w+)", template.read_text(), re.MULTILINE)
    }
    assert written == rendered


def test_the_chart_and_the_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert package
    assert {chart["version"], chart["appVersion"]} == {package[1]}
