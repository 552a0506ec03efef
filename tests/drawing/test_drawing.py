"""Everything is drawn from results files alone, whatever of them there is."""

import html
import json
import re

import matplotlib.pyplot as plt
import pytest
import synthetic_results as synthetic
from matplotlib.text import Text

from spin_utils.drawing import draw, figures, report, style, tables
from spin_utils.files import paths
from spin_utils.paper import generations, results
from spin_utils.settings import profiles

FIGURES = (*(f"figure{number}" for number in range(1, 7)), "training", "convergence")


def test_without_generations_every_table_and_figure_comes_out_and_no_figure_stays_open(home, monkeypatch):
    monkeypatch.setattr(style, "FORMATS", {"png": style.FORMATS["png"]})  # most time goes into cutting fonts for PDFs
    synthetic.write(home, seeds=(0,), items=8)
    profile = profiles.load("cpu")
    written = {path.name for path in draw.write(draw.compose(profile), profile)}
    names = [f"table{number}" for number in range(1, 9)] + ["instruments"]
    expected = {f"{name}.{suffix}" for name in names for suffix in ("md", "csv", "tex")}
    assert written == expected | {f"{name}.png" for name in FIGURES} | {"verdicts.csv", "verdicts.md"}
    assert plt.get_fignums() == []
    assert "no generations at all" in (paths.results("cpu") / "tables" / "table7.md").read_text()
    assert "no held-out pairs against" in draw.page(profile, "verdicts")


@pytest.mark.usefixtures("coarse")
def test_the_report_is_one_file_that_shows_generated_text_as_it_is(home):
    root = synthetic.write(home, seeds=(0,), items=8)
    synthetic.write_generations(root, seeds=(0,), items=9)
    for path in root.glob("seed-0/generations/*.json"):
        document = json.loads(path.read_text())
        for item in document["items"]:
            item["generated"] = "<script>alert(1)</script> **bold** [link](http://example.org)"
        results.write_json(path, {name: value for name, value in document.items() if name != "sha256"})
    page = report.write(profiles.load("cpu"), figures=False)[-1].read_text()
    assert not paths.figures("cpu").exists()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; **bold** [link](http://example.org)" in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page) == ["https://arxiv.org/abs/2401.01335"]
    assert "training reached 41% to 41% of this machine's matrix rate" in page
    said = draw.not_the_papers(profiles.load("cpu"), {"syllogism": ""})  # of other profiles less, or nothing
    assert f"arXiv 2401.01335</a>. {said}</p>" in html.unescape(page)
    assert page.count("<img ") == len(FIGURES)
    assert page.count("<caption>Table ") == 8
    sections = ["verdicts", "figures", "tables", "agreement", "claims", "provenance"]
    assert re.findall(r'<h2 id="(\w+)"', page) == re.findall(r'href="#(\w+)"', page) == sections
    assert page.index("<small>table-4<") < page.index('id="figures"') < page.index("<small>average-final<")


@pytest.mark.usefixtures("coarse")
def test_the_summary_has_two_pages(home):
    root = synthetic.write(home, seeds=(0,), items=8)
    synthetic.write_generations(root, seeds=(0,), items=9)
    content = report.write_summary(profiles.load("cpu")).read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b(?!s)", content)) == 2
    assert b"CreationDate" not in content


@pytest.mark.filterwarnings("error")
def test_texts_that_the_font_lacks_or_that_look_like_mathematics_are_drawn_without_a_word(home):
    root = synthetic.write(home, seeds=(0,), items=4)
    synthetic.write_generations(root, seeds=(0,), items=9)
    for path in [*root.glob("seed-0/generations/*.json"), *root.glob("seed-0/transfer/*.json")]:
        document = json.loads(path.read_text().replace("long_sums", "cost $^$ \u6c49"))  # a name of Table 6
        for item in document["items"]:
            if "generated" in item:
                item |= {"id": f"{item['id']} $x^$", "prompt": "$_$ \u6c49\U0001f600\x85\u200f\t"}
        results.write_json(path, {name: value for name, value in document.items() if name != "sha256"})
    texts, bounds = results.load_generations(root), generations.jsd_bounds(results.load_heldout(root))
    both = (draw.scores(profiles.load("cpu"), kind) for kind in ("evaluations", "transfer"))
    drawn = [figures.figure1(texts), figures.figure6(*both, profile="cpu")]
    shown = [text.get_text() for text in drawn[0].findobj(Text)]
    assert any("▯" in line and "$_$" in line for line in shown)
    assert "cost $^$ ▯" in synthetic.words(drawn[1])
    for figure in (*drawn, figures.convergence(generations.measures(texts), bounds)):
        style.save(figure, home, "figure")


@pytest.mark.parametrize(
    ("started", "tested", "seeds", "alone"),
    [
        (("10:00:00", "10:02:00", "10:04:00"), "10:06:00", {0, 1, 2}, True),
        (("10:00:00", "10:02:00", "10:04:00"), "10:00:30", {1, 2}, True),
        (("10:00:00", "10:02:00", "10:02:30"), "10:06:00", {0}, True),
        (("10:00:00", "10:00:30", "10:00:50"), "10:06:00", {0, 1, 2}, False),
    ],
)
def test_times_of_training_seeds_that_ran_side_by_side_give_way_to_those_of_one_alone(
    home, started, tested, seeds, alone
):
    root = synthetic.write(home, seeds=(0, 1, 2), items=4)
    for path in root.glob("seed-*/evaluations/*.json"):
        document = results.read_json(path)
        begun = f"2026-01-01T{started[document['seed']]}+00:00"
        pairs = synthetic.link("pairs", started=begun, seconds=60.0)
        evaluated = synthetic.link("evaluation", started=f"2026-01-0{2 + document['seed']}T00:00:00Z")
        chain = {"data": synthetic.link("data"), "pairs-0": pairs, document["provenance"]["step"]: evaluated}
        document["provenance"]["chain"] = chain
        results.write_json(path, document)
    document = synthetic.heldout("spin-0", 0, gap=1.0, items=2)
    other = synthetic.link("heldout", started=f"2026-01-01T{tested}+00:00", seconds=60.0)
    document["provenance"] = {"step": "heldout-spin-0", "chain": {"heldout-spin-0": other}}
    results.write_json(results.path_of(root, 0, "heldout", "spin-0"), document)
    times, _, undisturbed = tables.wall_clock(root, results.load_training(root))
    assert (set(times["seed"]), undisturbed) == (seeds, alone)
