"""Profiles: YAML files, read strictly into the classes in `run`.

A profile may start with `extends: NAME` and then only list what differs. An unknown key, a wrong type or an impossible
value is refused with the file, the dotted name of the field and the remedy, one line per fault.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
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

    Returns:
        The validated profile.

    Raises:
        SettingsError: no such profile, bad YAML, unknown key, wrong type or impossible value.

    >>> load("smoke").spin.training.loss
    'logistic'
    """
    path = _find(name_or_path)
    data = _read(path)
    change: dict[str, Any] = {}
    for dotted, value in (overrides or {}).items():
        _set(data, dotted, value)
        _set(change, dotted, value)
    _anchor(data, Path.cwd())
    try:
        profile = build(Profile, data)
        _refuse_hidden(change, data)
        for arm in profile.arms:
            of_arm(profile, arm)
    except SettingsError as error:
        raise SettingsError("\n".join(f"{path.name}: {line}" for line in str(error).splitlines())) from None
    return profile


def of_arm(profile: Profile, arm: str) -> Profile:
    """The profile as an arm changes it; it plays one iteration unless the arm says how many.

    Raises:
        SettingsError: a change is not possible, has no effect, or is not of `spin` or `generation`.
    """
    data: dict[str, Any] = as_dict(profile) | {"arms": {}}
    data["spin"] |= {"iterations": 1, "epochs_shown": 0, "subsets": []}
    change: dict[str, Any] = {}
    try:
        require(bool(profile.arms[arm]), "changes nothing; name at least one setting, or remove it")
        for dotted, value in profile.arms[arm].items():
            require(
                dotted.startswith(("spin.", "generation.")) and dotted not in ("spin.epochs_shown", "spin.subsets"),
                f"{dotted}: not a setting of an arm, which changes those of spin and generation",
            )
            _set(data, dotted, value)
            _set(change, dotted, value)
        _refuse_hidden(change, data)
        return build(Profile, data)
    except SettingsError as error:
        raise SettingsError("\n".join(f"arms.{arm}: {line}" for line in str(error).splitlines())) from None


def folder(name_or_path: str) -> str:
    """Name of a profile's folders: for a YAML file the name inside it, otherwise the name itself, checked.

    Raises:
        KitError: no such file, or the name is not valid for a folder.
    """
    if paths.is_yaml(name_or_path):
        return load(name_or_path).name
    return paths.checked(name_or_path)


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=value` into its dotted name and its value, read as YAML.

    >>> parse_override("spin.training.epochs=3")
    ('spin.training.epochs', 3)
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise SettingsError(f"{text!r}: write an override as name=value, such as spin.betas=[1.0]")
    try:
        return name.strip(), parse_yaml(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"{name.strip()}: {value[:80]!r} is not a value: {' '.join(str(error).split())}") from None


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Several overrides by name; giving one twice is an error.

    >>> parse_overrides(["spin.betas=[1.0]", "sft.epochs=3"])
    {'spin.betas': [1.0], 'sft.epochs': 3}
    """
    overrides: dict[str, Any] = {}
    for name, value in map(parse_override, texts):
        require(name not in overrides, f"{name}: given twice; give it once")
        overrides[name] = value
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


def build_from_dotted(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Like `build`, from values by dotted name, for example `{"training.beta": 1.0}`."""
    data: dict[str, Any] = {}
    for dotted, value in values.items():
        _set(data, dotted, value)
    return build(cls, data)


def as_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON data, for manifests and keys."""
    return dataclasses.asdict(settings)


def dump(profile: Profile, path: Path) -> Path:
    """Write a resolved profile as YAML, so that a command line can be kept as a file."""
    plain = json.loads(json.dumps(as_dict(profile)))
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
        names = [key.value for key, _ in node.value]
        line = f"line {node.start_mark.line + 1}"
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{line}: {name!r} is written twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=True)
        for name in mapping:
            if not isinstance(name, str):  # YAML reads no, 1 and 1.5 as values
                raise yaml.YAMLError(f"{line}: {name!r} is not text; put quotes around the name")
        return mapping


_StrictLoader.yaml_implicit_resolvers = {  # a date is text, as in JSON
    first: [each for each in known if each[0] != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 5e-7, without a point, as text; people write it that way.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def _fault(cls: type, fault: Any) -> str:
    """One line for a fault that pydantic found."""
    place, kind, found = fault["loc"], fault["type"], repr(fault["input"])[:80]
    dotted = ".".join(map(str, place))
    if kind == "unexpected_keyword_argument":
        return f"{dotted}: unknown setting{nearest(place[-1], _fields_at(cls, place[:-1]))}"
    if kind == "missing":
        return f"{dotted}: missing; this setting has no default"
    if kind == "literal_error":
        choices = [choice for choice in re.findall("'(.*?)'", fault["ctx"]["expected"]) if choice]
        return f"{dotted}: {found} is not a choice{nearest(str(fault['input']), choices)}"
    if kind == "value_error":  # from __post_init__, whose messages begin with the field
        return f"{dotted}.{fault['ctx']['error']}".lstrip(".")
    if kind == "dataclass_type":
        return f"{dotted or 'profile'}: should be settings by name, found {found}"
    if kind == "string_pattern_mismatch":
        return f"{dotted}: {found} is not a commit; pin 40 hexadecimal digits (a branch name moves)"
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
        if name_or_path not in known:
            raise SettingsError(f"profile {name_or_path!r}: unknown{nearest(name_or_path, known)}")
        return PROFILES / f"{name_or_path}.yaml"
    path = paths.given(name_or_path)
    if not path.is_file():
        raise SettingsError(f"{name_or_path[:200]}: no such file; give a YAML file or one of: {', '.join(known)}")
    return path


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The data of a profile file, merged into what it extends."""
    if path.resolve() in seen:
        raise SettingsError(f"{path.name}: extends itself; break the circle")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path.name}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    except (yaml.YAMLError, OSError) as error:
        raise SettingsError(f"{path.name}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise SettingsError(f"{path.name}: should be settings by name, found {repr(data)[:80]}")
    parent = data.pop("extends", None)
    if parent is None:
        return _anchor(data, path.parent)
    if not isinstance(parent, str):
        raise SettingsError(f"{path.name}: extends: should be a profile's name, found {parent!r}")
    sibling = paths.given(parent, path.parent)
    found = sibling if paths.is_yaml(parent) and sibling.is_file() else _find(parent)
    data.setdefault("name", path.stem)
    merged = _merge(_read(found, (*seen, path.resolve())), data)
    try:
        _refuse_hidden(data, merged)
    except SettingsError as error:
        raise SettingsError(f"{path.name}: {error}") from None
    return _anchor(merged, path.parent)


def _refuse_hidden(change: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Raise if a value for all iterations is overridden by a list per iteration and would have no effect."""
    given, spin = change.get("spin"), merged.get("spin")
    training = given.get("training") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(training, dict) or not isinstance(spin, dict):
        return
    for name, by_iteration in _BY_ITERATION.items():
        require(
            name not in training or by_iteration in given or not spin.get(by_iteration),
            f"spin.training.{name}: changes nothing, because spin.{by_iteration} overrides it; change "
            f"spin.{by_iteration}, or set it to [] as well",
        )


_FILES = {
    "model": ("directory", ["path"]),
    "demonstrations": ("file", ["train", "validation", "test"]),
    "preferences": ("file", ["train"]),
}
"""Sections that name files: the source for which they do, and the settings with the paths."""


def _anchor(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    # A relative path in a profile is relative to the folder of its file, wherever the kernel runs.
    released = data.get("released")
    sections = [data, data.get("sft_control"), data.get("dpo")]
    sections += [{"model": model} for model in released.values()] if isinstance(released, dict) else []
    for holder in filter(lambda section: isinstance(section, dict), sections):
        for name, (source, fields) in _FILES.items():
            section = holder.get(name)  # type: ignore[union-attr]
            if isinstance(section, dict) and section.get("source") == source:
                named = {key: section[key] for key in fields if section.get(key) and isinstance(section[key], str)}
                section.update({key: str(paths.given(value, folder)) for key, value in named.items()})
    evaluation = data.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("tasks"), list):
        evaluation["tasks"] = [
            str(paths.given(task, folder)) if isinstance(task, str) and paths.is_yaml(task) else task
            for task in evaluation["tasks"]
        ]
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


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise SettingsError(f"{dotted}: {section} is a value, not a section")
    data[name] = value
