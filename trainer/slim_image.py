"""Takes out of an image what a CPU never calls: triton, and every large CUDA library that an import does not load.

For test images only: a container with a GPU needs what this removes. Run inside the image, in the layer that installs.
"""

from __future__ import annotations

import importlib
import shutil
import site
import sys
from pathlib import Path

LARGE_BYTES = 8_000_000
IMPORTED = ("torch", "torchvision", "transformers", "bitsandbytes", "peft")
CUDA_PACKAGES = ("nvidia", "bitsandbytes")


def loaded_libraries() -> set[str]:
    """Files this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


def main() -> None:
    packages = Path(site.getsitepackages()[0])
    shutil.rmtree(packages / "triton", ignore_errors=True)
    for name in IMPORTED:
        importlib.import_module(name)
    needed = loaded_libraries()
    saved = 0
    libraries = (library for name in CUDA_PACKAGES for library in (packages / name).rglob("*"))
    for library in sorted(libraries):
        if ".so" in library.name and library.is_file() and str(library) not in needed:
            size = library.stat().st_size
            if size > LARGE_BYTES:
                library.unlink()
                saved += size
    sys.stdout.write(f"removed {saved / 1e6:.0f} MB of CUDA libraries, and triton\n")


if __name__ == "__main__":
    main()
