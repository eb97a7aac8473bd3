"""Artefact: a model in an OCI registry, as an image that contains the model's files.

`pthserve push` makes an OCI image with one layer, an uncompressed tar of the model's folder. Every container
runtime can mount it as a Kubernetes volume of type `image`. These images, artefacts of CNCF ModelPack, and
those of `oras push` can be read.
"""

import gzip
import hashlib
import json
import platform
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from pthserve.errors import WeightsError
from pthserve.sources.reference import Reference, safe_name
from pthserve.sources.registry import INDEXES, MANIFESTS, Registry, sha256
from pthserve.sources.transfer import BLOCK, MAX_FILES, RemoteFile, retried
from pthserve.text import quoted

CONFIG, LAYER = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar"
MAX_LAYERS = 1000
_TITLE = "org.opencontainers.image.title"
"""The annotation with which ORAS names a file; its layer is then that file, whatever its media type is."""
_FILEPATH = "org.cncf.model.filepath"
"""The annotation with which ModelPack names a file."""
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: a file of the model called `path`, or a tar of several where that is empty."""

    blob: RemoteFile
    path: str
    gzip: bool = False


def layers(registry: Registry) -> list[Layer]:
    """The layers of the artefact that a registry was made for, in order.

    Raises:
        WeightsError: there is none, it is refused, or it is of a kind that is not supported.
    """
    reference = registry.reference
    name = f"sha256:{reference.digest}" if reference.digest else reference.revision or "latest"
    for _ in range(2):
        content, kind = retried(partial(registry.manifest, name), str(reference))
        try:
            manifest = json.loads(content)
            kind = kind if kind in (*MANIFESTS, *INDEXES) else manifest["mediaType"]
            if kind in INDEXES:
                name = _chosen(manifest["manifests"], reference)
                continue
            found = [_layer(registry, one, number) for number, one in enumerate(manifest["layers"])]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WeightsError(f"{reference}: its manifest is not that of an OCI artefact") from None
        if not 0 < len(found) <= MAX_LAYERS:
            raise WeightsError(f"{reference}: has {len(found)} layers; a model has 1 to {MAX_LAYERS}")
        return found
    raise WeightsError(f"{reference}: is an index of indexes; name a manifest by its digest")


def _chosen(manifests: Sequence[Mapping[str, Any]], reference: Reference) -> str:
    """The digest of the manifest for this machine, or of the only one."""
    machine = _MACHINES.get(platform.machine(), platform.machine())
    fits = [
        one
        for one in manifests
        if (one.get("platform") or {}).get("os") == "linux" and one["platform"].get("architecture") == machine
    ]
    chosen = fits[:1] or (manifests if len(manifests) == 1 else [])
    if not chosen:
        raise WeightsError(f"{reference}: has no manifest for linux/{machine}; name one by its digest")
    return str(chosen[0]["digest"])


def _layer(registry: Registry, descriptor: Mapping[str, Any], number: int) -> Layer:
    kind = str(descriptor["mediaType"])
    annotations = descriptor.get("annotations") or {}
    blob = registry.blob(descriptor, f"layer-{number}")
    title, filepath = annotations.get(_TITLE), annotations.get(_FILEPATH)
    if title and annotations.get("io.deis.oras.content.unpack") != "true":
        return Layer(blob, safe_name(str(title), registry.reference))
    if kind.endswith(".raw"):
        return Layer(blob, safe_name(str(filepath or ""), registry.reference))
    if kind.endswith((".tar", ".tar+gzip", ".tar.gzip")):
        return Layer(blob, "", gzip=kind.endswith("gzip"))
    raise WeightsError(
        f"{registry.reference}: a layer is of the kind {quoted(kind)}, which is not supported; push the "
        "model with `pthserve push`"
    )


def unpack(found: Sequence[Layer], blobs: Path, folder: Path, most: int, reference: Reference) -> None:
    """Put the files of the layers, which lie in `blobs`, into `folder`; the blobs are removed on the way.

    Only files and folders are made: an artefact with links or devices is refused.

    Args:
        most: Largest size in bytes of all files.

    Raises:
        WeightsError: the layers are not whole, too large, or hold what is refused.
    """
    room, count = most, 0
    for layer in found:
        blob = blobs / layer.blob.name
        if layer.path:
            target = folder / layer.path
            target.parent.mkdir(parents=True, exist_ok=True)
            blob.replace(target)
            continue
        try:
            with blob.open("rb") as raw:
                content = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if layer.gzip else raw
                with tarfile.open(fileobj=content, mode="r|") as tar:
                    for member in tar:
                        room, count = room - max(0, member.size), count + 1
                        if room < 0 or count > MAX_FILES:
                            raise WeightsError(
                                f"{reference}: its files are more than {MAX_FILES}, or larger than {most} "
                                "bytes; raise --max-download if it is the right artefact"
                            )
                        _extract(tar, member, folder, reference)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise
            raise WeightsError(f"{reference}: a layer is not a tar archive: {quoted(error)}") from None
        blob.unlink()


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, reference: Reference) -> None:
    if member.isdir():
        return
    if not member.isreg():
        raise WeightsError(
            f"{reference}: {quoted(member.name)!a} is a link or a device, which a model must not contain"
        )
    target = folder / safe_name(member.name, reference)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None  # it is a file
    with content, target.open("wb") as output:
        while block := content.read(BLOCK):
            output.write(block)


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose files are those of `folder`: its manifest, its configuration and its one layer."""

    folder: Path
    names: tuple[str, ...]
    manifest: bytes
    config: bytes
    layer: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of the manifest: the same files, the same digest."""
        return sha256(self.manifest)

    def content(self) -> Iterator[bytes]:
        """The bytes of the layer."""
        return _tar(self.folder, self.names)


def image(folder: Path, names: Sequence[str], annotations: Mapping[str, str]) -> Image:
    """The image of the files `names` in `folder`. The same files and annotations give the same bytes."""
    digest, size = hashlib.sha256(), 0
    for block in _tar(folder, names):
        digest.update(block)
        size += len(block)
    layer = {"mediaType": LAYER, "digest": f"sha256:{digest.hexdigest()}", "size": size}
    config = _json(
        {
            "architecture": "amd64",  # the specification wants one; the files are the same for all
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0],
        "config": {"mediaType": CONFIG, "digest": sha256(config), "size": len(config)},
        "layers": [layer],
        "annotations": dict(sorted(annotations.items())),
    }
    return Image(folder, tuple(names), _json(manifest), config, layer)


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


def _tar(folder: Path, names: Sequence[str]) -> Iterator[bytes]:
    """An archive with nothing in it but names and contents: no owner, no time, and one order."""
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            file.seek(0, 2)
            header = tarfile.TarInfo(name)
            header.size, header.mode = file.tell(), 0o644
            file.seek(0)
            yield header.tobuf(tarfile.PAX_FORMAT)
            rest = header.size
            while rest:
                block = file.read(min(BLOCK, rest))
                if not block:
                    raise WeightsError(f"{folder / name}: became shorter while it was read")
                rest -= len(block)
                yield block
            yield bytes(-header.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def push(made: Image, reference: Reference) -> str:
    """Bring an image to a registry, and return its digest. Blobs that are there already are not sent again.

    Raises:
        WeightsError: the registry refuses it, or cannot be reached.
    """
    address = str(reference)
    config = {"digest": sha256(made.config), "size": len(made.config)}
    with Registry(reference, push=True) as registry:
        retried(lambda: upload(registry, config, lambda: iter([made.config])), address)
        retried(lambda: upload(registry, made.layer, made.content), address)
        url = f"{registry.root}/manifests/{reference.revision or made.digest}"
        headers = {"Content-Type": MANIFESTS[0]}
        send = partial(registry.send, "PUT", url, headers=headers, content=made.manifest)
        registry.check(retried(send, address))
    return made.digest


def upload(registry: Registry, descriptor: Mapping[str, Any], content: Any) -> None:
    """Bring a blob to a registry, unless it is there; content: returns its bytes, in blocks."""
    there = registry.send("HEAD", f"{registry.root}/blobs/{descriptor['digest']}")
    if there.is_success:
        return
    begun = registry.send("POST", f"{registry.root}/blobs/uploads/")
    registry.check(begun)
    location = begun.request.url.join(begun.headers.get("Location", ""))
    reply = registry.send(
        "PUT",
        str(location.copy_merge_params({"digest": descriptor["digest"]})),
        headers={"Content-Type": "application/octet-stream", "Content-Length": str(descriptor["size"])},
        content=content(),
    )
    registry.check(reply)
