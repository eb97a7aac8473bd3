"""Hub: the files of a Hugging Face repository that a model needs.

huggingface_hub knows the addresses, the user's token and the mirror that HF_ENDPOINT names. The files come as
those of any other source do, so that they are resumed, bounded and checked alike.
"""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pthserve.addresses import is_loopback, printable, redacted
from pthserve.errors import WeightsError
from pthserve.files.card import FILE, SUFFIXES, USUAL
from pthserve.sources import web
from pthserve.sources.reference import Reference
from pthserve.sources.transfer import Interrupted, Listing, RemoteFile, retried
from pthserve.text import quoted

CONFIGURATIONS = (FILE, "config.json", "preprocessor_config.json", "labels.txt")
"""What describes the weights, by name."""
PACK = "SHA256SUMS"
"""What the repository of a packed model has."""

_SHARD = re.compile(r"(?P<stem>model|pytorch_model)-\d{5}-of-\d{5}\.(?P<kind>safetensors|bin)")


def files(reference: Reference, *, plain: bool, signed: bool) -> Listing:
    """The files of the repository, at the commit that its revision is now, which a model needs; see `wanted`.

    Args:
        plain: Whether a mirror without TLS may be on another machine, for a file whose SHA-256 is known.
        signed: All files come, as the signature of a repository covers them; with a file, `PATH.sig`.

    Raises:
        WeightsError: there is no such repository or file, it must not be read, or huggingface_hub is not
            installed.
    """
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError:
        raise WeightsError(
            f"{reference}: huggingface_hub is not installed; install pthserve[sources], or use the full image"
        ) from None
    api = hub.HfApi(library_name="pthserve")
    _check_mirror(reference, api.endpoint, plain=plain)
    info = retried(lambda: _info(reference, api), str(reference))
    siblings = {one.rfilename: one for one in info.siblings or ()}
    inside = reference.inside
    is_file = inside in siblings
    if is_file:
        root = str(PurePosixPath(inside).parent)
        names = [inside, *([f"{inside}.sig"] if signed else [])]
    else:
        root = inside or "."
        below = [name for name in siblings if root == "." or name.startswith(f"{root}/")]
        names = below if signed else wanted(below, root, reference)
    if lost := [name for name in names if name not in siblings]:
        raise WeightsError(f"{reference}: has no {lost[0]}, the signature that --require-signature needs")
    address = partial(hub.hf_hub_url, reference.path, revision=info.sha)
    token = hub.get_token()
    headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
    client = web.client(address("x"), headers, plain=plain and is_file)
    found = []
    for name in names:
        large, short = siblings[name].lfs, name if root == "." else name.removeprefix(f"{root}/")
        shown = f"hf://{reference.path}@{info.sha}/{name}"
        found.append(
            RemoteFile(
                short,
                shown,
                partial(web.open_file, client.stream, address(name)),
                size=large.size if large else siblings[name].size,
                sha256=large.sha256 if large else None,
                version=siblings[name].blob_id,
            )
        )
    return Listing(found, is_file=is_file, close=client.close)


def _check_mirror(reference: Reference, endpoint: str, *, plain: bool) -> None:
    if endpoint.startswith("http://") and not plain and not is_loopback(urlsplit(endpoint).hostname or ""):
        raise WeightsError(
            f"{reference}: the mirror {printable(endpoint)} is without TLS, so the data can be changed "
            "in transit; use https://, or name one file and give its SHA-256 (--sha256)"
        )


def _info(reference: Reference, api: Any) -> Any:
    from huggingface_hub import errors

    try:
        return api.model_info(
            reference.path, revision=reference.revision or None, files_metadata=True, timeout=30
        )
    except errors.GatedRepoError:
        raise WeightsError(
            f"{reference}: the repository is gated: accept its conditions, and give a token in HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"{reference}: there is no such repository, or it is private: give a token in HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightsError(f"{reference}: the repository has no such revision") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status >= 500 or status == 429:
            raise Interrupted(f"the server responds with {status}") from None
        raise WeightsError(f"{reference}: the server responds with {status}") from None
    except (errors.HFValidationError, errors.OfflineModeIsEnabled) as error:
        raise WeightsError(f"{reference}: {_reason(error)}") from None
    except Exception as error:  # of its HTTP client, which is another one in each major version
        raise Interrupted(_reason(error) or type(error).__name__) from None


def _reason(error: Exception) -> str:
    return quoted(redacted(" ".join(str(error).split())), 300)


def wanted(names: Iterable[str], root: str, reference: Reference) -> list[str]:
    """Which of a repository's files a model in the folder `root` needs.

    These are its weights, once, and what describes them.

    A packed model is taken whole. Of several formats of the same weights the safest is taken, as transformers
    does.

    Raises:
        WeightsError: there are no weights, or several files of which nobody can say which is meant.
    """
    prefix = "" if root == "." else f"{root}/"
    here = {name.removeprefix(prefix): name for name in names}
    if PACK in here:
        return list(here.values())
    top = [name for name in here if "/" not in name]
    described = [name for name in top if name in CONFIGURATIONS]
    for usual in USUAL:
        if usual in top:
            stem, kind = usual.split(".")[0], usual.split(".")[1]
            shards = [
                name
                for name in top
                if usual.endswith(".index.json")
                and (found := _SHARD.fullmatch(name))
                and (found["stem"], found["kind"]) == (stem, kind)
            ]
            return [here[name] for name in (*described, usual, *shards)]
    weights = [name for name in top if name.endswith(SUFFIXES)]
    if len(weights) == 1:
        return [here[name] for name in (*described, *weights)]
    if FILE in described and weights:
        return [here[name] for name in (*described, *weights)]  # the card says which
    if not weights:
        raise WeightsError(
            f"{reference}: has no weights file in {'it' if root == '.' else root}; it has "
            f"{quoted(', '.join(sorted(top)) or 'no files')}"
        )
    raise WeightsError(
        f"{reference}: has several weights files: {quoted(', '.join(sorted(weights)), 400)}; name one, such "
        f"as hf://{reference.path}@{reference.revision or 'main'}/{prefix}{min(weights)}"
    )
