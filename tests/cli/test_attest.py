"""attest: what a release has shown, from its pods to a signed file, and to the artefact of the model."""

import json
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pthserve.cli.attest import _attestation, _fetch
from pthserve.cli.push import push as push_model
from pthserve.errors import PthserveError, WeightsError
from pthserve.intervals import wilson
from pthserve.sources import attestation, transfer
from pthserve.sources.reference import parse

from ..http_service import Service, serving
from ..packs import tiny_pack
from ..serving.squares import BLUE, RED, png, squares
from ..shared import until
from ..sources.keys import key_pair
from ..sources.servers import registry
from .called import called

OLD, NEW = "0a" * 32, "0b" * 32
PAGE = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()


def pod(**fields: Any) -> dict[str, Any]:
    """What a pod says of itself; by default it agreed on 9 of 10 images."""
    one = {"digest": NEW, "other": OLD, "images": 10, "agreed": 9, "difference": 0.1}
    return {
        "name": "cats",
        "version": "2",
        "digest": NEW,
        "engine": "openvino",
        "precision": "fp32",
        "golden": {"images": 3, "result": "agreed"},
        "pthserve": "1.0",
        "feedback": {"correct": 3, "incorrect": 1},
        "rollout": {"comparisons": [one], "failures": {"timeout": 1}},
        **fields,
    }


def test_the_figures_of_all_pods_are_added_up() -> None:
    more = {"digest": NEW, "other": OLD, "images": 30, "agreed": 30, "difference": 0.02}
    before = {"digest": OLD, "other": OLD, "images": 99, "agreed": 99, "difference": 0.0}
    made = _attestation([pod(), pod(rollout={"comparisons": [before, more], "failures": {"timeout": 2}})])
    (agreement,) = made.agreement
    interval = wilson(39, 40)
    assert interval is not None
    assert (agreement.lower, agreement.estimate, agreement.upper) == interval
    assert (agreement.images, agreement.other, made.pods) == (40, OLD, 2)
    assert agreement.difference == pytest.approx((10 * 0.1 + 30 * 0.02) / 40)
    assert made.failures == {"timeout": 3}
    assert made.accuracy is not None
    assert (made.accuracy.images, made.accuracy.estimate) == (8, 0.75)
    assert attestation.parsed(made.to_json(), "here") == made


def test_a_pod_that_has_compared_nothing_attests_nothing() -> None:
    made = _attestation([pod(rollout=None, feedback={}, golden=None)])
    assert (made.agreement, made.accuracy, made.golden) == ((), None, "there are none")
    assert "nothing was compared" in made.words()


def test_pods_of_different_models_are_not_one_release() -> None:
    with pytest.raises(PthserveError, match="they differ in `digest`"):
        _attestation([pod(), pod(digest=OLD)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"digest": "0b"}, "digest"),
        ({"version": 2}, "version"),
        ({"agreement": [{"other": OLD}]}, "agreement.0.images"),
        ({"more": 1}, "more"),
        ({"pods": 0}, "pods"),
    ],
    ids=str,
)
def test_what_is_not_an_attestation_is_refused_by_name(change: dict[str, Any], reason: str) -> None:
    fields = {**_attestation([pod()]).model_dump(), **change}
    with pytest.raises(WeightsError, match=rf"here: is not an attestation of a model: {re.escape(reason)}"):
        attestation.parsed(json.dumps(fields).encode(), "here")
    with pytest.raises(WeightsError, match="is not an attestation"):
        attestation.parsed(b"[" * 10_000, "here")


def test_it_lies_beside_the_model_under_its_name(tmp_path: Path) -> None:
    for name in ("cats", "cats.pth"):
        model = tmp_path / name
        assert attestation.read(model) is None
        made = _attestation([pod()])
        attestation.beside(model).write_bytes(made.to_json())
        assert attestation.beside(model) == tmp_path / f"{name}.attestation.json"
        assert attestation.read(model) == made


@pytest.fixture(scope="module")
def pods() -> Iterator[list[Service]]:
    """Two pods of a release, each of which has compared some answers with those of another release."""
    with (
        serving(squares(digest=OLD)) as stable,
        serving(squares(digest=NEW), compare_with=stable.url, compare_share=1.0, feedback=9) as first,
        serving(squares(digest=NEW), compare_with=stable.url, compare_share=1.0) as second,
    ):
        for number, (one, colour) in enumerate(((first, RED), (first, BLUE), (second, BLUE))):
            reply = one.client.post("/predict", content=png(colour))
            assert reply.status_code == 200
            wanted = number % 2 + 1 if one is first else 1

            def compared(service: Service = one, wanted: int = wanted) -> bool:
                found = service.client.get("/info").json()["rollout"]["comparisons"]
                return bool(found) and found[0]["images"] >= wanted

            until(compared, "a comparison")
        yield [first, second]


@pytest.mark.slow
def test_the_command_of_the_page_writes_and_signs_what_the_pods_have_shown(
    pods: list[Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    key_pair(tmp_path, "release")
    (command,) = re.findall(r"^    pthserve (attest .+)$", PAGE, re.MULTILINE)
    (check,) = re.findall(r"`pthserve (verify \S+ --key \S+)`", PAGE)
    for number, one in enumerate(pods, 7):
        command = command.replace(f"http://10.0.0.{number}:8000", one.url)
    done = called(*shlex.split(command))
    assert done.returncode == 0, done.stderr
    written = attestation.parsed((tmp_path / "cats.attestation.json").read_bytes(), "here")
    assert (written.digest, written.pods) == (NEW, 2)
    (agreement,) = written.agreement
    assert (agreement.other, agreement.images, agreement.estimate) == (OLD, 3, 1.0)
    assert "agreed with 0a0a0a0a0a0a on 100.00% of 3 images" in done.stdout
    verified = called(*shlex.split(check), "--cache-dir", tmp_path / "cache")
    assert verified.returncode == 0, verified.stderr
    (tmp_path / "cats.attestation.json").write_bytes(written.to_json().replace(b"1.0", b"0.5"))
    assert called(*shlex.split(check), "--cache-dir", tmp_path / "cache").returncode == 3


@pytest.mark.slow
def test_an_address_that_is_no_pod_is_refused(tmp_path: Path) -> None:
    for url, reason in (
        ("http://127.0.0.1:1", "does not respond"),
        ("nothing", "not a valid service address"),
    ):
        done = called("attest", url, "-o", tmp_path / "out.json")
        assert done.returncode == 1
        assert reason in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.fixture
def foreign() -> Iterator[str]:
    """The address of a service that answers everything with the same JSON, which has a version."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"version": "1"}')

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_service_of_another_kind_is_refused(foreign: str) -> None:
    with pytest.raises(PthserveError, match=f"{foreign} is not an address of pthserve"):
        _fetch(foreign, [])


@pytest.mark.slow
def test_inspect_shows_it_beside_the_model_and_says_if_it_is_of_another(tmp_path: Path) -> None:
    folder = tiny_pack(tmp_path / "cats").folder
    file = attestation.beside(folder)
    file.write_bytes(_attestation([pod()]).to_json())
    shown = called("inspect", folder)
    assert shown.returncode == 0, shown.stderr
    assert "of another model, 0b0b0b0b0b0b: not of this one" in shown.stdout
    found = json.loads(called("inspect", folder, "--json").stdout)
    file.write_bytes(_attestation([pod(digest=found["sha256"], rollout=None)]).to_json())
    shown = called("inspect", folder)
    assert "another model" not in shown.stdout.replace("no other model", "")
    assert "golden images: agreed (3)" in shown.stdout
    file.write_text("{}")
    assert "is not an attestation" in called("inspect", folder).stderr


@pytest.mark.slow
def test_in_a_registry_it_refers_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution project's registry has no list of referrers: they are under the tag of the digest."""
    monkeypatch.setattr(transfer, "PAUSES", (0, 0, 0))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    file = tmp_path / "cats.attestation.json"
    with registry(tmp_path) as host:
        address = push_model(tiny_pack(tmp_path / "cats").folder, f"oci://{host}/team/cats:v1")
        reference = parse(address)
        assert reference is not None
        assert attestation.pull(reference) == []
        made = _attestation([pod()])
        file.write_bytes(made.to_json())
        pushed = attestation.push(file, reference)
        assert attestation.push(file, reference) == pushed
        assert attestation.pull(reference) == [made]
        shown = called("inspect", address, "--cache-dir", tmp_path / "cache")
        assert shown.returncode == 0, shown.stderr
        assert "agreed with 0a0a0a0a0a0a on 90.00% of 10 images" in shown.stdout
        missing = parse(f"oci://{host}/team/cats:v2")
        assert missing is not None
        with pytest.raises(WeightsError, match="no such artefact"):
            attestation.push(file, missing)
