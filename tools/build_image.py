"""Builds the OCI image of the filter, as Istio wants it, and what goes with it, into dist/: `make image`.

The image is of the "compat" variant of the Wasm Image Specification: one layer, with plugin.wasm at its root. The
archive is an OCI layout that `docker load` reads, too. No daemon and no registry is needed. The same commit gives the
same bytes: all times are the commit's or zero, and a pinned library compresses, not whichever zlib a machine has.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile

import deflate

from bill_of_materials import BillError, Component, cyclonedx, license_expression, license_texts, linked, output
from build_wasm import OUTPUT as MODULE
from build_wasm import PACKAGE, ROOT, write

ARCHIVE = MODULE.with_suffix(".oci.tar")
BILL = MODULE.with_suffix(".cdx.json")
LICENSES = MODULE.with_name("LICENSES.txt")
CHECKSUMS = MODULE.with_name("SHA256SUMS")
# The file name that Istio looks for.
PLUGIN = "plugin.wasm"
OCI = "application/vnd.oci.image"
BLOBS = "blobs/sha256"


def main() -> None:
    try:
        module = MODULE.read_bytes()
        components = linked()
        archive, digest = image(module, labels(components))
        write(ARCHIVE, archive)
        write(BILL, cyclonedx(components, sha256(module)))
        write(LICENSES, license_texts(components))
        write(CHECKSUMS, checksums())
    except (BillError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"image: {error}")
    say(f"{ARCHIVE.relative_to(ROOT)}, {len(archive):,} bytes, {len(components) - 1} libraries in the module")
    say(f"sha256:{digest}")


def labels(components: list[Component]) -> dict[str, str]:
    """The image's annotations."""
    prefix = "org.opencontainers.image"
    return {
        f"{prefix}.title": PACKAGE,
        f"{prefix}.description": "Istio's metadata exchange as a proxy-wasm filter",
        f"{prefix}.version": components[0].version,
        f"{prefix}.licenses": license_expression(components),
        **{f"{prefix}.{key}": value for key, value in commit().items()},
    }


def commit() -> dict[str, str]:
    """The commit that is built, and its time; a modified work tree is marked as such."""
    try:
        return {
            "revision": git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
            "created": git("log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%cd"),
        }
    except (FileNotFoundError, subprocess.CalledProcessError):
        say("git shows no commit, so the image has neither commit nor time: release from a clone")
        return {}


def git(*arguments: str) -> str:
    # This checkout's commit, never that of an enclosing repository.
    return output(["git", "--git-dir=.git", *arguments], {"TZ": "UTC"}).strip()


def image(module: bytes, labels: dict[str, str]) -> tuple[bytes, str]:
    """The archive with the image, and the digest of its manifest."""
    files: dict[str, bytes] = {}

    def blob(media_type: str, content: bytes) -> dict:
        digest = sha256(content)
        files[f"{BLOBS}/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    layer = tar({PLUGIN: module})
    packed = blob(f"{OCI}.layer.v1.tar+gzip", deflate.gzip_compress(layer, 12))
    config = blob(f"{OCI}.config.v1+json", as_json(image_config(layer, labels)))
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": config,
        "layers": [packed],
        "annotations": labels | {"module.wasm.image/variant": "compat"},
    }
    described = blob(f"{OCI}.manifest.v1+json", as_json(manifest))
    version = labels["org.opencontainers.image.version"]
    files["oci-layout"] = as_json({"imageLayoutVersion": "1.0.0"})
    files["index.json"] = as_json(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.index.v1+json",
            "manifests": [described | {"annotations": {"org.opencontainers.image.ref.name": version}}],
        }
    )
    # `docker load` before Docker 25 reads only this.
    docker = {"Config": path(config), "RepoTags": [f"{PACKAGE}:{version}"], "Layers": [path(packed)]}
    files["manifest.json"] = as_json([docker])
    return tar(files), described["digest"].removeprefix("sha256:")


def image_config(layer: bytes, labels: dict[str, str]) -> dict:
    config = {
        # The image does not depend on a platform, but the format requires one, and Docker rejects unknown ones.
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}"]},
    }
    created = labels.get("org.opencontainers.image.created")
    return config | ({"created": created} if created else {})


def path(descriptor: dict) -> str:
    return f"{BLOBS}/{descriptor['digest'].removeprefix('sha256:')}"


def tar(files: dict[str, bytes]) -> bytes:
    """An archive that depends only on names and contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            # By default: mode 0644, time 0, owner 0.
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def checksums() -> bytes:
    """Checksums in the form that `sha256sum --check` reads."""
    files = (MODULE, ARCHIVE, BILL, LICENSES)
    return "".join(f"{sha256(file.read_bytes())}  {file.name}\n" for file in files).encode()


def as_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def say(line: str) -> None:
    """Prints to standard error, because standard output may be piped."""
    print(f"image: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
