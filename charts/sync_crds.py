"""Copies the generated CRDs into the chart as templates: `python charts/sync_crds.py [DIRECTORY]`.

A chart's own `crds/` folder is installed once and never upgraded, so ours are templates behind `crds.enabled`, kept by
Helm when the release goes (`crds.keep`).
"""

from __future__ import annotations

import sys
from pathlib import Path

CHARTS = Path(__file__).resolve().parent
SOURCE = CHARTS.parent / "crds"
TARGET = CHARTS / "cutover/templates/crds"
LABELS = """\
  labels:
    {{- include "cutover.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""


def template(text: str) -> str:
    """A CRD's YAML as a Helm template."""
    if "{{" in text:
        raise ValueError("a description or rule holds '{{', which Helm would read")
    start, metadata, rest = text.partition("metadata:\n")
    name, newline, rest = rest.partition("\n")
    return (
        f"{{{{- if .Values.crds.enabled }}}}\n{start}{metadata}{name}{newline}{LABELS}{rest}{{{{- end }}}}\n"
    )


def main(target: Path = TARGET) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCE.glob("*.yaml")):
        (target / source.name).write_text(template(source.read_text()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
