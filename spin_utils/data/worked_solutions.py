"""Short questions and worked solutions for reasoning-gym items, written from each item's metadata.

The library gives a question with long formatting instructions and usually just a final answer. A demonstration should
have a short question and show the working, worded in more than one way, as people do. Otherwise p_data would be a
single string, and a generated response could differ from the real one in one way only.

A writer takes an item and a random generator, and returns the prompt and the working before the answer, or None if the
item's label does not follow from its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from random import Random
from typing import Any

Writer = Callable[[Mapping[str, Any], Random], "tuple[str, str] | None"]


def write(dataset: str, entry: Mapping[str, Any], rng: Random) -> tuple[str, str] | None:
    """Prompt and worked response of one item (question, answer, metadata) of a generator of reasoning-gym.

    Returns:
        Prompt and response, which ends in `Answer: ` and the library's answer; None if the item should be left out. For
        a generator without a writer here, the library's question and answer.
    """
    if dataset not in WRITERS:
        return entry["question"].strip(), str(entry["answer"]).strip()
    written = WRITERS[dataset](entry, rng)
    if written is None:
        return None
    prompt, working = written
    return prompt, f"{working} Answer: {entry['answer']}".strip()


def chain_sum(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """Running sums: `4 - 1 = 3, 3 - 7 = -4.`"""
    expression = entry["metadata"]["expression"]
    terms = expression.split(" ")
    total, steps = int(terms[0]), []
    for sign, term in zip(terms[1::2], terms[2::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        steps.append((f"{total} {sign} {term}", after))
        total = after
    return f"Compute {expression}.", _steps(steps, rng)


def number_filtering(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """Each number with its verdict."""
    data = entry["metadata"]
    action, _, comparison = data["operation"].partition("_")
    yes, no = rng.choice([("kept", "out"), ("yes", "no"), ("stays", "goes")])
    verdicts = ", ".join(f"{n} {yes if n in data['result'] else no}" for n in data["original_numbers"])
    prompt = f"{action.capitalize()} the numbers {comparison} than {data['filter_value']}: {data['original_numbers']}"
    return prompt, f"{verdicts}."


def gcd(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """Euclid's steps."""
    numbers = entry["metadata"]["numbers"]
    steps, current = [], numbers[0]
    for number in numbers[1:]:
        a, b = max(current, number), min(current, number)
        while b:
            steps.append((f"{a} mod {b}", a % b))
            a, b = b, a % b
        current = a
    return f"Find the gcd of {', '.join(map(str, numbers))}.", _steps(steps, rng)


def letter_counting(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The words that hold the letter, with counts."""
    letter, words = entry["metadata"]["target_letter"], entry["metadata"]["span"]
    found = [(word, word.lower().count(letter)) for word in words if letter in word.lower()]
    prompt = f'Count the letter "{letter}" in: {" ".join(words)}'
    if not found:
        return prompt, rng.choice([f"No word has {letter}.", f"There is no {letter}."])
    wordings = [
        ", ".join(f"{word} {count}" for word, count in found),
        f"{letter} is in " + ", ".join(f"{word} ({count})" for word, count in found),
        " + ".join(f"{count} in {word}" for word, count in found),
    ]
    return prompt, f"{rng.choice(wordings)}."


def family_relationships(entry: Mapping[str, Any], rng: Random) -> tuple[str, str] | None:
    """The one or two links between the two people.

    Nieces, nephews and in-laws are left out: the library labels them from the wrong side (its source gives the
    relation of the second person to the first).
    """
    story = entry["question"].split("\n\n")[0]
    one, two, answer = (entry["metadata"][key] for key in ("person1", "person2", "relationship"))
    parents: dict[str, list[str]] = {}
    for first, second, children in re.findall(
        r"(\S+) is married to (\S+)\.(?: They have (?:a child|children) called ([^.]+)\.)?", story
    ):
        for child in re.split(r", | and ", children) if children else []:
            parents[child] = [first, second]
    if answer in ("mother", "father"):
        links = [f"{two} is a child of {one}", f"{one} has the child {two}"]
    elif answer in ("son", "daughter"):
        links = [f"{one} is a child of {two}", f"{two} has the child {one}"]
    elif answer in ("husband", "wife"):
        links = [f"{one} is married to {two}", f"{two} and {one} are married"]
    elif answer in ("brother", "sister"):
        shared = rng.choice(parents[one])
        links = [f"{one} and {two} are children of {shared}", f"{shared} has the children {one} and {two}"]
    elif answer in ("grandmother", "grandfather", "aunt", "uncle"):
        mine = parents.get(one, [one])  # without parents in the story nobody is a sibling
        kin = [p for p in parents[two] if p != one and (one in parents.get(p, []) or parents.get(p) == mine)]
        if not kin:
            return None
        link = f"{kin[0]} is a child of {one}" if one in parents[kin[0]] else f"{one} and {kin[0]} are siblings"
        links = [f"{link}, and {two} is a child of {kin[0]}", f"{two} is a child of {kin[0]}, and {link}"]
    else:
        return None
    return f"{story} What is {one} to {two}?", f"{rng.choice(links)}."


def syllogism(entry: Mapping[str, Any], rng: Random) -> tuple[str, str] | None:
    """Both premises and whether they give the conclusion; items whose label is wrong are left out."""
    data = entry["metadata"]
    premises, conclusion = [data["premise1"], data["premise2"]], data["conclusion"]
    if follows(premises, conclusion) != (entry["answer"] == "Yes"):
        return None
    prompt = f"{premises[0]}. {premises[1]}. Does it follow that {_lower(conclusion)}?"
    first, second = (_lower(p) for p in premises)
    if entry["answer"] == "Yes":
        reasons = [f"If {first} and {second}, then", f"Since {first} and {second},"]
    else:
        reasons = [f"If {first} and {second}, it need not be that", f"That {first} and {second} does not mean that"]
    return prompt, f"{rng.choice(reasons)} {_lower(conclusion)}."


def spell_backward(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The letters in order, then in reverse."""
    word = entry["metadata"]["word"]
    forward, backward = ", ".join(word), ", ".join(reversed(word))
    styles = [f"{forward} becomes {backward}.", f"Letters {forward}; backward {backward}.", f"Backward: {backward}."]
    return f"Spell backward: {word}", rng.choice(styles)


_WRITERS = (chain_sum, number_filtering, gcd, letter_counting, family_relationships, syllogism, spell_backward)
WRITERS: dict[str, Writer] = {writer.__name__: writer for writer in _WRITERS}
"""Writers by the generator's name; any other generator works with its question and bare answer."""


def _steps(steps: Iterable[tuple[str, object]], rng: Random) -> str:
    """Calculations in one of three wordings."""
    head, equals, joint = rng.choice([("", "=", ", "), ("", "is", "; "), ("First ", "=", ". Then ")])
    return head + joint.join(f"{left} {equals} {right}" for left, right in steps) + "."


def _lower(statement: str) -> str:
    return statement[:1].lower() + statement[1:]


def follows(premises: Iterable[str], conclusion: str) -> bool:
    """Whether the conclusion holds in every world in which the premises hold and no term is empty.

    A world says which of the eight kinds of things (in or out of each of three terms) exist.
    """
    parsed = [_parse(statement) for statement in (*premises, conclusion)]
    terms = sorted({term for _, subject, predicate in parsed for term in (subject, predicate)})
    kinds = list(product([False, True], repeat=len(terms)))
    for present in product([False, True], repeat=len(kinds)):
        things = [dict(zip(terms, kind, strict=True)) for kind, here in zip(kinds, present, strict=True) if here]
        if not all(any(thing[term] for thing in things) for term in terms):
            continue
        truths = [_holds(*statement, things) for statement in parsed]
        if all(truths[:-1]) and not truths[-1]:
            return False
    return True


def _parse(statement: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(All|No|Some) (\w+) are (not )?(\w+)", statement)
    assert match is not None, statement
    quantifier, subject, negated, predicate = match.groups()
    return ("Some not" if negated else quantifier), subject, predicate


def _holds(quantifier: str, subject: str, predicate: str, things: list[dict[str, bool]]) -> bool:
    members = [thing[predicate] for thing in things if thing[subject]]
    return {"All": all(members), "No": not any(members), "Some": any(members), "Some not": not all(members)}[quantifier]
