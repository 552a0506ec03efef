"""Faults that show only when the inputs are put together: rows under a tokenizer, graders, further tasks.

Each of them would otherwise end a run at its first evaluation, after hours of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_utils import families, models, preferences
from spin_utils.demonstrations import DemonstrationError, Demonstrations
from spin_utils.demonstrations import load as load_demonstrations
from spin_utils.input_settings import TemplateSettings
from spin_utils.plan import control_demonstrations
from spin_utils.rows import Row, RowError, listed
from spin_utils.settings import Profile
from spin_utils.templates import TooLongError, encode_rows


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
        from spin_utils import model_folder

        model_folder.check(Path(profile.model.path), profile.template)
    if profile.evaluation.suite == "local" and not demonstrations.test:
        raise DemonstrationError(
            f"{profile.demonstrations.train or profile.demonstrations.source}: no rows are held out to evaluate on; "
            "give at least 10 rows (a tenth is held out), or set demonstrations.test or demonstrations.test_rows"
        )
    names = {row["family"] for rows in vars(demonstrations).values() for row in rows}
    _check_names(names)
    if profile.demonstrations.source == "file":
        _check_graders(demonstrations)
        if profile.model.source == "directory":  # other tokenizers are made or unpacked by the first stage
            check_fit(Path(profile.model.path), profile, vars(demonstrations))
    if profile.evaluation.tasks:
        from spin_utils import evaluation  # takes seconds

        evaluation.check_tasks(profile.evaluation, names)


def _check_names(families: Iterable[str]) -> None:
    """Every family is a task with a file of its own."""
    seen: dict[str, str] = {}
    for name in sorted(families):
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
        tokenizer = models.load_tokenizer(Path(profile.model.path))
        check_lengths(tokenizer, profile.template, {"control": rows})


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
        check_pair_lengths(profile, models.load_tokenizer(Path(profile.model.path)))


def check_pair_lengths(profile: Profile, tokenizer: Any) -> None:
    """Encode every pair of a file once, which is trained on only after the main chain.

    Raises:
        TooLongError: names the answer and the row.
    """
    if profile.dpo is not None and profile.dpo.preferences.source == "file":
        try:
            pairs = preferences.load(profile.dpo.preferences)
            preferences.encode_preferences(tokenizer, profile.template, pairs)
        except TooLongError as error:
            raise TooLongError(f"dpo.preferences, {error}") from None


def _check_not_held_out(name: str, rows: Sequence[Row], profile: Profile, demonstrations: Demonstrations) -> None:
    if profile.evaluation.suite != "local":
        return
    held_out = {row["prompt"]: row["id"] for row in demonstrations.test}
    faults = [
        f"{name}, row {row['id']}: the prompt is held out to evaluate on (row {held_out[row['prompt']]}); "
        "remove one of them"
        for row in rows
        if row["prompt"] in held_out
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
    longest = check_lengths(models.load_tokenizer(model), profile.template, splits)
    positions = models.positions(model)
    answers = {"generation": profile.generation.max_new_tokens, "evaluation": profile.evaluation.max_new_tokens}
    asked = {"spin": "generation", "validation": "generation", "test": "evaluation", "transfer": "evaluation"}
    for split, section in asked.items():
        prompt, answer = longest.get(split, 0), answers[section]
        end = split == "spin" and profile.spin.training.end_truncated  # training gives a cut answer one token more
        needed = prompt + answer + end
        if prompt and needed > positions:
            raise models.ModelError(
                f"{model}: has {positions} positions, and the longest {split} prompt ({prompt} tokens) with "
                f"{section}.max_new_tokens ({answer}) needs {needed}{' with its end token' if end else ''}; lower it, "
                "or shorten the prompts"
            )


def check_lengths(tokenizer: Any, template: TemplateSettings, splits: Mapping[str, Sequence[Row]]) -> dict[str, int]:
    """Encode every row once: one that is too long to be trained on or asked is found before training.

    Returns:
        Tokens of the longest prompt of each split.

    Raises:
        TooLongError: names the split and the row.
    """
    longest = {}
    for split, rows in splits.items():
        cut = template.too_long == "drop" and split in ("test", "transfer")  # which are asked, not trained on
        try:
            encoded = encode_rows(tokenizer, replace(template, too_long="truncate") if cut else template, rows)
        except TooLongError as error:
            raise TooLongError(f"demonstrations, {split} {error}") from None
        longest[split] = max((len(row.prompt_ids) for row in encoded), default=0)
    return longest
