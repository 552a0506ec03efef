"""Worked solutions in numbers: the calculations that lead to the answer.

A function is named for its generator in reasoning-gym and is a `Writer` of `worked_solutions`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from random import Random
from typing import Any


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


def _steps(steps: Iterable[tuple[str, object]], rng: Random) -> str:
    """Calculations in one of three wordings."""
    style = rng.randrange(3)
    if style == 0:
        return ", ".join(f"{left} = {right}" for left, right in steps) + "."
    if style == 1:
        return "; ".join(f"{left} is {right}" for left, right in steps) + "."
    return "First " + ". Then ".join(f"{left} = {right}" for left, right in steps) + "."
