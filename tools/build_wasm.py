"""Builds the filter as a WebAssembly module, dist/metadata_exchange.wasm: `make wasm`.

Envoy enters the VM for each callback that a module exports, and the SDK exports them all, so the exports that do nothing
are removed. Binaryen optimises the module. The same source gives the same bytes, wherever it is built.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from icpp_binaryen import Module, ffi, lib

ROOT = Path(__file__).resolve().parent.parent
CARGO_HOME = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
OUTPUT = ROOT / "dist" / "metadata_exchange.wasm"
PACKAGE = "metadata-exchange"
TARGET = "wasm32-wasip1"
# The exports that Envoy calls in this filter.
EXPORTS = frozenset(
    {
        "memory",
        "_initialize",
        "proxy_abi_version_0_2_1",
        "proxy_on_memory_allocate",
        "proxy_on_context_create",
        "proxy_on_vm_start",
        "proxy_on_configure",
        "proxy_on_tick",
        "proxy_on_request_headers",
        "proxy_on_response_headers",
        "proxy_on_downstream_data",
        "proxy_on_upstream_data",
        "proxy_on_log",
        "proxy_on_delete",
    }
)
# The features that the module may use beyond WebAssembly 1.0. V8 has supported them since 2019.
FEATURES = ("BulkMemory", "MutableGlobals", "NontrappingFPToInt", "SignExt")
# Shrinking costs no instructions per stream here, and makes the module 2 % smaller.
OPTIMIZE_LEVEL, SHRINK_LEVEL = 3, 2

ffi.cdef("void BinaryenModuleSetFeatures(BinaryenModuleRef module, uint32_t features);")
ffi.cdef("void BinaryenSetLowMemoryUnused(bool on);")
ffi.cdef("\n".join(f"uint32_t BinaryenFeature{name}(void);" for name in FEATURES))


class BuildError(Exception):
    """The module does not meet the requirements."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to put it (%(default)s)")
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    try:
        built = compile_module()
        module = trim(built.read_bytes())
        check(module, machine_paths=(ROOT, CARGO_HOME, built.parent))
    except (BuildError, subprocess.CalledProcessError) as error:
        sys.exit(f"wasm: {error}")
    write(output, module)
    say(f"{output.relative_to(ROOT)}, {len(module):,} bytes ({built.stat().st_size:,} before trimming)")
    say(f"exports {', '.join(sorted(exports(Module.read(module))))}")


def compile_module() -> Path:
    """Builds the module with cargo, without paths of this machine in panic messages."""
    subprocess.run(["cargo", "fetch", "--quiet"], cwd=ROOT, check=True)
    sources = {crates: "crates" for crates in (CARGO_HOME / "registry" / "src").glob("*")} | {ROOT: PACKAGE}
    flags = [f"--remap-path-prefix={path}={name}" for path, name in sources.items()]
    # Only as a cdylib: cargo drops link-time optimisation if a crate is also built as an rlib.
    command = f"cargo rustc --release --lib --crate-type cdylib --package {PACKAGE} --target {TARGET}"
    build = subprocess.run(
        [*command.split(), "--message-format=json-render-diagnostics"],
        cwd=ROOT,
        env=os.environ | {"CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags)},
        stdout=subprocess.PIPE,
        check=False,
    )
    if build.returncode != 0:
        raise BuildError("cargo could not build it")
    messages = (json.loads(line) for line in build.stdout.splitlines())
    files = [Path(name) for message in messages for name in message.get("filenames", ())]
    return next(file for file in files if file.suffix == ".wasm")


def trim(compiled: bytes) -> bytes:
    """Removes unneeded exports and optimises the rest."""
    with Module.read(compiled) as module:
        lib.BinaryenModuleSetFeatures(module.ref, sum(getattr(lib, f"BinaryenFeature{name}")() for name in FEATURES))
        for name in exports(module) - EXPORTS:
            module.remove_export(name)
        if missing := EXPORTS - exports(module):
            raise BuildError(f"the module does not export {', '.join(sorted(missing))}")
        # Addresses below 1024 are never used: they are the far end of the stack.
        lib.BinaryenSetLowMemoryUnused(True)
        module.optimize(SHRINK_LEVEL, OPTIMIZE_LEVEL)
        if not module.validate():
            raise BuildError(f"the module needs more than {', '.join(FEATURES)}")
        return module.emit()


def exports(module: Module) -> set[str]:
    references = (lib.BinaryenGetExportByIndex(module.ref, index) for index in range(module.num_exports))
    return {ffi.string(lib.BinaryenExportGetName(reference)).decode() for reference in references}


def check(module: bytes, machine_paths: tuple[Path, ...]) -> None:
    """Rejects a module that contains more than it needs."""
    for leftover in ("producers", "target_features", *map(str, machine_paths)):
        if leftover.encode() in module:
            raise BuildError(f"the module contains {leftover!r}")


def write(file: Path, content: bytes) -> None:
    """Writes a file atomically, so that no reader sees half of it."""
    file.parent.mkdir(exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(file)


def say(line: str) -> None:
    """Prints to standard error, because standard output may be piped."""
    print(f"wasm: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
