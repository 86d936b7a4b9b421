"""`PYTHONPATH=tests python -m cluster up|down|status|images|logs`: the local cluster by hand."""

import argparse
import sys

from cluster import clusters, images, node
from cluster.paths import LOGS


def main() -> int:
    """Do one command; what other programs may read goes to standard output, the rest to standard error."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the cluster, or find it running")
    down = commands.add_parser("down", help="take it away; programs and images are kept for the next start")
    down.add_argument("--purge", action="store_true", help="keep nothing")
    commands.add_parser("status", help="what runs")
    build = commands.add_parser("images", help="build images and bring them to the cluster")
    build.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of: {', '.join(images.IMAGES)}; all if none"
    )
    logs = commands.add_parser("logs", help="the end of the logs of the node's programs and of builds")
    logs.add_argument("name", nargs="?", help="one of them, whole")
    arguments = parser.parse_args()
    match arguments.command:
        case "up":
            print(f"export KUBECONFIG={clusters.up().kubeconfig}")
        case "down":
            clusters.down(arguments.purge)
        case "status":
            print(clusters.status())
        case "images":
            for name, reference in images.ensure(arguments.names or list(images.IMAGES)).items():
                print(name, reference)
        case "logs":
            _logs(arguments.name)
    return 0


def _logs(name: str | None) -> None:
    for folder in (node.LOGS, LOGS):
        for file in sorted(folder.glob(f"{name or '*'}.log")):
            text = file.read_text(errors="replace")
            print(f"==> {file}", text if name else "\n".join(text.splitlines()[-10:]), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
