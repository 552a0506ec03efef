"""Short questions and worked solutions for reasoning-gym items, written from each item's metadata.

The library gives a question with long formatting instructions and usually just a final answer. A demonstration should
have a short question and show the working, worded in more than one way, as people do. Otherwise p_data would be a
single string, and a generated response could differ from the real one in one way only.

A writer takes an item and a random generator, and returns the prompt and the working before the answer, or None if the
item should be left out because its label does not follow from its text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise, product
from random import Random
from typing import Any

Writer = Callable[[Mapping[str, Any], Random], "tuple[str, str] | None"]


def write(dataset: str, entry: Mapping[str, Any], rng: Random) -> tuple[str, str] | None:
    """Prompt and worked response of one item.

    Args:
        dataset: the generator's name in reasoning-gym.
        entry: the item: question, answer and metadata.
        rng: chooses the wording.

    Returns:
        Prompt and response, or None if the item should be left out. The response ends in `Answer: ` and the library's
        answer. For a generator without a writer here, the library's question and answer.
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


def number_sorting(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The two ends of the list."""
    data = entry["metadata"]
    ordered = sorted(data["sorted_numbers"], key=float)
    low, high = ordered[0], ordered[-1]
    styles = [f"From {low} to {high}." if data["direction"] == "ascending" else f"From {high} to {low}."]
    styles.append(f"Smallest {low}, largest {high}.")
    return f"Sort in {data['direction']} order: {', '.join(data['original_numbers'])}", rng.choice(styles)


def number_filtering(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """Each number with its verdict."""
    data = entry["metadata"]
    action, _, comparison = data["operation"].partition("_")
    yes, no = rng.choice([("kept", "out"), ("yes", "no"), ("stays", "goes")])
    verdicts = ", ".join(f"{n} {yes if n in data['result'] else no}" for n in data["original_numbers"])
    prompt = f"{action.capitalize()} the numbers {comparison} than {data['filter_value']}: {data['original_numbers']}"
    return prompt, f"{verdicts}."


def leg_counting(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """Legs of each kind and running sums."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    animals = entry["metadata"]["animals"]
    legs = [count * ANIMALS[animal] for animal, count in animals.items()]
    prompt = "How many legs: " + ", ".join(f"{n} {animal}{'s' if n > 1 else ''}" for animal, n in animals.items()) + "?"
    each = rng.choice(["{n} * {legs} = {all}", "{animal} {n} * {legs} = {all}"])
    parts = [
        each.format(n=n, legs=ANIMALS[animal], all=n * ANIMALS[animal], animal=animal) for animal, n in animals.items()
    ]
    return prompt, f"{', '.join(parts)}; {' + '.join(map(str, legs))} = {sum(legs)}."


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


def lcm(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The product over the greatest common divisor, number by number."""
    numbers = entry["metadata"]["numbers"]
    parts, current = [], numbers[0]
    for number in numbers[1:]:
        divisor = math.gcd(current, number)
        result = current * number // divisor
        style = rng.choice(["gcd {g}, {a} * {b} / {g} = {r}", "{a} * {b} = {p}, and {p} / {g} = {r}"])
        parts.append(style.format(g=divisor, a=current, b=number, p=current * number, r=result))
        current = result
    return f"Find the lcm of {', '.join(map(str, numbers))}.", f"{'; '.join(parts)}."


def simple_equations(entry: Mapping[str, Any], rng: Random) -> tuple[str, str] | None:
    """The equation collected, then the constant moved over."""
    import sympy

    data = entry["metadata"]
    left, right = data["equation"].split(" = ")
    symbol = sympy.Symbol(data["variable"])
    polynomial = sympy.Poly(sympy.sympify(f"({left}) - ({right})", locals={data["variable"]: symbol}), symbol)
    if polynomial.degree() != 1:
        return None
    slope, constant = polynomial.all_coeffs()
    equation = f"{slope}*{symbol} = {-constant}"
    styles = ["{e}, so divide {r} by {s}.", "Then {e}.", "{e}; divide by {s}."]
    return f"Solve for {symbol}: {data['equation']}", rng.choice(styles).format(e=equation, r=-constant, s=slope)


def count_bits(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The number in binary."""
    data = entry["metadata"]
    style = rng.choice(["In binary: {b}.", "{n} is {b} in binary."])
    return f"How many 1 bits has {data['number']}?", style.format(n=data["number"], b=data["binary"])


def base_conversion(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """By way of the decimal value."""
    data = entry["metadata"]
    style = rng.choice(["That is {d} in base 10.", "Decimal value: {d}."])
    prompt = f"Write the base-{data['source_base']} number {data['source_repr']} in base {data['target_base']}."
    return prompt, style.format(d=data["decimal_value"])


def fraction_simplification(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The common factor."""
    data = entry["metadata"]
    style = rng.choice(["Divide both by {f}.", "The gcd is {f}.", "{f} goes into both."])
    return f"Simplify {data['numerator']}/{data['denominator']}.", style.format(f=data["reduction_factor"])


def prime_factorization(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """Divisions by one prime after the other."""
    factors, rest = entry["metadata"]["factors"], entry["metadata"]["number"]
    prompt = f"Write {rest} as a product of primes, like 2 × 2 × 3."
    if len(factors) == 1:
        return prompt, rng.choice([f"{rest} is prime.", f"No prime divides {rest}."])
    steps = []
    for factor in factors[:-1]:
        steps.append((f"{rest} / {factor}", rest // factor))
        rest //= factor
    return prompt, _steps(steps, rng)


def simple_geometry(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """What the known angles leave of the sum of all."""
    data = entry["metadata"]
    angles = [f"{angle:g}" for angle in data["known_angles"]]
    total, known = f"{data['total_interior_sum']:g}", f"{data['sum_of_known_angles']:g}"
    prompt = f"A convex polygon with {data['n_sides']} sides has the angles {', '.join(angles)} and one more. Find it."
    steps = [(" + ".join(angles), known), (f"{total} - {known}", f"{data['missing_angle_raw']:g}")]
    return prompt, f"All angles make {total}. " + _steps(steps, rng)


def number_sequence(entry: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """The rule, or the differences."""
    data = entry["metadata"]
    terms = data["sequence"][:-1]
    differences = ", ".join(str(b - a) for a, b in pairwise(terms))
    styles = [f"Rule: {data['rule']}.", f"Rule: {data['rule']}.", f"Differences: {differences}."]
    return f"Next number: {', '.join(map(str, terms))}, ?", rng.choice(styles)


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
    if follows(premises, conclusion) != (entry["answer"] == "Yes"):
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


WRITERS: dict[str, Writer] = {
    writer.__name__: writer
    for writer in (
        chain_sum,
        number_sorting,
        number_filtering,
        leg_counting,
        gcd,
        lcm,
        simple_equations,
        count_bits,
        base_conversion,
        fraction_simplification,
        prime_factorization,
        simple_geometry,
        number_sequence,
        letter_counting,
        family_relationships,
        syllogism,
        sentence_reordering,
        spell_backward,
        word_sorting,
        word_sequence_reversal,
        needle_haystack,
    )
}
"""Writers by the generator's name; any other generator works with its question and bare answer."""


def _steps(steps: Iterable[tuple[str, object]], rng: Random) -> str:
    """Calculations in one of three wordings."""
    style = rng.randrange(3)
    if style == 0:
        return ", ".join(f"{left} = {right}" for left, right in steps) + "."
    if style == 1:
        return "; ".join(f"{left} is {right}" for left, right in steps) + "."
    return "First " + ". Then ".join(f"{left} = {right}" for left, right in steps) + "."


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
    if quantifier == "All":
        return all(members)
    if quantifier == "No":
        return not any(members)
    return any(members) if quantifier == "Some" else not all(members)
