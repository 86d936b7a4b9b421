"""The launcher of a stage's workers: whose end is the stage's, who is told to leave, and that none is left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from cutover.contract import ExitCode
from cutover_trainer.place import Place
from cutover_trainer.stopping import Stop
from cutover_trainer.workers import run_workers

WORDS = "import os, sys, time; rank = os.environ['RANK']; open(os.environ['CUTOVER_TERMINATION_LOG'], 'w').write(rank); "
STAYS = "time.sleep(120)"
DEADLINE_SECONDS = 30.0


def run(tmp_path: Path, code: str, count: int = 3, stop: Stop | None = None) -> tuple[int, str]:
    """Exit code, and the words left in the termination log."""
    log = tmp_path / "termination.json"
    command = [sys.executable, "-c", WORDS + code]
    ended = run_workers(command, Place(workers=count), stop or Stop(), tmp_path, log)
    return ended, log.read_text()


def test_when_all_are_done_the_leader_has_spoken(tmp_path: Path) -> None:
    assert run(tmp_path, "sys.exit(0)") == (ExitCode.DONE, "0")


def test_the_one_that_fails_ends_the_others_and_its_words_are_the_stages(tmp_path: Path) -> None:
    started = time.monotonic()
    assert run(tmp_path, f"sys.exit(1) if rank == '1' else {STAYS}") == (1, "1")
    assert time.monotonic() - started < 60


def test_a_refusal_explains_the_failures_it_caused(tmp_path: Path) -> None:
    """Its connections are gone before its process is; a stage does not end at a signal, it looks at it."""
    ready = tmp_path / "ready"
    refuses = f"import signal; signal.signal(15, signal.SIG_IGN); open('{ready}', 'w'); time.sleep(0.5); sys.exit(65)"
    fails = f"[time.sleep(0.01) for _ in iter(lambda: os.path.exists('{ready}'), True)]; sys.exit(1)"
    assert run(tmp_path, f"exec({refuses!r} if rank == '2' else {fails!r})") == (ExitCode.BAD_INPUT, "2")


def test_a_worker_that_is_killed_counts_as_killed(tmp_path: Path) -> None:
    assert run(tmp_path, f"os.kill(os.getpid(), 9) if rank == '1' else {STAYS}") == (137, "1")


def test_a_request_to_stop_reaches_all(tmp_path: Path) -> None:
    class AskedOnceAllListen(Stop):
        @property
        def requested(self) -> bool:
            return len(list(tmp_path.glob("listens-*"))) == 3

    listens = f"open('{tmp_path}/listens-' + rank, 'w')"
    code = f"import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); {listens}; {STAYS}"
    assert run(tmp_path, code, stop=AskedOnceAllListen())[0] == ExitCode.INTERRUPTED


def test_a_worker_that_is_asked_before_it_listens_is_interrupted(tmp_path: Path) -> None:
    class AskedOnceAllAreThere(Stop):
        @property
        def requested(self) -> bool:
            return len(list(tmp_path.glob("worker-*.json"))) == 3

    assert run(tmp_path, STAYS, stop=AskedOnceAllAreThere())[0] == ExitCode.INTERRUPTED


def test_what_breaks_when_the_first_has_left_as_asked_is_no_failure(tmp_path: Path) -> None:
    """Asked while they meet: who was still alone leaves, and the others' connections to it break."""

    class AskedOnceAllListen(Stop):
        @property
        def requested(self) -> bool:
            return len(list(tmp_path.glob("listens-*"))) == 3

    leaves = "sys.exit(1) if rank == '0' else (time.sleep(0.5), sys.exit(75))"
    listens = f"open('{tmp_path}/listens-' + rank, 'w')"
    code = f"import signal; signal.signal(signal.SIGTERM, lambda *_: {leaves}); {listens}; {STAYS}"
    log = tmp_path / "termination.json"
    command = [sys.executable, "-c", WORDS + code]
    assert run_workers(command, Place(workers=3), AskedOnceAllListen(), tmp_path, log) == 75
    assert not log.exists()


def test_a_worker_that_somebody_else_ends_has_failed(tmp_path: Path) -> None:
    assert run(tmp_path, f"os.kill(os.getpid(), 15) if rank == '1' else {STAYS}") == (143, "1")


def test_a_signal_while_python_clears_up_does_not_change_the_end() -> None:
    late = "class Late:\n    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 15)\nlate = Late()\n"
    code = f"import os, sys\nfrom cutover_trainer.stopping import Stop\n{late}stop = Stop()\nstop.listen()\n"
    ends = [
        subprocess.call([sys.executable, "-c", code + over + "sys.exit(75)"])
        for over in ("", "stop.over()\n")
    ]
    assert ends == [-15, ExitCode.INTERRUPTED]


def test_nobody_is_left_behind_a_launcher_that_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    worker = f"import os, time; open('{pids}/' + str(os.getpid()), 'w'); {STAYS}"
    code = (
        "import sys; from pathlib import Path; from cutover_trainer.stopping import Stop\n"
        "from cutover_trainer.place import Place; from cutover_trainer.workers import run_workers\n"
        f"run_workers([sys.executable, '-c', {worker!r}], Place(workers=2), Stop(), Path({str(tmp_path)!r}), Path('/dev/null'))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(list(pids.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    launcher.kill()
    launcher.wait()
    for pid in pids.iterdir():
        while Path(f"/proc/{pid.name}").exists():
            assert time.monotonic() < deadline, f"worker {pid.name} lives on"
            time.sleep(0.02)


def test_workers_know_their_place(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUTOVER_RENDEZVOUS", "CUTOVER_SHARED_SCRATCH")
    code = f"open(r'{tmp_path}/seen-' + rank, 'w').write(' '.join(os.environ[name] for name in {names!r}))"
    run(tmp_path, code, count=2)
    for rank in ("0", "1"):
        said = (tmp_path / f"seen-{rank}").read_text().split()
        assert said == [rank, rank, "2", f"file://{tmp_path}/rendezvous", str(tmp_path)]
