"""A clone of this work tree, with its tag, that releases are made in; and one that was pushed and signed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..sources.servers import program, registry

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Clone:
    """A git repository with one commit, of the files that this work tree has now, and an environment."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=3600,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}\n{done.stdout}{done.stderr}"
        return done

    @property
    def dist(self) -> Path:
        return self.folder / "dist"


def make_clone(folder: Path, source: Path = ROOT, umask: int = 0o022) -> Clone:
    """A clone in which version 0.1.0 has its notes and its tag."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, names.decode().split("\0")):
        if (source / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target)
            target.chmod((0o777 if os.access(source / name, os.X_OK) else 0o666) & ~umask)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    changes = folder / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("## Unreleased", "## 0.1.0"))
    time = "2026-03-01T12:00:00Z"
    who = {f"GIT_{role}_{part}": "tests" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    clone = Clone(
        folder,
        os.environ
        | who
        | {"GIT_AUTHOR_DATE": time, "GIT_COMMITTER_DATE": time, "COSIGN_PASSWORD": "secret"}
        | {"PATH": f"{program('oras').parent}:{os.environ['PATH']}", "DOCKER_CONFIG": str(folder.parent)},
    )
    (folder.parent / "config.json").write_text("{}")
    clone.run("git", "init", "-q")
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "-qm", "Release")
    clone.run("git", "tag", "v0.1.0")
    return clone


def listed(path: Path) -> dict[str, str]:
    """The names in SHA256SUMS or DIGESTS, and what they stand for."""
    return {name: value for value, name in map(str.split, path.read_text().splitlines())}


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return make_clone(tmp_path / "clone")


@dataclass(frozen=True)
class Released:
    """What `scripts/release --push` has pushed, and the keys."""

    clone: Clone
    registry: str
    """Host, port and team."""
    storage: Path
    key: Path
    other: Path
    """The public key of somebody else."""

    def cosign(self, *arguments: str | Path, key: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of cosign that verifies something with a public key, this release's by default."""
        command, *rest = arguments
        options = ("--key", key or self.key, "--insecure-ignore-tlog=true")
        return self.clone.run("cosign", command, *options, *rest, check=False)


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    """The release with the image slim, which scripts/test has built before."""
    folder = tmp_path_factory.mktemp("release")
    clone = make_clone(folder / "clone")
    program("cosign")
    for name in ("own", "other"):
        clone.run("cosign", "generate-key-pair", "--output-key-prefix", folder / name)
    with registry(folder) as host:
        team = f"{host}/team"
        clone.run(
            "scripts/release", "--images", "slim", "--push", team, "--plain-http", "--key", folder / "own.key"
        )
        yield Released(clone, team, folder / "registry", folder / "own.pub", folder / "other.pub")
