"""Says what is linked into the module: a CycloneDX bill of materials, and the texts of all licences.

Both follow from Cargo.lock and the pinned toolchain alone, so the same source gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from build_wasm import PACKAGE, ROOT, TARGET

# Licence texts of parts that do not come from a registry or come without their text.
TEXTS = ROOT / "tools" / "licenses"
APACHE = ROOT / "LICENSE"
# The licence texts of crates whose packages lack them.
MISSING_TEXTS = {"flatbuffers": APACHE}
# The names of the files that have to go with a crate.
LEGAL_FILE = re.compile(r"(licen[cs]e|copying|copyright|unlicense|notice)", re.IGNORECASE)


class BillError(Exception):
    """The linked libraries or their licences cannot be determined."""


@dataclass
class Component:
    """A library in the module, or the module itself as the first component of a bill."""

    name: str
    version: str
    purl: str
    license: str
    texts: list[Path]
    sha256: str | None = None
    depends_on: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def linked() -> list[Component]:
    """The package, then what is linked into its module: crates, Rust's standard library and the C library below it."""
    crates = linked_crates()
    libraries = toolchain_libraries()
    crates[0].depends_on.add(libraries[0].purl)
    return [crates[0], *sorted(crates[1:] + libraries, key=lambda component: component.purl)]


def linked_crates() -> list[Component]:
    """The crates that cargo resolves for the module alone, without those that only run at build time."""
    command = f"cargo tree --locked --package {PACKAGE} --target {TARGET} --edges normal,no-proc-macro"
    tree = output([*command.split(), "--no-dedupe", "--prefix", "depth", "--format", " {p}"])
    packages = packages_by_version()
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in locked}
    crates: dict[str, Component] = {}
    path: list[Component] = []
    for line in tree.splitlines():
        depth, name, version, *_ = line.split()
        version = version.removeprefix("v")
        purl = f"pkg:cargo/{name}@{version}"
        if purl not in crates:
            package = packages[name, version]
            crates[purl] = crate(package, purl, checksums[name, version])
        del path[int(depth) :]
        if path:
            path[-1].depends_on.add(purl)
        path.append(crates[purl])
    return list(crates.values())


def packages_by_version() -> dict[tuple[str, str], dict]:
    metadata = json.loads(output(["cargo", "metadata", "--locked", "--format-version", "1"]))
    return {(package["name"], package["version"]): package for package in metadata["packages"]}


def crate(package: dict, purl: str, sha256: str | None) -> Component:
    if not package["license"]:
        raise BillError(f"{package['id']} states no licence")
    return Component(
        name=package["name"],
        version=package["version"],
        purl=purl,
        # Until 2022 a slash stood for OR.
        license=package["license"].replace("/", " OR "),
        texts=legal_files(package),
        sha256=sha256,
    )


def legal_files(package: dict) -> list[Path]:
    files = Path(package["manifest_path"]).parent.iterdir()
    found = sorted(file for file in files if file.is_file() and LEGAL_FILE.match(file.name))
    if not found and package["name"] not in MISSING_TEXTS:
        raise BillError(f"{package['id']} comes without its licence's text: find it, and add it to MISSING_TEXTS")
    return found or [MISSING_TEXTS[package["name"]]]


def toolchain_libraries() -> list[Component]:
    """Rust's standard library, and wasi-libc, which its allocator and its input and output call."""
    rust = re.search(r"^release: (.+)$", output(["rustc", "--version", "--verbose"]), re.MULTILINE)
    library = Path(output(["rustc", "--print", "target-libdir", "--target", TARGET]).strip())
    sdk = re.search(rb"wasisdk://v(\d+)\.", (library / "self-contained" / "libc.a").read_bytes())
    if not rust or not sdk:
        raise BillError("the toolchain does not show the versions of Rust and wasi-libc")
    c_library = Component(
        name="wasi-libc",
        version=f"wasi-sdk-{sdk[1].decode()}",
        purl=f"pkg:github/webassembly/wasi-libc@wasi-sdk-{sdk[1].decode()}",
        license="MIT AND BSD-2-Clause AND CC0-1.0",
        texts=[TEXTS / "wasi-libc.txt"],
    )
    standard_library = Component(
        name="rust-std",
        version=rust[1],
        purl=f"pkg:github/rust-lang/rust@{rust[1]}",
        license="(MIT OR Apache-2.0) AND MIT AND Apache-2.0 WITH LLVM-exception AND Unicode-3.0",
        texts=[APACHE, TEXTS / "rust-std.txt"],
        depends_on={c_library.purl},
    )
    return [standard_library, c_library]


def cyclonedx(components: list[Component], module_sha256: str) -> bytes:
    """The bill as CycloneDX 1.6, without times and random numbers."""
    package, *libraries = components
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": as_cyclonedx(package, module_sha256)},
        "components": [as_cyclonedx(library, library.sha256) for library in libraries],
        "dependencies": [
            {"ref": component.purl, "dependsOn": sorted(component.depends_on)} for component in components
        ],
    }
    # The same bill has the same serial number.
    bill["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True)).urn
    return (json.dumps(bill, indent=2, sort_keys=True) + "\n").encode()


def as_cyclonedx(component: Component, sha256: str | None) -> dict:
    described = {
        "type": "library",
        "bom-ref": component.purl,
        "name": component.name,
        "version": component.version,
        "purl": component.purl,
        "licenses": [{"expression": component.license}],
    }
    return described | ({"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {})


def license_expression(components: list[Component]) -> str:
    """The licences of all components together, in SPDX's terms."""
    licenses = {component.license for component in components}
    return " AND ".join(sorted(f"({one})" if " " in one else one for one in licenses))


def license_texts(components: list[Component]) -> bytes:
    """The components of the module with their licences, then every text once."""
    package, *libraries = components
    width = max(len(str(component)) for component in components)
    parts = [
        f"{package} is licensed under {package.license}. Its WebAssembly module contains:\n\n"
        + "\n".join(f"  {str(library):{width}}  {library.license}" for library in libraries)
    ]
    users: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for component in components:
        for file in component.texts:
            text = file.read_text(encoding="utf-8").strip("\n")
            # Copies differ only in white space.
            key = " ".join(text.split())
            texts.setdefault(key, text)
            users.setdefault(key, []).append(str(component))
    parts += [f"{', '.join(users[key])}:\n\n{text}" for key, text in texts.items()]
    return (f"\n\n{'=' * 80}\n".join(parts) + "\n").encode()


def output(command: list[str], environment: dict[str, str] | None = None) -> str:
    """The output of a command; its error messages explain a failure."""
    environment = os.environ | (environment or {})
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=True).stdout
