"""DPO on a file of pairs: check them, encode them, and train with SPIN's trainer, whose loss is DPO's (sec. 4.2)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_utils.data import preferences
from spin_utils.experiment.play import train_from
from spin_utils.files import artifacts, disk, paths, processes
from spin_utils.model import base
from spin_utils.model.packing import Pairs, write_pairs
from spin_utils.settings import profiles
from spin_utils.settings.inputs import ModelSettings, PreferenceSettings, identity
from spin_utils.settings.run import DpoRunSettings
from spin_utils.training import trackers

log = logging.getLogger(__name__)

_DEFAULTS = {"training.learning_rate": 5e-7, "template": {}}


def read_settings(changes: Mapping[str, Any]) -> DpoRunSettings:
    """Settings of a run: the defaults, which are the paper's, with changes by dotted name.

    >>> read_settings({"training.beta": 0.5, "template.kind": "text"}).training.beta
    0.5
    """
    return profiles.build(DpoRunSettings, profiles.assign({}, _DEFAULTS | dict(changes)))


def dpo(model: Path, pairs: Path, out: Path, settings: DpoRunSettings) -> Path:
    """Train a model on chosen and rejected responses, with the initial model as the reference.

    A stopped run resumes from the folder `OUT-KEY.partial`, where KEY stands for model, pairs and settings.

    Args:
        out: folder for the checkpoint, its metrics (training.json), the encoded pairs and the manifest.

    Raises:
        KitError: bad input, found before any long work.
        Interrupted: SIGINT or SIGTERM arrived during training; the state is saved.
    """
    trackers.check(settings.training.trackers)
    start = base.resolve(model)
    base.check_folder(start, settings.template)
    rows = preferences.load(PreferenceSettings("file", train=str(pairs)))
    described = {"training": identity(settings.training), "template": identity(settings.template)}
    model_identity = base.identity(ModelSettings("directory", path=str(start)))
    inputs = {"model": model_identity, "pairs": disk.file_hash(pairs)}
    key = artifacts.key("dpo", described, seed=settings.seed, **inputs)
    unnamed = out.with_name(f"{out.name}-{key}")
    with artifacts.lock(unnamed):
        if processes.from_first(lambda: _is_made(out, key)):
            log.info("%s: already made from this model, these pairs and settings", paths.relative(out))
            return out
        encoded = preferences.encode_preferences(base.load_tokenizer(start), settings.template, rows)
        if not processes.from_first(lambda: artifacts.is_complete(unnamed)):
            with artifacts.building(
                unnamed, stage="dpo", settings=described, inputs=inputs, seed=settings.seed
            ) as work:
                groups = Pairs([processes.from_first(lambda: write_pairs(work / "pairs.arrow", encoded))])
                how = settings.training
                train_from(start, groups, how, seed=settings.seed, work=work, what="DPO", describe=groups.name)
        if processes.rank() == 0:
            os.replace(unnamed, out)
    return out


def _is_made(out: Path, key: str) -> bool:
    """Whether the result exists. Raises if anything else is in its place: nothing is ever overwritten."""
    if not out.is_symlink() and (not out.exists() or (out.is_dir() and not any(out.iterdir()))):
        return False
    if out.is_dir() and artifacts.is_complete(out) and artifacts.read_manifest(out)["key"] == key:
        return True
    raise paths.KitError(
        f"{out}: exists, but was not made from this model, these pairs and these settings; name another folder, or "
        "remove it"
    )
