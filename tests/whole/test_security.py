"""Nothing is read that can run code, nothing is loaded that is not pinned, and nothing secret is written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import nbformat
import pandas as pd
import pytest

from spin_utils.drawing import tables
from spin_utils.files import paths

SOURCES = [
    path for folder in ("spin_utils", "benchmarks") for path in sorted((paths.REPOSITORY / folder).rglob("*.py"))
]
NOTEBOOKS = sorted((paths.REPOSITORY / "notebooks").glob("*.ipynb"))


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        yield str(path.relative_to(paths.REPOSITORY)), ast.parse(path.read_text(encoding="utf-8"))
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        yield path.name, ast.parse("\n".join(cells))


def faults(place: str, tree: ast.AST) -> Iterator[str]:
    """What a source may not do beyond ruff's rules S (pyproject.toml), each as a line for people."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        where, method = f"{place}:{node.lineno} {name}", name.rpartition(".")[2]
        if name in ("torch.load", "torch.save"):
            yield f"{where} reads or writes a pickle"
        for word in ("trust_remote_code", "allow_pickle"):
            if given.get(word, "False") != "False":
                yield f"{where}: {word} must be the word False"
        if name.startswith("Auto") and method.startswith("from_") and "trust_remote_code" not in given:
            yield f"{where} without trust_remote_code=False"
        local = given.get("local_files_only", "True" if "gguf_file" in given else "False") == "True"
        if method == "from_pretrained" and not local and "revision" not in given:
            yield f"{where} neither local nor at a pinned revision"
        if method in ("load_dataset", "snapshot_download", "hf_hub_download") and "revision" not in given:
            yield f"{where} without a pinned revision"
        escaped = place == "spin_utils/drawing/views/show.py" and method == "HTML"  # held by test_explore.py
        if method in ("HTML", "Javascript", "publish_display_data", "IFrame") and not escaped:
            yield f"{where} renders text as HTML"
        if method == "Markdown" and not ast.unparse(node.args[0]).startswith(("draw.page(", "tables.markdown(")):
            yield f"{where}: only drawn tables, whose text is escaped"


def test_no_source_runs_foreign_code_loads_what_is_not_pinned_or_renders_text_as_html() -> None:
    found = [fault for place, tree in trees() for fault in faults(place, tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, revision=commit, trust_remote_code=trusted)",
        "AutoModel.from_pretrained(name, revision=commit)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "datasets.load_dataset(name)",
        "display.HTML(text)",
        "Markdown(text)",
    ],
)
def test_the_scan_sees_what_it_looks_for(source: str) -> None:
    assert list(faults("here", ast.parse(source)))


HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> [click](javascript:alert(1)) `a` **b** $x$ | c"


def test_generated_text_in_a_markdown_table_shows_character_for_character() -> None:
    table = tables.Table("table7", "title", ("model", "answer"), (("a", HOSTILE),), pd.DataFrame(), text=1)
    cell = re.split(r"(?<!\\)\|", tables.markdown(table).splitlines()[4])[2].strip()
    assert re.sub(r"\\(.)", r"\1", cell) == HOSTILE
    assert not re.search(r"(?<!\\)[<>\[\]`*|$&]", cell)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "", "..", "a\n"])
def test_no_name_leads_out_of_the_folders_of_products(name: str) -> None:
    for folder in (paths.artifacts, paths.results, paths.figures, paths.executed_notebooks):
        with pytest.raises(paths.KitError, match="names folders"):
            folder(name)


def test_jupyter_listens_on_this_machine_only_and_keeps_its_token() -> None:
    lab = re.search(r"^lab:.*\n((?:\t.*\n)+)", (paths.REPOSITORY / "Makefile").read_text(), re.M)
    assert lab is not None
    *before, server = lab.group(1).splitlines()
    assert "--ServerApp.ip=127.0.0.1" in server
    assert all("workspaces import" in line for line in before), "nothing else is started"
    assert not re.search(r"token=|password=|allow_origin|disable_check_xsrf", lab.group(1))
