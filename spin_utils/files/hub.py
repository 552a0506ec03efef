"""The hub's cache: repositories at pinned revisions, fetched once and then read without network.

Where the hub does not answer, `datasets` takes whatever revision of a dataset it cached last. So rows are read from the
folder of a whole snapshot if there is one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from spin_utils.files.paths import KitError, reason

Kind = Literal["model", "dataset"]
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
"""The files of a model that are read."""


class HubError(KitError):
    """A repository cannot be fetched, or the cache has another revision. The message names it and the remedy."""


def fetch(kind: Kind, name: str, revision: str, *, weights: bool = True) -> Path:
    """Bring a repository into the hub's cache, and return the folder of its snapshot.

    Where the hub does not answer, that is what the cache has, unless it is known to be a part.

    Args:
        weights: False: all of a model but its weights.

    Raises:
        HubError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    patterns = [each for each in MODEL_FILES if weights or each != "*.safetensors"] if kind == "model" else None
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen kinds; each means the same to the reader
        raise HubError(
            f"{name} @ {revision[:8]}: cannot be fetched ({reason(error)}); check the network and your access"
            + ", or put the model in a folder and use source: directory" * (kind == "model")
        ) from None


def fetched(kind: Kind, name: str, revision: str, *, whole: bool = True) -> Path | None:
    """The folder of a snapshot in the hub's cache; None if it is not there, or is known to be a part.

    Args:
        whole: None also if it is unknown whether it is a part, as of a snapshot that `fetch` did not bring.
    """
    from huggingface_hub import errors, get_cached_repo_tree, snapshot_download

    if not revision:
        return None
    files: dict[str, Any] = {"allow_patterns": MODEL_FILES if kind == "model" else None, "local_files_only": True}
    try:
        if whole:  # without a list of its files a part passes for the whole
            get_cached_repo_tree(name, repo_type=kind, revision=revision)
        return Path(snapshot_download(name, repo_type=kind, revision=revision, **files))
    except (errors.CachedRepoTreeNotFoundError, errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


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
