"""Reference: parse the address of a model that is not on this machine.

https://host/path            a file; `http://` where nobody can change it on the way, or its SHA-256 is known
s3://bucket/key              an object, or all objects below `key/`; likewise gs:// and az://container/key
hf://owner/name[@revision]   a repository of the Hugging Face Hub, or with `/path` a file or a folder in it
oci://registry/name[:tag][@sha256:...]  an artefact or an image in an OCI registry
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from pthserve.addresses import is_address, printable
from pthserve.errors import WeightsError
from pthserve.text import quoted

WEB, STORES = ("https", "http"), ("s3", "gs", "az")
SCHEMES = (*WEB, *STORES, "hf", "oci")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(rf"(?P<path>{_PART}/{_PART})(@(?P<revision>[^/]+))?(/(?P<inside>.+))?")
# As the distribution specification has them, and as Docker writes them.
_OCI = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9a-fA-F:]+\](:\d{1,5})?)/"
    r"(?P<path>[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)"
    r"(:(?P<revision>\w[\w.-]{0,127}))?(@sha256:(?P<digest>[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """An address of a model. Its text form holds no secret; see `printable`.

    text: as it was given, which may hold secrets. host: of a server, a registry; a bucket or container.
    path: of a file, without a leading slash; a key; the name of a repository. revision: of a Hub's
    repository; a registry's tag. digest: SHA-256 of a registry's manifest. inside: a path in a repository.
    """

    scheme: str
    text: str = field(repr=False)
    host: str
    path: str
    revision: str = ""
    digest: str = ""
    inside: str = ""

    def __str__(self) -> str:
        return printable(self.text)

    @property
    def name(self) -> str:
        """What the file or the folder is called."""
        return PurePosixPath(self.inside or self.path).name or self.host

    @property
    def immutable(self) -> bool:
        """Whether what it names can never be something else."""
        return bool(self.digest) or (self.scheme == "hf" and bool(_COMMIT.fullmatch(self.revision)))


def parse(source: str) -> Reference | None:
    """The address that `source` is, or None where it is a path.

    Raises:
        WeightsError: it is an address of another kind, or not a valid one.
    """
    if not is_address(source):
        return None
    scheme, _, rest = source.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise WeightsError(
            f"{printable(source)}: {scheme}:// is not supported; a model is a path, or an address that "
            f"begins with {', '.join(f'{one}://' for one in SCHEMES if one != 'http')}"
        )
    if scheme in WEB:
        return _web(source, scheme)
    if "?" in rest or "#" in rest or (scheme != "hf" and "@" in rest.partition("/")[0]):
        raise WeightsError(
            f"{printable(source)}: a {scheme}:// address holds no credentials, `?` or `#`; credentials are "
            "read from the environment (docs/sources.md)"
        )
    if scheme in STORES:
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise WeightsError(f"{printable(source)}: names no {'container' if scheme == 'az' else 'bucket'}")
        return Reference(scheme, source, bucket, key)
    return _hub(source, rest) if scheme == "hf" else _oci(source, rest)


def _parts(source: str) -> SplitResult | None:
    """The parts of an address; None if it cannot be divided, or its port is not a number up to 65535."""
    try:
        parts = urlsplit(source)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _web(source: str, scheme: str) -> Reference:
    parts = _parts(source)
    if parts is None or not parts.hostname or any(character.isspace() for character in source):
        raise WeightsError(f"{printable(source)} is not a valid address")
    path = unquote(parts.path).strip("/")
    if not path:
        raise WeightsError(f"{printable(source)}: names a server, but no file on it")
    return Reference(scheme, source, parts.hostname, path)


def _hub(source: str, rest: str) -> Reference:
    found = _HUB.fullmatch(rest.rstrip("/"))
    if found is None:
        raise WeightsError(
            f"{printable(source)}: is not a repository of the Hub; write hf://owner/name, "
            "hf://owner/name@revision or hf://owner/name@revision/path"
        )
    fields = {name: value or "" for name, value in found.groupdict().items()}
    return Reference("hf", source, "", **fields | {"revision": unquote(fields["revision"])})


def _oci(source: str, rest: str) -> Reference:
    found = _OCI.fullmatch(rest)
    if found is None or _parts(source) is None:
        raise WeightsError(
            f"{printable(source)}: is not the name of an artefact; write oci://registry/name:tag or "
            "oci://registry/name@sha256:DIGEST, in lower case"
        )
    fields = {name: value or "" for name, value in found.groupdict().items()}
    return Reference("oci", source, **fields)


def safe_name(name: str, reference: object) -> str:
    """`name` as a path below the model's folder.

    Raises:
        WeightsError: it leads elsewhere, or is not a name that can be shown.
    """
    path = PurePosixPath(name)
    plain = path.as_posix()
    if path.is_absolute() or ".." in path.parts or plain == "." or not plain.isprintable() or "\\" in plain:
        raise WeightsError(
            f"{reference}: the file name {quoted(name)!a} is refused: it leads out of the folder, or is not "
            "printable"
        )
    if any(len(part.encode()) > 255 or part.startswith(".wh.") for part in path.parts):
        raise WeightsError(
            f"{reference}: the file name {quoted(name)!a} is refused: it is too long, or removes a file"
        )
    return plain
