"""YAML read strictly: plain data only, no key twice, no aliases, and every fault is one kind of error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from spin_utils.files.disk import is_too_deep

_TWO_MEANINGS = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Plain numbers that YAML 1.1 reads to base 8 or 60: 010 is 8 and 1:30 is 90, which nobody means."""


class YAMLError(ValueError):
    """Text is not YAML, or is more than plain data. The readers add the file and the remedy."""


def parse(text: str) -> Any:
    """Parse one YAML document.

    Plain YAML keeps the last of two equal keys, and an alias (`*name`) can stand for itself or, nested, for more data
    than memory holds; both are refused, and so are numbers that it reads to another base than people do, and names
    that are no text. No tag makes anything but plain data.

    Raises:
        YAMLError: with the reason, and the line where the parser names one.

    >>> parse("beta: [0.1, 5.0]")
    {'beta': [0.1, 5.0]}
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise YAMLError("nested too deeply") from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
    ) as error:  # dates that do not exist, numbers with thousands of digits
        raise YAMLError(" ".join(str(error).split()).replace(' in "<unicode string>",', "")) from None
    if is_too_deep(value):
        raise YAMLError("nested too deeply")
    return value


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            line = event.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: *{event.anchor} is an alias; write the value out, or use extends")
        return super().compose_node(parent, index)


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {key!r} is no name for a setting; quote a name")
        if keys.count(key) > 1:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {key!r} is written twice")
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


def _number(loader: _StrictLoader, node: yaml.ScalarNode) -> int | float:
    if _TWO_MEANINGS.fullmatch(node.value):
        raise yaml.YAMLError(
            f"line {node.start_mark.line + 1}: YAML reads {node.value} to base 8 or 60; "
            "write a decimal number, or quote it"
        )
    return loader.construct_yaml_int(node) if node.tag.endswith(":int") else loader.construct_yaml_float(node)


def _text(loader: _StrictLoader, node: yaml.ScalarNode) -> str:
    place = f"line {node.start_mark.line + 1}"
    try:  # JSON, which is YAML too, writes characters beyond the first 65536 as two halves
        text = str(loader.construct_scalar(node)).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise yaml.YAMLError(f"{place}: text with half of a character; write it out, or remove it") from None
    if "\0" in text:
        raise yaml.YAMLError(f"{place}: text with a NUL character; remove it")
    return text


for _kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG, _text)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
