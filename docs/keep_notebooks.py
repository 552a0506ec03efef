"""Keep the executed notebooks of a run in `docs/notebooks`, to be read without running anything:

    python docs/keep_notebooks.py cpu

One of each: 02 and 03 of iteration 0, 04 of the last iteration that ran, all of the lowest training seed; 00 needs no
run and is executed here. Pictures get a palette and, where a notebook has many, fewer pixels; what names this machine
or only works with a kernel, is left out.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

import nbformat
from PIL import Image

from spin_utils.cli import notebooks
from spin_utils.files import paths
from spin_utils.settings import profiles

MOST = 400_000
"""Bytes of a notebook."""


def keep(profile: str, folder: Path) -> list[Path]:
    """Write the small copies of the notebooks of a profile that was reproduced here.

    Raises:
        KitError: an executed notebook is missing, one of its cells failed, or its copy is too large.
    """
    loaded = profiles.load(profile)
    executed = paths.executed_notebooks(loaded.name)
    notebooks.run("00_theory", {}, executed / "00_theory.ipynb")
    tested = [f"04_benchmark_evaluation-eval-spin-{t}-seed" for t in reversed(range(loaded.spin.iterations))]
    last = next((start for start in tested if any(executed.glob(f"{start}*"))), tested[0])
    kept = []
    for start in (
        "00",
        "01_sft_baseline-sft-seed",
        "02_synthetic_generation-pairs-0",
        "03_spin_training-spin-0-seed",
        last,
        "05",
    ):
        found = sorted(executed.glob(f"{start}*.ipynb"))
        if not found:
            raise paths.KitError(f"{paths.relative(executed)}: no {start}*.ipynb; run `spin-repro reproduce` first")
        target = folder / f"{found[0].stem.partition('-')[0]}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(small(found[0]), encoding="utf-8")
        kept.append(target)
    return kept


def small(path: Path) -> str:
    """An executed notebook without paths and widgets, and with small pictures.

    Raises:
        KitError: a cell failed, or it is still too large.
    """
    notebook = nbformat.read(path, as_version=4)
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    pictures = []
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        cell.id = f"cell-{number}"  # papermill's own is another one in each run
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise paths.KitError(f"{paths.relative(path)}: cell {number} failed with {output.ename}; run it again")
            data = output.get("data", {})
            if "<iframe" in "".join(data.get("text/html", "")):  # repositories do not show it
                data.clear()
            rich = "text/html" in data or "text/markdown" in data
            for kind in [kind for kind in data if "widget" in kind or (rich and kind == "text/plain")]:
                del data[kind]
            if "image/png" in data:
                pictures.append((data, data["image/png"]))
        if "outputs" in cell:
            cell.outputs = [out for out in cell.outputs if out.get("data") or out.get("name") == "stdout"]
    for scale in (1.0, 0.6, 0.5, 0.4):
        for data, png in pictures:
            data["image/png"] = _smaller(png, scale)
        text = nbformat.writes(notebook) + "\n"
        if len(text.encode()) <= MOST:
            break
    else:
        raise paths.KitError(f"{path.name}: {len(text.encode()):,} bytes after shrinking, more than {MOST:,}")
    for folder in {str(paths.home()), str(paths.REPOSITORY), str(Path.home())}:
        text = re.sub(re.escape(folder) + r"/?", "", text)
    return text


def _smaller(png: str, scale: float) -> str:
    """A picture with a palette of 64 colours: a plot loses nothing that one sees, and two thirds of its size."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if scale < 1:
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    picture.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(stored, "png", optimize=True)
    return base64.b64encode(stored.getvalue()).decode()


if __name__ == "__main__":
    for path in keep(sys.argv[1], paths.REPOSITORY / "docs" / "notebooks"):
        print(paths.relative(path), path.stat().st_size)  # noqa: T201
