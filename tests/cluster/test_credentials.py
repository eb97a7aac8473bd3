"""Credentials of a private source: in no event, log, answer or output that somebody in the cluster can read.

The source is the distribution project's registry on this machine, by TLS with a private authority. It serves
only a user with a password, which the pods have from a Secret, as `docker login` writes it.
"""

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pthserve.cli.push import push

from ..packs import tiny_pack
from ..shared import until
from ..sources.keys import authority
from ..sources.servers import registry
from ..sources.stores import SECRET
from ..sources.test_registry import PASSWORD
from .machine import HOST
from .release import SLIM, SMALL, Release, Values

Run = Callable[..., "subprocess.CompletedProcess[str]"]

EGRESS: Values = {"networkPolicy": {"egress": [{}]}}


def login(password: str) -> str:
    return base64.b64encode(f"user:{password}".encode()).decode()


@pytest.fixture
def private(
    cluster: Any, tmp_path: Path, kubectl: Run, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Values]:
    """Values for a model in a registry; the release's Secret `registry` holds the credentials for it."""
    if not cluster.local:
        pytest.skip("a cluster elsewhere does not reach a registry on this machine")
    certificate, _ = authority(tmp_path, HOST)
    (tmp_path / "users").write_text(f"user:{PASSWORD}\n")
    with registry(tmp_path, tmp_path / "users", HOST, tmp_path / "server.pem") as host:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        for name, password in (("config", SECRET), ("wrong", f"{SECRET}-wrong")):
            config = json.dumps({"auths": {host: {"auth": login(password)}}})
            (tmp_path / f"{name}.json").write_text(config)
        pack = tiny_pack(tmp_path / "cats", seed=1).folder
        address = push(pack, f"oci://{host}/team/cats:v1")
        kubectl("create", "configmap", "authority", "-n", namespace, f"--from-file=ca.crt={certificate}")
        secret(kubectl, namespace, tmp_path / "config.json")
        yield {
            "weights": {"source": address},
            "extraEnv": [
                {"name": "DOCKER_CONFIG", "value": "/run/registry"},
                {"name": "SSL_CERT_FILE", "value": "/run/authority/ca.crt"},
            ],
            "extraVolumes": [
                {"name": "registry", "secret": {"secretName": "registry", "items": [ITEM]}},
                {"name": "authority", "configMap": {"name": "authority"}},
            ],
            "extraVolumeMounts": [
                {"name": "registry", "mountPath": "/run/registry", "readOnly": True},
                {"name": "authority", "mountPath": "/run/authority", "readOnly": True},
            ],
        }


ITEM = {"key": ".dockerconfigjson", "path": "config.json"}


def secret(kubectl: Run, namespace: str, config: Path) -> None:
    """Create or replace the Secret `registry`."""
    kind = ("secret", "generic", "registry", "--type=kubernetes.io/dockerconfigjson")
    file = f"--from-file=.dockerconfigjson={config}"
    made = kubectl("create", *kind, "-n", namespace, file, "--dry-run=client", "-o", "json").stdout
    kubectl("replace", "--force", "-n", namespace, "-f", "-", input=made)


def visible(release: Release, kubectl: Run, helm: Run) -> dict[str, str]:
    """What people who may read everything but Secrets see of a release, by where it stands."""
    inside = ("-n", release.namespace)
    found = {
        "events": kubectl("get", "events", *inside, "-o", "yaml").stdout,
        "objects": kubectl("get", "all,configmaps,endpointslices", *inside, "-o", "yaml").stdout,
        "description": kubectl("describe", "all,configmaps", *inside).stdout,
        "manifest": helm("get", "all", release.name, "--namespace", release.namespace).stdout,
        "status": helm("status", release.name, "--namespace", release.namespace).stdout,
    }
    for pod in release.pods:
        spec: Any = pod.spec
        for container in (*spec.init_containers, *spec.containers):
            for which in ("--previous=false", "--previous=true"):
                command = ("logs", *inside, pod.metadata.name, "-c", container.name, which)
                found[" ".join(command)] = kubectl(*command, check=False).stdout
    return found


def leaks(found: dict[str, str]) -> list[str]:
    """The lines with a secret, after where they stand."""
    secrets = (SECRET, *(login(one) for one in (SECRET, f"{SECRET}-wrong")))
    return [
        f"{where}: {line}"
        for where, text in found.items()
        for line in text.splitlines()
        if any(one in line for one in secrets)
    ]


def test_credentials_that_are_right_are_nowhere_to_be_read(
    image: Callable[[str], str],
    private: Values,
    release: Release,
    kubectl: Run,
    helm: Run,
    port_forward: Callable[..., AbstractContextManager[str]],
) -> None:
    image("slim")
    debug: Values = {"settings": {"logLevel": "debug"}}
    said = release.upgrade(SMALL, SLIM, EGRESS, private, debug)

    with port_forward(release.namespace, f"service/{release.fullname}", 80) as url:
        answers = {path: httpx.get(f"{url}{path}", timeout=30) for path in ("/info", "/metrics", "/readyz")}
    assert answers["/info"].json()["version"] == "1"
    found = visible(release, kubectl, helm) | {path: reply.text for path, reply in answers.items()}
    assert "fetch" in found["events"]
    assert any(text for where, text in found.items() if "-c pthserve" in where)
    assert not leaks(found | {"helm upgrade": said})


def test_credentials_that_are_wrong_are_refused_and_nowhere_to_be_read(
    image: Callable[[str], str],
    private: Values,
    tmp_path: Path,
    release: Release,
    kubectl: Run,
    helm: Run,
) -> None:
    image("slim")
    secret(kubectl, release.namespace, tmp_path / "wrong.json")
    said = release.upgrade(SMALL, SLIM, EGRESS, private, wait=False)

    message = until(release.complaints, seconds=120, what="a pod's complaint")
    assert "the registry refuses access (401)" in message
    events = ("get", "events", "-n", release.namespace)
    until(lambda: "BackOff" in kubectl(*events).stdout, seconds=60, what="its event")
    assert not release.endpoints()
    assert not leaks(visible(release, kubectl, helm) | {"helm upgrade": said, "complaint": message})


def test_the_search_finds_what_is_there() -> None:
    text = f"a\nauth: {login(SECRET)}\nb {SECRET}"
    assert leaks({"log": text}) == [f"log: {line}" for line in text.splitlines()[1:]]
