"""Writes type stubs for the generated modules that our sources import: `genstubs.py OUT_DIR SOURCE_DIR...`.

`xds-protos` ships no stubs. The descriptors inside its modules hold all that `protoc --pyi_out` needs, so the stubs are
made from what is installed and are never committed.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

PACKAGES = ("envoy", "xds", "google.rpc", "opentelemetry", "udpa", "validate")
IMPORT = re.compile(
    rf"^\s*(?:from\s+((?:{'|'.join(PACKAGES)})[\w.]*)\s+import\s+\(?([\w\s,]+)|import\s+((?:{'|'.join(PACKAGES)})[\w.]*))",
    re.MULTILINE,
)


def modules_in(source: str) -> set[str]:
    """Names of the generated modules (`…_pb2`) that a Python source imports."""
    found: set[str] = set()
    for package, names, direct in IMPORT.findall(source):
        if direct.endswith("_pb2"):
            found.add(direct)
        for part in names.split(","):
            name, *_ = [*part.split(), ""]  # what stands before an `as`
            if name.endswith("_pb2"):
                found.add(f"{package}.{name}")
    return found


def descriptors_of(modules: set[str]) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """File descriptors of the modules and of all they import, dependencies first."""
    seen: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def walk(file: Any) -> None:
        if file.name in seen:
            return
        for dependency in file.dependencies:
            walk(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        seen[file.name] = proto

    for name in sorted(modules):
        walk(importlib.import_module(name).DESCRIPTOR)
    return seen


def main(out: Path, roots: list[Path]) -> None:
    sources = [path for root in roots for path in root.rglob("*.py")]
    modules = {m for path in sources for m in modules_in(path.read_text(encoding="utf-8"))}
    files = descriptors_of(modules)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(suffix=".binpb") as bundle:
        bundle.write(descriptor_pb2.FileDescriptorSet(file=files.values()).SerializeToString())
        bundle.flush()
        names = [name for name in files if not name.startswith("google/protobuf/")]
        command = ["-m", "grpc_tools.protoc", f"--descriptor_set_in={bundle.name}", f"--pyi_out={out}", *names]
        subprocess.run([sys.executable, *command], check=True)
    sys.stdout.write(f"{len(names)} stubs for {len(modules)} imported modules in {out}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(arg) for arg in sys.argv[2:]])
