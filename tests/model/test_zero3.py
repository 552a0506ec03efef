"""Promises of DeepSpeed ZeRO-3: those of the other ways of sharing, kept by two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from process_runs import (
    apart,
    assert_goes_on,
    assert_held,
    assert_small_steps_add_up,
    assert_trained_alike,
    in_one,
    in_two,
)

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_one(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_two(folder, ["zero3"], one["logps"])
    return folder / "zero3"


def test_two_processes_train_as_one_does(one: dict[str, Any], two: Path) -> None:
    assert_trained_alike(one, two)


def test_small_steps_are_not_lost_in_bfloat16(one: dict[str, Any], two: Path) -> None:
    assert_small_steps_add_up(one, two)


def test_weights_gradients_and_optimizer_state_are_spread(two: Path) -> None:
    assert_held(two, 0.5)


def test_the_opponents_log_probabilities_are_those_of_one_process(one: dict[str, Any], two: Path) -> None:
    assert apart(one, two) < 1e-4  # fast_layers computes in one process only


def test_a_run_stopped_in_two_processes_goes_on_in_one_and_the_other_way(one: dict[str, Any], two: Path) -> None:
    assert_goes_on(one, two)
