"""Copies what a Python program needs of Debian to a folder: the root of an image without a shell.

    image_root.py FOLDER PROGRAM...

PROGRAM is a folder with an environment. What goes to FOLDER: the interpreter that runs this script, its
standard library, the shared libraries that these and the programs are linked with, time zones, and the names
of users and services. Certificates are left out: while an image is built, those of the machine are in their
place. For scanners, /var/lib/dpkg/status.d says which packages the files are from.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

STDLIB = Path(sysconfig.get_path("stdlib"))

# Of the standard library, what is for a terminal, a desktop or an installer, some with libraries of its own.
UNUSED = {
    *(
        "distutils",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "test",
        "tkinter",
        "turtle",
        "turtledemo",
        "venv",
    ),
    *("_curses", "_curses_panel", "curses", "_dbm", "_gdbm", "_tkinter", "nis", "readline"),
    *("_ctypes_test", "_testbuffer", "_testcapi", "_testclinic", "_testimportmultiple", "_testinternalcapi"),
    *("_testmultiphase", "_xxtestfuzz", "xxlimited", "xxlimited_35"),
}

FILES = (
    *("/bin", "/lib", "/lib64"),  # links into /usr
    *("/etc/debian_version", "/etc/group", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/os-release"),
    *("/etc/passwd", "/etc/protocols", "/etc/services", "/etc/ssl/openssl.cnf"),
    *("/usr/bin/python3", sys.executable, "/usr/lib/locale/C.utf8", "/usr/lib/os-release", "/usr/lib/ssl"),
    *("/usr/share/ca-certificates", "/usr/share/zoneinfo"),
)


def run(*command: str | Path) -> str:
    """What a command prints. ldd and dpkg fail where they know one of many names not: the others count."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout


def files() -> Iterable[Path]:
    """What is copied but for shared libraries: files and links."""
    for name in map(Path, FILES):
        if name.is_dir() and not name.is_symlink():
            yield from (path for path in sorted(name.rglob("*")) if path.is_symlink() or path.is_file())
        elif name.is_symlink() or name.exists():
            yield name
    for path in sorted(STDLIB.rglob("*")):
        parts = {part.partition(".")[0] for part in path.relative_to(STDLIB).parts}
        if not parts & UNUSED and "__pycache__" not in path.parts and path.is_file():
            yield path


def libraries(programs: Iterable[Path]) -> set[Path]:
    """The shared libraries that programs and libraries are linked with, as the loader finds them.

    Raises:
        SystemExit: if one is missing.
    """
    found: set[Path] = set()
    for program in programs:
        ran = run("/usr/bin/ldd", program)
        found |= {Path(path) for path in re.findall(r"(?:=>|^)\s*(/\S+) \(0x", ran, re.MULTILINE)}
        if missing := re.findall(r"(\S+) => not found", ran):
            sys.exit(f"image_root: {program} needs {', '.join(missing)}, which this image does not have")
    return found


def copy(path: Path, root: Path) -> list[Path]:
    """Copy a file or a link, and what the link leads to, to the same place below `root`. What was copied."""
    place = path.parent.resolve() / path.name  # /lib is /usr/lib
    target = root / place.relative_to("/")
    if target.is_symlink() or target.exists():
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(place, target, follow_symlinks=False)
    if not place.is_symlink():
        return [place]
    leads = Path(os.path.normpath(place.parent / place.readlink()))
    certificate = leads.is_relative_to("/etc/ssl/certs")
    return [place, *(copy(leads, root) if leads.is_file() and not certificate else [])]


def packages(paths: Iterable[Path]) -> set[str]:
    """The packages that own files. A file of /usr may be listed by its name of before /lib became a link."""
    names = [name for path in paths for name in (str(path), str(path).removeprefix("/usr"))]
    listed = run("/usr/bin/dpkg", "-S", *names)
    owners = [line.rpartition(": ")[0] for line in listed.splitlines() if not line.startswith("diversion ")]
    return {name for owner in owners for name in owner.split(", ")}


def main(root: Path, programs: list[Path]) -> None:
    copied = [each for path in files() for each in copy(path, root)]
    linked = [Path(sys.executable), *(root / STDLIB.relative_to("/")).rglob("*.so")]
    linked += [path for program in programs for path in sorted(program.rglob("*.so*")) if path.is_file()]
    own = tuple(f"{program}/" for program in programs)
    for library in sorted(libraries(linked)):
        if not str(library).startswith(own):
            copied += copy(library, root)
    for name in sorted(packages(path for path in copied if not path.is_dir())):
        package = name.partition(":")[0]
        status = root / "var/lib/dpkg/status.d" / package
        status.parent.mkdir(parents=True, exist_ok=True)
        status.write_text(run("/usr/bin/dpkg-query", "-s", name))
        licence = Path("/usr/share/doc", package, "copyright")
        if licence.exists():
            copy(licence, root)
    for folder, mode in (
        ("tmp", 0o1777),
        ("var/tmp", 0o1777),
        ("root", 0o700),
        ("proc", 0o755),
        ("sys", 0o755),
    ):
        (root / folder).mkdir(mode=mode, parents=True)
        (root / folder).chmod(mode)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
