"""Flagger upgrades a release of k8s/examples/flagger.yaml: to an honest model, and not to a sabotaged one."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client

from ..shared import until
from .candidates import BASE, HONEST, KINDS, Candidate
from .conftest import LOCAL, Cluster
from .load import Load
from .machine import run
from .progressive import Place, serving
from .release import ROOT, Release, Values, merged
from .sweep import Models

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("reachable")]
EXAMPLE = ROOT / "k8s/examples/flagger.yaml"
PLACE = Place()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    run("chmod", "a+rx", folder)
    return Models.within(folder)


def example(host: str) -> Values:
    """The example, at another pace and another host, and where this cluster has Prometheus."""
    text = EXAMPLE.read_text()
    for old, new in (
        ("http://prometheus-operated.monitoring:9090", PLACE.prometheus),
        ("cats.example", host),
        ("interval: 1m", "interval: 10s"),
    ):
        assert old in text
        text = text.replace(old, new)
    small: Values = {
        "image": {"variant": "slim"},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "settings": {"deadline": 25, "name": "inks"},
        "shutdown": {"graceSeconds": 40},
    }
    found: Values = merged(yaml.safe_load(text), small)
    return found


def phase(api: client.ApiClient, namespace: str) -> str:
    found: Any = client.CustomObjectsApi(api).get_namespaced_custom_object(
        "flagger.app", "v1beta1", namespace, "canaries", "cats-live"
    )
    return str(found.get("status", {}).get("phase", ""))


@pytest.fixture
def upgraded(
    cluster: Cluster,
    namespace: str,
    image: Callable[[str], str],
    models: Models,
    release: Release,
    api: client.ApiClient,
) -> Iterator[Callable[[Candidate], str]]:
    """upgraded(candidate): the Canary's phase once Flagger has decided, under load through the gateway."""
    if not cluster.local:
        pytest.skip("what a cluster elsewhere has is not ours to change")
    done = subprocess.run([LOCAL, "flagger"], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    image("slim")
    host = f"http.{uuid.uuid4().hex[:8]}.example"
    values = example(host)

    def upgrade(candidate: Candidate) -> None:
        models.pack(candidate)
        release.upgrade(values, serving(models.folder / "packed", candidate.name), wait=False)

    upgrade(BASE)
    until(lambda: phase(api, namespace) == "Initialized", seconds=180, what="the first pods of Flagger")
    with Load(f"http://{PLACE.address(api)}:80", 8, host=host, images=models.photos) as load:

        def decided(candidate: Candidate) -> str:
            load.until_more(50)
            upgrade(candidate)
            until(lambda: phase(api, namespace) == "Progressing", seconds=120, what="a start")
            ends = ("Succeeded", "Failed")
            until(lambda: phase(api, namespace) in ends, seconds=600, what="a decision")
            load.until_more(50)
            print(f"{candidate.name}: {phase(api, namespace)}; {load}")
            return phase(api, namespace)

        yield decided


def test_flagger_promotes_an_honest_model_and_no_sabotaged_one(
    upgraded: Callable[[Candidate], str],
) -> None:
    assert upgraded(HONEST["tuned"][0]) == "Succeeded"
    assert upgraded(KINDS["permuted"][0]) == "Failed"
