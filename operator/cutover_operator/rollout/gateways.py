"""Asks every ready gateway pod which route it serves. I/O only; a pod that does not answer is a value."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from pydantic import ValidationError

from cutover.contract import PATH_ROUTE_REPORT, PORT_OPS
from cutover.route import RouteReport
from cutover_operator.port import Object
from cutover_operator.rollout.world import GatewayPod

REPORT_TIMEOUT_SECONDS = 1.0
REPORTS_AT_ONCE = 32
REPORT_LIMIT_BYTES = 65536


class GatewayReports:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._asking = asyncio.Semaphore(REPORTS_AT_ONCE)

    async def ask(self, pods: list[Object]) -> tuple[GatewayPod, ...]:
        """Reports of the pods that are ready, by name."""
        ready = sorted((p for p in pods if is_ready(p)), key=lambda p: str(p["metadata"]["name"]))
        return tuple(await asyncio.gather(*(self._report(pod) for pod in ready)))

    async def _report(self, pod: Object) -> GatewayPod:
        name, ip = str(pod["metadata"]["name"]), str(pod["status"].get("podIP", ""))
        if not ip:
            return GatewayPod(name, error="has no address")
        host = f"[{ip}]" if ":" in ip else ip
        url = f"http://{host}:{_ops_port(pod)}{PATH_ROUTE_REPORT}"
        timeout = aiohttp.ClientTimeout(total=REPORT_TIMEOUT_SECONDS)
        try:
            async with (
                self._asking,
                self._session.get(url, timeout=timeout, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return GatewayPod(name, error=f"answered {response.status}")
                body = await response.content.read(REPORT_LIMIT_BYTES)
                return GatewayPod(name, RouteReport.model_validate_json(body))
        except TimeoutError:
            return GatewayPod(name, error=f"gave no answer within {REPORT_TIMEOUT_SECONDS:g} s")
        except ValidationError:
            return GatewayPod(name, error="answered something else than a route report")
        except (aiohttp.ClientError, OSError) as error:
            return GatewayPod(name, error=f"cannot be reached: {type(error).__name__}")


def is_ready(pod: Object) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions: list[dict[str, Any]] = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _ops_port(pod: Object) -> int:
    """The container port named `ops`, else the contract's."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == "ops":
                return int(port["containerPort"])
    return PORT_OPS
