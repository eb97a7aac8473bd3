"""A release, pushed to a registry, is installed from there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..release.conftest import make_clone
from ..sources.servers import registry
from .conftest import VERSION, Run
from .load import IMAGE
from .release import SMALL, Release, merged


@pytest.fixture
def pushed(
    image: Callable[[str], str], tmp_path: Path, load: Callable[[str], str], cluster: Any
) -> Iterator[str]:
    """Host, port and team of a registry with a release, whose image slim is on the node by its name there."""
    if not cluster.local:
        pytest.skip("a cluster elsewhere does not read a registry on this machine")
    image("slim")
    clone = make_clone(tmp_path / "clone")
    with registry(tmp_path) as host:
        team = f"{host}/team"
        clone.run("scripts/release", "--images", "slim", "--push", team, "--plain-http")
        name = f"{team}/pthserve:{VERSION}-slim"
        clone.run("buildah", "pull", "-q", "--tls-verify=false", name)
        try:
            load(name)
            yield team
        finally:
            clone.run("buildah", "rmi", name)


def test_the_chart_in_a_registry_is_installed_and_answers(
    pushed: str, release: Release, helm: Run, port_forward: Callable[..., Any]
) -> None:
    values = merged(SMALL, {"image": {"variant": "slim"}})
    install = (
        "install",
        release.name,
        f"oci://{pushed}/charts/pthserve",
        "--version",
        VERSION,
        "--plain-http",
    )
    helm(
        *install,
        "--namespace",
        release.namespace,
        "--values",
        "-",
        "--wait",
        "--timeout=5m",
        input=json.dumps(values),
    )
    (pod,) = release.ready
    assert pod.spec.containers[0].image == f"{pushed}/pthserve:{VERSION}-slim"
    with port_forward(release.namespace, f"service/{release.fullname}", 80) as url:
        answer = httpx.post(f"{url}/predict", files={"image": IMAGE.read_bytes()}).json()
    assert answer["label"] == "espresso"
