"""Malformed inputs that cannot be kept as text files: folders, pipes, Parquet files and models, made on the spot."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from spin_utils.model import base
from spin_utils.settings.inputs import ModelSettings

_TEXTS = ["What is 3 + 4? Answer: 7", "Spell this word backward: sun"] * 10


def demonstrations(recipe: str, folder: Path) -> Path:
    """A file of demonstrations that is none."""
    path = folder / "rows.jsonl"
    if recipe == "folder":
        path.mkdir()
    elif recipe == "pipe":
        os.mkfifo(path)
    elif recipe == "link_to_itself":
        path.symlink_to(path)
    elif recipe == "link_to_nothing":
        path.symlink_to(folder / "nowhere.jsonl")
    else:
        path = _parquet(recipe, folder / "rows.parquet")
    return path


def _parquet(recipe: str, path: Path) -> Path:
    text = pa.string()
    columns: dict[str, Any] = {"prompt": ["a"] * 40, "response": ["b"] * 40}
    if recipe == "parquet_without_columns":
        columns = {"a": [1]}
    elif recipe == "parquet_of_bytes":
        columns = {"prompt": [b"a"], "response": [b"b"]}
    elif recipe == "parquet_of_numbers":
        columns = {"prompt": [1], "response": [2]}
    elif recipe == "parquet_with_null":
        columns = {"prompt": ["a", None], "response": ["b", "c"]}
    elif recipe == "parquet_without_rows":
        columns = {"prompt": pa.array([], text), "response": pa.array([], text)}
    elif recipe == "parquet_not_utf8":
        offsets, data = pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
        columns = {"prompt": pa.Array.from_buffers(text, 1, [None, offsets, data]), "response": ["b"]}
    table = pa.table(columns)
    if recipe == "parquet_column_twice":
        table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["prompt", "prompt", "response"])
    pq.write_table(table, path)
    whole = path.read_bytes()
    if recipe == "parquet_cut_off":
        path.write_bytes(whole[: len(whole) // 2])
    elif recipe == "parquet_bits_flipped":
        path.write_bytes(whole[:8] + bytes(byte ^ 0xFF for byte in whole[8:40]) + whole[40:])
    return path


def sound_model(folder: Path) -> Path:
    """A tiny model that can be trained, which `broken_model` copies."""
    folder.mkdir()
    base.materialise(ModelSettings("tiny", name="llama", hidden_size=16, layers=1), folder, _TEXTS, seed=0)
    return folder


def broken_model(sound: Path, change: Mapping[str, Any], folder: Path) -> Path:
    """A copy of a sound model with one thing changed; the index says what."""
    shutil.copytree(sound, folder)
    for name, fields in change.get("merge", {}).items():
        _edit(folder / name, lambda config, fields=fields: config | fields)
    for name, fields in change.get("drop", {}).items():
        _edit(folder / name, lambda config, fields=fields: {k: v for k, v in config.items() if k not in fields})
    for name, other in change.get("rename", {}).items():
        (folder / name).rename(folder / other)
    for name, text in change.get("write", {}).items():
        (folder / name).write_text(text)
    for name, size in change.get("cut", {}).items():
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
    for name in change.get("delete", []):
        (folder / name).unlink()
    if "pipe" in change:
        (folder / change["pipe"]).unlink()
        os.mkfifo(folder / change["pipe"])
    if "pickle" in change:
        (folder / change["pickle"]).write_bytes(pickle.dumps({"weights": [0.0]}))
    if "tensors" in change or "vocabulary" in change:
        _change_tensors(folder, change)
    return folder


def _change_tensors(folder: Path, change: Mapping[str, Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, made in change.get("tensors", {}).items():
        tensors.pop(name, None)
        if made:
            tensors[name] = torch.zeros(made["shape"], dtype=getattr(torch, made["dtype"]))
    if "vocabulary" in change:  # a whole model, but of fewer tokens than its tokenizer has
        rows = change["vocabulary"]
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:rows].clone()
        _edit(folder / "config.json", lambda config: config | {"vocab_size": rows})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _edit(path: Path, change: Any) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
