"""A results file is whole, consistent and finite, or it is refused by name."""

import json
import math

import pandas as pd
import pytest
import synthetic_results as synthetic

from spin_utils.files.disk import sealed
from spin_utils.paper import results


@pytest.fixture
def document():
    return synthetic.evaluation("spin-0", 0, ability=0.2, items=4)


def test_what_is_written_is_read_back_and_has_one_item_a_line(tmp_path, document):
    path = results.path_of(tmp_path / "cpu", 0, "evaluations", "spin-0")
    results.write_json(path, document)
    assert results.read_json(path) == document
    assert sum('"response": ' in line for line in path.read_text().splitlines()) == 24


def test_what_a_reader_does_with_a_file_changes_no_table(tmp_path, document):
    path = results.path_of(tmp_path / "cpu", 0, "evaluations", "spin-0")
    results.write_json(path, document)
    before = results.load_evaluations(tmp_path / "cpu")
    results.read_json(path)["items"][0]["score"] = 45
    pd.testing.assert_frame_equal(results.load_evaluations(tmp_path / "cpu"), before)
    assert results.read_json(path) == document


def test_an_altered_score_is_seen_by_the_hash(tmp_path, document):
    path = results.path_of(tmp_path / "cpu", 0, "evaluations", "spin-0")
    results.write_json(path, document)
    path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1', 1))
    with pytest.raises(results.ResultsError, match=r"spin-0.json: changed since it was written \(hash\)"):
        results.read_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(results.ResultsError, match="absent.json: no such results file"):
        results.read_json(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("seed", "folder", "model", "field"),
    [(1, "evaluations", "spin-0", "seed"), (0, "evaluations", "spin-1", "model"), (0, "heldout", "spin-0", "kind")],
)
def test_a_file_in_another_files_place_is_refused(tmp_path, document, seed, folder, model, field):
    path = results.path_of(tmp_path / "cpu", seed, folder, model)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(sealed(document)))
    with pytest.raises(results.ResultsError, match=field):
        results.read_json(path)


BROKEN = [
    ("evaluations", lambda d: d.pop("tasks"), "tasks: Field required"),
    ("evaluations", lambda d: d.update(stderr=0.1), "stderr: Extra inputs are not permitted, found 0.1"),
    ("evaluations", lambda d: d.update(schema=2), "schema: Input should be 1, found 2"),
    ("evaluations", lambda d: d["items"][1].update(score=45), "items.1.score: .*less than or equal to 1, found 45"),
    ("training", lambda d: d["rows"][1].update(margin=math.inf), r"rows.1.margin: .*finite number, found inf"),
    ("heldout", lambda d: d.update(model="spin0"), "'spin0' is not the name of a model"),
]


@pytest.mark.parametrize(("folder", "breakage", "message"), BROKEN, ids=[row[2] for row in BROKEN])
def test_a_broken_document_is_refused_naming_file_field_and_remedy(root, folder, breakage, message):
    document = results.read_json(results.path_of(root, 0, folder, "spin-0"))
    breakage(document)
    with pytest.raises(results.ResultsError, match=f"^file: .*{message}.*; run the stage") as refusal:
        results.validate(document, folder, "file")
    assert "\n" not in str(refusal.value)


def test_training_records_generations_and_held_out_pairs_come_as_long_tables(root):
    training, texts, pairs = (
        load(root) for load in (results.load_training, results.load_generations, results.load_heldout)
    )
    assert set(training["model"]) >= {"spin-0", "spin-1", "spin-2", "spin-3"}
    assert training.groupby(["seed", "model"])["step"].is_monotonic_increasing.all()
    assert (set(texts["model"]), len(texts)) == ({"sft", "spin-0", "spin-1", "spin-2"}, 2 * 4 * 30)
    assert list(pairs.columns) == ["seed", "model", "beta", *results.Drift.model_fields]
    assert len(pairs) == 2 * 4 * 30
    transfer = results.load_evaluations(root, kind_folder="transfer")
    assert set(transfer["task"]) == set(synthetic.TRANSFER)
    assert set(results.load_evaluations(root)["task"]) == set(synthetic.BENCHMARKS)


def test_results_of_two_runs_next_to_each_other_are_refused(tmp_path):
    whole = tmp_path / "cpu"
    synthetic.write_generations(whole, items=3)

    def put(seed, folder, model, step, key):
        path = results.path_of(whole, seed, folder, model)
        document = results.read_json(path)
        document["provenance"]["chain"][step] = {**synthetic.link(step), "key": key * 12}
        results.write_json(path, document)

    put(0, "transfer", "spin-1", "sft", "1")
    put(1, "transfer", "spin-1", "sft", "2")
    put(1, "transfer", "spin-1", "data", "1")
    results.check_one_run(whole)
    put(0, "heldout", "spin-2", "data", "0")
    with pytest.raises(
        results.ResultsError, match=r"data-0{12}, but .* from data-1{12}: they belong to two different runs"
    ) as one:
        results.check_one_run(whole)
    assert "heldout/spin-2.json" in str(one.value)
    assert "transfer/spin-1.json" in str(one.value)
