"""The engine's tokens and log-probabilities are the model's own: compared with transformers asked directly."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from cutover_server.inference.chat import Sampling
from cutover_server.inference.generation import Row, RowRun, Step, generate, nucleus
from cutover_server.inference.loading import Served, load
from cutover_server.inference.settings import ServeSettings
from fakes import sample_models

FOLDERS = {
    "llava": sample_models.tiny_llava,
    "llava_next": sample_models.tiny_llava_next,
    "blip2": sample_models.tiny_blip2,
}
TOKENS = 12


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def served(request: pytest.FixtureRequest) -> Served:
    torch.set_num_threads(1)
    return load(ServeSettings(base=str(FOLDERS[request.param]()), family=request.param))


@pytest.fixture(scope="module")
def llava() -> Served:
    torch.set_num_threads(1)
    return load(ServeSettings(base=str(sample_models.tiny_llava())))


def row(served: Served, seed: int, text: str = sample_models.QUESTION, tokens: int = TOKENS) -> Row:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    # Pictures of several shapes: LLaVA-NeXT cuts them into different numbers of patches.
    picture = sample_models.picture(seed, width=30 + 40 * (seed % 3), height=40)
    return Row(served.prompts.inputs(messages, [picture]), tokens, 3)


def run(
    served: Served, rows: list[Row], sampling: Sampling | None = None, eos: frozenset[int] | None = None
) -> tuple[list[list[Step]], list[RowRun]]:
    steps: list[list[Step]] = [[] for _ in rows]

    def on_step(index: int, step: Step) -> bool:
        steps[index].append(step)
        return True

    runs = generate(
        served.model,
        rows,
        sampling or Sampling(),
        pad_id=served.base.pad_id,
        eos_ids=served.base.eos_ids if eos is None else eos,
        on_step=on_step,
    )
    return steps, runs


def ids(steps: list[Step]) -> list[int]:
    return [step.token_id for step in steps]


def test_greedy_tokens_are_those_of_transformers(served: Served) -> None:
    one = row(served, 3)
    [steps], _ = run(served, [one])
    plain, _ = sample_models.load(FOLDERS[served.base.family]())
    with torch.inference_mode():
        whole = plain.generate(
            **one.inputs, generation_config=GenerationConfig(max_new_tokens=TOKENS, do_sample=False)
        )
    expected = whole[0, one.inputs["input_ids"].shape[1] :].tolist()
    assert ids(steps) == expected[: len(steps)]
    assert len(steps) == TOKENS or steps[-1].ends


def test_log_probabilities_are_those_of_one_plain_forward_pass(served: Served) -> None:
    one = row(served, 4)
    [steps], _ = run(served, [one])
    plain, _ = sample_models.load(FOLDERS[served.base.family]())
    expected = sample_models.forced_logprobs(plain, one.inputs, ids(steps))
    assert [step.logprob for step in steps] == pytest.approx(expected, abs=1e-4)
    for step in steps:
        assert step.top[0] == (step.token_id, pytest.approx(step.logprob))
        assert [value for _, value in step.top] == sorted((value for _, value in step.top), reverse=True)


def test_a_batch_answers_as_each_row_would_alone(served: Served) -> None:
    rows = [row(served, 1), row(served, 2, "What is it?" * 9), row(served, 5, "Hm?", tokens=5)]
    alone = [run(served, [one])[0][0] for one in rows]
    together, runs = run(served, rows)
    for single, batched in zip(alone, together, strict=True):
        assert ids(batched) == ids(single)
        assert [s.logprob for s in batched] == pytest.approx([s.logprob for s in single], abs=1e-4)
    assert [one.tokens for one in runs] == [len(steps) for steps in together]


def test_each_row_ends_where_its_own_limit_or_end_token_is(llava: Served) -> None:
    rows = [row(llava, 1), row(llava, 2, tokens=4)]
    steps, runs = run(llava, rows, eos=frozenset())
    assert [one.finish for one in runs] == ["length", "length"]
    assert [len(one) for one in steps] == [TOKENS, 4]
    end = ids(steps[0])[2]
    [ended], [run_of_ended] = run(llava, [rows[0]], eos=frozenset({end}))
    at = ids(steps[0]).index(end)
    assert (run_of_ended.finish, len(ended), ended[-1].ends) == ("stop", at + 1, True)


def test_busy_seconds_add_up_to_the_time_of_the_batch(llava: Served) -> None:
    _, runs = run(llava, [row(llava, 1), row(llava, 2, tokens=2)])
    short, long = runs[1].busy_seconds, runs[0].busy_seconds
    assert 0 < short < long


def test_a_dropped_row_leaves_the_others_alone(llava: Served) -> None:
    rows = [row(llava, 1), row(llava, 2)]
    expected, _ = run(llava, rows)
    seen: list[int] = []

    def on_step(index: int, step: Step) -> bool:
        if index == 0:
            return False
        seen.append(step.token_id)
        return True

    runs = generate(
        llava.model,
        rows,
        Sampling(),
        pad_id=llava.base.pad_id,
        eos_ids=llava.base.eos_ids,
        on_step=on_step,
    )
    assert (runs[0].finish, runs[0].tokens) == ("cancelled", 1)
    assert seen == ids(expected[1])


def test_sampling_repeats_with_a_seed_and_keeps_raw_log_probabilities(llava: Served) -> None:
    one = row(llava, 6)
    drawn = Sampling(temperature=1.5, top_p=0.95, seed=11)
    [first], _ = run(llava, [one], drawn)
    [second], _ = run(llava, [one], drawn)
    [other], _ = run(llava, [one], Sampling(temperature=1.5, top_p=0.95, seed=12))
    assert ids(first) == ids(second) != ids(other)
    plain, _ = sample_models.load(sample_models.tiny_llava())
    expected = sample_models.forced_logprobs(plain, one.inputs, ids(first))
    assert [step.logprob for step in first] == pytest.approx(expected, abs=1e-4)


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    kept = torch.isfinite(nucleus(scores, 0.8))
    assert kept.tolist() == [[True, True, False, False]]
    assert torch.isfinite(nucleus(scores, 0.01)).sum() == 1
    assert torch.isfinite(nucleus(scores, 1.0)).all()
