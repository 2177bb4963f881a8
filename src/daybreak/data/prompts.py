"""Files of prompts: what is asked, without answers."""

from __future__ import annotations

from pathlib import Path

from daybreak.data.rankings import Prompt, prompt_in
from daybreak.data.rows import rows
from daybreak.errors import DaybreakError


def read_prompts(file: Path) -> list[tuple[str, Prompt]]:
    """What is asked in each row of a file of JSON lines, CSV or parquet, with the row's name for errors.

    A row has a `prompt` (a text, or a list of messages) or `messages`; what else stands in it is passed over,
    so that files of rankings will do. Raises `DaybreakError` for a row without.
    """
    found = [(where, prompt_in(row, where)) for where, row in rows(file)]
    if not found:
        raise DaybreakError(f'{file} holds no prompts; give a file with rows of {{"prompt": ...}}')
    return found
