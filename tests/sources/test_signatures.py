"""signatures: what is not as the owner of the key has signed it is refused before it is parsed."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pthserve.errors import SignatureError, WeightsError
from pthserve.files import weights
from pthserve.loading import packed
from pthserve.loading.load import load
from pthserve.options import ModelOptions
from pthserve.sources.fetched import fetched
from pthserve.sources.signatures import SIGNATURE, sign, verify

from ..packs import tiny_pack
from .keys import key_pair
from .servers import FileServer, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """The private and the public key of the owner."""
    return key_pair(tmp_path, "owner")


@pytest.fixture
def pack(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A signed pack."""
    folder = tiny_pack(tmp_path / "cats").folder
    sign(folder, keys[0])
    return folder


@pytest.fixture
def options(tmp_path: Path, keys: tuple[Path, Path]) -> ModelOptions:
    return ModelOptions(cache_dir=tmp_path / "cache", require_signature=keys[1])


@pytest.fixture(autouse=True)
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was read of a model, beyond its signature."""
    read: list[Path] = []

    def noted(function: Callable[..., object]) -> Callable[..., object]:
        def call(path: Path, *arguments: object, **options: object) -> object:
            read.append(path)
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr(packed, "read", noted(packed.read))
    monkeypatch.setattr(weights, "read", noted(weights.read))
    return read


def test_a_signed_pack_is_served_from_a_private_copy(
    pack: Path, options: ModelOptions, parsed: list[Path]
) -> None:
    model = load(str(pack), options)
    model.forward.close()
    assert parsed
    assert all(options.cache_dir in path.parents for path in parsed)


def _byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _repacked(pack: Path) -> None:
    """Another model with sums of its own that are right: only the signature tells."""
    signature = (pack / SIGNATURE).read_bytes()
    shutil.rmtree(pack)
    tiny_pack(pack, seed=2)
    (pack / SIGNATURE).write_bytes(signature)


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (lambda pack: _byte(pack / "model.bin"), r"changed after signing: model\.bin was changed"),
        (lambda pack: _byte(pack / "manifest.json"), r"changed after signing: manifest\.json was changed"),
        (lambda pack: _byte(pack / "SHA256SUMS"), "changed after signing: SHA256SUMS was changed"),
        (lambda pack: (pack / "golden" / "1.png").unlink(), r"changed after signing: missing: golden/1\.png"),
        (lambda pack: (pack / "more.bin").write_bytes(b"x"), r"changed after signing: extra: more\.bin"),
        (_repacked, "changed after signing: .*manifest"),
        (lambda pack: (pack / SIGNATURE).unlink(), r"is not signed: there is no model\.sig"),
        (lambda pack: (pack / SIGNATURE).write_text("{}"), "is not a signature in the format"),
        (lambda pack: (pack / SIGNATURE).write_bytes(b"\xff\xfe"), "is not a signature in the format"),
        (lambda pack: _byte(pack / SIGNATURE), "its signature is not accepted"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_tampered_pack_is_refused_and_nothing_of_it_is_parsed(
    tamper: Callable[[Path], object], why: str, pack: Path, options: ModelOptions, parsed: list[Path]
) -> None:
    tamper(pack)
    with pytest.raises(SignatureError, match=why):
        load(str(pack), options)
    assert not parsed


def test_the_signature_of_another_key_is_refused(
    pack: Path, options: ModelOptions, tmp_path: Path, parsed: list[Path]
) -> None:
    sign(pack, key_pair(tmp_path, "other")[0])
    with pytest.raises(SignatureError, match="it was made with another key, or is forged"):
        load(str(pack), options)
    assert not parsed


def test_a_weights_file_has_its_signature_beside_it(
    tmp_path: Path, keys: tuple[Path, Path], options: ModelOptions, parsed: list[Path]
) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"these are no weights")
    with pytest.raises(SignatureError, match=r"is not signed: there is no a\.pth\.sig"):
        load(str(file), options)
    assert sign(file, keys[0]) == tmp_path / "a.pth.sig"
    found = fetched(str(file), options)
    assert found.read_bytes() == b"these are no weights"
    file.write_bytes(b"altered")
    with pytest.raises(SignatureError, match="was changed"):
        load(str(file), options)
    assert not parsed


def test_a_card_beside_a_signed_file_is_not_of_the_model(
    tmp_path: Path, keys: tuple[Path, Path], options: ModelOptions
) -> None:
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "a.pth"
    file.write_bytes(b"weights")
    sign(file, keys[0])
    (tmp_path / "models" / "model.yaml").write_text("architecture: evil:code\n")
    found = fetched(str(file), options)
    assert {one.name for one in found.parent.iterdir()} == {"a.pth", "a.pth.sig"}


def test_what_was_verified_is_what_is_loaded(pack: Path, options: ModelOptions) -> None:
    found = fetched(str(pack), options)
    _byte(pack / "model.bin")
    verify(found, options.require_signature)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [0, 1], ids=["downloads", "the model's folder"])
def test_a_folder_that_others_may_write_to_holds_no_signed_model(
    depth: int, pack: Path, options: ModelOptions
) -> None:
    found = fetched(str(pack), options)
    assert options.cache_dir is not None
    folder = options.cache_dir / Path(*found.relative_to(options.cache_dir).parts[: depth + 1])
    folder.chmod(0o770)
    with pytest.raises(WeightsError, match=r"its signature would not protect it in .* set its mode to 700"):
        fetched(str(pack), options)
    folder.chmod(0o750)
    assert fetched(str(pack), options) == found


def test_a_download_brings_the_signature_with_it(
    tmp_path: Path, keys: tuple[Path, Path], options: ModelOptions
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "a.pth").write_bytes(b"weights")
    with serving(FileServer(served)) as server:
        with pytest.raises(Exception, match=r"a\.pth\.sig responds with 404"):
            fetched(f"{server.url}/a.pth", options)
        sign(served / "a.pth", keys[0])
        assert fetched(f"{server.url}/a.pth", options).read_bytes() == b"weights"
        (served / "a.pth").write_bytes(b"altered")
        with pytest.raises(SignatureError, match="was changed"):
            fetched(f"{server.url}/a.pth", options)


def test_a_model_that_was_fetched_without_a_signature_is_not_taken_with_one(
    tmp_path: Path, options: ModelOptions
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "a.pth").write_bytes(b"weights")
    with serving(FileServer(served)) as server:
        fetched(f"{server.url}/a.pth", options.model_copy(update={"require_signature": None}))
        with pytest.raises(Exception, match=r"a\.pth\.sig responds with 404"):
            fetched(f"{server.url}/a.pth", options)


def test_the_password_of_a_key_is_read_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"weights")
    private, public = key_pair(tmp_path, "locked", "secretpassword")
    with pytest.raises(SignatureError, match="is not a private key that can be used") as caught:
        sign(file, private)
    monkeypatch.setenv("PTHSERVE_SIGNING_PASSWORD", "secretpassword")
    sign(file, private)
    verify(file, public)
    assert "secretpassword" not in str(caught.value)


@pytest.mark.parametrize("key", ["owner.key", "none", "a.pth"])
def test_what_is_not_a_public_key_is_told(
    key: str, pack: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "a.pth").write_bytes(b"\x80")
    with pytest.raises(SignatureError, match="is not a public key that can be used"):
        verify(pack, tmp_path / key)


def test_other_tools_of_the_format_verify_what_is_signed_here_and_the_other_way_round(
    pack: Path, keys: tuple[Path, Path], options: ModelOptions
) -> None:
    tool = [sys.executable, "-m", "model_signing"]
    signature = ["--signature", str(pack / SIGNATURE)]
    done = subprocess.run([*tool, "verify", "key", str(pack), *signature, "--public_key", str(keys[1])])
    assert done.returncode == 0
    (pack / SIGNATURE).unlink()
    done = subprocess.run([*tool, "sign", "key", str(pack), *signature, "--private_key", str(keys[0])])
    assert done.returncode == 0
    load(str(pack), options).forward.close()
