"""Worked solutions in words: letters, lists of words, stories and syllogisms.

A function is named for its generator in reasoning-gym and is a `Writer` of `worked_solutions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product
from random import Random
from typing import Any


def letter_counting(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The words that hold the letter, with counts."""
    letter, words = entry["metadata"]["target_letter"], entry["metadata"]["span"]
    found = [(word, word.lower().count(letter)) for word in words if letter in word.lower()]
    prompt = f'Count the letter "{letter}" in: {" ".join(words)}'
    if not found:
        return prompt, rng.choice([f"No word has {letter}.", f"There is no {letter}."])
    style = rng.randrange(3)
    if style == 0:
        return prompt, ", ".join(f"{word} {count}" for word, count in found) + "."
    if style == 1:
        return prompt, f"{letter} is in " + ", ".join(f"{word} ({count})" for word, count in found) + "."
    return prompt, " + ".join(f"{count} in {word}" for word, count in found) + "."


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
    if _follows(premises, conclusion) != (entry["answer"] == "Yes"):
        return None
    prompt = f"{premises[0]}. {premises[1]}. Does it follow that {_lower(conclusion)}?"
    first, second = (_lower(p) for p in premises)
    if entry["answer"] == "Yes":
        reasons = [
            f"If {first} and {second}, then {_lower(conclusion)}.",
            f"Since {first} and {second}, {_lower(conclusion)}.",
        ]
    else:
        reasons = [
            f"If {first} and {second}, it need not be that {_lower(conclusion)}.",
            f"That {first} and {second} does not mean that {_lower(conclusion)}.",
        ]
    return prompt, rng.choice(reasons)


def sentence_reordering(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The words at both ends of the sentence."""
    words = entry["question"].split(": ", 1)[1].strip()
    ordered = entry["answer"].split()
    first, last = ordered[0], ordered[-1]
    styles = ["It starts with {first}.", "{first} comes first.", "It begins {first} {second}.", "The end is {last}"]
    second = (*ordered[1:], "")[0]
    return f"Put in order: {words}", rng.choice(styles).format(first=first, second=second, last=last)


def spell_backward(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The letters in order, then in reverse."""
    word = entry["metadata"]["word"]
    forward, backward = ", ".join(word), ", ".join(reversed(word))
    styles = [f"{forward} becomes {backward}.", f"Letters {forward}; backward {backward}.", f"Backward: {backward}."]
    return f"Spell backward: {word}", rng.choice(styles)


def word_sorting(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The first letters in order."""
    data = entry["metadata"]
    initials = [word[:1] for word in data["sorted_words"]]
    styles = [f"First letters: {', '.join(initials)}.", f"By letter {' '.join(initials)}.", f"{initials[0]} is first."]
    return f"Sort in {data['direction']} order: {', '.join(data['transformed_words'])}", rng.choice(styles)


def word_sequence_reversal(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The word that comes first afterwards."""
    words = entry["metadata"]["words"]
    return f"Reverse the list: {', '.join(words)}", rng.choice([f"{words[-1]} comes first.", f"Start at {words[-1]}."])


def needle_haystack(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The statement that answers the question."""
    question = entry["metadata"]["question"].split("?")[0]
    story = entry["question"].split(question)[0].strip()
    statement = f"{entry['answer']} {question.removeprefix('Who ')}."
    return f"{story} {question}?", rng.choice([statement, f"The text says: {statement}"])


def _lower(statement: str) -> str:
    return statement[:1].lower() + statement[1:]


def _follows(premises: Iterable[str], conclusion: str) -> bool:
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
    if quantifier == "All":
        return all(members)
    if quantifier == "No":
        return not any(members)
    return any(members) if quantifier == "Some" else not all(members)
