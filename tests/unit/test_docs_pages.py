"""The pages say what the code does: tables are current, links lead somewhere, reasons and targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cutover import metrics_reference
from cutover.api import reference
from cutover.contract import PATH_EXPORT

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = "\n".join(
    path.read_text()
    for folder in ("crds", "operator", "trainer", "server")
    for path in (ROOT / folder).rglob("*.py")
)


def test_the_field_tables_are_made_from_the_models() -> None:
    assert reference.main(["--check", str(ROOT / "docs/resources.md")]) == 0, "run make crds"


def test_the_metrics_table_is_made_from_the_contract() -> None:
    assert metrics_reference.main(["--check", str(ROOT / "docs/gateway.md")]) == 0, "run make crds"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_the_source_map_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:crds|operator|server|trainer|tests|charts|docs|examples)/[\w./-]+)`", page.read_text()
    )
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    asked = set(re.findall(r"^make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert {
        target for target in asked if f"\n{target}" not in makefile and f" {target}" not in makefile
    } == set()


@pytest.mark.parametrize("page", ["rollout.md", "train.md"])
def test_reasons_that_are_explained_are_ones_the_code_gives(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    reasons = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][A-Za-z]*)+)`", text)) - {
        "MetricsAvailable",
        "TrainingRun",
    }
    unknown = {reason for reason in reasons if f'"{reason}"' not in CODE}
    assert not unknown


def test_the_export_path_in_the_docs_is_the_one_that_is_served() -> None:
    assert PATH_EXPORT in (ROOT / "docs/train.md").read_text()
