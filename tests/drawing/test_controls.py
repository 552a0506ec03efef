"""Controls with someone to move them, in a real kernel, and without."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from ipywidgets import IntSlider
from nbclient import NotebookClient
from nbclient.output_widget import OutputWidget
from nbformat.v4 import new_code_cell, new_notebook

from spin_utils.drawing.views import show

SHOWN = """
from ipywidgets import IntSlider
from spin_utils.drawing import style
from spin_utils.drawing.views import show

def draw(n):
    print(f"drawn for {n}")
    return style.new_figure(n)

slider = IntSlider(value=2)
show.controls(draw, n=slider)
"""


def test_headless_a_control_gives_the_picture_of_its_first_value() -> None:
    assert show.controls(lambda n: n + 1, n=IntSlider(value=4)) == 5


def test_with_someone_watching_a_control_draws_again_when_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[list[Any]] = []  # for output widgets, and would have been sent to the kernel
    monkeypatch.setattr(OutputWidget, "send", lambda self, *_: captured.append(list(self.outputs)))
    monkeypatch.delenv("SPIN_HEADLESS")
    notebook = new_notebook(cells=[new_code_cell(SHOWN), new_code_cell("slider.value = 3")])
    client = NotebookClient(notebook, timeout=120)
    client.execute()
    shown, printed = notebook.cells[0].outputs
    assert printed.text == "drawn for 2\n"
    assert "application/vnd.jupyter.widget-view+json" in shown.data
    sliders = [widget for widget in client.widget_state.values() if widget["_model_name"] == "IntSliderModel"]
    assert [slider["description"] for slider in sliders] == ["n"]
    assert captured[-1][0].text == "drawn for 3\n"
    [after] = [output["data"]["image/png"] for output in captured[-1] if "data" in output]
    assert base64.b64decode(after).startswith(b"\x89PNG")
