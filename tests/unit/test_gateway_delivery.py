"""The gateway and the real assessments service: what one writes down, the other holds."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import aiohttp

from fakes.assessments_service import INTERNAL, PNG, PNG_DIGEST, new_settings
from fakes.assessments_service import running as assessments
from fakes.gateway_rig import TASK, Rig, until


async def test_records_pictures_and_mirrored_answers_arrive(tmp_path: Path) -> None:
    (tmp_path / "assessments").mkdir()
    settings = new_settings(tmp_path / "assessments", tasks={TASK.name: TASK})
    async with aiohttp.ClientSession() as session, assessments(settings) as service:
        service.clock.now = time.time()
        rig = Rig(tmp_path, session)
        rig.settings |= {"assessments_url": service.base, "internal_token": INTERNAL}
        rig.write_route(rig.route(weight_basis_points=3000, shadow_basis_points=10_000))
        async with rig.models(), rig.gateway():
            rig.candidate.behaviour.error_share = 0.3
            url = "data:image/png;base64," + base64.b64encode(PNG).decode()
            answers = [await rig.ask(url=url, key=f"house-{number}") for number in range(20)]
            assert {answer.status for answer in answers} == {200}

            async def delivered() -> bool:
                return await rig.value("cutover_spool_records") == 0

            await until(delivered)
            assert await rig.value("cutover_spool_dead_letters_total") == 0
            status, body = await service.call("GET", f"/api/pictures/{PNG_DIGEST}")
            assert (status, body) == (200, PNG)
            for answer in answers:
                arm = answer.headers["x-cutover-arm"]
                status, record = await service.call("GET", f"/api/assessments/{answer.document['id']}")
                assert status == 200, record
                assert record["chosen"] == arm
                assert PNG_DIGEST in str(record)
