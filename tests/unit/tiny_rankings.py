"""Made-up preferences that a tiny model can learn: the answer with more of one letter is better."""

from __future__ import annotations

import json
import random
from pathlib import Path

LETTERS = "abcdef"


def rows(count: int, seed: int = 0, most: int = 4) -> list[dict[str, object]]:
    """Rankings of two to `most` answers, which are worth as much as they have of the letter a."""
    dice, found = random.Random(seed), []
    while len(found) < count:
        number = dice.randint(2, most)
        answers = ["".join(dice.choices(LETTERS, k=dice.randint(2, 8))) for _ in range(number)]
        scores = [answer.count("a") for answer in answers]
        if len(set(scores)) > 1:
            prompt = "Write letters " + "".join(dice.choices(LETTERS, k=4)) + ":"
            found.append({"prompt": prompt, "answers": answers, "scores": scores})
    return found


def written(file: Path, count: int, seed: int = 0, most: int = 4) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed, most)))
    return file
