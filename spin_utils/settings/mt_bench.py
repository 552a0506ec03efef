"""Settings of MT-Bench: how its questions are answered, and which judge grades the answers.

Values of FastChat are those of `fastchat/llm_judge` (common.py, gen_model_answer.py, gen_judgment.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from spin_utils.settings.inputs import SettingsError, is_temperature, require

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""The categories of MT-Bench, ten questions each, in the order of its questions."""


def fastchat_temperatures() -> dict[str, float]:
    """FastChat's `temperature_config`."""
    warm, cool, none = 0.7, 0.1, 0.0
    values = (warm, warm, none, none, none, none, cool, cool)
    return dict(zip(CATEGORIES, values, strict=True))


@dataclass(frozen=True)
class MtBenchSettings:
    """MT-Bench (Table 6, Figure 6): two-turn questions, answered by the model and graded by a judge."""

    judge: str
    """Name of the judge at its endpoint. FastChat's default is gpt-4, a name whose model has changed over time; the
    paper does not say which version it used."""
    base_url: str = "https://api.openai.com/v1"
    """Any endpoint with OpenAI's chat completions. The key comes from the environment, OPENAI_API_KEY; for an endpoint
    that asks for none, such as one of your own, any value does."""
    judge_temperature: float | None = 0.0
    """FastChat: 0. Null: not sent, for judges that take none."""
    judge_max_tokens: int = 2048
    """Longest judgment in tokens (FastChat: 2048)."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that limit; OpenAI's newer models take the second name only."""
    workers: int = 4
    """Requests under way at the same time."""
    retries: int = 8
    """Further tries after a rate limit, an error of the server, a timeout or a dropped connection. The last failure
    stops the step; grades that arrived are kept, and the same command goes on from there."""
    timeout_s: float = 120.0
    """Seconds after which a request counts as lost."""
    temperatures: dict[str, float] = field(default_factory=fastchat_temperatures)
    """Sampling temperature of the answers in each category; 0 is greedy (FastChat's values)."""
    top_k: int = 50
    """Truncation of the answers' sampling: FastChat leaves it to `generate`, whose default is 50. 0: none."""
    max_new_tokens: int = 1024
    """Longest answer of a turn in tokens (FastChat: 1024)."""
    add_start_token: bool = True
    """Begin the conversation with the tokenizer's start token, if it has one, as FastChat does. SPIN's own template
    has none (released code: add_special_tokens=False)."""
    batch_size: int = 32
    """Conversations answered together."""
    limit: int = 0
    """Questions of each category, the first ones; 0: all ten."""

    def __post_init__(self) -> None:
        require(bool(self.judge.strip()), "judge: empty; name a model of the endpoint, such as gpt-4")
        no_address = f"base_url: {self.base_url!r} is no address; write it as https://host/v1"
        try:
            url = urlsplit(self.base_url)
            require(url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0, no_address)
        except ValueError:  # brackets that do not match, a port beyond 65535
            raise SettingsError(no_address) from None
        require(
            not (url.username or url.password or url.query or url.fragment),
            "base_url: holds a user, a password or a query, and settings are kept with the results; put the key in "
            "the environment, OPENAI_API_KEY",
        )
        missing, unknown = set(CATEGORIES) - set(self.temperatures), set(self.temperatures) - set(CATEGORIES)
        require(not unknown, f"temperatures: {', '.join(sorted(unknown))}: no category; use {', '.join(CATEGORIES)}")
        require(not missing, f"temperatures: {', '.join(sorted(missing))} missing; give each category one")
        for temperature in (*self.temperatures.values(), self.judge_temperature or 0.0):
            require(is_temperature(temperature), f"temperatures: {temperature}; use 0 (greedy), or 1e-6 and above")
        for name in ("judge_max_tokens", "workers", "timeout_s", "max_new_tokens", "batch_size"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)} must be above 0")
        for name in ("retries", "top_k", "limit"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")


def answers_identity(settings: MtBenchSettings) -> dict[str, Any]:
    """What a model's answers depend on, as JSON data."""
    names = ("temperatures", "top_k", "max_new_tokens", "add_start_token", "batch_size", "limit")
    return {name: value for name, value in asdict(settings).items() if name in names}


def judge_identity(settings: MtBenchSettings) -> dict[str, Any]:
    """What a grade depends on beside the answer, as JSON data."""
    names = ("judge", "base_url", "judge_temperature", "judge_max_tokens")
    return {name: value for name, value in asdict(settings).items() if name in names}
