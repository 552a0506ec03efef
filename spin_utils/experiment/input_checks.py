"""Faults that show only when the inputs are put together: rows under a tokenizer, graders, further tasks.

Each of them would otherwise end a run at its first evaluation, after hours of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_utils.data import families, preferences
from spin_utils.data.demonstrations import Demonstrations
from spin_utils.data.demonstrations import load as load_demonstrations
from spin_utils.data.rows import Row, RowError, listed, question, read_rows
from spin_utils.data.templates import TooLongError, encode_rows
from spin_utils.experiment.plan import Plan, control_demonstrations
from spin_utils.model import base
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.run import Profile


def check(profile: Profile, demonstrations: Demonstrations) -> None:
    """Refuse inputs that do not fit together.

    Args:
        profile: the validated profile.
        demonstrations: from `demonstrations.load`.

    Raises:
        ModelError: a model folder that cannot be trained, or whose tokenizer does not fit model or template.
        RowError: a row with a grader that is none, or too long for the template; no held-out rows.
        EvaluationError: a further task that cannot be loaded.
    """
    if profile.model.source == "directory":
        from spin_utils.model import base

        base.check_folder(Path(profile.model.path), profile.template)
    if profile.evaluation.suite == "local" and not demonstrations.test:
        raise RowError(
            f"{profile.demonstrations.train or profile.demonstrations.source}: no rows are held out to evaluate on; "
            "give at least 10 rows (a tenth is held out), or set demonstrations.test or demonstrations.test_rows"
        )
    for part in () if profile.released else profile.spin.subsets:
        if len(demonstrations.spin) * part < 50:
            raise RowError(
                f"spin.subsets: {part} fiftieths of {len(demonstrations.spin)} prompts are not one; raise "
                "demonstrations.spin_rows or leave them out: spin.subsets=[]"
            )
    names = {row["family"] for rows in vars(demonstrations).values() for row in rows}
    _check_names(names)
    if profile.demonstrations.source == "file":
        _check_graders(demonstrations)
        if profile.model.source == "directory":  # other tokenizers are made or unpacked by the first stage
            check_fit(Path(profile.model.path), profile, vars(demonstrations))
    if profile.evaluation.tasks:
        from spin_utils.evaluation import harness  # takes seconds

        harness.check_tasks(profile.evaluation, names)


def _check_names(families: Iterable[str]) -> None:
    """Every family is a task with a file of its own."""
    seen: dict[str, str] = {}
    for name in sorted(families):
        if name.lower() == "average":
            raise RowError(f"demonstrations: family {name!r} is what tables call the mean of all; rename it")
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise RowError(
                f"demonstrations: families {other!r} and {name!r} differ only by case, and some file systems take them "
                "for one; rename one"
            )


def check_control(profile: Profile, demonstrations: Demonstrations) -> None:
    """Refuse rows of the SFT control (`sft_control.demonstrations`) that cannot be trained on or would give it the
    held-out prompts to learn.

    Args:
        profile: the validated profile.
        demonstrations: the profile's own, from `demonstrations.load`.

    Raises:
        RowError: rows that cannot be loaded, are too long for the template, or are held out to be evaluated on.
    """
    settings = control_demonstrations(profile)
    if settings is None:
        return
    try:
        rows = load_demonstrations(settings).sft
    except RowError as error:
        raise RowError(f"sft_control: {error}; or leave the control out: sft_more=0") from None
    _check_not_held_out("sft_control.demonstrations", rows, profile, demonstrations)
    if settings.source == "file" and profile.model.source == "directory":
        folder = Path(profile.model.path)
        _, whole = check_lengths(base.load_tokenizer(folder), profile.template, {"control": rows})
        _check_positions(folder, base.positions(folder), "row of sft_control", whole["control"])


def check_preferences(profile: Profile, demonstrations: Demonstrations) -> None:
    """Refuse pairs given for DPO (`dpo.preferences`) that cannot be trained on or would teach it the held-out prompts.

    Args:
        profile: the validated profile.
        demonstrations: the profile's own, from `demonstrations.load`.

    Raises:
        RowError: pairs that cannot be loaded, or whose prompts are held out to evaluate on.
        TooLongError: a pair that is too long for the template.
    """
    if profile.dpo is None or profile.dpo.preferences.source == "samples":
        return
    pairs = preferences.load(profile.dpo.preferences)
    _check_not_held_out("dpo.preferences", pairs, profile, demonstrations)
    if profile.model.source == "directory":  # as above
        check_pair_lengths(Path(profile.model.path), profile)


def check_pair_lengths(model: Path, profile: Profile) -> None:
    """Encode every pair of a file once, which is trained on only after the main chain.

    Args:
        model: folder of the base model.
        profile: the validated profile.

    Raises:
        TooLongError: names the answer and the row.
        ModelError: a pair needs more positions than the model has.
    """
    if profile.dpo is not None and profile.dpo.preferences.source == "file":
        try:
            pairs = preferences.load(profile.dpo.preferences)
            encoded = preferences.encode_preferences(base.load_tokenizer(model), profile.template, pairs)
        except TooLongError as error:
            raise TooLongError(f"dpo.preferences, {error}") from None
        rows = [len(pair["prompt_ids"]) + max(len(pair["real_ids"]), len(pair["generated_ids"])) for pair in encoded]
        _check_positions(model, base.positions(model), "row of dpo.preferences", max(rows, default=0))


def _check_not_held_out(name: str, rows: Sequence[Row], profile: Profile, demonstrations: Demonstrations) -> None:
    if profile.evaluation.suite != "local":
        return
    held_out = {question(row): row["id"] for row in demonstrations.test}
    faults = [
        f"{name}, row {row['id']}: the prompt is held out to evaluate on (row {held_out[question(row)]}); "
        "remove one of them"
        for row in rows
        if question(row) in held_out
    ]
    if faults:
        raise RowError(listed(faults))


def _check_graders(demonstrations: Demonstrations) -> None:
    """A response that gets no full marks from its own row's grader means that the grader cannot judge answers."""
    faults = [
        f"row {row['id']}: the grader gives the row's own response no full marks; correct it or leave grader out"
        for row in (*demonstrations.sft, *demonstrations.validation, *demonstrations.test)
        if "grader" in row and families.grade(row, row["response"]) != 1.0
    ]
    if faults:
        raise RowError(listed(faults))


def check_fit(model: Path, profile: Profile, splits: Mapping[str, Sequence[Row]]) -> None:
    """Refuse rows that a model cannot be trained on or asked, before training.

    Args:
        model: folder of the base model.
        profile: the validated profile.
        splits: rows by split.

    Raises:
        TooLongError: a row is too long for the template; names the split and the row.
        ModelError: a prompt and its longest answer need more positions than the model has.
    """
    longest, rows = check_lengths(base.load_tokenizer(model), profile.template, splits)
    positions = base.positions(model)
    for split in ("sft", "spin"):
        _check_positions(model, positions, f"{split} row", rows.get(split, 0))
    answers = {"generation": profile.generation.max_new_tokens, "evaluation": profile.evaluation.max_new_tokens}
    asked = {"spin": "generation", "validation": "generation", "test": "evaluation", "transfer": "evaluation"}
    for split, section in asked.items():
        prompt, answer = longest.get(split, 0), answers[section]
        end = split == "spin" and profile.spin.training.end_truncated  # training gives a cut answer one token more
        needed = prompt + answer + end
        if prompt and needed > positions:
            raise base.ModelError(
                f"{model}: has {positions} positions, and the longest {split} prompt ({prompt} tokens) with "
                f"{section}.max_new_tokens ({answer}) needs {needed}{' with its end token' if end else ''}; lower it, "
                "or shorten the prompts"
            )


def check_start(plan: Plan, model: Path) -> None:
    """Encode all rows and pairs of a run once, as soon as the tokenizer of its base model is there.

    Raises:
        TooLongError, ModelError: as `check_fit` and `check_pair_lengths`.
    """
    data = plan.directory("data")
    asked = {split: read_rows(data / f"{split}.jsonl") for split in ("spin", "validation", "test", "transfer")}
    check_fit(model, plan.profile, asked)
    check_pair_lengths(model, plan.profile)


def _check_positions(model: Path, positions: int, what: str, tokens: int) -> None:
    if tokens > positions:
        raise base.ModelError(
            f"{model}: has {positions} positions, and the longest {what} has {tokens} tokens; shorten it, or lower "
            "template.max_prompt_tokens or template.max_response_tokens"
        )


def check_lengths(
    tokenizer: Any, template: TemplateSettings, splits: Mapping[str, Sequence[Row]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Encode every row once: one that is too long to be trained on or asked is found before training.

    Returns:
        Tokens of the longest prompt of each split, and of the longest row, prompt and response.

    Raises:
        TooLongError: names the split and the row.
    """
    prompts, whole = {}, {}
    for split, rows in splits.items():
        cut = template.too_long == "drop" and split in ("test", "transfer")  # which are asked, not trained on
        try:
            encoded = encode_rows(tokenizer, replace(template, too_long="truncate") if cut else template, rows)
        except TooLongError as error:
            raise TooLongError(f"demonstrations, {split} {error}") from None
        prompts[split] = max((len(row.prompt_ids) for row in encoded), default=0)
        whole[split] = max((len(row.prompt_ids) + len(row.response_ids) for row in encoded), default=0)
    return prompts, whole
