"""Profiles: YAML files, read strictly into the classes in `run`.

A profile may start with `extends: NAME` and then only list what differs. An unknown key, a wrong type or an impossible
value is refused with the file, the dotted name of the field and the remedy, one line per fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from spin_utils.files import paths
from spin_utils.files.disk import write_text
from spin_utils.settings.inputs import SettingsError, require
from spin_utils.settings.run import Profile

PROFILES = paths.REPOSITORY / "profiles"
_BY_ITERATION = {"learning_rate": "learning_rates", "beta": "betas"}
"""Settings of `spin.training` and the lists of `spin` that override them."""
Settings = TypeVar("Settings")


def load(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """Read a profile.

    Args:
        name_or_path: a name like `cpu` (a file in `profiles/`) or the path of a YAML file.
        overrides: values by dotted name, for example `{"spin.betas": [1.0]}`.

    Raises:
        SettingsError: no such profile, bad YAML, unknown key, wrong type or impossible value.

    >>> load("smoke").spin.training.loss
    'logistic'
    """
    path = _find(name_or_path)
    data = _read(path)
    with _named(path.name):
        given = dict(overrides or {})
        kinds = {dotted: value for dotted, value in given.items() if dotted.endswith((".source", ".kind"))}
        data = assign(_merge(data, assign({}, kinds)), given)
        _anchor(data, Path.cwd())
        profile = build(Profile, data)
        _refuse_hidden(assign({}, given), data)
        require(
            not profile.spin.training.rejection,
            "spin.training.rejection: it compares no pairs, so it is a control and not SPIN; write it as an arm "
            "(docs/run-an-ablation.md)",
        )
        for arm in profile.arms:
            of_arm(profile, arm)
    return profile


def of_arm(profile: Profile, arm: str) -> Profile:
    """The profile as an arm changes it; it plays one iteration unless the arm says how many.

    Raises:
        SettingsError: a change is not possible, has no effect, or is not of `spin` or `generation`.
    """
    change = profile.arms[arm]
    data: dict[str, Any] = dataclasses.asdict(profile) | {"arms": {}}
    data["spin"] |= {"iterations": 1, "epochs_shown": 0, "subsets": []}
    with _named(f"arms.{arm}"):
        require(bool(change), "changes nothing; name at least one setting, or remove it")
        for dotted in change:
            require(
                dotted.startswith(("spin.", "generation.")) and dotted not in ("spin.epochs_shown", "spin.subsets"),
                f"{dotted}: not a setting of an arm; write one of spin or generation by its dotted name, as spin.betas",
            )
        _refuse_hidden(assign({}, change), assign(data, change))
        return build(Profile, data)


def folder(name_or_path: str) -> str:
    """Name of a profile's folders: for a YAML file the name inside it, otherwise the name itself, checked."""
    return load(name_or_path).name if paths.is_yaml(name_or_path) else paths.checked(name_or_path)


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Overrides of the form `a.b=value` by dotted name, with values read as YAML; giving one twice is an error.

    >>> parse_overrides(["spin.betas=[1.0]", "sft.epochs=3"])
    {'spin.betas': [1.0], 'sft.epochs': 3}
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip()
        require(bool(sign and name), f"{text!r}: write an override as name=value, such as spin.betas=[1.0]")
        require(name not in overrides, f"{name}: given twice; give it once")
        try:
            overrides[name] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"{name}: {value[:80]!r} is not a value: {' '.join(str(error).split())}") from None
    return overrides


def build(cls: type[Settings], data: Any) -> Settings:
    """Turn plain data, as read from YAML, into a frozen dataclass of settings.

    Raises:
        SettingsError: one line per fault, with the dotted name and the remedy.
    """
    text = json.dumps(data, default=str)  # from JSON a list may become a tuple, but "2" still does not become 2
    try:
        return TypeAdapter(cls).validate_json(text)
    except ValidationError as error:
        raise SettingsError("\n".join(_fault(cls, fault) for fault in error.errors())) from None


def assign(data: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set values by dotted name in nested data, which is returned.

    >>> assign({"seed": 3}, {"training.beta": 1.0, "seed": 4})
    {'seed': 4, 'training': {'beta': 1.0}}
    """
    for dotted, value in values.items():
        *sections, name = dotted.split(".")
        place = data
        for section in sections:
            if place.get(section) is None:  # as in a profile that was written whole
                place[section] = {}
            place = place[section]
            require(isinstance(place, dict), f"{dotted}: {section} is a value, not a section")
        place[name] = value
    return data


def dump(profile: Profile, path: Path) -> Path:
    """Write a resolved profile as YAML, so that a command line can be kept as a file."""
    plain = TypeAdapter(Profile).dump_python(profile, mode="json")
    write_text(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    return path


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message: the closest valid name, or all of them.

    >>> nearest("bta", ["beta", "loss"])
    "; did you mean 'beta'?"
    """
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def parse_yaml(text: str) -> Any:
    """Parse one YAML document of plain data; a name that occurs twice in a section is an error.

    Raises:
        yaml.YAMLError: with the reason and the line.

    >>> parse_yaml("learning_rate: 5e-7")
    {'learning_rate': 5e-07}
    """
    return yaml.load(text, Loader=_StrictLoader)


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:  # a name is text as it is written, also `no`, `on`, `1` and `2024-07`
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {name!r} is written twice")
        return super().construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)  # as in JSON
# YAML 1.1 reads 5e-7, without a point, as text; people write it that way.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Put a place before each line of an error."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError("\n".join(f"{place}: {line}" for line in str(error).splitlines())) from None


def _fault(cls: type, fault: Any) -> str:
    """One line for a fault that pydantic found."""
    place, found = fault["loc"], repr(fault["input"])[:80]
    dotted = ".".join(map(str, place)) or "profile"
    match fault["type"]:
        case "unexpected_keyword_argument":
            return f"{dotted}: unknown setting{nearest(place[-1], _fields_at(cls, place[:-1]))}"
        case "missing":
            return f"{dotted}: missing; this setting has no default"
        case "literal_error":
            choices = [choice for choice in re.findall("'(.*?)'", fault["ctx"]["expected"]) if choice]
            return f"{dotted}: {found} is not a choice{nearest(str(fault['input']), choices)}"
        case "value_error":  # from __post_init__, whose messages begin with the field
            return ".".join(map(str, (*place, fault["ctx"]["error"])))
        case "string_pattern_mismatch":
            return f"{dotted}: {found} is not a commit; pin 40 hexadecimal digits (a branch name moves)"
        case "string_type":
            return f"{dotted}: should be text, found {found}; put it in quotes"
        case "dataclass_type" | "dict_type":
            return f"{dotted}: should be settings by name, found {found}"
    return f"{dotted}: {fault['msg'].removeprefix('Input ')}, found {found}"


def _fields_at(cls: type, place: Iterable[Any]) -> list[str]:
    """Names of the settings in a section, by its place in a class."""
    hint: Any = cls
    for part in place:
        # The values of a dict or tuple of sections are its last argument.
        section = dataclasses.is_dataclass(hint)
        hint = typing.get_type_hints(hint)[part] if section else typing.get_args(hint)[-1]
        if isinstance(hint, types.UnionType):
            hint = next(option for option in typing.get_args(hint) if option is not type(None))
    return [f.name for f in dataclasses.fields(hint)]


def _find(name_or_path: str) -> Path:
    known = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    if not paths.is_yaml(name_or_path):
        runs = [file for file in paths.home().glob("artifacts/*/profile-*.yaml") if file.parent.name == name_or_path]
        hint = nearest(name_or_path, known)
        if runs:
            hint = f"; a run of changed settings has this name, give its file: {max(runs, key=os.path.getmtime)}"
        require(name_or_path in known, f"profile {name_or_path!r}: unknown{hint}")
        return PROFILES / f"{name_or_path}.yaml"
    path = paths.given(name_or_path)
    require(path.is_file(), f"{name_or_path[:200]}: no such file; give a YAML file or one of: {', '.join(known)}")
    return path


def _read(path: Path, *extended_by: Path) -> dict[str, Any]:
    """The data of a profile file, merged into what it extends."""
    require(path not in extended_by, f"{path.name}: extends itself; name another profile")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, OSError, UnicodeError) as error:
        raise SettingsError(f"{path.name}: not readable as YAML: {' '.join(str(error).split())}") from None
    require(isinstance(data, dict), f"{path.name}: should be settings by name, found {repr(data)[:80]}")
    parent = data.pop("extends", None)
    if parent is None:
        return _anchor(data, path.parent)
    sibling = paths.given(str(parent), path.parent)
    found = sibling if paths.is_yaml(str(parent)) and sibling.is_file() else _find(str(parent))
    data.setdefault("name", path.stem)
    merged = _merge(_read(found, path, *extended_by), data)
    with _named(path.name):
        _refuse_hidden(data, merged)
    return _anchor(merged, path.parent)


def _refuse_hidden(change: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Raise if a value for all iterations is overridden by a list per iteration and would have no effect."""
    for name, by_iteration in _BY_ITERATION.items():
        hidden = _at(merged, "spin", by_iteration) and _at(change, "spin", by_iteration) is None
        require(
            not hidden or _at(change, "spin", "training", name) is None,
            f"spin.training.{name}: changes nothing, because spin.{by_iteration} overrides it; change "
            f"spin.{by_iteration}, or set it to [] as well",
        )


def _at(data: Any, *names: str) -> Any:
    """The value at a place of nested data; None if there is none."""
    for name in names:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _anchor(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths in a profile absolute: relative ones start at the folder of its file, wherever the kernel runs."""
    if data.get("source") in ("directory", "file"):
        for name in ("path", "train", "validation", "test"):
            if data.get(name) and isinstance(data[name], str):
                data[name] = str(paths.given(data[name], folder))
    for section in filter(lambda value: isinstance(value, dict), data.values()):
        _anchor(section, folder)
    if isinstance(tasks := data.get("tasks"), list):
        data["tasks"] = [str(paths.given(t, folder)) if isinstance(t, str) and paths.is_yaml(t) else t for t in tasks]
    return data


def _merge(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    # A section with a different source starts from scratch, so that settings of the old source do not leak into it.
    # A template of a different kind drops the old markers, which the new model may not know. `{}` empties a section.
    merged = dict(base)
    if "kind" in change and change["kind"] != base.get("kind"):
        merged = {name: value for name, value in base.items() if name not in ("prompt", "end")}
    for name, value in change.items():
        old = merged.get(name)
        source = old.get("source") if isinstance(old, dict) else None
        if isinstance(old, dict) and isinstance(value, dict) and value and value.get("source", source) == source:
            merged[name] = _merge(old, value)
        else:
            merged[name] = value
    return merged
