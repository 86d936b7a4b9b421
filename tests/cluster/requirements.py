"""What each image installs, exported from uv.lock: an image's dependency layer changes only when these files do.

python tests/cluster/requirements.py [--check]
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {
    "operator": ("operator", "cli"),
    "server": ("server",),
    "trainer": ("trainer", "server"),
}


def exported(extras: tuple[str, ...]) -> str:
    """requirements.txt with hashes for some extras of the project."""
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    command = [uv, "export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-header"]
    for extra in extras:
        command += ["--extra", extra]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main(check: bool) -> int:
    """Write the files, or with --check say which are stale."""
    stale = []
    for folder, extras in EXTRAS.items():
        path = ROOT / folder / "requirements.txt"
        text = exported(extras)
        if path.exists() and path.read_text() == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not check:
            path.write_text(text)
    if check and stale:
        print(f"stale: {', '.join(stale)}; run make lock")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
