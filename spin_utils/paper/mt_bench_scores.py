"""Means and differences of MT-Bench grades with their intervals.

A score is the mean of all grades, both turns alike, as FastChat takes it (show_result.py); an answer that was refused
or whose judgment holds no rating has none. The two turns of a question are one cluster of the interval.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from spin_utils.paper import footnotes
from spin_utils.paper.results import label
from spin_utils.paper.statistics import Estimate, StatisticsError, paired


def estimate(grades: pd.DataFrame, contrast: Mapping[str, float], *, category: str = "", seed: int = 0) -> Estimate:
    """A weighted sum of models' mean grades, over the answers that are graded for all of them.

    Args:
        grades: From `results.load_mt_bench`.
        contrast: Weight of each model, as in `statistics.paired`.
        category: One category; empty: all questions together.
        seed: Seed of the bootstrap.

    Raises:
        StatisticsError: A model was not graded, or no answer is graded for all of them.
    """
    chosen = grades[grades["model"].isin(list(contrast)) & ((grades["task"] == category) | (not category))]
    absent = [label(model) for model in contrast if model not in set(chosen["model"])]
    if absent:
        raise StatisticsError(f"no grades of {', '.join(absent)}")
    graded = chosen[~chosen["id"].isin(chosen["id"][chosen["grade"].isna()])]
    if graded.empty:
        raise StatisticsError(f"no answer is graded for all of {', '.join(map(label, contrast))}")
    return paired(graded.assign(task="MT-Bench"), contrast, column="grade")


def note(grades: pd.DataFrame) -> str:
    """Who graded, what was graded, and how many answers were not, in words."""
    versions = "; ".join(sorted(set(grades["judge_models"]) - {""}))
    questions = grades["id"].str.partition("/")[0].nunique()
    text = (
        f"MT-Bench: {questions} questions of two turns, each answer graded 1 to 10 by {grades['judge'].iloc[0]}"
        f"{f' (answering as {versions})' if versions else ''}; mean of all grades, differences on the answers graded "
        f"for both models. {_intervals(grades)} The paper does not say which version of its judge it used."
    )
    missing = []
    for model, statuses in grades.groupby("model", sort=False)["status"]:
        refused, unparsable = (int((statuses == status).sum()) for status in ("refused", "unparsable"))
        if refused or unparsable:
            missing.append(f"{label(str(model))}: {refused} refused by the judge, {unparsable} without a rating")
    return text + (f" Not graded and left out: {'; '.join(missing)}." if missing else "")


def _intervals(grades: pd.DataFrame) -> str:
    """Over what intervals of grades are, and whose training seeds are fewer, in words."""
    models = list(dict.fromkeys(grades["model"]))
    drawn = grades.assign(task="MT-Bench", id=grades["id"].str.partition("/")[0])  # both turns of a question together
    sentences = [f"{footnotes.intervals(drawn, models, unit='questions')}.", footnotes.fewer_seeds(grades, models)]
    return " ".join(filter(None, sentences))
