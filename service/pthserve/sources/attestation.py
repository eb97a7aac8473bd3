"""Attestation: what a model showed at a rollout, in a file beside it or in its registry as a referrer."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pthserve.errors import WeightsError
from pthserve.files import regular_files
from pthserve.files.documents import parse_json
from pthserve.sources.artefact import upload
from pthserve.sources.reference import Reference
from pthserve.sources.registry import INDEXES, MANIFESTS, Registry, sha256
from pthserve.sources.signatures import signature_of
from pthserve.sources.transfer import retried
from pthserve.text import quoted

KIND = "application/vnd.pthserve.attestation.v1+json"
"""The type of the artefact and of its layer."""
ENDING = ".attestation.json"
MAX_BYTES = 2**16
"""Maximum size of an attestation in bytes."""
_EMPTY = b"{}"
_TITLE = "org.opencontainers.image.title"
_DIGEST = r"^[0-9a-f]{64}$"


class Share(BaseModel):
    """A share of images, and the bounds of its 95 % confidence interval (Wilson), each 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(ge=0)
    lower: float = Field(ge=0, le=1)
    estimate: float = Field(ge=0, le=1)
    upper: float = Field(ge=0, le=1)

    def words(self) -> str:
        """Return the figures in words."""
        return f"{self.estimate:.2%} of {self.images} images ({self.lower:.2%} to {self.upper:.2%})"


class Agreement(Share):
    """How often the model gave the answers of another one on live images.

    other: the digest of that. difference: the mean of the largest difference of a probability, or of what the
    task compares in its place.
    """

    other: str = Field(pattern=_DIGEST)
    difference: float = Field(ge=0)


class Attestation(BaseModel):
    """What a model showed at a rollout.

    pods: number of pods whose figures are added up. failures: comparisons that failed, by reason.
    accuracy: by the true classes that clients reported; None without any.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(default=1, ge=1, le=1)
    created: str = Field(max_length=64)
    name: str = Field(max_length=1000)
    model_version: str = Field(max_length=1000)
    digest: str = Field(pattern=_DIGEST)
    engine: str = Field(max_length=100)
    precision: str = Field(max_length=100)
    pthserve: str = Field(max_length=100)
    pods: int = Field(ge=1)
    golden: str = Field(max_length=100)
    golden_images: int = Field(ge=0)
    agreement: tuple[Agreement, ...] = Field(max_length=100)
    failures: dict[str, int] = Field(max_length=100)
    accuracy: Share | None

    def to_json(self) -> bytes:
        """Return the document, the same bytes for the same content."""
        return json.dumps(self.model_dump(), indent=2, sort_keys=True).encode() + b"\n"

    def words(self) -> str:
        """Return what was shown, one line each."""
        lines = [
            f"{quoted(self.created)}: {self.pods} pods of pthserve {quoted(self.pthserve)}, "
            f"{quoted(self.engine)} at {quoted(self.precision)}",
            f"golden images: {quoted(self.golden)} ({self.golden_images})",
        ]
        lines += [f"agreed with {one.other[:12]} on {one.words()}" for one in self.agreement]
        if not self.agreement:
            lines.append("agreed with no other model: nothing was compared")
        if self.failures:
            failed = ", ".join(f"{quoted(name)} {count}" for name, count in sorted(self.failures.items()))
            lines.append(f"comparisons that failed: {failed}")
        if self.accuracy is not None:
            lines.append(f"correct by reported classes: {self.accuracy.words()}")
        return "\n".join(lines)


def parsed(content: bytes, source: str) -> Attestation:
    """Return the attestation in `content`; raises WeightsError, which names `source`."""
    try:
        return Attestation.model_validate(parse_json(content.decode()))
    except (ValidationError, ValueError) as error:
        first = error.errors(include_input=False)[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise WeightsError(f"{source}: is not an attestation of a model: {quoted(reason, 200)}") from None


def beside(model: Path) -> Path:
    """Return where the attestation of a model lies: `NAME.attestation.json` beside the file or folder."""
    path = model.absolute() if model.name else model.resolve()
    return path.with_name(f"{path.name}{ENDING}")


def read(model: Path) -> Attestation | None:
    """Return the attestation beside a model, if there is one; raises WeightsError if it is not valid."""
    file = beside(model)
    try:
        return parsed(regular_files.read(file, MAX_BYTES), str(file))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror}") from error


def push(file: Path, reference: Reference) -> str:
    """Add the attestation in `file`, with its signature if there is one, to an artefact in a registry.

    It becomes a referrer of the artefact, by the OCI distribution specification 1.1; for a registry without
    referrers, it is listed under the tag that the specification names for them.

    Returns:
        The digest of the referrer.

    Raises:
        WeightsError: There is no such artefact, or the registry refuses it or cannot be reached.
    """
    files = [one for one in (file, signature_of(file)) if one.exists()]
    contents = {one.name: regular_files.read(one, MAX_BYTES) for one in files}
    parsed(contents[file.name], str(file))
    address = str(reference)
    with Registry(reference, push=True) as registry:
        content, kind = retried(partial(registry.manifest, _named(reference)), address)
        subject = _descriptor(kind, content)
        layers = [
            {**_descriptor(KIND, content), "annotations": {_TITLE: name}}
            for name, content in contents.items()
        ]
        config = _descriptor("application/vnd.oci.empty.v1+json", _EMPTY)
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFESTS[0],
                "artifactType": KIND,
                "config": config,
                "layers": layers,
                "subject": subject,
            }
        )
        for descriptor, content in ((config, _EMPTY), *zip(layers, contents.values(), strict=True)):
            retried(partial(upload, registry, descriptor, lambda content=content: iter([content])), address)
        reply = retried(
            partial(_put, registry, sha256(manifest), MANIFESTS[0], manifest),
            address,
        )
        if "OCI-Subject" not in reply.headers:
            own = {**_descriptor(MANIFESTS[0], manifest), "artifactType": KIND}
            _list_by_tag(registry, str(subject["digest"]), own)
    return sha256(manifest)


def pull(reference: Reference) -> list[Attestation]:
    """Return the attestations of an artefact in a registry, in the order in which it lists them.

    Raises:
        WeightsError: One of them is not valid, or the registry refuses access or cannot be reached.
    """
    address = str(reference)
    with Registry(reference) as registry:
        content, _ = retried(partial(registry.manifest, _named(reference)), address)
        digest = sha256(content)
        found = []
        for one in _referrers(registry, digest):
            if one.get("artifactType") == KIND:
                text, _ = retried(partial(registry.manifest, str(one["digest"])), address)
                layer = parse_json(text.decode())["layers"][0]
                reply = retried(
                    partial(registry.send, "GET", f"{registry.root}/blobs/{layer['digest']}"), address
                )
                registry.check(reply)
                if len(reply.content) > MAX_BYTES or sha256(reply.content) != layer["digest"]:
                    raise WeightsError(f"{address}: the registry sent another attestation than it lists")
                found.append(parsed(reply.content, address))
        return found


def _named(reference: Reference) -> str:
    return f"sha256:{reference.digest}" if reference.digest else reference.revision or "latest"


def _referrers(registry: Registry, digest: str) -> list[Mapping[str, Any]]:
    """Return the descriptors of the artefacts that refer to `digest`."""
    for place in (f"referrers/{digest}", f"manifests/{_tag(digest)}"):
        headers = {"Accept": INDEXES[0]}
        url = f"{registry.root}/{place}"
        reply = retried(partial(registry.send, "GET", url, headers=headers), str(registry.reference))
        if reply.is_success:
            found: list[Mapping[str, Any]] = parse_json(reply.text).get("manifests") or []
            return found
    return []


def _list_by_tag(registry: Registry, digest: str, descriptor: Mapping[str, Any]) -> None:
    """Add a referrer to the index under the tag of `digest`."""
    listed = [one for one in _referrers(registry, digest) if one["digest"] != descriptor["digest"]]
    index = _json(
        {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [*listed, descriptor]},
    )
    retried(partial(_put, registry, _tag(digest), INDEXES[0], index), str(registry.reference))


def _put(registry: Registry, name: str, kind: str, content: bytes) -> Any:
    url = f"{registry.root}/manifests/{name}"
    reply = registry.send("PUT", url, headers={"Content-Type": kind}, content=content)
    registry.check(reply)
    return reply


def _tag(digest: str) -> str:
    return digest.replace(":", "-")


def _descriptor(kind: str, content: bytes) -> Mapping[str, Any]:
    return {"mediaType": kind, "digest": sha256(content), "size": len(content)}


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()
