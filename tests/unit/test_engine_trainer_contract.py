"""What the trainer writes is what the engine takes: folder, digests, prompt, probe, and the answers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cutover.api.trainingrun import Family, FineTune, Lora
from cutover.confidence import decisive_confidence
from cutover_server.inference.chat import Sampling, read_request
from cutover_server.inference.generation import Row, Step
from cutover_server.inference.loading import Served, load
from cutover_server.inference.picture import open_picture
from cutover_server.inference.prompt import template_form, top_logprob_entry
from cutover_server.inference.refusal import Unservable
from cutover_server.inference.settings import ServeSettings
from cutover_trainer.examples import PICTURES_FOLDER, Example, PreparedData
from cutover_trainer.generate import Answer, Answerer
from cutover_trainer.models import load_base, with_new_adapter
from cutover_trainer.processors import load_encoder
from fakes import sample_models, training_example
from fakes.trained_adapter import HARDWARE, example, kept

BASE = Path(__file__).parent.parent / "fixtures" / "tiny-llava"
ANSWER = '{"damageType": "crack", "severity": "minor"}'
TOKENS = 24
TASK = training_example.task().model_copy(update={"max_answer_tokens": TOKENS})


def trained(
    tmp_path: Path,
    base: Path,
    family: Family,
    lora: Lora,
    spread: float = 0.05,
    prompts: tuple[str, str] = ("Be brief.", "Assess this."),
) -> tuple[Path, list[Example], list[Answer]]:
    """An adapter folder the trainer wrote (its weights drawn, not learned), and what it answers to four pictures."""
    torch.set_num_threads(1)
    model = with_new_adapter(load_base(base, HARDWARE), FineTune(lora=lora), "base")
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=spread)
    encoder, data = load_encoder(base, family), PreparedData(tmp_path, "data-digest")
    examples = [example(tmp_path, seed, *prompts, ANSWER) for seed in range(4)]
    folder = kept(tmp_path, base, family, lora, model, encoder, examples)
    answers = Answerer(model, encoder, data, HARDWARE, TASK).answers(examples)
    return folder, examples, answers


def asked(served: Served, one: Example, pictures: Path) -> Answer:
    """The example's question as a client of the engine would put it, and how sure the gateway takes the answer to be."""
    image = open_picture((pictures / one.picture).read_bytes())
    user = {
        "role": "user",
        "content": [one.question[1]["content"][0], {"type": "image_url", "image_url": ""}],
    }
    user["content"][1]["image_url"] = sample_models.data_url(image)
    request = read_request({"model": "m", "messages": [one.question[0], user]}, max_pictures=1)
    inputs = served.prompts.inputs(
        template_form(request.messages), [open_picture(picture.content) for picture in request.pictures]
    )
    answer = served.detokenizer.start()
    content = []

    def on_step(_: int, step: Step) -> bool:
        if not step.ends:
            content.append(top_logprob_entry(answer.append(step.token_id), step.logprob))
        return True

    served.run([Row(inputs, TOKENS, 0)], Sampling(), on_step)
    return Answer(answer.text.strip(), decisive_confidence(content, TASK.decisive_field))


def same(one: Answer, other: Answer) -> bool:
    return one.text == other.text and one.confidence == pytest.approx(other.confidence, abs=1e-4)


@pytest.mark.parametrize("targets", ["language_model", "language_model_and_vision"])
def test_an_adapter_of_the_trainer_is_proven_and_answers_alike(tmp_path: Path, targets: Any) -> None:
    folder, examples, answers = trained(tmp_path, BASE, "llava", Lora(rank=4, targets=targets))
    served = load(ServeSettings(base=str(BASE), adapter=str(folder), family="llava"))
    assert served.proof is not None
    assert served.proof.distance < 1e-3 < served.proof.base_distance
    for one, answer in zip(examples, answers, strict=True):
        assert same(asked(served, one, tmp_path / PICTURES_FOLDER), answer)
    assert all(answer.text for answer in answers)


def test_an_evaluation_knows_the_confidence_the_gateway_will_route_by(tmp_path: Path) -> None:
    prompts = (TASK.system_prompt, TASK.user_prompt)
    folder, examples, answers = trained(tmp_path, BASE, "llava", Lora(rank=4), 0.01, prompts)
    served = load(ServeSettings(base=str(BASE), adapter=str(folder), family="llava"))
    for one, answer in zip(examples, answers, strict=True):
        assert same(asked(served, one, tmp_path / PICTURES_FOLDER), answer)
        assert answer.confidence is not None
        assert 0 < answer.confidence < 0.99


@pytest.mark.parametrize(
    ("family", "base"), [("llava_next", sample_models.tiny_llava_next), ("blip2", sample_models.tiny_blip2)]
)
def test_the_other_families_are_put_the_same_question(tmp_path: Path, family: Family, base: Any) -> None:
    folder, examples, answers = trained(tmp_path, base(), family, Lora(rank=4))
    served = load(ServeSettings(base=str(base()), adapter=str(folder), family=family))
    assert served.proof is not None
    assert served.proof.distance < 1e-3
    for one, answer in zip(examples, answers, strict=True):
        assert same(asked(served, one, tmp_path / PICTURES_FOLDER), answer)


def test_a_base_with_one_other_file_is_another_base(tmp_path: Path) -> None:
    folder, _, _ = trained(tmp_path, BASE, "llava", Lora(rank=4))
    with pytest.raises(Unservable) as caught:
        load(ServeSettings(base=str(sample_models.tiny_llava()), adapter=str(folder)))
    assert caught.value.reason == "WrongBase"
