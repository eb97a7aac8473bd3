"""reference: what a user may name as a model that is elsewhere."""

import pytest

from pthserve.errors import WeightsError
from pthserve.sources.reference import Reference, parse, safe_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "ab" * 32


@pytest.mark.parametrize("path", ["a.pth", "/models/a.pth", "demo", "C:a.pth", "a:b/c", ""])
def test_a_path_is_not_an_address(path: str) -> None:
    assert parse(path) is None


@pytest.mark.parametrize(
    ("source", "scheme", "host", "path", "name"),
    [
        ("https://host:8/models/a.pth?sig=1", "https", "host", "models/a.pth", "a.pth"),
        ("HTTPS://host/a%20b.pth", "https", "host", "a b.pth", "a b.pth"),
        ("http://127.0.0.1/a.pth", "http", "127.0.0.1", "a.pth", "a.pth"),
        ("s3://bucket/a/b.pth", "s3", "bucket", "a/b.pth", "b.pth"),
        ("s3://bucket/packs/cats/", "s3", "bucket", "packs/cats/", "cats"),
        ("s3://bucket", "s3", "bucket", "", "bucket"),
        ("gs://bucket/a@b.pth", "gs", "bucket", "a@b.pth", "a@b.pth"),
        ("az://container/a.pth", "az", "container", "a.pth", "a.pth"),
    ],
)
def test_servers_and_stores(source: str, scheme: str, host: str, path: str, name: str) -> None:
    found = parse(source)
    assert found
    assert (found.scheme, found.host, found.path, found.name) == (scheme, host, path, name)
    assert not found.immutable


@pytest.mark.parametrize(
    ("source", "path", "revision", "inside", "name"),
    [
        ("hf://google/vit", "google/vit", "", "", "vit"),
        ("hf://google/vit@v1", "google/vit", "v1", "", "vit"),
        ("hf://google/vit@refs%2Fpr%2F1", "google/vit", "refs/pr/1", "", "vit"),
        ("hf://google/vit/weights/a.pth", "google/vit", "", "weights/a.pth", "a.pth"),
        (f"hf://google/vit@{COMMIT}/a.pth", "google/vit", COMMIT, "a.pth", "a.pth"),
    ],
)
def test_repositories_of_the_hub(source: str, path: str, revision: str, inside: str, name: str) -> None:
    found = parse(source)
    assert found
    assert (found.path, found.revision, found.inside, found.name) == (path, revision, inside, name)
    assert found.immutable == (revision == COMMIT)


@pytest.mark.parametrize(
    ("source", "host", "path", "tag", "digest"),
    [
        ("oci://registry.example/team/cats:1.2", "registry.example", "team/cats", "1.2", ""),
        (f"oci://localhost:5000/cats@sha256:{DIGEST}", "localhost:5000", "cats", "", DIGEST),
        (f"oci://[::1]:5000/cats:v1@sha256:{DIGEST}", "[::1]:5000", "cats", "v1", DIGEST),
    ],
)
def test_artefacts_of_registries(source: str, host: str, path: str, tag: str, digest: str) -> None:
    found = parse(source)
    assert found
    assert (found.host, found.path, found.revision, found.digest) == (host, path, tag, digest)
    assert found.immutable == bool(digest)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("ftp://host/a.pth", "ftp:// is not supported"),
        ("file:///a.pth", "file:// is not supported; a model is a path"),
        ("https://host", "names a server, but no file"),
        ("https:///a.pth", "is not a valid address"),
        ("https://[host/a.pth", "is not a valid address"),
        ("https://host:99999/a.pth", "is not a valid address"),
        ("https://user:sec/secret@host/a.pth", "is not a valid address"),
        ("s3:///a.pth", "names no bucket"),
        ("az://", "names no container"),
        ("s3://key:secret@bucket/a.pth", "holds no credentials"),
        ("s3://bucket/a.pth?X-Amz-Signature=secret", "holds no credentials"),
        ("hf://vit", "is not a repository of the Hub"),
        ("hf://token@google", "is not a repository of the Hub"),
        ("oci://registry/Cats:1", "is not the name of an artefact"),
        ("oci://registry/cats@sha256:12", "is not the name of an artefact"),
        ("oci://registry:99999/cats:1", "is not the name of an artefact"),
        ("oci://user:secret@registry/cats", "holds no credentials"),
    ],
)
def test_what_is_refused_and_why(source: str, why: str) -> None:
    with pytest.raises(WeightsError, match=why) as caught:
        parse(source)
    assert "secret" not in str(caught.value)


def test_no_text_form_of_an_address_has_its_secrets() -> None:
    found = parse("https://user:secret@host/a.pth?sig=secret#secret")
    assert isinstance(found, Reference)
    assert "secret" not in f"{found} {found!r} {found.name}"


@pytest.mark.parametrize("name", ["a.pth", "proof/images.npy", "./a.pth", "a b/\u00e9.pth", "..a"])
def test_names_below_the_model_s_folder(name: str) -> None:
    assert safe_name(name, "s3://bucket") == name.removeprefix("./")


@pytest.mark.parametrize(
    "name",
    ["", ".", "/etc/passwd", "../a", "a/../../b", "a\nb", "a\\b", "\u202ea", ".wh.a", "a/.wh.b", "a" * 256],
)
def test_names_that_lead_elsewhere_or_cannot_be_shown_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="is refused"):
        safe_name(name, "s3://bucket")
