"""From files to the folder of a tokenizer learned from them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daybreak import families
from daybreak.data.texts import Texts
from daybreak.errors import DaybreakError
from daybreak.families.tokenizer import TokenizerDesign
from daybreak.text.tokenizer import Tokenizer
from daybreak.text.train_tokenizer import train_like


@dataclass(frozen=True)
class Learned:
    """What came of it."""

    folder: Path
    tokenizer: Tokenizer
    family: str
    files: int
    bytes: int
    problems: list[str]


def design_like(name: str) -> tuple[str, TokenizerDesign]:
    """The family called so (or that has the size called so), and how its tokenizers are learned. Raises
    `DaybreakError` for one that is not known, or whose page does not say."""
    found = families.find_size(name)
    family = families.by_name(name) if found is None else found[0]
    if family.tokenizer is None:
        known = ", ".join(page.name for page in families.everyone() if page.tokenizer is not None)
        raise DaybreakError(f"how {family.title}'s tokenizer was learned is not published; take {known}")
    return family.name, family.tokenizer


def learn_tokenizer(
    texts: Texts,
    like: str,
    folder: Path,
    vocabulary: int | None = None,
    special: Sequence[str] = (),
) -> Learned:
    """Learn a tokenizer as the family `like` has them, and write it to `folder`, which appears when all its
    files are complete.

    Raises `DaybreakError` for a folder that holds something, before anything is read.
    """
    name, design = design_like(like)
    _check_free(folder)
    tokenizer = train_like(design, texts, vocabulary, special)
    save_at_once(tokenizer, folder)
    return Learned(folder, tokenizer, name, len(texts.inputs), texts.bytes, texts.problems)


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DaybreakError(f"{folder} is there already, and not empty; name a new folder")


def save_at_once(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files; the folder, new or empty, has all of them or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tokenizer.save(partial)
        partial.chmod(0o777 & ~_umask())
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
