"""Where everything of the local cluster lies. It only names places; it makes none of them.

What is worth keeping (binaries, images, downloads) and the state of a run lie apart, so that `down` can remove the
state whole.
"""

import os
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
REPOSITORY = SOURCE.parents[1]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutover"
BIN = CACHE / "bin"  # programs built from source, a folder for each content digest
CONTAINERD = CACHE / "containerd"  # the images that the node has unpacked
REGISTRY = CACHE / "registry"
BUILDAH = CACHE / "buildah"  # our own image storage, never the host's
DOWNLOADS = CACHE / "downloads"  # what pip and uv fetched during image builds
LOGS = CACHE / "logs"  # of builds

NODE = CACHE / "node"  # the state of the running node
KUBECONFIG = NODE / "kubeconfig"
# A socket's path may have 108 characters at most, whatever the user's cache folder is called. It is a tmpfs, too: a
# reboot takes the pid files with the processes.
RUN = Path("/run/cutover")
CGROUP = "cutover"
