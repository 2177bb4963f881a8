"""From what the user names to a folder on this machine: a folder, a repository on the hub, or a published
size.

Everything that speaks to the hub is huggingface_hub, so its cache, HF_HOME, HF_HUB_CACHE, HF_TOKEN,
HF_ENDPOINT and HF_HUB_OFFLINE hold.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from daybreak import families
from daybreak.checkpoint.folder import PICKLED, SAFETENSORS
from daybreak.errors import DaybreakError

SMALL = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "ice_text.model",
    "cog-pretrain.model",
]
# The shards of the largest BLOOM have an underscore where all others have a hyphen.
SAFE = [SAFETENSORS, "model[-_]*-of-*.safetensors", f"{SAFETENSORS}.index.json"]
UNSAFE = [PICKLED, "pytorch_model[-_]*-of-*.bin", f"{PICKLED}.index.json"]


def resolve(
    source: str | os.PathLike[str], revision: str | None = None, local_files_only: bool = False
) -> Path:
    """The folder of a checkpoint, downloaded into the hub's cache if it is not a folder already.

    `source` is a folder, a repository ("EleutherAI/pythia-70m") or a published size ("pythia-70m"). With
    `local_files_only`, or HF_HUB_OFFLINE set, no request is made. Raises `DaybreakError` for what cannot be
    found.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise DaybreakError(f"{source} is a folder, so revision {revision!r} means nothing; leave it out")
        return Path(source)
    name = os.fspath(source)
    repository = _repository(name)
    folder = _download(repository, revision, SMALL + SAFE, local_files_only)
    if not any(folder.glob("model*.safetensors")):
        # The snapshot's folder is named after its commit, so that both halves are of the same one.
        folder = _download(repository, folder.name, SMALL + UNSAFE, local_files_only)
    return folder


def resolve_tokenizer(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a tokenizer: as `resolve`, without the weights."""
    if Path(source).is_dir():
        return resolve(source, revision)
    return _download(_repository(os.fspath(source)), revision, SMALL, local_files_only=False)


def dataset_commit(repository: str, revision: str | None = None) -> str:
    """The commit that a branch or tag of a data set (else main) stands for now; a commit is its own, and
    nobody is asked. Raises `DaybreakError` where the hub cannot be asked, or does not know it."""
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    at = f"the data set {repository} at revision {revision or 'main'}"
    try:
        commit = HfApi().dataset_info(repository, revision=revision).sha
    # Any: what a lost connection raises is the business of the library below huggingface_hub, and changes.
    except Exception as error:
        raise DaybreakError(
            f"{at}: the hub did not say which commit that is ({' '.join(str(error).split())}); check the "
            "name and the connection, or give a commit as revision, which needs no question"
        ) from None
    assert commit is not None  # the answer to a question for one revision has it
    return commit


def _repository(name: str) -> str:
    if found := families.find_size(name):
        family, size = found
        if size.hub is None:
            raise DaybreakError(
                f"the weights of {name} were never published; daybreak.create({family.name!r}, "
                f"size={name!r}) makes a fresh model"
            )
        return size.hub
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):  # no name of the hub begins with a point, as paths do
        raise DaybreakError(
            f"no folder {name!r}; give an existing folder, a repository of the hub (owner/name), or a "
            "published size as listed by 'daybreak families'"
        )
    return name


def _download(repository: str, revision: str | None, patterns: list[str], local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{repository} at revision {revision or 'main'}"
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=local_files_only,
                tqdm_class=_progress(),
            )
        )
    except GatedRepoError:
        raise DaybreakError(
            f"{at}: its authors ask readers to accept their terms first; do so on the hub and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise DaybreakError(
            f"{at}: there is no such folder here and no such repository on the hub, or it is private; check "
            "the spelling, "
            "and set HF_TOKEN if it is private"
        ) from None
    except RevisionNotFoundError:
        raise DaybreakError(
            f"{at}: the repository has no such branch, tag or commit; see its list of branches"
        ) from None
    except LocalEntryNotFoundError as error:
        raise DaybreakError(_not_cached(at, error)) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DaybreakError(f"{at}: the download failed: {str(error).strip().splitlines()[0]}") from None


def _progress() -> type[Any] | None:
    """The hub's own progress bars, or none where no terminal shows them."""
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return None if sys.stderr.isatty() else Silent


def _not_cached(at: str, error: Exception) -> str:
    return (
        f"{at}: there is no such folder here, it is not in the local cache, and the hub was not asked or not "
        "reached; check the spelling, connect once with HF_HUB_OFFLINE unset, or name a folder with the "
        "checkpoint"
    )
