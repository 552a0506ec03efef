"""Measures of the opponents' generations y': length, similarity to the real response, distance from the data.

Each function returns a long table with `seed`, `model`, `task`, `id` and one column per measure, which
`statistics.paired` accepts just like scores; `task` is the prompt's family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from spin_utils.paper.statistics import Estimate, StatisticsError, paired, sources
from spin_utils.settings.names import ModelName, label, main_chain

MODELS = tuple(main_chain(3))
"""The opponents of iterations 0 to 3, in order."""

HELDOUT = "validation prompts"
"""The only task in the table from `jsd_bounds`."""

FOLDS = 5
"""Parts of the prompts, of which the discriminator judges all but the first."""

MOST_PAIRS = 2000
"""The discriminator takes the first pairs only: more would narrow an interval of ±2.5 points, at minutes per model."""

LITTLE = 0.6
"""The entry test: where no more held-out pairs are told apart, an iteration has next to nothing to learn from."""

_LARGEST_SCALE = 1024.0
"""If all margins are positive no scale is best; this one separates them as well as any."""

_MARKED = "\x02 {} \x03"
"""A response between characters that no text has (start and end of text)."""

RULE = (
    "Chosen by a rule and not by hand: of the lowest training seed with most of the models, the prompt with the most "
    "different texts among the real response and the generations shown; of several, the first by family and id in "
    "alphabetical order."
)


def measures(generations: pd.DataFrame) -> pd.DataFrame:
    """Of each response in `results.load_generations`: `generated_tokens` and `real_tokens`, `similarity` to the real
    one (0..1), `identical` (1.0 if the two texts are the same), and `distinct` and `real_distinct` (0..1)."""
    texts = zip(generations["real"], generations["generated"], strict=True)
    near = [similarity(real, generated) for real, generated in texts]
    table = generations.rename(columns={"family": "task"}).assign(
        similarity=np.array(near, dtype=float),
        identical=(generations["real"] == generations["generated"]).astype(float),
        distinct=generations["generated"].map(distinct),
        real_distinct=generations["real"].map(distinct),
    )
    numbers = ["generated_tokens", "real_tokens", "similarity", "identical", "distinct", "real_distinct"]
    return table[["seed", "model", "task", "id", *numbers]]


def distinct(text: str) -> float:
    """Share of a text's pairs of neighbouring words that are different ones; 1 if none is repeated.

    >>> distinct("the cat and the cat and the cat"), distinct("yes")
    (0.42857142857142855, 1.0)
    """
    words = text.split()
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def similarity(real: str, generated: str) -> float:
    """Share of words that two texts have in common, in order: 2 M / (words in both), from `difflib.SequenceMatcher`.

    M counts the words in matching blocks, found longest first. 1 for the same words, 0 for none in common.

    >>> similarity("3 + 4 = 7. Answer: 7", "3 + 5 = 8. Answer: 8")
    0.5714285714285714
    """
    if real == generated:
        return 1.0
    return SequenceMatcher(None, real.split(), generated.split(), autojunk=False).ratio()


def jsd_bounds(heldout: pd.DataFrame) -> pd.DataFrame:
    """Contribution of each held-out pair to a lower bound on the JSD of Lemma C.2, in nats.

    Lemma C.2: the minimum of the loss over all f is log 2 - JSD(p+ || p-), where p+ is the distribution of
    (real, generated) and p- of (generated, real); the JSD of data and opponent themselves is between half of this and
    all of it. Any f gives a bound: log 2 minus its loss on fresh pairs. Here
    f = c log(p_theta_t+1 / p_theta_t). The direction is what the iteration learnt; the scale c >= 0 corrects for how
    far it went. The scale for each pair is fitted on the other half of the pairs, so the fit does not inflate the
    bound. Intervals of the returned values treat the scales as fixed and leave out the uncertainty of the fit. The
    opponent of iteration t is the model before it, and `model` names that one.

    Returns:
        Columns `seed`, `model` (the opponent: sft for iteration 0, spin-0 for iteration 1, ...), `task`, `id`,
        `jsd_bound` = log 2 - l(c (real_drift - generated_drift)), with the logistic l, `told_apart`: whether the
        real response gained more than the generated one, 1/2 if the two are the same, and `real_surprise` and
        `generated_surprise` as in `results.Drift`.
    """
    parts = []
    for (_, model), pairs in heldout.groupby(["seed", "model"], sort=False):
        margins = (pairs["real_drift"] - pairs["generated_drift"]).to_numpy(dtype=float)
        half = np.arange(len(margins)) % 2
        scales = np.array([best_scale(margins[half == 1]), best_scale(margins[half == 0])])[half]
        bound = math.log(2) - np.logaddexp(0, -scales * margins)
        against = ModelName.parse(str(model)).opponent
        right = (np.sign(margins) + 1) / 2
        parts.append(pairs.assign(model=against, task=HELDOUT, jsd_bound=bound, told_apart=right))
    columns = ["seed", "model", "task", "id", "jsd_bound", "told_apart", "real_surprise", "generated_surprise"]
    return pd.concat(parts).reindex(columns=columns) if parts else pd.DataFrame(columns=columns)


def discriminator(texts: pd.DataFrame) -> pd.DataFrame:
    """Whether a classifier that has no part in self-play tells a real response from the generated one.

    A classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv 1610.06545): logistic regression on TF-IDF weights of
    words, punctuation marks, beginning and end, and neighbouring pairs of these. docs/read-the-results.md says how it
    is read. Each of `FOLDS` but the first is judged by a classifier fitted to all before it (progressive validation,
    Blum, Kalai and Langford 1999), so that if nothing can be told apart the judgments are independent tosses of a coin.
    In ordinary cross-validation folds judge each other, and the mean varied with 1.2 times the standard deviation.

    Args:
        texts: From `results.load_generations`; of each seed and model at most the first `MOST_PAIRS` are taken.

    Returns:
        Columns `seed`, `model` (the generator), `task`, `id` and `discriminator`: 1 if the real response looks more
        like real ones than the generated response does, 0 if less, 1/2 if the two are the same. Prompts of one source
        (see `statistics.sources`) share a fold. Without a second fold there are no rows.
    """
    columns = ["seed", "model", "task", "id", "discriminator"]
    if texts.empty:
        return pd.DataFrame(columns=columns)
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(preprocessor=_MARKED.format, token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2))
    classifier = make_pipeline(words, LogisticRegression(max_iter=1000))
    parts = []
    for _, every in texts.groupby(["seed", "model"], sort=False):
        pairs = every.head(MOST_PAIRS).assign(task="self-play prompts")
        folds = pd.factorize(np.array(sources([str(item) for item in pairs["id"]])))[0] % FOLDS
        for fold in range(1, int(folds.max()) + 1):
            known, judged = pairs[folds < fold], pairs[folds == fold]
            classifier.fit([*known["real"], *known["generated"]], np.repeat([1, 0], len(known)))
            real, generated = map(classifier.decision_function, (judged["real"], judged["generated"]))
            parts.append(judged.assign(discriminator=(np.sign(real - generated) + 1) / 2)[columns])
    return pd.concat(parts) if parts else pd.DataFrame(columns=columns)


def entry_test(heldout: pd.DataFrame, model: str = "spin-0", *, jsd: bool = True) -> str:
    """Whether an iteration learnt to tell real responses from generated ones, on held-out pairs.

    If it did not, the opponent may already match the data, and there self-play stops (Theorem 5.2). The loss it reaches
    gives a lower bound on a divergence (Lemma C.2, see `jsd_bounds`).

    Returns:
        How many of the pairs that differ are told apart, and with `jsd` the bound, with 95 % intervals over pairs and
        seeds, and what follows if not surely more than `LITTLE` are, in words without a full stop; empty if the
        iteration was not tested.
    """
    first = heldout[heldout["model"] == model]
    if first.empty:
        return ""
    differ = int((first["real_drift"] != first["generated_drift"]).sum())
    if not differ:
        return "all held-out responses equal the real ones: nothing to learn (Theorem 5.2)"
    bounds, opponent = jsd_bounds(heldout), ModelName.parse(model).opponent
    told = paired(bounds, {opponent: 1.0}, column="told_apart")
    # Pairs that are the same count 1/2 there; here they are left out.
    share = differ / len(first)
    accuracy, low, high = (min(1.0, max(0.0, 0.5 + (x - 0.5) / share)) for x in (told.difference, told.low, told.high))
    text = (
        f"real and generated responses are told apart in {accuracy:.1%} of the {differ} held-out pairs that differ "
        f"[{low:.1%}, {high:.1%}]"
    )
    if jsd:
        found = paired(bounds, {opponent: 1.0}, column="jsd_bound")
        bound, least, most = (max(0.0, x) for x in (found.difference, found.low, found.high))
        text += (
            ", and the lower bound on the Jensen-Shannon divergence (JSD) between pairs (real, generated) and the same "
            f"pairs swapped (Lemma C.2) is {bound:.4f} nats [{least:.4f}, {most:.4f}]"
        )
    if low > LITTLE:
        return text
    if low > 0.5:
        return f"{text}; the entry test asks for surely more than {LITTLE:.0%}"
    if high < LITTLE:
        return f"{text}: nothing to learn (Theorem 5.2)"
    return f"{text}; more pairs or training seeds would show whether they are told apart more often than by chance"


def bits_per_byte(heldout: pd.DataFrame) -> pd.DataFrame:
    """How many bits SFT and each iterate need for the held-out real responses, per byte of text.

    Returns:
        Columns `seed`, `model`, `task`, `id` and `bits_per_byte`: the response's bits over the mean length of all, so
        that the mean over items is all bits over all bytes.
    """
    first = heldout[heldout["model"] == "spin-0"]
    before = first.assign(model="sft", real_logp=first["real_logp"] - first["real_drift"])
    table = pd.concat([before, heldout], ignore_index=True)
    bits = -table["real_logp"] / math.log(2) / first["real_bytes"].mean()
    return table.assign(task=HELDOUT, bits_per_byte=bits)[["seed", "model", "task", "id", "bits_per_byte"]]


def best_scale(margins: npt.NDArray[np.float64]) -> float:
    """The c >= 0 that minimises the mean logistic loss of c times the margins; 0 if every c > 0 is worse.

    >>> round(best_scale(np.array([1.0, 1.0, 1.0, -1.0])), 3)  # three of four right: c = log 3
    1.099
    """

    def slope(c: float) -> float:  # of a convex function
        return -float(np.mean(margins * np.exp(-np.logaddexp(0, c * margins))))

    if not len(margins) or slope(0.0) >= 0:
        return 0.0
    low, high = 0.0, _LARGEST_SCALE
    while low < (middle := (low + high) / 2) < high:  # until rounding ends it; scipy.optimize takes longer to import
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return high


def mean_grade(grades: pd.DataFrame, contrast: Mapping[str, float], *, category: str = "") -> Estimate:
    """A weighted sum of models' mean grades, over the answers that were graded for all of them.

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


def example(generations: pd.DataFrame, models: Sequence[str] = MODELS) -> pd.DataFrame:
    """One prompt to show, chosen by `RULE` and not by hand: its rows of `generations` by model, in order; models
    without generations are left out."""
    rows = generations[generations["model"].isin(list(models))]
    if rows.empty:
        return rows.set_index("model")
    seed = rows.groupby("seed")["model"].nunique().idxmax()  # the first maximum
    rows = rows[rows["seed"] == seed]
    prompts = [prompt for _, prompt in rows.groupby(["family", "id"], sort=True)]
    chosen = max(prompts, key=lambda prompt: len({*prompt["generated"], *prompt["real"]}))  # the first maximum
    by_model = chosen.set_index("model")
    return by_model.loc[[model for model in models if model in by_model.index]]
