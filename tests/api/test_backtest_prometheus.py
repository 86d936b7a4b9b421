"""`backtest` on a real Prometheus: the verdicts of the same samples read from a file, whatever its range ends are like.

Prometheus 2 hands out the sample at the left end of a range, Prometheus 3 does not: both are asked.
"""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster import tools
from cluster.daemons import Daemon
from cluster.steps import wait_until
from cutover_cli.main import main
from fakes.free_ports import free_port
from fakes.recorded_town import kept, manifest, open_metrics, recorded
from fakes.rollout_town import START, Behaviour, Town

ON_A_SAMPLE = START - 3600 + 100
"""The first piece that is read ends on a scrape, 100 s after the rollout began."""
pytestmark = pytest.mark.timeout(300, func_only=True)
"""On a new machine Prometheus 3 is built from its Go modules first, which is not the test's time."""
PROGRAMS: dict[str, Callable[[], Path]] = {"2": tools.prometheus_2, "3": tools.prometheus_3}


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return str(PROGRAMS[request.param]())


class Served:
    """A Prometheus with the samples of a town in its blocks, and nothing to scrape."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder
        self.daemon = Daemon("prometheus", folder, folder)

    def start(self, town: Town) -> str:
        text, blocks = self._folder / "town.om", self._folder / "tsdb"
        text.write_text(open_metrics(town))
        command = [str(tools.promtool()), "tsdb", "create-blocks-from", "openmetrics", str(text), str(blocks)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        config, port = self._folder / "prometheus.yml", free_port()
        config.write_text("global: {}\n")
        url = f"http://127.0.0.1:{port}"
        self.daemon.start(
            [
                self._program,
                f"--config.file={config}",
                f"--storage.tsdb.path={blocks}",
                "--storage.tsdb.retention.time=100y",
                f"--web.listen-address=127.0.0.1:{port}",
            ]
        )
        wait_until("Prometheus answers", lambda: ready(url), 60)
        return url


@pytest.fixture
def serve(program: str, tmp_path: Path) -> Iterator[Served]:
    served = Served(program, tmp_path)
    yield served
    served.daemon.stop()


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("bad", [False, True], ids=["promoted", "rolled back"])
def test_the_verdicts_are_those_of_the_same_counts_read_from_a_file(
    serve: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: bool
) -> None:
    town = recorded(candidate=Behaviour(accuracy=0.8)) if bad else recorded()
    assert town.now > ON_A_SAMPLE + 3600
    url, saved = serve.start(town), tmp_path / "saved.json"
    start, end = (datetime.fromtimestamp(at, UTC).isoformat() for at in (ON_A_SAMPLE, town.now))
    span = ["backtest", "-f", manifest(tmp_path), "--from", start, "--to", end]

    def told(*source: str) -> str:
        assert main([*span, *source]) == 0
        return capsys.readouterr().out

    asked = told("--prometheus", url, "--save", str(saved))
    assert ("It would have been rolled back" if bad else "It would have been promoted") in asked
    assert decided(asked) == decided(told("--samples", kept(town, tmp_path)))
    assert decided(asked) == decided(told("--samples", str(saved)))


def decided(text: str) -> str:
    """The table and the end: what was decided when, on which figures. The head says how many samples there were."""
    return text[text.index("TIME  ") :]
