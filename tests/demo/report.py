"""The demo's summary: values in, text out."""

from __future__ import annotations

from typing import Any

from demo.story import Act


def problems(training: dict[str, Any], acts: list[Act], seen: dict[str, Any]) -> list[str]:
    """What is not as the demo promises; empty when all is well."""
    found: list[str] = []
    evaluation = training["status"].get("evaluation") or {}
    after = (evaluation.get("accuracy") or {}).get("damageType", 0.0)
    if after < 0.88:
        found.append(f"damageType accuracy after training is {after:.3f}, below 0.88")
    good, wrong, slow = acts
    if good.phase != "Promoted":
        found.append(f"{good.name} ended {good.phase}, not Promoted: {good.message}")
    for act in (wrong, slow):
        if act.phase != "RolledBack" or act.weight != 0:
            found.append(f"{act.name} ended {act.phase} at weight {act.weight}, not RolledBack at 0")
    if any("weight" in step.lower() and " 0" not in step for step in wrong.path):
        found.append(f"{wrong.name} served users: {wrong.path}")
    if seen["failed"]:
        found.append(f"the app saw {seen['failed']} failed requests: {seen['failures'][:3]}")
    return found


def summary(
    training: dict[str, Any], acts: list[Act], seen: dict[str, Any], seconds: dict[str, float]
) -> str:
    """The closing table."""
    status = training["status"]
    evaluation = status.get("evaluation") or {}
    before = (evaluation.get("accuracyBefore") or {}).get("damageType")
    after = (evaluation.get("accuracy") or {}).get("damageType")
    control = (evaluation.get("accuracyControl") or {}).get("damageType")

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    lines = [
        "",
        "=== Cutover demo: summary",
        f"model              {status.get('modelText', '')}, {status.get('gpuHours', '')} GPU-hours",
        f"damageType         before {share(before)} (chance 0.125), after {share(after)}, GPT-4 stand-in {share(control)}"
        f" on {evaluation.get('examples', 0)} test pictures",
    ]
    for act in acts:
        lines.append(
            f"{act.name:18} {act.phase} ({act.reason}) at weight {act.weight} % after {act.seconds:.0f} s"
        )
        for step in act.steps:
            lines.append(
                f"    {step.get('name', ''):12} {step.get('outcome', ''):12} {step.get('message', '')[:120]}"
            )
    answered = max(seen["answered"], 1)
    gpt4 = sum(n for version, n in seen["byVersion"].items() if version.startswith("gpt-4"))
    lines += [
        f"requests           {seen['sent']} sent, {seen['failed']} lost, {sum(seen['fallbacks'].values())} answered by the"
        f" fallback {seen['fallbacks'] or ''}",
        f"GPT-4 answered     {gpt4 / answered:.0%} of the requests; at $0.04 each that is ${gpt4 * 0.04:.2f}"
        f" of ${answered * 0.04:.2f} without Cutover",
        f"P95 the app saw    {seen['p95Seconds'] or 0:.2f} s",
        "time               " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()),
    ]
    return "\n".join(lines)
