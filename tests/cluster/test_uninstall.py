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
def everything(kubectl: Run, namespace: str) -> Callable[[], dict[str, set[str]]]:
    """everything(): names of all that is in the namespace by kind, and of what the cluster has at large."""

    def kinds(*flags: str) -> set[str]:
        return set(kubectl("api-resources", "--verbs=list", "-o=name", *flags).stdout.split()) - FLEETING

    def there() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for kind in kinds("--namespaced"):
            said = kubectl("get", kind, "-n", namespace, "-o", "name", "--ignore-not-found").stdout
            found[kind] = set(said.split())
        for kind in kinds("--namespaced=false"):
            # Of other releases there may be more or less by now.
            items = json.loads(kubectl("get", kind, "-o", "json").stdout)["items"]
            found[kind] = {
                item["metadata"]["name"]
                for item in items
                if namespace in json.dumps(item.get("metadata", {}))
            }
        return found

    return there


def test_nothing_is_left_of_a_release_that_had_everything(
    image: Callable[[str], str],
    release: Release,
    helm: Run,
    everything: Callable[[], dict[str, set[str]]],
) -> None:
    image("slim")
    before = everything()
    said = release.upgrade(EVERYTHING)
    release.until_ready(2)
    helm("test", release.name, "-n", release.namespace)
    made = {kind for kind, names in everything().items() if names - before[kind]}

    release.uninstall()

    assert "restricted" not in said
    assert {"pods", "deployments.apps", "configmaps", "secrets", "poddisruptionbudgets.policy"} <= made
    assert everything() == before
