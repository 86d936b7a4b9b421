"""One training, disturbed at random moments, ends with the weights of one that was left alone.

    python -m soak.interrupt [--times 30] [--seed 1]          processes of this machine, SIGKILL and SIGTERM in turn
    python -m soak.interrupt --pods 5                         pods really deleted, on the local node (needs it free)

Between attempts this soak plays the operator and the disk: it reckons GPU-seconds from outside, grants another copy of the
training too few of them, and now and then leaves the newest checkpoint torn. It looks at the checkpoints with its own eyes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cutover.contract import ExitCode
from cutover.stages import StageResult
from fakes.training_example import rows, run_stage, stage_document, write_rows

DEADLINE_SECONDS = 1800.0
CHECKPOINT_SECONDS = 0.1
MOST_CHECKPOINTS = 6
"""An attempt is disturbed after between none and this many of its own checkpoints, and a fraction of a second."""
TEAR_EVERY = 6
BUDGET_GRACE_SECONDS = 10.0
"""From a granted second's end to the process's: its start, one step and a save."""


@dataclass
class Account:
    """What is known from outside."""

    interrupted: list[str] = field(default_factory=list)
    lifetimes_seconds: list[float] = field(default_factory=list)
    resumed_steps: list[int] = field(default_factory=list)
    torn: int = 0
    budget_overrun_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def gpu_seconds(self) -> float:
        return sum(self.lifetimes_seconds)


class Training:
    """A prepared data set in a folder, and attempts at its stage train in processes of their own."""

    def __init__(self, workspace: Path, fine_tune: dict[str, Any]) -> None:
        self.workspace = workspace
        self._fine_tune = fine_tune
        self._attempts = 0

    @classmethod
    def prepared(cls, workspace: Path, count: int, fine_tune: dict[str, Any]) -> Training:
        workspace.mkdir(parents=True)
        training = cls(workspace, fine_tune)
        write_rows(workspace / "rows.jsonl", rows(count))
        code, result = run_stage("prepare", training.document(), workspace)
        if code != ExitCode.DONE:
            raise RuntimeError(result.message)
        return training

    def copy(self, workspace: Path) -> Training:
        shutil.copytree(self.workspace, workspace)
        return Training(workspace, self._fine_tune)

    def document(self, **more: Any) -> dict[str, Any]:
        document = stage_document(self.run, self.workspace / "rows.jsonl", fineTune=self._fine_tune)
        return {**document, **more}

    @property
    def run(self) -> Path:
        return self.workspace / "run"

    def attempt(self, gpu_seconds_left: float | None = None) -> Attempt:
        self._attempts += 1
        (self.workspace / "termination.json").unlink(missing_ok=True)
        log = self.workspace / f"attempt-{self._attempts}.log"
        return Attempt(self.document(gpuSecondsLeft=gpu_seconds_left), self.workspace, log)

    def result(self) -> StageResult:
        return StageResult.model_validate_json((self.workspace / "termination.json").read_bytes())

    def whole_checkpoints(self) -> list[int]:
        """Steps whose every file is what its manifest says, lowest first."""
        return sorted(_step(folder) for folder in self._checkpoints() if _is_whole(folder))

    def _checkpoints(self) -> list[Path]:
        return list((self.run / "checkpoints").glob("step-*"))

    def tear_newest(self) -> None:
        """What a machine that loses power leaves: a file cut short under a whole manifest, a folder without one."""
        newest = max(filter(_is_whole, self._checkpoints()), key=_step)
        torn = next(newest.rglob("optimizer.pt"))
        torn.write_bytes(torn.read_bytes()[:-9])
        later = newest.with_name("step-99999999")
        later.mkdir(exist_ok=True)
        (later / "state.json").write_text('{"step": 99999999')

    def weights(self) -> bytes:
        return (self.run / "adapter/adapter_model.safetensors").read_bytes()

    def curves(self) -> dict[str, Any]:
        curves: dict[str, Any] = json.loads((self.run / "training.json").read_bytes())
        return curves


def _step(folder: Path) -> int:
    """`step-00000012`, or `step-00000012.1` where the first was torn."""
    return int(folder.name.removeprefix("step-").partition(".")[0])


def _is_whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / "MANIFEST.json").read_bytes())["files"]
        return all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError):
        return False


class Attempt:
    """A stage in a process of its own, forked so that nothing is imported again."""

    def __init__(self, document: dict[str, Any], workspace: Path, log: Path) -> None:
        def work() -> None:
            os.environ["CUTOVER_CHECKPOINT_SECONDS"] = str(CHECKPOINT_SECONDS)
            sys.stdout = log.open("w")
            os._exit(run_stage("train", document, workspace)[0])

        self._log = log
        self.started_at = time.monotonic()
        self._process = multiprocessing.get_context("fork").Process(target=work)
        self._process.start()

    def events(self, name: str) -> list[dict[str, Any]]:
        if not self._log.exists():
            return []
        # The last line may be torn: the process was killed while it wrote.
        lines = self._log.read_text().split("\n")[:-1]
        found = [json.loads(line) for line in lines if line.startswith('{"event"')]
        return [event for event in found if event["event"] == name]

    def wait_until(self, seen: Callable[[], bool]) -> bool:
        """False when the stage ended first."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._process.is_alive():
            if seen():
                return True
            if time.monotonic() > deadline:
                raise TimeoutError("the stage never came this far")
            time.sleep(0.005)
        return False

    def end(self, number: signal.Signals | None = None) -> int:
        """Exit code; waits for the end, having sent the signal if there is one."""
        assert self._process.pid is not None
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
        self._process.join(DEADLINE_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"the stage did not end within {DEADLINE_SECONDS:g} s")
        return self._process.exitcode

    @property
    def lifetime_seconds(self) -> float:
        return time.monotonic() - self.started_at


def disturb(training: Training, times: int, seed: int, tear: bool = True) -> Account:
    """Interrupt `times` times, then let it end. Everything that should not be lands in `problems`."""
    account, chance = Account(), random.Random(seed)
    for number in range(times):
        kind = signal.SIGKILL if number % 2 == 0 else signal.SIGTERM
        if tear and number % TEAR_EVERY == TEAR_EVERY - 1 and len(training.whole_checkpoints()) > 1:
            training.tear_newest()
            account.torn += 1
        with _attempted(training, account) as attempt:
            wanted, pause = chance.randint(0, MOST_CHECKPOINTS), chance.uniform(0, 0.3)
            if attempt.wait_until(lambda wanted=wanted: len(attempt.events("checkpoint")) >= wanted):  # type: ignore[misc]
                attempt.wait_until(_later(pause))
            code = attempt.end(kind)
            expected = {-kind} if kind == signal.SIGKILL else {ExitCode.INTERRUPTED, -kind}
            if code not in expected:
                account.problems.append(f"attempt {number + 1}: {kind.name} ended with exit code {code}")
            account.interrupted.append(kind.name)
    return account


def run_out_of_budget(training: Training, account: Account, granted_seconds: float) -> None:
    """Grant too little once: the attempt must keep a checkpoint, say so, and stay within what it was granted."""
    with _attempted(training, account, granted_seconds) as attempt:
        code = attempt.end()
    outcome = training.result().outcome
    if (code, outcome) != (ExitCode.INTERRUPTED, "budgetExceeded"):
        account.problems.append(f"a small budget ended as {outcome} with exit code {code}")
    if not training.whole_checkpoints():
        account.problems.append("nothing was kept when the budget ended")
    account.budget_overrun_seconds = account.lifetimes_seconds[-1] - granted_seconds
    if not 0 <= account.budget_overrun_seconds <= BUDGET_GRACE_SECONDS:
        account.problems.append(f"the budget was missed by {account.budget_overrun_seconds:.1f} s")


def let_it_end(training: Training, account: Account) -> None:
    with _attempted(training, account) as attempt:
        code = attempt.end()
    if code != ExitCode.DONE:
        account.problems.append(f"the last attempt ended with exit code {code}: {training.result().message}")


@contextlib.contextmanager
def _attempted(
    training: Training, account: Account, gpu_seconds_left: float | None = None
) -> Iterator[Attempt]:
    """An attempt on the account: its lifetime, and whether it went on from the newest whole checkpoint."""
    whole = training.whole_checkpoints()
    attempt = training.attempt(gpu_seconds_left)
    yield attempt
    account.lifetimes_seconds.append(attempt.lifetime_seconds)
    resumed = [event["step"] for event in attempt.events("resumed")]
    account.resumed_steps += resumed
    if resumed and resumed != whole[-1:]:
        account.problems.append(f"resumed from step {resumed}, whole were {whole}")
    if not resumed and whole and attempt.events("checkpoint"):
        account.problems.append(f"began anew although {whole} were whole")


def _later(seconds: float) -> Callable[[], bool]:
    at = time.monotonic() + seconds
    return lambda: time.monotonic() >= at


def differences(one: Training, other: Training) -> list[str]:
    """What a disturbed and an undisturbed run have not in common, bit for bit."""
    found = [] if one.weights() == other.weights() else ["the weights differ"]
    mine, theirs = one.curves(), other.curves()
    found += [f"{name} differs" for name in ("loss", "validationLoss") if mine[name] != theirs[name]]
    return found


def sums(training: Training, account: Account, passes: int) -> list[str]:
    """Whether the account and the run's own figures agree."""
    curves = training.curves()
    found = []
    samples = round(curves["samplesPerSecond"] * curves["secondsInSteps"])
    if samples != passes:
        found.append(f"{samples} samples counted for {passes} passes")
    if curves["secondsInSteps"] > account.gpu_seconds:
        found.append("more seconds in steps than processes lived")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pods", type=int, default=0, help="delete this many pods on the local node instead")
    asked = parser.parse_args()
    if asked.pods:
        from soak.interrupt_pods import delete_pods

        return delete_pods(asked.pods, asked.seed)
    torch.set_num_threads(1)
    fine_tune = {"learningRate": 2e-3, "epochs": max(6, asked.times // 2), "batchSize": 4}
    with tempfile.TemporaryDirectory() as folder:
        untouched = Training.prepared(Path(folder) / "untouched", 96, fine_tune)
        disturbed = untouched.copy(Path(folder) / "disturbed")
        poor = untouched.copy(Path(folder) / "poor")
        alone, short = Account(), Account()
        let_it_end(untouched, alone)
        # Of the time the whole takes here, so that it is too little on any machine, and enough to get somewhere.
        run_out_of_budget(poor, short, granted_seconds=alone.gpu_seconds / 2)
        let_it_end(poor, short)
        account = disturb(disturbed, asked.times, asked.seed)
        let_it_end(disturbed, account)
        result = disturbed.result()
        passes = int(fine_tune["epochs"]) * result_rows(disturbed)
        problems = [
            *alone.problems,
            *short.problems,
            *account.problems,
            *differences(poor, untouched),
            *differences(disturbed, untouched),
            *sums(poor, short, passes),
            *sums(disturbed, account, passes),
        ]
        seconds = disturbed.curves()["secondsInSteps"]
    print(f"interrupted {len(account.interrupted)} times: {', '.join(account.interrupted)}")
    print(f"resumed from steps {account.resumed_steps}; {account.torn} times past a torn checkpoint")
    print(f"result: {result.message}")
    print(
        f"GPU-seconds {account.gpu_seconds:.1f} over {len(account.lifetimes_seconds)} attempts, {seconds:.1f} of them in "
        f"steps that were kept; undisturbed {alone.gpu_seconds:.1f}; budget overrun {short.budget_overrun_seconds:.1f} s"
    )
    for problem in problems:
        print(f"FAIL  {problem}")
    if not problems:
        print("PASS  weights and losses equal bit for bit; only whole checkpoints loaded; GPU-seconds add up")
    return 1 if problems else 0


def result_rows(training: Training) -> int:
    """Training rows."""
    return len((training.run / "data/train.jsonl").read_text().splitlines())


if __name__ == "__main__":
    sys.exit(main())
