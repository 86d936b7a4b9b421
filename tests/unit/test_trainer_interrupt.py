"""Two kills and two termination signals, a torn checkpoint and a used-up budget: the short form of `make soak-interrupt`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from soak.interrupt import (
    Account,
    Training,
    differences,
    disturb,
    let_it_end,
    result_rows,
    run_out_of_budget,
    sums,
)

EPOCHS = 5


@pytest.fixture
def untouched(tmp_path: Path) -> Training:
    torch.set_num_threads(1)
    return Training.prepared(
        tmp_path / "untouched", 64, {"learningRate": 2e-3, "epochs": EPOCHS, "batchSize": 4}
    )


def test_a_run_disturbed_at_random_equals_one_left_alone(untouched: Training, tmp_path: Path) -> None:
    disturbed = untouched.copy(tmp_path / "disturbed")
    alone = Account()
    let_it_end(untouched, alone)
    account = disturb(disturbed, times=4, seed=7)
    assert account.interrupted == ["SIGKILL", "SIGTERM"] * 2
    if len(disturbed.whole_checkpoints()) > 1:
        disturbed.tear_newest()
    run_out_of_budget(disturbed, account, granted_seconds=0.3)
    let_it_end(disturbed, account)
    assert [*alone.problems, *account.problems] == []
    assert differences(disturbed, untouched) == []
    assert sums(disturbed, account, EPOCHS * result_rows(disturbed)) == []
    assert account.resumed_steps
