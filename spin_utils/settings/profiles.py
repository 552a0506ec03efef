"""Profiles: YAML files read strictly into the dataclasses of `settings`.

A profile may start with `extends: NAME` and then say only what differs. An unknown key, a wrong type or
an impossible value is refused with the file, the place and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from spin_utils.files import paths, strict_yaml
from spin_utils.files.disk import write_text
from spin_utils.settings.inputs import SettingsError, require
from spin_utils.settings.run import Profile

PROFILES = paths.REPOSITORY / "profiles"
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_BY_ITERATION = {"learning_rate": "learning_rates", "beta": "betas"}
"""Settings of `spin.training` and the lists of `spin` that go before them."""
_LARGEST = 2**53  # whole numbers beyond are not exact in JSON readers, and no setting has a use for them


def load(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """Read a profile.

    Args:
        name_or_path: a name such as `cpu` (a file of `profiles/`) or the path of a YAML file.
        overrides: dotted names to values, such as `{"spin.betas": [1.0]}`.

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
        profile = build(Profile, data, "")
        _refuse_hidden(change, data)
        shipped = {p.stem.lower(): p.stem for p in PROFILES.glob("*.yaml")}.get(profile.name.lower(), profile.name)
        require(
            profile.name == shipped,
            f"name: {profile.name!r} differs from the shipped {shipped!r} only by case, and some file systems take "
            "the two for one folder; choose another name",
        )
    except SettingsError as error:
        raise SettingsError(f"{path.name}: {error}") from None
    return profile


def folder(name_or_path: str) -> str:
    """Name of a profile's folders: of a YAML file the name inside it; any other name as it is, once checked.

    Raises:
        SettingsError, PathError: no such file, or no name of a folder.
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
        return name.strip(), strict_yaml.parse(value)
    except strict_yaml.YAMLError as error:
        raise SettingsError(f"{name.strip()}: {value[:80]!r} is not a value: {error}") from None


def parse_overrides(texts: typing.Iterable[str]) -> dict[str, Any]:
    """Several of them by name; one that is given twice is refused.

    >>> parse_overrides(["spin.betas=[1.0]", "sft.epochs=3"])
    {'spin.betas': [1.0], 'sft.epochs': 3}
    """
    overrides: dict[str, Any] = {}
    for name, value in map(parse_override, texts):
        require(name not in overrides, f"{name}: given twice; give it once")
        overrides[name] = value
    return overrides


def build(cls: type, data: Any, where: str) -> Any:
    """Turn plain data into a frozen dataclass, refusing whatever does not fit.

    Args:
        cls: a dataclass of `settings`.
        data: a mapping as YAML gives it.
        where: dotted name of the place, for messages.

    Raises:
        SettingsError: with the dotted name and the remedy.
    """
    if not isinstance(data, Mapping):
        raise SettingsError(f"{where or 'profile'}: expected settings by name, found {_kind(data)}")
    names = [f.name for f in dataclasses.fields(cls)]
    for name in data:
        if name not in names:
            raise SettingsError(f"{_join(where, name)}: unknown setting{nearest(str(name), names)}")
    hints = typing.get_type_hints(cls)
    values = {name: _convert(hints[name], value, _join(where, name)) for name, value in data.items()}
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"{_join(where, missing[0])}: missing; this setting has no default")
    try:
        return cls(**values)
    except SettingsError as error:
        section = where.rpartition(".")[2]
        text = str(error)
        raise SettingsError(text if not where or text.startswith(f"{section}.") else f"{where}.{text}") from None


def build_from_dotted(cls: type, values: Mapping[str, Any]) -> Any:
    """Like `build`, from dotted names and values such as `{"training.beta": 1.0}`."""
    data: dict[str, Any] = {}
    for dotted, value in values.items():
        _set(data, dotted, value)
    return build(cls, data, "")


def as_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON data, for manifests and keys."""
    return dataclasses.asdict(settings)


def dump(profile: Profile, path: Path) -> Path:
    """Write a resolved profile as YAML, so that a command line becomes a file that can be kept."""
    write_text(path, yaml.safe_dump(_plain(as_dict(profile)), sort_keys=False, allow_unicode=True))
    return path


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """The end of a message: the closest valid name, or all of them.

    >>> nearest("bta", ["beta", "loss"])
    "; did you mean 'beta'?"
    """
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def _find(name_or_path: str) -> Path:
    known = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    if paths.is_yaml(name_or_path):
        path = Path(name_or_path)
        try:
            found, what = path.is_file(), "a folder or device" if path.exists() else "no such file"
        except OSError as error:  # a name that is too long, a folder that may not be searched
            found, what = False, f"cannot be looked up ({error.strerror})"
        if not found:
            raise SettingsError(f"{name_or_path[:200]}: {what}; give a YAML file or one of: {', '.join(known)}")
        return path
    if name_or_path not in known:
        raise SettingsError(f"profile {name_or_path!r}: unknown{nearest(name_or_path, known)}")
    return PROFILES / f"{name_or_path}.yaml"


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise SettingsError(f"{path.name}: extends itself; break the circle")
    try:
        data = strict_yaml.parse(path.read_text(encoding="utf-8-sig"))
    except (strict_yaml.YAMLError, OSError) as error:
        raise SettingsError(f"{path.name}: not readable as YAML: {error}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path.name}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    if not isinstance(data, dict):
        raise SettingsError(f"{path.name}: expected settings by name, found {_kind(data)}")
    parent = data.pop("extends", None)
    if parent is None:
        return _anchor(data, path.parent)
    if not isinstance(parent, str):
        raise SettingsError(f"{path.name}: extends: expected a profile's name, found {_kind(parent)}")
    sibling = paths.given(parent, path.parent)
    found = sibling if paths.is_yaml(parent) and sibling.is_file() else _find(parent)
    if "name" not in data:
        data["name"] = path.stem
    merged = _merge(_read(found, (*seen, path.resolve())), data)
    try:
        _refuse_hidden(data, merged)
    except SettingsError as error:
        raise SettingsError(f"{path.name}: {error}") from None
    return _anchor(merged, path.parent)


def _refuse_hidden(change: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Refuse a value for all iterations behind a list by iteration, which goes before it: it would change nothing."""
    given, spin = change.get("spin"), merged.get("spin")
    training = given.get("training") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(training, dict) or not isinstance(spin, dict):
        return
    for name, by_iteration in _BY_ITERATION.items():
        require(
            name not in training or by_iteration in given or not spin.get(by_iteration),
            f"spin.training.{name}: changes nothing, because spin.{by_iteration} goes before it; change "
            f"spin.{by_iteration}, or set it to [] as well",
        )


def _anchor(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    # A relative path in a profile means relative to the folder of the file that says it, wherever the kernel runs.
    dpo, control, released = data.get("dpo"), data.get("sft_control"), data.get("released")
    places = [
        *((model, "directory", ["path"]) for model in (released.values() if isinstance(released, dict) else ())),
        (data.get("model"), "directory", ["path"]),
        (data.get("demonstrations"), "file", ["train", "validation", "test"]),
        (control.get("demonstrations") if isinstance(control, dict) else None, "file", ["train", "validation", "test"]),
        (dpo.get("preferences") if isinstance(dpo, dict) else None, "file", ["train"]),
    ]
    for section, source, names in places:
        if isinstance(section, dict) and section.get("source") == source:
            for name in names:
                value = section.get(name)
                if isinstance(value, str) and value:
                    section[name] = str(paths.given(value, folder))
    evaluation = data.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("tasks"), list):
        evaluation["tasks"] = [
            str(paths.given(task, folder)) if isinstance(task, str) and paths.is_yaml(task) else task
            for task in evaluation["tasks"]
        ]
    return data


def _merge(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    # A section that names another source starts afresh: settings of the old source must not leak into the new one.
    # A template of another kind loses the old one's markers, which the new model may not know.
    merged = dict(base)
    if "kind" in change and change["kind"] != base.get("kind"):
        merged = {name: value for name, value in base.items() if name not in ("prompt", "end")}
    for name, value in change.items():
        old = merged.get(name)
        fresh = isinstance(value, Mapping) and "source" in value and isinstance(old, Mapping)
        fresh = fresh and value["source"] != old.get("source")  # type: ignore[union-attr]
        if isinstance(old, dict) and isinstance(value, Mapping) and not fresh:
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


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value not in arguments:
            raise SettingsError(f"{where}: {value!r} is not a choice{nearest(str(value), arguments)}")
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SettingsError(f"{where}: expected names and values, found {_kind(value)}")
        return {str(k): _convert(arguments[1], v, _join(where, str(k))) for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SettingsError(f"{where}: expected a list, found {_kind(value)}")
        return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return _json_data(value, where)
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 5e-7 as text; people write it that way.
        if _NUMBER.fullmatch(value) is None:
            raise SettingsError(f"{where}: expected a number, found {value!r}")
        value = float(value)
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise SettingsError(f"{where}: a whole number of {value.bit_length()} bits; use one below 2**53")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        name = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}[hint]
        raise SettingsError(f"{where}: expected {name}, found {_kind(value)} {value!r}")
    if hint is float and not abs(value) < float("inf"):
        raise SettingsError(f"{where}: {value} is not a finite number")
    return value


def _json_data(value: Any, where: str) -> Any:
    """The value, if JSON can hold it: it becomes part of an artifact's key."""
    if isinstance(value, list):
        return [_json_data(part, f"{where}[{place}]") for place, part in enumerate(value)]
    if isinstance(value, dict):
        return {str(name): _json_data(part, _join(where, name)) for name, part in value.items()}
    if value is None or isinstance(value, str):
        return value
    if type(value) not in (bool, int, float):
        raise SettingsError(f"{where}: {value!r} is a {type(value).__name__}; write a number, text, list or section")
    return _scalar(type(value), value, where)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def _kind(value: Any) -> str:
    kinds = {type(None): "nothing", dict: "a section", list: "a list", str: "text", bool: "true/false"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
