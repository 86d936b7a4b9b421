"""`make soak-outage`: Prometheus goes away at every step of a rollout on the real node, once with a gateway dying meanwhile.

Promised: the rollout holds where it is and says so, goes on when the metrics are back, and at the end its ledger has
every request exactly once but for those a dead gateway pod never showed to anybody, which it flags. Counted from three
sides: the app, the gateway pods' own counters, the ledger.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster import clusters
from cutover_operator.evidence.ledger import ENDED_SECONDS
from demo import stack as demo_stack
from demo import story, tally
from demo.kubectl import Kubectl
from demo.stack import GATEWAY, Stack

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "build/soak/outage.json"
NAMESPACE = "cutover-soak"
ROLLOUT = "outage"
REQUESTS_PER_SECOND = 16.0
AWAY_SECONDS = 45.0
CHECKPOINT_SECONDS = 330.0
"""The ledger is stored at least every five minutes."""
DEADLY_STEP = "weight 50%"
"""At this step a gateway pod is killed while Prometheus is away."""


@dataclass
class Outage:
    """One step with Prometheus away."""

    step: str
    away_seconds: float = 0.0
    said_after_seconds: float = 0.0
    """Until MetricsAvailable was False."""
    back_after_seconds: float = 0.0
    """Until it was True again."""
    held: bool = False
    """Step, weight and route stayed, in phase Holding, for as long as it lasted."""


@dataclass
class Trial:
    outages: list[Outage] = field(default_factory=list)
    phase: str = ""
    app: dict[str, float] = field(default_factory=dict)
    """Answers by arm, as the app saw them."""
    gateways: tally.Totals = field(default_factory=dict)
    """Counters of the pods that live at the end."""
    shown_by_the_dead: tally.Totals = field(default_factory=dict)
    never_shown: tally.Totals = field(default_factory=dict)
    """What the killed pod counted after its last scrape."""
    ledger: tally.Totals = field(default_factory=dict)
    lost_tails: int = 0
    failed_requests: int = 0

    def checks(self) -> list[tuple[str, bool, str]]:
        """(promise, kept, what was found)."""
        wrong = tally.minus(self.ledger, tally.plus(self.gateways, self.shown_by_the_dead))
        by_arm = {arm: _answers(self.ledger, arm) + _answers(self.never_shown, arm) for arm in self.app}
        return [
            ("an outage at each of the five steps", len(self.outages) == 5, f"{len(self.outages)}"),
            (
                "held at every one",
                all(one.held for one in self.outages),
                ", ".join(one.step for one in self.outages if not one.held) or "all",
            ),
            ("promoted in the end", self.phase == "Promoted", self.phase),
            (
                "ledger = gateways' own counters, every one of them",
                not wrong,
                json.dumps(wrong) if wrong else "equal",
            ),
            (
                "app = ledger + what the dead pod never showed",
                self.app == by_arm,
                f"app {self.app}, counted {by_arm}",
            ),
            ("the loss is flagged", self.lost_tails > 0, f"{self.lost_tails} series ended or began anew"),
        ]


def _answers(totals: tally.Totals, arm: str) -> float:
    return sum(totals.get(f"requests/{arm}/{outcome}", 0.0) for outcome in ("ok", "error", "deferred"))


def manifest(stack: Stack, candidate: dict[str, Any]) -> str:
    """The demo's rollout, with a last step long enough for an outage to fall into it before the promotion."""
    text = stack.render(
        "rollout.yaml", NAME=ROLLOUT, CANDIDATE=candidate, SERVING={"engine": "external"}, GATEWAY=GATEWAY
    )
    short, long = "{weight: 100, minDuration: 5s", "{weight: 100, minDuration: 120s"
    if short not in text:
        raise RuntimeError(f"the demo's rollout has no step {short!r} any more")
    return text.replace(short, long)


class Soak:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.trial = Trial()
        self.killed_at = 0.0

    # ------------------------------------------------------------ looking
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (self.stack.kube.get("modelrollout", ROLLOUT) or {}).get("status") or {}
        return found

    def metrics_are(self, wanted: str) -> bool:
        conditions = {c["type"]: c["status"] for c in self.status().get("conditions", [])}
        return conditions.get("MetricsAvailable") == wanted

    def place(self) -> tuple[Any, ...]:
        """Where the rollout is: what an outage must not move."""
        now = self.status()
        route = self.stack.kube.get("configmap", f"{GATEWAY}-route") or {}
        weight = json.loads(route["data"]["route.json"])["weightBasisPoints"]
        return now["step"], now["weight"], weight

    def traffic(self, rps: float, reset: bool = False) -> None:
        self.stack.kube.call("driver", "/app", {"rps": rps, "reset": reset})

    # ------------------------------------------------------------ the trial
    def run(self) -> Trial:
        stack = self.stack
        for name in demo_stack.STAND_INS:
            stack.kube.call(name, "/admin/behaviour", {"accuracy": 0.96, "latency_mean_seconds": 0.02})
        stack.kube.call("driver", "/surveyor", {"on": True})
        self.traffic(0)
        candidate = story.candidate_at(stack, "slow-model", "outage-1")
        stack.kube.apply(manifest(stack, candidate))
        # From the first request on, all belong to this rollout.
        stack.kube.wait("the first step in force", lambda: bool(self.status().get("stepConfirmedAt")), 180)
        self.traffic(REQUESTS_PER_SECOND, reset=True)
        act = story.follow_rollout(stack, say, ROLLOUT, 1800, self.outage)
        self.trial.phase = act.phase
        seen = tally.quiet(stack)
        self.trial.app = {arm: float(n) for arm, n in seen["byArm"].items()}
        self.trial.failed_requests = seen["failed"]
        self.trial.gateways = tally.gateway_totals(stack, ROLLOUT)
        tally.scraped(stack, self.trial.gateways, ROLLOUT)
        # That a series has ended is known only some time after its last sample.
        settled_at = max(time.time(), self.killed_at + ENDED_SECONDS + 30.0)
        say("waiting for a checkpoint of the ledger that can know of the dead pod")
        stack.kube.wait(
            "a checkpoint",
            lambda: tally.ledger(stack, ROLLOUT).written_at > settled_at,
            ENDED_SECONDS + CHECKPOINT_SECONDS,
            5.0,
        )
        evidence = tally.ledger(stack, ROLLOUT)
        self.trial.ledger, self.trial.lost_tails = tally.counted(evidence), evidence.lost_tails
        return self.trial

    def outage(self, step: str) -> None:
        kube, one = self.stack.kube, Outage(step)
        deadly = DEADLY_STEP in step
        pod = f"{GATEWAY}-1"
        if deadly:  # what the pod has shown until now is known exactly
            tally.quiet(self.stack)
            self.trial.shown_by_the_dead = tally.pod_totals(self.stack, pod, ROLLOUT)
            tally.scraped(self.stack, tally.gateway_totals(self.stack, ROLLOUT), ROLLOUT)
        kube.run("scale", "deployment/prometheus", "--replicas=0")
        gone_at = time.monotonic()
        if deadly:
            self.traffic(REQUESTS_PER_SECOND)
        kube.wait("MetricsAvailable=False", lambda: self.metrics_are("False"), 90)
        one.said_after_seconds = round(time.monotonic() - gone_at, 1)
        before = self.place()
        one.held = True
        while time.monotonic() - gone_at < AWAY_SECONDS:
            one.held = one.held and self.place() == before and self.status()["phase"] == "Holding"
            time.sleep(2)
        if deadly:
            self.kill(pod)
        kube.run("scale", "deployment/prometheus", "--replicas=1")
        one.away_seconds = round(time.monotonic() - gone_at, 1)
        started_at = time.monotonic()
        kube.wait("MetricsAvailable=True", lambda: self.metrics_are("True"), 180)
        one.back_after_seconds = round(time.monotonic() - started_at, 1)
        self.trial.outages.append(one)
        say(f"{step}: away {one.away_seconds} s, held: {one.held}, back after {one.back_after_seconds} s")

    def kill(self, pod: str) -> None:
        """A gateway pod dies with counters that nobody has scraped; its requests were all answered."""
        tally.quiet(self.stack)
        last = tally.pod_totals(self.stack, pod, ROLLOUT)
        self.trial.never_shown = tally.minus(last, self.trial.shown_by_the_dead)
        say(
            f"{pod} is killed with {sum(self.trial.never_shown.values()):.0f} requests that were never scraped"
        )
        self.stack.kube.run("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        self.killed_at = time.time()
        self.stack.kube.wait_ready(f"cutover.dev/gateway={GATEWAY}", 180, count=2)
        self.traffic(REQUESTS_PER_SECOND)


def table(trial: Trial) -> str:
    lines = [f"{'step':22}{'away s':>9}{'said after s':>14}{'held':>7}{'back after s':>14}"]
    lines += [
        f"{one.step:22}{one.away_seconds:>9}{one.said_after_seconds:>14}{one.held!s:>7}{one.back_after_seconds:>14}"
        for one in trial.outages
    ]
    lines += ["", f"{'counter':32}{'gateways':>10}{'+ dead':>8}{'ledger':>10}{'never shown':>13}"]
    for key in sorted(trial.ledger | trial.gateways | trial.never_shown):
        numbers = (trial.gateways, trial.shown_by_the_dead, trial.ledger, trial.never_shown)
        g, d, own, lost = (part.get(key, 0.0) for part in numbers)
        lines.append(f"{key:32}{g:>10.0f}{d:>8.0f}{own:>10.0f}{lost:>13.0f}")
    lines.append(f"app: {trial.app} answered, {trial.failed_requests} failed")
    lines += [f"{'PASS' if kept else 'FAIL'}  {name}: {found}" for name, kept, found in trial.checks()]
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(prog="soak-outage", description="Needs the node, or KUBECONFIG.")
    options.add_argument("--keep", action="store_true", help="leave the namespace for a look")
    chosen = options.parse_args()
    kubeconfig = clusters.up().kubeconfig
    demo_stack.uninstall(Stack(Kubectl(kubeconfig, NAMESPACE), {}))  # what an earlier run left
    stack = demo_stack.open_stack(kubeconfig, NAMESPACE)
    demo_stack.install(stack, say)
    trial = Soak(stack).run()
    print(table(trial))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    checks = [{"promise": name, "kept": kept, "found": found} for name, kept, found in trial.checks()]
    RESULT.write_text(json.dumps(asdict(trial) | {"checks": checks}, indent=1) + "\n")
    if not chosen.keep:
        demo_stack.uninstall(stack)
    return 0 if all(check["kept"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
