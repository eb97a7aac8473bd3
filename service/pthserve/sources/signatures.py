"""Signatures: sign and verify models with the user's own key, in the format of OpenSSF Model Signing.

A folder is signed by `model.sig` in it, over all other files; a file by `FILE.sig` beside it. Any tool that
knows the format verifies them, and so does `model_signing verify key`.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from pthserve.errors import SignatureError, WeightsError
from pthserve.text import quoted

SIGNATURE = "model.sig"
"""In a folder."""
PASSWORD = "PTHSERVE_SIGNING_PASSWORD"  # noqa: S105
"""The environment variable with the password of an encrypted private key."""
MAX_SIGNATURE = 16 * 2**20
"""Bytes; a signature names each file of the model."""


_LEFT_OUT = (".git", ".gitattributes", ".github", ".gitignore")
"""Files of version control, which a signature does not cover."""


def files_of(folder: Path) -> list[Path]:
    """The files of the model in `folder`, relative to it.

    Left out is what no signature covers, and the folders in which Kubernetes keeps the versions of a volume.
    """
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [one for one in found if one.parts[0] not in _LEFT_OUT and not one.parts[0].startswith("..")]


def signature_of(model: Path) -> Path:
    """Where the signature of a model lies."""
    return model / SIGNATURE if model.is_dir() else model.with_name(f"{model.name}.sig")


def sign(model: Path, key: Path) -> Path:
    """Sign a model with a private key, and return the file with the signature; one that is there is replaced.

    Args:
        key: A PEM file with a private key on the curve P-256, P-384 or P-521.

    Raises:
        WeightsError: there is no such model, or it has links in it.
        SignatureError: the key cannot be used, or model-signing is not installed.
    """
    if not model.exists():
        raise WeightsError(f"{model}: no such file or folder")
    signing = _library().signing
    file = signature_of(model)
    password = os.environ.get(PASSWORD)
    part = file.with_name(f".{file.name}.part")
    try:
        signer = signing.Config().use_elliptic_key_signer(
            private_key=key, password=password.encode() if password else None
        )
    except (OSError, ValueError, TypeError) as error:
        raise SignatureError(f"{key}: is not a private key that can be used: {quoted(error, 300)}") from None
    try:
        signer.set_hashing_config(_hashing(model, (file, part))).sign(model, part)
        part.replace(file)
    except ValueError as error:
        raise WeightsError(f"{model}: cannot be signed: {quoted(error, 300)}") from None
    except OSError as error:
        raise WeightsError(f"{file}: cannot be written: {error.strerror}") from error
    return file


def verify(model: Path, key: Path, source: str | None = None) -> None:
    """Return if every byte of a model is as the owner of `key` has signed it.

    Args:
        key: A PEM file with a public key.
        source: What messages call the model, where `model` is a copy of it.

    Raises:
        SignatureError: it has no signature, one of another key, or was changed since; or the key cannot be
            used, or model-signing is not installed.
    """
    file = signature_of(model)
    source = source or str(model)
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise SignatureError(
            f"{source}: is not signed: there is no {file.name}, and a signature is required; sign it with "
            "`pthserve sign`"
        ) from None
    if size > MAX_SIGNATURE:
        raise SignatureError(f"{file}: is larger than {MAX_SIGNATURE} bytes, and not a signature")
    verifying = _library().verifying
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError) as error:
        raise SignatureError(f"{key}: is not a public key that can be used: {quoted(error, 300)}") from None
    try:
        verifier.set_hashing_config(_hashing(model, (file,))).verify(model, file)
    except Exception as error:  # the library lets through what parsers and the cryptography raise
        raise SignatureError(f"{source}: its signature is not accepted: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = str(error)
    if "Key mismatch" in text or type(error).__name__ == "InvalidSignature":
        return "it was made with another key, or is forged"
    if text.startswith("Signature mismatch"):
        changed = [
            f"{name} was changed" for name in re.findall(r"Hash mismatch for \\?'(.+?)\\?': Expected", text)
        ]
        others = re.findall(r"(Extra|Missing) files (?:found )?in model \\?'[^']*': ([^\"'\]]*)", text)
        listed = [*changed, *(f"{kind.lower()}: {names}" for kind, names in others)]
        return quoted(f"the model was changed after signing: {'; '.join(listed)}", 600)
    if isinstance(error, KeyError | json.JSONDecodeError | UnicodeDecodeError):
        return "it is not a signature in the format of OpenSSF Model Signing"
    return quoted(text or type(error).__name__, 300)


def _hashing(model: Path, left_out: tuple[Path, ...]) -> Any:
    config = _library().hashing.Config()
    return config.set_ignored_paths(paths=[one.name for one in left_out] if model.is_dir() else [])


def _library() -> Any:
    try:
        import model_signing
    except ModuleNotFoundError:
        raise SignatureError(
            "model-signing is not installed; install pthserve[signing], or use the full image"
        ) from None
    return model_signing
