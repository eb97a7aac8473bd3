"""A release runs under the pod security standard `restricted`, and leaves nothing when it goes."""

import json
import subprocess
from collections.abc import Callable

import pytest

from .release import SLIM, SMALL, Release, merged

Run = Callable[..., subprocess.CompletedProcess[str]]

EVERYTHING = merged(
    SMALL,
    SLIM,
    {
        "autoscaling": {"enabled": True, "minReplicas": 2},
        "settings": {"grpcPort": 8001, "metricsPort": 9090},
        "ingress": {"enabled": True, "hosts": ["cats.example"]},
        "monitoring": {"dashboards": {"enabled": True}},
    },
)
# Kubernetes writes these itself, and forgets them in its own time.
FLEETING = {"events", "events.events.k8s.io", "pods.metrics.k8s.io", "leases.coordination.k8s.io"}


@pytest.fixture
def everything(kubectl: Run, namespace: str) -> Callable[[], set[str]]:
    """everything(): all that is in the namespace, as kind/name, and what of the cluster at large names it."""

    def kinds(*flags: str) -> str:
        said = kubectl("api-resources", "--verbs=list", "-o=name", *flags).stdout
        return ",".join(sorted(set(said.split()) - FLEETING))

    def there() -> set[str]:
        inside = kubectl("get", kinds("--namespaced"), "-n", namespace, "-o=name").stdout.split()
        at_large = json.loads(kubectl("get", kinds("--namespaced=false"), "-o=json").stdout)["items"]
        return {*inside} | {
            f"{item['kind']}/{item['metadata']['name']}"
            for item in at_large  # of other releases there may be more or less by now
            if namespace in json.dumps(item["metadata"])
        }

    return there


def test_nothing_is_left_of_a_release_that_had_everything(
    image: Callable[[str], str],
    release: Release,
    helm: Run,
    everything: Callable[[], set[str]],
) -> None:
    image("slim")
    before = everything()
    said = release.upgrade(EVERYTHING)
    release.until_ready(2)
    helm("test", release.name, "-n", release.namespace)
    made = {name.partition("/")[0] for name in everything() - before}

    release.uninstall()

    assert "restricted" not in said
    assert {"pod", "deployment.apps", "configmap", "secret", "poddisruptionbudget.policy"} <= made
    assert everything() == before
