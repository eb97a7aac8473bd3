"""Makes a release of the commit that is checked out, in dist/; on request, pushes it to an OCI registry.

The commit has the tag v0.1.0 for version 0.1.0, which is the one in pyproject.toml. The same commit on the
same base image gives the same bytes. docs/releasing.md says what there is, and how it is verified.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
LAYOUT = DIST / "oci"
CHART = Path("charts/pthserve")
BILL = "application/vnd.cyclonedx+json"
PROVENANCE = "application/vnd.in-toto+json"
# Nothing of what a key signs goes into a public log: there may be no way out, and the names may be private.
NO_LOG = {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command, with all that it says on standard error."""
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)  # noqa: S603


def output(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return done.stdout.strip()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(layout: Path) -> dict[str, str]:
    """The digest of each tag in an OCI layout."""
    found = json.loads((layout / "index.json").read_text())["manifests"]
    name = "org.opencontainers.image.ref.name"
    return {
        each["annotations"][name]: each["digest"] for each in found if name in each.get("annotations", {})
    }


class Signing:
    """cosign, with a key, or with the identity of the workflow that it runs in."""

    def __init__(self, key: str | None, folder: Path) -> None:
        self.options = ["--yes"]
        if key:
            config = folder / "signing.json"
            config.write_text(json.dumps(NO_LOG))
            self.options += ["--key", key, "--signing-config", str(config)]

    def sign(self, artefact: str, predicate: Path, bill: Path | None, plain: bool) -> None:
        """Sign what a digest names in a registry: itself, how it was made, and what is in it."""
        options = [*self.options, *(["--allow-http-registry"] if plain else [])]
        run("cosign", "sign", "--recursive", *options, artefact)
        run("cosign", "attest", "--type", "slsaprovenance1", "--predicate", predicate, *options, artefact)
        if bill:
            run("cosign", "attest", "--type", "cyclonedx", "--predicate", bill, *options, artefact)

    def file(self, path: Path) -> None:
        run("cosign", "sign-blob", *self.options, "--bundle", f"{path}.sigstore.json", path)


class Release:
    """A release in the making: one version, of one commit.

    Raises:
        SystemExit: if it cannot be released: changes that are not committed, no tag, versions that differ.
    """

    def __init__(self, registry: str) -> None:
        self.registry = registry
        self.source = os.environ.get("RELEASE_SOURCE", "")
        self.version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        self.commit = output("git", "rev-parse", "HEAD")
        if changes := output("git", "status", "--porcelain"):
            sys.exit(f"release: there are changes that are not committed:\n{changes}")
        tag = f"v{self.version}"
        if tag not in output("git", "tag", "--points-at", "HEAD").split():
            sys.exit(
                f"release: the commit does not have the tag {tag}: pyproject.toml has version {self.version}"
            )
        chart = yaml.safe_load((ROOT / CHART / "Chart.yaml").read_text())
        if {chart["version"], chart["appVersion"]} != {self.version}:
            sys.exit(f"release: version and appVersion of {CHART}/Chart.yaml are not both {self.version}")
        sections = re.split(r"^## (.+)\n", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
        self.notes = dict(zip(sections[1::2], sections[2::2], strict=True)).get(self.version, "").strip()
        if not self.notes:
            sys.exit(f"release: CHANGELOG.md does not have a section '## {self.version}'")
        self.time = int(output("git", "log", "-1", "--format=%ct"))
        self.created = datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.published: dict[str, str] = {}  # a tag of the layout, and the repository that it is pushed to
        os.environ["SOURCE_DATE_EPOCH"] = str(self.time)

    def python(self) -> None:
        """The wheel, its sources, and the notes."""
        run(".venv/bin/hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", DIST)
        (DIST / "notes.md").write_text(self.notes + "\n")

    def chart(self) -> None:
        """The chart as a file, and as Helm pulls it. Its values name the images that are pushed beside it."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "chart.tar"
            run("git", "archive", "-o", archive, "HEAD", CHART)
            run("tar", "-xf", archive, "-C", folder)
            chart = Path(folder) / CHART
            if self.registry:
                for name in ("values.yaml", "Chart.yaml"):
                    text = (chart / name).read_text()
                    (chart / name).write_text(text.replace("localhost/pthserve", f"{self.registry}/pthserve"))
            if self.source:
                self.link(chart / "Chart.yaml")
            for path in chart.rglob("*"):
                os.utime(path, (self.time, self.time))
            run("helm", "package", chart, "-d", DIST)
            config = Path(folder) / "config.json"
            config.write_text(json.dumps(yaml.safe_load((chart / "Chart.yaml").read_text())))
            tag, file = f"{self.version}-chart", f"pthserve-{self.version}.tgz"
            self.artefact(
                tag,
                f"{file}:application/vnd.cncf.helm.chart.content.v1.tar+gzip",
                *("--config", f"{config}:application/vnd.cncf.helm.config.v1+json"),
            )
        self.published[tag] = "charts/pthserve"

    def link(self, path: Path) -> None:
        """State the address of the repository in a Chart.yaml, as Helm and Artifact Hub read it."""
        chart = yaml.safe_load(path.read_text())
        chart |= {"home": self.source, "sources": [self.source]}
        links = [{"name": "Documentation", "url": f"{self.source}#readme"}]
        chart["annotations"]["artifacthub.io/links"] = yaml.safe_dump(links, sort_keys=False)
        path.write_text(yaml.safe_dump(chart, sort_keys=False))

    def artefact(self, tag: str, *arguments: str) -> None:
        """Put files into the layout, as one artefact."""
        created = f"org.opencontainers.image.created={self.created}"
        options = ("--no-tty", "--disable-path-validation", "--annotation", created)
        run("oras", "push", *options, "--oci-layout", f"{LAYOUT}:{tag}", *arguments, folder=DIST)

    def attach(self, tag: str, kind: str, file: str) -> None:
        """Put a file into the layout, as one that refers to another artefact."""
        created = f"org.opencontainers.image.created={self.created}"
        options = ("--no-tty", "--annotation", created, "--artifact-type", kind)
        run("oras", "attach", *options, "--oci-layout", f"{LAYOUT}:{tag}", f"{file}:{kind}", folder=DIST)

    def image(self, name: str, others: list[Path]) -> None:
        """An image of this architecture, with those of others: an index. Beside it, its bill of materials."""
        tag = f"{self.version}-{name}"
        local = f"localhost/pthserve:{tag}"
        os.environ |= {"REVISION": self.commit, "CREATED": self.created}
        index = os.environ.get("TORCH_INDEX") if name != "cuda" else None
        run("scripts/image", name, local, *([f"--build-arg=TORCH_INDEX={index}"] if index else []))
        parts = [f"{tag}-{ARCHITECTURES[os.uname().machine]}"]
        run("buildah", "push", "-q", "--format", "oci", local, f"oci:{LAYOUT}:{parts[0]}")
        for other in others:
            for part in digests(other / "oci"):
                if re.fullmatch(rf"{re.escape(tag)}-[a-z0-9]+", part):
                    copied = (
                        "--from-oci-layout",
                        f"{other / 'oci'}:{part}",
                        "--to-oci-layout",
                        f"{LAYOUT}:{part}",
                    )
                    run("oras", "cp", "--no-tty", *copied)
                    parts.append(part)
        run("oras", "manifest", "index", "create", "--oci-layout", f"{LAYOUT}:{tag}", *parts)
        self.published[tag] = "pthserve"
        bill = f"pthserve-{self.version}-{name}.cdx.json"
        shutil.copyfile(ROOT / f"build/sbom-{'full' if name == 'cuda' else name}.json", DIST / bill)
        self.attach(tag, BILL, bill)

    def provenance(self) -> None:
        """What was made of what, as in-toto and SLSA 1.0 describe it: https://slsa.dev/spec/v1.0/provenance"""
        found = digests(LAYOUT)
        subjects = [{"name": path.name, "digest": {"sha256": sha256(path)}} for path in files()]
        subjects += [
            {"name": f"{repository}:{tag}", "digest": {"sha256": found[tag].removeprefix("sha256:")}}
            for tag, repository in self.published.items()
        ]
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subjects,
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": self.predicate(),
        }
        (DIST / "provenance.json").write_text(json.dumps(statement, indent=1) + "\n")
        for tag in self.published:
            self.attach(tag, PROVENANCE, "provenance.json")

    def predicate(self) -> dict[str, Any]:
        """How it was made: the commit, the lock files, the base image and the options."""
        source = self.source or "pthserve"
        locks = sorted(ROOT.glob("requirements*.lock"))
        made_of: list[dict[str, Any]] = [
            {"uri": f"git+{source}@refs/tags/v{self.version}", "digest": {"gitCommit": self.commit}},
            *({"uri": f"file:{path.name}", "digest": {"sha256": sha256(path)}} for path in locks),
        ]
        if "pthserve" in self.published.values():
            base = output("scripts/image-base")
            digest = output("buildah", "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", base)
            made_of.append({"uri": f"oci:{base}", "digest": {"sha256": digest.removeprefix("sha256:")}})
        return {
            "buildDefinition": {
                "buildType": "urn:pthserve:release:1",
                "externalParameters": {
                    "version": self.version,
                    "registry": self.registry,
                    "torchIndex": os.environ.get("TORCH_INDEX", ""),
                },
                "resolvedDependencies": made_of,
            },
            "runDetails": {"builder": {"id": os.environ.get("RELEASE_BUILDER", "urn:pthserve:local")}},
        }

    def sums(self, signing: Signing | None) -> None:
        """The digests of what is in the layout, the SHA-256 of each file, and the files in the layout too."""
        found = digests(LAYOUT)
        lines = [f"{found[tag]}  {repository}:{tag}\n" for tag, repository in self.published.items()]
        (DIST / "DIGESTS").write_text("".join(lines))
        (DIST / "SHA256SUMS").write_text("".join(f"{sha256(path)}  {path.name}\n" for path in files()))
        if signing:
            signing.file(DIST / "SHA256SUMS")
        tag = f"{self.version}-files"
        named = [f"{path.name}:application/octet-stream" for path in files()]
        self.artefact(tag, "--artifact-type", "application/vnd.pthserve.release", *named)
        self.published[tag] = "pthserve-files"
        # oras lists them in any order.
        index = json.loads((LAYOUT / "index.json").read_text())
        index["manifests"].sort(key=lambda each: json.dumps(each, sort_keys=True))
        (LAYOUT / "index.json").write_text(json.dumps(index))

    def push(self, plain: bool, signing: Signing | None, scratch: Path) -> None:
        """Copy the layout to the registry, and sign what has arrived."""
        found = digests(LAYOUT)
        predicate = scratch / "predicate.json"
        predicate.write_text(json.dumps(self.predicate()))
        for tag, repository in self.published.items():
            place = f"{self.registry}/{repository}"
            name = tag if repository == "pthserve" else self.version
            copied = ("--from-oci-layout", f"{LAYOUT}:{tag}", f"{place}:{name}")
            run("oras", "cp", "--no-tty", "-r", *(("--to-plain-http",) if plain else ()), *copied)
            if signing:
                bill = DIST / f"pthserve-{tag}.cdx.json"
                signing.sign(f"{place}@{found[tag]}", predicate, bill if bill.exists() else None, plain)


def files() -> list[Path]:
    """What lies in dist/ beside the layout."""
    return sorted(path for path in DIST.iterdir() if path.is_file())


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/release", description=__doc__)
    option = parser.add_argument
    option("--push", metavar="REGISTRY", default="", help="push it, too, such as to registry.example/team")
    option("--plain-http", action="store_true", help="push without TLS, as to a registry on this machine")
    signers = parser.add_mutually_exclusive_group()
    signers.add_argument(
        "--key", help="sign with cosign's key: a file, env://NAME, or the address of one in a KMS"
    )
    signers.add_argument(
        "--keyless", action="store_true", help="sign with the identity of the workflow that this runs in"
    )
    images = ["slim", "batch", "full", *(["cuda"] if os.environ.get("TORCH_INDEX") else [])]
    option("--images", nargs="*", metavar="NAME", default=images, help=f"(default: {' '.join(images)})")
    option(
        "--also",
        action="append",
        type=lambda name: Path(name).resolve(),
        default=[],
        metavar="DIST",
        help="add the images that a machine of another architecture made in its dist/",
    )
    return parser.parse_args()


def main() -> None:
    chosen = options()
    with tempfile.TemporaryDirectory() as scratch:
        signing = Signing(chosen.key, Path(scratch)) if chosen.key or chosen.keyless else None
        release = Release(chosen.push)
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        release.python()
        release.chart()
        run("scripts/sbom")
        for name in chosen.images:
            release.image(name, chosen.also)
        release.provenance()
        release.sums(signing)
        if chosen.push:
            release.push(chosen.plain_http, signing, Path(scratch))
    sys.stdout.write((DIST / "DIGESTS").read_text())


if __name__ == "__main__":
    main()
