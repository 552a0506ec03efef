"""Short questions and worked solutions for reasoning-gym items, written from each item's metadata.

The library gives a question with long formatting instructions and, mostly, a bare final answer. A demonstration
should be short to ask and say how the answer comes about, in more than one wording, as people do: otherwise p_data
is a single string and a generated response differs from the real one in one way only.

A writer takes an item and a random generator and returns the prompt and the working that precedes the answer, or None
where the item should be left out because its label does not follow from its text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from spin_utils.data import worked_numbers as numbers
from spin_utils.data import worked_words as words

Writer = Callable[[Mapping[str, Any], Random], "tuple[str, str] | None"]


def write(dataset: str, entry: Mapping[str, Any], rng: Random) -> tuple[str, str] | None:
    """Prompt and worked response of one item.

    Args:
        dataset: the generator's name in reasoning-gym.
        entry: the item: question, answer and metadata.
        rng: chooses among the wordings.

    Returns:
        Prompt and response, or None if the item is to be left out. The response ends in `Answer: ` and the library's
        answer; for a generator without a writer here, the question and the bare answer.
    """
    if dataset not in WRITERS:
        return entry["question"].strip(), str(entry["answer"]).strip()
    written = WRITERS[dataset](entry, rng)
    if written is None:
        return None
    prompt, working = written
    return prompt, f"{working} Answer: {entry['answer']}".strip()


WRITERS: dict[str, Writer] = {
    writer.__name__: writer
    for writer in (
        numbers.chain_sum,
        numbers.number_sorting,
        numbers.number_filtering,
        numbers.leg_counting,
        numbers.gcd,
        numbers.lcm,
        numbers.simple_equations,
        numbers.count_bits,
        numbers.base_conversion,
        numbers.fraction_simplification,
        numbers.prime_factorization,
        numbers.simple_geometry,
        numbers.number_sequence,
        words.letter_counting,
        words.family_relationships,
        words.syllogism,
        words.sentence_reordering,
        words.spell_backward,
        words.word_sorting,
        words.word_sequence_reversal,
        words.needle_haystack,
    )
}
"""Writers by the generator's name; any other generator works with its question and bare answer."""
