"""What a release pushes: a registry has all of it, with signatures that nobody else can make."""

import base64
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Released, listed

pytestmark = pytest.mark.slow

NAMES = ["pthserve:0.1.0-slim", "charts/pthserve:0.1.0", "pthserve-files:0.1.0"]


def manifest(released: Released, name: str) -> Any:
    shown = released.clone.run("oras", "manifest", "fetch", "--plain-http", f"{released.registry}/{name}")
    return json.loads(shown.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_key_s_owner_has_signed(name: str, released: Released) -> None:
    place = f"{released.registry}/{name}"
    verified = released.cosign("verify", place)
    assert verified.returncode == 0, verified.stderr
    refused = released.cosign("verify", place, key=released.other)
    assert refused.returncode != 0
    assert re.search("failed to verify|no matching|invalid signature", refused.stderr), refused.stderr


@pytest.mark.parametrize("name", NAMES)
def test_what_was_altered_is_refused(name: str, released: Released, tmp_path: Path) -> None:
    """Somebody who can write to the registry gives the tag of a copy to an artefact with other contents."""
    place = f"{released.registry}/{name}"
    copy = f"{released.registry}/copies/{name}"
    plain = ("--from-plain-http", "--to-plain-http")
    released.clone.run("oras", "cp", "--no-tty", "-r", *plain, place, copy)
    assert released.cosign("verify", copy).returncode == 0

    altered = manifest(released, name)
    altered["annotations"] = {**altered.get("annotations", {}), "altered": "yes"}
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(altered))
    kind = altered["mediaType"]
    released.clone.run("oras", "manifest", "push", "--plain-http", "--media-type", kind, copy, file)
    refused = released.cosign("verify", copy)
    assert (refused.returncode != 0, "no signatures found" in refused.stderr) == (True, True), refused.stderr


def test_a_layer_that_was_altered_is_not_installed(released: Released, tmp_path: Path) -> None:
    """Helm compares what it downloads with the digest that was signed."""
    place, repository = (
        f"{released.registry}/broken/pthserve:0.1.0",
        f"oci://{released.registry}/broken/pthserve",
    )
    plain = ("--from-plain-http", "--to-plain-http")
    released.clone.run("oras", "cp", "--no-tty", *plain, f"{released.registry}/charts/pthserve:0.1.0", place)
    pull = ("helm", "pull", repository, "--version", "0.1.0", "--plain-http", "-d", tmp_path)
    released.clone.run(*pull)
    digest = manifest(released, "broken/pthserve:0.1.0")["layers"][0]["digest"].removeprefix("sha256:")
    (blob,) = released.storage.rglob(f"blobs/sha256/*/{digest}/data")
    content = blob.read_bytes()
    try:
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused = released.clone.run(*pull, check=False)
    finally:
        blob.write_bytes(content)
    assert refused.returncode != 0


@pytest.mark.parametrize("kind", ["slsaprovenance1", "cyclonedx"])
def test_the_image_s_provenance_and_bill_are_signed(kind: str, released: Released) -> None:
    place = f"{released.registry}/pthserve:0.1.0-slim"
    verified = released.cosign("verify-attestation", "--type", kind, place)
    assert verified.returncode == 0, verified.stderr
    statement = json.loads(base64.b64decode(json.loads(verified.stdout.splitlines()[0])["payload"]))
    digests = listed(released.clone.dist / "DIGESTS")
    (subject,) = statement["subject"]
    assert f"sha256:{subject['digest']['sha256']}" == digests["pthserve:0.1.0-slim"]
    predicate = statement["predicate"]
    if kind == "cyclonedx":
        assert {"numpy", "openvino"} <= {part["name"] for part in predicate["components"]}
    else:
        commit = released.clone.run("git", "rev-parse", "HEAD").stdout.strip()
        assert {"gitCommit": commit} in [
            each["digest"] for each in predicate["buildDefinition"]["resolvedDependencies"]
        ]
    assert released.cosign("verify-attestation", "--type", kind, place, key=released.other).returncode != 0


def test_bill_and_provenance_refer_to_the_image(released: Released) -> None:
    place = f"{released.registry}/pthserve:0.1.0-slim"
    found = released.clone.run("oras", "discover", "--plain-http", "--format", "json", place)
    kinds = [each["artifactType"] for each in json.loads(found.stdout)["referrers"]]
    assert {"application/vnd.cyclonedx+json", "application/vnd.in-toto+json"} <= set(kinds)


def test_the_chart_runs_the_images_that_are_pushed_beside_it(released: Released) -> None:
    chart = f"oci://{released.registry}/charts/pthserve"
    shown = released.clone.run("helm", "template", "cats", chart, "--version", "0.1.0", "--plain-http")
    assert f"image: {released.registry}/pthserve:0.1.0-full" in shown.stdout


def test_the_pages_commands_verify_a_release(released: Released, tmp_path: Path) -> None:
    """All of docs/releasing.md, but `git tag`, and the install: tests/cluster has that."""
    page = (ROOT / "docs/releasing.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    tag, make, key, push, *verify, install = commands
    assert tag == "git tag v0.1.0"
    assert install.startswith("helm install cats oci://registry.example/team/charts/pthserve --version 0.1.0")

    def run(command: str) -> None:
        moved = command.replace("registry.example/team", f"{released.registry}/page").replace(
            "../release", f"{tmp_path}/release"
        )
        released.clone.run(
            "bash", "-euo", "pipefail", "-c", moved.replace("oras discover", "oras discover --plain-http")
        )

    run(f"{make} RELEASE=--images")
    run(key)
    assert shlex.split(push)[0] == "scripts/release"
    run(f"{push} --images slim --plain-http")
    assert len(verify) == 6
    for command in verify:
        run(command)
    sums = released.clone.dist / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("a", "b"))
    with pytest.raises(AssertionError, match=r"verif|signature"):
        run(verify[3])
