"""Helm renders the chart; each set of values is rendered once and shared."""

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "pthserve"
KUBERNETES = "1.37.2"
APIS = (
    "gateway.networking.k8s.io/v1/HTTPRoute",
    "argoproj.io/v1alpha1/Rollout",
    "monitoring.coreos.com/v1/PodMonitor",
    "keda.sh/v1alpha1/ScaledObject",
    "traefik.io/v1alpha1/Middleware",
)
"""What the cluster has beside Kubernetes' own kinds, as far as the chart asks."""

EXTRA = {
    *("cats-notes", "cats-pthserve-more", "pthserve-gpu", "retry", "cats-live", "agreement", "error-rate"),
    *("cats-held", "cats-scaled", "cats-route"),
}
"""Names of the extraObjects in sets.yaml and the examples."""

Values = dict[str, Any]


class Rendered:
    """What the chart makes of some values."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.documents = [
            document
            for document in yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            if document
        ]

    @property
    def own(self) -> list[Any]:
        """The resources that the chart's templates make, without those of extraObjects."""
        return [found for found in self.documents if found["metadata"]["name"] not in EXTRA]

    def all(self, kind: str) -> list[Any]:
        """Every resource of a kind."""
        return [document for document in self.documents if document["kind"] == kind]

    def one(self, kind: str, suffix: str = "pthserve") -> Any:
        """The resource of a kind whose name ends in `suffix`."""
        (found,) = (found for found in self.all(kind) if found["metadata"]["name"].endswith(suffix))
        return found

    @property
    def kinds(self) -> set[str]:
        return {document["kind"] for document in self.documents}

    @property
    def pods(self) -> list[Any]:
        """The specs of every pod that the chart runs, the test's too."""
        return [found["spec"]["template"]["spec"] for found in self.workloads] + [
            found["spec"] for found in self.all("Pod")
        ]

    @property
    def workloads(self) -> list[Any]:
        """What runs the serving pods: one Deployment, or one Rollout."""
        return self.all("Deployment") + self.all("Rollout")

    @property
    def pod(self) -> Any:
        """The spec of a serving pod."""
        (workload,) = self.workloads
        return workload["spec"]["template"]["spec"]

    @property
    def container(self) -> Any:
        """The container that serves."""
        (found,) = (found for found in self.pod["containers"] if found["name"] == "pthserve")
        return found

    def init(self, name: str) -> Any:
        """One of the serving pod's init containers."""
        (found,) = (found for found in self.pod["initContainers"] if found["name"] == name)
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The settings that the serving container gets."""
        if self.all("Rollout"):
            return {found["name"]: found["value"] for found in self.container["env"]}
        found: dict[str, str] = self.one("ConfigMap")["data"]
        return found


class Helm:
    """The program, and what it has rendered."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self.template = functools.cache(self._template)

    def run(self, *arguments: str, values: Values | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.program, *arguments],
            input=json.dumps(values or {}),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def _template(
        self, values: str, kubernetes: str, apis: tuple[str, ...] = APIS
    ) -> "subprocess.CompletedProcess[str]":
        return self.run(
            *(
                "template",
                "cats",
                str(CHART),
                "--namespace",
                "shop",
                "--kube-version",
                kubernetes,
                *(f"--api-versions={api}" for api in apis),
                "--values",
                "-",
            ),
            values=json.loads(values),
        )

    def render(self, values: Values | None = None, kubernetes: str = KUBERNETES) -> Rendered:
        """The chart with these values; a refusal fails the test."""
        found = self.template(json.dumps(values or {}, sort_keys=True), kubernetes)
        assert found.returncode == 0, found.stderr
        return Rendered(found.stdout)

    def refusal(self, values: Values, kubernetes: str = KUBERNETES, apis: tuple[str, ...] = APIS) -> str:
        """What the chart says when it refuses these values."""
        found = self.template(json.dumps(values, sort_keys=True), kubernetes, apis)
        assert found.returncode != 0, "the chart took these values"
        return found.stderr


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with helm, helm3, kubeconform, kube-score and promtool, built when they are not there."""
    found = subprocess.run(
        [ROOT / "k8s" / "local" / "programs", "helm", "helm3", "kubeconform", "kube-score", "prometheus"],
        capture_output=True,
        text=True,
    )
    if found.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"cannot build Helm and its company: {found.stderr.strip().splitlines()[-1]}")
    assert found.returncode == 0, found.stderr
    return Path(found.stdout.strip())


@pytest.fixture(scope="session")
def helm(programs: Path) -> Helm:
    return Helm(programs / "helm")


@pytest.fixture(scope="session")
def helm3(programs: Path) -> Helm:
    return Helm(programs / "helm3")
