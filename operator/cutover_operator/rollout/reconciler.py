"""ModelRollouts for the operator's loop: gather what is, decide what to do."""

from __future__ import annotations

from datetime import datetime

import aiohttp

from cutover_operator.evidence.prometheus import Prometheus
from cutover_operator.plan import Key, Plan
from cutover_operator.port import MODEL_ROLLOUTS, Kube
from cutover_operator.rollout.decide import decide
from cutover_operator.rollout.gateways import GatewayReports
from cutover_operator.rollout.gather import Watchtower
from cutover_operator.rollout.memory import Memory
from cutover_operator.rollout.resources import Images
from cutover_operator.rollout.world import Site, Unreadable, World
from cutover_operator.settings import Settings


class RolloutReconciler:
    resource = MODEL_ROLLOUTS

    def __init__(self, kube: Kube, settings: Settings, session: aiohttp.ClientSession) -> None:
        site = Site(
            prometheus_url=settings.prometheus_url,
            allowed_urls=tuple(settings.allowed_urls),
            images=Images(
                settings.engine_image,
                settings.vllm_image,
                settings.tgi_image,
                settings.pull_secrets,
                settings.trainer_image,
            ),
        )
        self._watchtower = Watchtower(kube, Prometheus(session), GatewayReports(session), site)
        self.memory = Memory(self._watchtower)

    async def gather(self, key: Key, now: datetime) -> World | Unreadable | None:
        """None when the object is gone. Raises KubeError."""
        return await self._watchtower.look(key.namespace, key.name, now)

    def decide(self, world: World | Unreadable, now: datetime) -> Plan:
        return decide(world, now)
