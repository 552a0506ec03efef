"""The hub's cache: repositories at pinned revisions, fetched once and then read without network.

Where the hub does not answer, `datasets` takes whatever revision of a dataset it cached last. So a snapshot that is
complete is marked, and its rows are read from its folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from spin_utils.files.paths import KitError, reason

Kind = Literal["model", "dataset"]
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
"""The files of a model that are read."""


class HubError(KitError):
    """A repository cannot be fetched, or the cache has another revision. The message names it and the remedy."""


def fetch(kind: Kind, name: str, revision: str, *, whole: bool = True, weights: bool = True) -> Path:
    """Bring a repository into the hub's cache, mark it as complete, and return the folder of its snapshot.

    Args:
        whole: False: where the hub does not answer, take what the cache has, and mark nothing.
        weights: False: all of a model but its weights, with `whole=False`.

    Raises:
        HubError: it cannot be fetched.
    """
    from huggingface_hub import HfApi, snapshot_download

    known = fetched(kind, name, revision)
    if known is not None:
        return known
    patterns = [each for each in MODEL_FILES if weights or each != "*.safetensors"] if kind == "model" else None
    try:
        if whole:  # else the next line takes half a snapshot
            HfApi().repo_info(name, revision=revision, repo_type=kind)
        folder = Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen kinds; each means the same to the reader
        raise HubError(
            f"{name} @ {revision[:8]}: cannot be fetched ({reason(error)}); check the network and your access"
            + ", or put the model in a folder and use source: directory" * (kind == "model")
        ) from None
    if whole:
        _mark(kind, name, revision).touch()
    return folder


def fetched(kind: Kind, name: str, revision: str | None) -> Path | None:
    """The folder of a snapshot that `fetch` completed; None if it did not."""
    if not revision or not _mark(kind, name, revision).is_file():
        return None
    folder = snapshot(kind, name, revision)
    return folder if folder.is_dir() else None


def snapshot(kind: Kind, name: str, revision: str) -> Path:
    """Where the hub's cache has a revision, whether or not it is there."""
    return _mark(kind, name, revision).parent / "snapshots" / (revision or "none")


def load_rows(path: str, name: str | None = None, *, revision: str, **options: Any) -> Any:
    """`datasets.load_dataset` of a pinned revision: from its snapshot if it was fetched, else from the hub.

    Raises:
        HubError: the hub does not answer, and the cache has another revision.
    """
    import datasets  # takes a second, which files can skip

    which = (name,) if name else ()
    folder = fetched("dataset", path, revision)
    if folder is not None:
        return datasets.load_dataset(str(folder), *which, revision=revision, **options)
    loaded = datasets.load_dataset(path, *which, revision=revision, **options)
    for split in loaded.values() if isinstance(loaded, dict) else [loaded]:
        found = set(re.findall("@([0-9a-f]{40})/", " ".join(split.info.download_checksums or ())))
        if found - {revision}:
            raise HubError(
                f"{path}: the hub does not answer, and the cache has revision {found.pop()[:8]} instead of "
                f"{revision[:8]}; run `spin-repro fetch` where there is network"
            )
    return loaded


def _mark(kind: Kind, name: str, revision: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / f"fetched-{revision}"
