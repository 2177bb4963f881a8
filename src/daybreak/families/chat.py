"""How models are spoken to whose checkpoints bring no chat template of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Chat:
    """A format of conversations, as chat templates of checkpoints are written."""

    template: str
    """Jinja: `messages` (each with a role and a content) and `add_generation_prompt` -> the text to go on."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides the model's end-of-text tokens."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """What generation_config.json would say, for checkpoints that bring none."""
    tuned: bool = False
    """The published models were trained to converse in this format."""


PLAIN = Chat(
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}{{ 'User: ' + message.content }}"
    "{% else %}{{ 'Assistant: ' + message.content }}{% endif %}"
    "{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
    stop=("\nUser:",),
)
"""A transcript, which a model that only continues text is likely to continue with an answer."""
