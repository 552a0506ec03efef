"""The contract of every notebook, and the strict wrapper around papermill."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from papermill import PapermillExecutionError, execute_notebook, inspect_notebook

from spin_utils.cli import notebooks
from spin_utils.experiment import plan
from spin_utils.experiment.run import open_run
from spin_utils.files import paths, runtime
from spin_utils.settings.inputs import SettingsError

PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
ALL = sorted((paths.REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_every_notebook_keeps_the_contract(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    for word in ("input", "output", "time"):
        assert word in notebook.cells[0].source
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    assert inspect_notebook(str(path))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            assert not re.search(r"^(def|class) ", cell.source, re.M)
            assert "interact(" not in cell.source, "show.controls has a still picture for headless runs too"
            assert cell.source.count("\n") < 16


@pytest.mark.parametrize("path", ALL[:-1], ids=lambda p: p.stem)
def test_the_solution_of_every_exercise_runs_after_its_notebook(
    path: Path, after_smoke: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(runtime.HEADLESS, "1")
    cells = nbformat.read(path, as_version=4).cells
    (solution,) = re.findall(r"<details>.*?```python\n(.*?)```.*?</details>", cells[-1].source, re.S)
    names: dict[str, Any] = {}
    for source in [cell.source for cell in cells if cell.cell_type == "code"]:
        exec(source.replace('"cpu"  # smoke', '"smoke"  #'), names)
    capsys.readouterr()
    exec(solution, names)
    assert len(capsys.readouterr().out) > 20, "it prints what it found"


@pytest.mark.parametrize(
    "spin",
    ["{answers_per_prompt: 3}", "{mix_previous: false, training: {historical: 0.1, reference_free: true}}"],
    ids=["several answers", "triplets"],
)
def test_pairs_and_training_are_shown_whatever_number_of_answers_a_prompt_has(
    spin: str, after_smoke: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(runtime.HEADLESS, "1")
    profile = after_smoke / "other.yaml"
    profile.write_text(f"extends: smoke\narms: {{}}\nspin: {spin}\n")
    for path, name, value in ((ALL[2], "iteration", 1), (ALL[3], "model", "spin-1")):
        names: dict[str, Any] = {}
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
                if "parameters" in cell.metadata.get("tags", []):
                    names |= {"profile": str(profile), name: value}
        assert all(len(group.response_ids) == 2 for group in names["examples"].values())
    by_hand, training, compared = names["trained"], names["training"], names["theirs"]["opponent_real_logps"]
    reference = 0 if training.reference_free else compared
    assert by_hand.real_rewards.allclose(training.beta * (names["real"] - reference)), "as it was trained"


def test_in_plain_papermill_a_wrong_parameter_ends_in_the_kits_own_line(tmp_path: Path, home: Path) -> None:
    with pytest.raises(PapermillExecutionError) as error:  # -r seed 0 passes text
        execute_notebook(
            ALL[1], tmp_path / "out.ipynb", {"profile": "smoke", "seed": "0"}, kernel_name="python3", progress_bar=False
        )
    (line,) = error.value.traceback
    assert line.startswith(
        "SettingsError: seed: '0' is not a whole number from 0; with plain papermill write -p seed 0"
    )


def test_a_model_that_is_not_trained_on_pairs_is_a_settings_error(home: Path) -> None:
    with pytest.raises(SettingsError, match="sft: is not trained on pairs; name an iteration such as spin-0"):
        plan.training_of(open_run("smoke").profile, "sft")


def run(folder: Path, *sources: str) -> list[str]:
    """Run a notebook with these cells; returns the words that its last one says."""
    cells = [nbformat.v4.new_code_cell(source) for source in ("a = 1", *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PYTHON), folder / "n.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "notebook", lambda name: folder / f"{name}.ipynb")
        executed = notebooks.run("n", {"a": 3}, folder / "out" / "n.ipynb")
    (output,) = nbformat.read(executed, as_version=4).cells[-1].outputs
    return output.text.split()


def test_a_failing_cell_gives_the_error_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(paths.WorkError, match="AssertionError: a is wrong") as error:
        run(tmp_path, "assert a == 2, 'a is wrong'")
    assert "Traceback" not in str(error.value)
    assert (tmp_path / "out" / "n.ipynb").is_file(), "the executed copy is kept for a look"


def test_a_long_tmpdir_and_another_python3_kernel_do_not_steer_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, long = tmp_path / "kernels" / "python3", tmp_path / ("x" * 100)
    other.mkdir(parents=True)
    kernel = {"argv": ["/no/such/python"], "display_name": "Python 3", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(kernel))
    long.mkdir()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    look = "import sys, tempfile; print(sys.executable, tempfile.gettempdir())"
    assert run(tmp_path, look) == [sys.executable, str(long)]
