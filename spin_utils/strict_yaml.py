"""YAML read strictly: plain data only, no key twice, no aliases, and every fault is one kind of error."""

from __future__ import annotations

from typing import Any

import yaml


class YAMLError(ValueError):
    """Text is not YAML, or is more than plain data. The readers add the file and the remedy."""


def parse(text: str) -> Any:
    """Parse one YAML document.

    Plain YAML keeps the last of two equal keys, and an alias (`*name`) can stand for itself or, nested, for more data
    than memory holds; both are refused. No tag makes anything but plain data.

    Raises:
        YAMLError: with the reason, and the line where the parser names one.

    >>> parse("beta: [0.1, 5.0]")
    {'beta': [0.1, 5.0]}
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise YAMLError("nested too deeply") from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
    ) as error:  # dates that do not exist, numbers with thousands of digits
        raise YAMLError(" ".join(str(error).split()).replace(' in "<unicode string>",', "")) from None


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
        if isinstance(key, list | dict):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {key!r} is no name for a setting")
        if keys.count(key) > 1:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {key!r} is written twice")
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
