"""A results file is whole, consistent and finite, or it is refused by name."""

import copy
import json
import math
import shutil

import pytest
import synthetic_results as synthetic

from spin_utils.paper import results


@pytest.fixture
def document():
    return synthetic.evaluation("spin-0", 0, ability=0.2, items=4)


def test_what_is_written_is_read_back(tmp_path, document):
    path = results.path_of(tmp_path / "cpu", 0, "evaluations", "spin-0")
    results.write_json(path, document)
    assert results.read_json(path) == document


def test_the_same_document_gives_the_same_bytes(tmp_path, document):
    first, second = (results.path_of(tmp_path / name / "cpu", 0, "evaluations", "spin-0") for name in ("a", "b"))
    results.write_json(first, document)
    results.write_json(second, copy.deepcopy(document))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_has_one_item_a_line(tmp_path, document):
    path = results.path_of(tmp_path / "cpu", 0, "evaluations", "spin-0")
    results.write_json(path, document)
    assert sum('"response": ' in line for line in path.read_text().splitlines()) == 24


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, document, monkeypatch):
    path = results.path_of(tmp_path / "cpu", 0, "evaluations", "spin-0")
    results.write_json(path, document)
    before = path.read_bytes()
    document["items"][0]["score"] = math.nan
    with pytest.raises(results.ResultsError):
        results.write_json(path, document)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_infinite_numbers_anywhere_are_refused(tmp_path):
    with pytest.raises(results.ResultsError, match="NaN or infinite"):
        results.write_json(tmp_path / "times.json", {"nested": {"seconds": math.inf}})


def _without(field):
    return lambda document: document.pop(field)


BREAKAGES = {
    "unknown schema": (lambda d: d.update(schema=2), "schema is 2"),
    "no schema": (_without("schema"), "schema is None"),
    "unknown kind": (lambda d: d.update(kind="scores"), "kind is 'scores'"),
    "missing field": (_without("tasks"), "no field 'tasks'"),
    "unknown field": (lambda d: d.update(stderr=0.1), "unknown field 'stderr'"),
    "text for a number": (lambda d: d.update(seed="0"), "seed is '0'"),
    "true for a number": (lambda d: d.update(seed=True), "seed is True"),
    "unknown model": (lambda d: d.update(model="spin_0"), "model is 'spin_0'"),
    "nan average": (lambda d: d.update(average=math.nan), "average is nan"),
    "wrong average": (lambda d: d.update(average=d["average"] + 0.001), "average is"),
    "no tasks": (lambda d: d.update(tasks={}, items=[]), "tasks is empty"),
    "duplicate item": (lambda d: d["items"].__setitem__(1, dict(d["items"][0])), r"items\[1\].*appears twice"),
    "missing item": (lambda d: d["items"].pop(), r"tasks.simple_equations.n is 4.*holds 3"),
    "item of no task": (lambda d: d["items"][0].update(task="other"), r"items\[0\]: task 'other'"),
    "score in points": (lambda d: d["items"][0].update(score=45.0), "outside 0..1"),
    "nan score": (lambda d: d["items"][0].update(score=math.nan), r"items\[0\].score is nan"),
    "altered score": (lambda d: d["items"][0].update(score=1 - d["items"][0]["score"]), "altered or cut"),
    "no metric": (lambda d: d["tasks"]["chain_sum"].pop("metric"), "tasks.chain_sum: no field 'metric'"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_evaluation_is_refused_naming_file_and_field(tmp_path, document, name):
    breakage, message = BREAKAGES[name]
    breakage(document)
    path = results.path_of(tmp_path / "cpu", 0, "evaluations", "spin-0")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    with pytest.raises(results.ResultsError, match=message) as refusal:
        results.read_json(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"schema": 1'])
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(results.ResultsError, match=r"x\.json"):
        results.read_json(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(results.ResultsError, match="no such results file"):
        results.read_json(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("seed", "model", "field"), [(1, "spin-0", "seed"), (0, "spin-1", "model")], ids=["seed", "model"]
)
def test_a_file_in_another_files_place_is_refused(tmp_path, document, seed, model, field):
    path = results.path_of(tmp_path / "cpu", seed, "evaluations", model)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    with pytest.raises(results.ResultsError, match=f"{field} is"):
        results.read_json(path)


def test_scores_of_all_seeds_and_models_come_as_one_long_table(tmp_path):
    root = synthetic.write(tmp_path, seeds=(0, 2), items=5)
    table = results.load_evaluations(root)
    assert list(table.columns) == ["seed", "model", "task", "id", "score", "tokens", "response"]
    assert len(table) == 2 * 5 * 6 * 5
    assert set(table["seed"]) == {0, 2}
    assert len(results.load_evaluations(root, seeds=[2])) == len(table) / 2
    document = results.read_json(results.path_of(root, 2, "evaluations", "spin-1"))
    mine = table[(table["seed"] == 2) & (table["model"] == "spin-1")]
    assert mine.groupby("task")["score"].mean().mean() == pytest.approx(document["average"])


def test_models_scored_on_different_items_are_refused(tmp_path):
    root = synthetic.write(tmp_path, seeds=(0,), items=5)
    short = synthetic.evaluation("spin-1", 0, ability=0.2, items=4)
    results.write_json(results.path_of(root, 0, "evaluations", "spin-1"), short)
    with pytest.raises(results.ResultsError, match=r"spin-1\.json: item '4' of task .* is missing"):
        results.load_evaluations(root)


def test_no_results_give_an_empty_table_with_its_columns(tmp_path):
    assert list(results.load_evaluations(tmp_path).columns)[:4] == ["seed", "model", "task", "id"]
    assert results.load_training(tmp_path).empty
    assert results.load_summaries(tmp_path).empty


def test_training_records_come_as_one_long_table(tmp_path):
    root = synthetic.write(tmp_path, seeds=(0, 1), items=2)
    table = results.load_training(root)
    assert set(table["model"]) == {"spin-0", "spin-1", "spin-2", "spin-3"}
    assert table.groupby(["seed", "model"])["step"].is_monotonic_increasing.all()


def test_training_steps_must_increase_and_be_finite(tmp_path):
    record = synthetic.training("spin-0", 0, steps=3)
    record["rows"][2]["step"] = 1
    with pytest.raises(results.ResultsError, match=r"rows\[2\]: step 1"):
        results.validate(record, "curve")
    record = synthetic.training("spin-0", 0, steps=3)
    record["rows"][1]["margin"] = math.inf
    with pytest.raises(results.ResultsError, match=r"rows\[1\].margin is inf"):
        results.validate(record, "curve")


@pytest.fixture
def whole(tmp_path):
    root = tmp_path / "results" / "cpu"
    synthetic.write_generations(root, seeds=(0, 1), items=9)
    return root


def test_transfer_evaluations_are_read_apart_from_the_main_ones(tmp_path, whole):
    synthetic.write(tmp_path, seeds=(0, 1), items=5)
    transfer = results.load_evaluations(whole, kind_folder="transfer")
    assert set(transfer["task"]) == set(synthetic.TRANSFER)
    assert set(results.load_evaluations(whole)["task"]) == set(synthetic.STAND_INS)
    assert len(transfer) == 2 * 5 * 4 * 9


def test_generations_of_all_models_come_as_one_long_table(whole):
    table = results.load_generations(whole)
    assert set(table["model"]) == {"sft", "spin-0", "spin-1", "spin-2"}
    assert len(table) == 2 * 4 * 9
    assert table.groupby("id")["real"].nunique().eq(1).all()


def test_held_out_pairs_of_all_iterations_come_as_one_long_table(whole):
    table = results.load_heldout(whole)
    assert list(table.columns) == ["seed", "model", "beta", "id", "real_drift", "generated_drift"]
    assert len(table) == 2 * 4 * 9


def test_nothing_generated_gives_empty_tables_with_their_columns(tmp_path):
    assert "finish_reason" in results.load_generations(tmp_path)
    assert "real_drift" in results.load_heldout(tmp_path)
    assert results.load_evaluations(tmp_path, kind_folder="transfer").empty


@pytest.mark.parametrize(
    ("load", "kind_folder", "make"),
    [
        (results.load_generations, "generations", lambda: synthetic.generations("spin-1", 0, ability=0.2, items=8)),
        (results.load_heldout, "heldout", lambda: synthetic.heldout("spin-1", 0, gap=0.5, items=8)),
    ],
)
def test_models_with_other_prompts_are_refused(whole, load, kind_folder, make):
    results.write_json(whole / "seed-0" / kind_folder / "spin-1.json", make())
    with pytest.raises(results.ResultsError, match=r"spin-1\.json: item '[\w-]+8'.* is missing"):
        load(whole)


def test_a_prompt_whose_real_response_differs_between_models_is_refused(whole):
    document = synthetic.generations("spin-1", 0, ability=0.2, items=9)
    document["items"][3]["real"] = "other"
    results.write_json(results.path_of(whole, 0, "generations", "spin-1"), document)
    with pytest.raises(results.ResultsError, match=document["items"][3]["id"]):
        results.load_generations(whole)


def test_a_file_in_the_folder_of_another_kind_is_refused(whole):
    path = results.path_of(whole, 0, "heldout", "spin-1")
    path.write_text(json.dumps(synthetic.generations("spin-1", 0, ability=0.2, items=9)))
    with pytest.raises(results.ResultsError, match="kind is 'generations', but the file lies at 'heldout'"):
        results.load_heldout(whole)


def test_results_of_two_runs_side_by_side_are_refused(whole):
    results.check_one_run(whole)
    path = results.path_of(whole, 1, "transfer", "spin-1")
    document = results.read_json(path)
    document["provenance"]["chain"]["data"] = {**synthetic.link("data"), "key": "1" * 12}
    results.write_json(path, document)
    results.check_one_run(whole)
    other = results.path_of(whole, 0, "heldout", "spin-2")
    document = results.read_json(other)
    document["provenance"]["chain"]["data"] = synthetic.link("data")
    results.write_json(other, document)
    with pytest.raises(
        results.ResultsError, match=r"data-0{12}, but .* from data-1{12}: they are of two runs"
    ) as refusal:
        results.check_one_run(whole)
    assert "heldout/spin-2.json" in str(refusal.value)
    assert "transfer/spin-1.json" in str(refusal.value)


def test_training_runs_of_two_seeds_may_have_two_keys_and_of_one_seed_may_not(whole):
    for seed, key, model in ((0, "1" * 12, "spin-1"), (1, "2" * 12, "spin-1"), (1, "3" * 12, "spin-2")):
        path = results.path_of(whole, seed, "transfer", model)
        document = results.read_json(path)
        document["provenance"]["chain"]["sft"] = {**synthetic.link("sft"), "key": key}
        results.write_json(path, document)
        if model == "spin-1":
            results.check_one_run(whole)
    with pytest.raises(results.ResultsError, match="sft-3{12}, but .* from sft-2{12}"):
        results.check_one_run(whole)


def test_a_copy_of_a_folder_is_no_result(whole):
    before = results.files(whole)
    shutil.copytree(whole / "seed-0", whole / "seed-0-before")
    (whole / "seed-00").mkdir()
    assert results.files(whole) == before
    assert results.training_seeds(whole) == [0, 1]


def _item(**changes):
    return lambda document: document["items"][1].update(changes)


@pytest.mark.parametrize(
    ("make", "breakage", "message"),
    [
        ("generations", _item(finish_reason="eos"), r"items\[1\]: finish_reason is 'eos'"),
        ("generations", _item(generated_tokens=-1), "generated_tokens is -1"),
        ("generations", _item(generated=None), "generated is None"),
        ("generations", lambda d: d["items"].append(dict(d["items"][0])), "appears twice"),
        ("generations", lambda d: d.update(items=[]), "items is empty"),
        ("generations", lambda d: d["items"][0].pop("family"), "no field 'family'"),
        ("heldout", _item(real_drift=math.nan), r"items\[1\].real_drift is nan"),
        ("heldout", _item(extra=1), "unknown field 'extra'"),
        ("heldout", lambda d: d.update(beta=0), "beta is 0"),
        ("heldout", lambda d: d.update(model="sft"), "only an iteration of SPIN"),
        ("heldout", lambda d: d["items"].append(dict(d["items"][0])), "appears twice"),
        ("mt_bench", _item(score=0.5), "score is 0.5 where status is graded"),
        ("mt_bench", _item(score=None), "score is None where status is graded"),
        ("mt_bench", _item(status="refused"), "score is .* where status is refused"),
        ("mt_bench", _item(status="lost"), "status is 'lost'"),
        ("mt_bench", _item(category="maths"), "category is 'maths'"),
        ("mt_bench", _item(id="81/1"), "'81/1' appears twice"),
        ("mt_bench", lambda d: d["items"].pop(), "grades is .*; items are missing"),
        ("mt_bench", lambda d: d.update(judge={}), "judge is {}; it needs its name and models"),
        ("mt_bench", lambda d: d["judge"].update(models="one"), "it needs its name and models"),
        ("mt_bench", lambda d: d.update(average=None), "average is None for 32 graded answers"),
        ("mt_bench", lambda d: d.update(average=9.5), "average is 9.5, but the mean of its parts"),
    ],
)
def test_broken_generations_held_out_pairs_and_grades_are_refused_by_name(make, breakage, message):
    document = {
        "generations": lambda: synthetic.generations("spin-0", 0, ability=0.2, items=4),
        "heldout": lambda: synthetic.heldout("spin-0", 0, gap=0.2, items=4),
        "mt_bench": lambda: synthetic.mt_bench("spin-0", 0, ability=0.2, questions=2),
    }[make]()
    results.validate(document, "file")
    breakage(document)
    with pytest.raises(results.ResultsError, match=message):
        results.validate(document, "file")
