"""daybreak: load, run, train and compare the language models that opened the field.

The public face is lazy: `import daybreak` is light, torch is imported when the first function needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Architecture", "DaybreakError", "LanguageModel", "RecurrentModel", "create", "load"]

if TYPE_CHECKING:
    from daybreak.architecture import Architecture
    from daybreak.errors import DaybreakError
    from daybreak.language_model import LanguageModel
    from daybreak.models import create, load
    from daybreak.recurrent_model import RecurrentModel

_HOMES = {
    "Architecture": "daybreak.architecture",
    "DaybreakError": "daybreak.errors",
    "LanguageModel": "daybreak.language_model",
    "RecurrentModel": "daybreak.recurrent_model",
    "create": "daybreak.models",
    "load": "daybreak.models",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'daybreak' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
