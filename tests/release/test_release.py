"""scripts/release: what a release has in it, and what is refused."""

import json
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, Clone, listed, make_clone

pytestmark = pytest.mark.slow

SOURCE = "https://git.example/team/pthserve"


def test_two_clones_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    source = ROOT
    for name, umask in (("one", 0o022), ("another", 0o077)):
        clone = make_clone(tmp_path / name / "clone", source, umask)
        source = clone.folder
        clone.run("make", "release", "RELEASE=--images")
        made.append({path.name: path.read_bytes() for path in clone.dist.iterdir() if path.is_file()})
        made[-1]["index"] = (clone.dist / "oci/index.json").read_bytes()
    assert made[0] == made[1]
    assert made[0].keys() == {
        *("pthserve-0.1.0-py3-none-any.whl", "pthserve-0.1.0.tar.gz", "pthserve-0.1.0.tgz"),
        *("notes.md", "provenance.json", "DIGESTS", "SHA256SUMS", "index"),
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with a release without images, of a repository that has an address."""
    clone = make_clone(tmp_path_factory.mktemp("plain") / "clone")
    clone.run("env", f"RELEASE_SOURCE={SOURCE}", "scripts/release", "--images")
    return clone


def test_the_files_are_of_the_commit(plain: Clone) -> None:
    clone = plain
    with zipfile.ZipFile(clone.dist / "pthserve-0.1.0-py3-none-any.whl") as wheel:
        assert {"pthserve/api.py", "pthserve/demo/model.yaml"} <= set(wheel.namelist())
    with tarfile.open(clone.dist / "pthserve-0.1.0.tar.gz") as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    tracked = set(clone.run("git", "ls-files").stdout.split("\n"))
    assert {"pyproject.toml", "service/pthserve/api.py"} <= names
    assert names - tracked == {"PKG-INFO"}
    with tarfile.open(clone.dist / "pthserve-0.1.0.tgz") as chart:
        assert {"pthserve/Chart.yaml", "pthserve/values.schema.json"} <= set(chart.getnames())
    notes = (clone.dist / "notes.md").read_text()
    assert notes.startswith("- ")
    assert notes.strip() in (clone.folder / "CHANGELOG.md").read_text()
    clone.run("sh", "-c", "cd dist && sha256sum --check SHA256SUMS")


def test_the_chart_names_the_repository(plain: Clone) -> None:
    shown = plain.run("helm", "show", "chart", plain.dist / "pthserve-0.1.0.tgz").stdout
    chart = yaml.safe_load(shown)
    assert (chart["home"], chart["sources"]) == (SOURCE, [SOURCE])
    (link,) = yaml.safe_load(chart["annotations"]["artifacthub.io/links"])
    assert link == {"name": "Documentation", "url": f"{SOURCE}#readme"}
    ours = yaml.safe_load((ROOT / "charts/pthserve/Chart.yaml").read_text())
    assert ours["annotations"].items() < chart["annotations"].items()
    assert chart | {"annotations": {}} == ours | {"annotations": {}, "home": SOURCE, "sources": [SOURCE]}


def refusal(clone: Clone) -> str:
    done = clone.run("scripts/release", "--images", check=False)
    assert done.returncode == 1
    assert not clone.dist.exists()
    return done.stderr


def test_what_is_not_committed_is_not_released(clone: Clone) -> None:
    (clone.folder / "service/pthserve/more.py").touch()
    assert re.search(r"changes that are not committed:\n\?\? service/pthserve/more.py", refusal(clone))


def test_a_commit_without_its_version_s_tag_is_not_released(clone: Clone) -> None:
    clone.run("git", "tag", "-d", "v0.1.0")
    clone.run("git", "tag", "v0.2.0")
    assert "does not have the tag v0.1.0: pyproject.toml has version 0.1.0" in refusal(clone)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("charts/pthserve/Chart.yaml", "version: 0.1.0", "version: 0.1.1", "Chart.yaml are not both 0.1.0"),
        ("CHANGELOG.md", "## 0.1.0", "## Unreleased", "does not have a section '## 0.1.0'"),
    ],
    ids=["another version of the chart", "no notes"],
)
def test_a_version_is_the_same_everywhere(file: str, old: str, new: str, message: str, clone: Clone) -> None:
    path = clone.folder / file
    path.write_text(path.read_text().replace(old, new))
    clone.run("git", "commit", "-qam", "Change")
    clone.run("git", "tag", "--force", "v0.1.0")
    assert message in refusal(clone)


@pytest.mark.parametrize("options", [["--sign"], ["--key", "a", "--keyless"], ["--push"]])
def test_options_that_are_wrong_do_nothing(options: list[str], clone: Clone) -> None:
    done = clone.run("scripts/release", *options, check=False)
    assert (done.returncode, clone.dist.exists()) == (2, False)
    assert "usage: scripts/release" in done.stderr


def test_the_provenance_names_the_commit_and_what_was_made(plain: Clone) -> None:
    clone = plain
    statement = json.loads((clone.dist / "provenance.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    commit = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    source, *locks = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source == {"uri": f"git+{SOURCE}@refs/tags/v0.1.0", "digest": {"gitCommit": commit}}
    assert {each["uri"] for each in locks} == {
        f"file:{path.name}" for path in ROOT.glob("requirements*.lock")
    }
    sums = listed(clone.dist / "SHA256SUMS")
    made = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    for name in ("pthserve-0.1.0-py3-none-any.whl", "pthserve-0.1.0.tar.gz", "pthserve-0.1.0.tgz"):
        assert made[name] == sums[name]


def test_the_images_of_another_architecture_become_part_of_the_index(clone: Clone, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "file").write_text("content")
    name = f"localhost/release-test:{tmp_path.parent.name}"
    build = ("buildah", "build", "-q", "--platform", "linux/arm64", "-t", name, "-f", "-", tmp_path)
    subprocess.run(build, input=b"FROM scratch\nCOPY file /\n", check=True)
    try:
        clone.run("buildah", "push", "-q", "--format", "oci", name, f"oci:{other}/oci:0.1.0-slim-arm64")
    finally:
        clone.run("buildah", "rmi", name)
    clone.run("scripts/release", "--images", "slim", "--also", other)
    shown = clone.run("oras", "manifest", "fetch", "--oci-layout", "dist/oci:0.1.0-slim").stdout
    platforms = [
        (each["platform"]["os"], each["platform"]["architecture"]) for each in json.loads(shown)["manifests"]
    ]
    assert platforms == [("linux", "amd64"), ("linux", "arm64")]
