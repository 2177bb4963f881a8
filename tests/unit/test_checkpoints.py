"""Checkpoints of training: exact, complete or absent, checked before use, and never run."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daybreak.errors import DaybreakError
from daybreak.train import checkpoint_files, checkpoints
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.settings import CheckpointSettings
from daybreak.train.state import flatten, put_back, set_values, tensors_of
from tests.unit.tiny_training import Training, model_of


def quiet(line: str) -> None:
    raise AssertionError(f"nothing was to be told: {line}")


def checkpoints_in(
    folder: Path, tell: Callable[[str], None] = quiet, background: bool = False, **changes: Any
) -> Checkpoints:
    return Checkpoints(folder, CheckpointSettings(background=background, **changes), tell)


def state(fill: float = 1.0) -> dict[str, Any]:
    """A tree like that of a training, tiny."""
    numbers = torch.arange(6, dtype=torch.float32).reshape(2, 3) + fill
    return {
        "model": {"a.weight": numbers, "b": torch.tensor(fill)},
        "optimizer": {"lr": fill, "betas": (0.9, fill)},
    }


def fill_of(kept: Checkpoints, step: int) -> float:
    """With which `fill` the checkpoint was saved, read back in full."""
    tree = state(-1.0)
    kept.load(step, tree)
    fill: float = tree["optimizer"]["lr"]
    assert torch.equal(tree["model"]["a.weight"], state(fill)["model"]["a.weight"])
    assert tree["optimizer"]["betas"] == (0.9, fill)
    return fill


def restored(folder: Path, step: int, dtype: torch.dtype = torch.float32) -> Training:
    training = Training.of(model_of(seed=5), dtype)
    tensors = tensors_of(training.model.decoder, training.optimizers, training.ema)
    checkpoints_in(folder).load(step, tensors)
    put_back(tensors, training.model.decoder, training.optimizers, training.ema)
    return training


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, dtype: torch.dtype, background: bool
) -> None:
    training = Training.of(model_of(), dtype)
    kept = checkpoints_in(tmp_path, background=background)
    training.steps(0, 5)
    kept.save(5, tensors_of(training.model.decoder, training.optimizers, training.ema), {})
    expected = training.steps(5, 10)
    kept.wait()
    again = restored(tmp_path, 5, dtype)
    assert again.steps(5, 10) == expected
    assert_equal(again, training)


def assert_equal(left: Training, right: Training) -> None:
    one, other = (
        flatten(tensors_of(each.model.decoder, each.optimizers, each.ema)) for each in (left, right)
    )
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())
    assert one[1] == other[1]


def test_a_checkpoint_before_the_first_step_counts_no_step(tmp_path: Path) -> None:
    training = Training.of(model_of())
    checkpoints_in(tmp_path).save(
        0, tensors_of(training.model.decoder, training.optimizers, training.ema), {}
    )
    untouched = Training.of(model_of())
    expected = untouched.steps(0, 4)
    assert training.steps(0, 4) == expected
    assert restored(tmp_path, 0).steps(0, 4) == expected


def test_a_parameter_that_never_had_a_gradient_has_a_state_too(tmp_path: Path) -> None:
    def partly(training: Training, seeing: bool) -> Training:
        training.model.decoder.positions.weight.requires_grad_(seeing)
        return training

    training = partly(Training.of(model_of()), False)
    training.steps(0, 2)
    partly(training, True)
    kept = checkpoints_in(tmp_path)
    gradient = torch.ones_like(training.model.decoder.tokens.weight)
    training.model.decoder.tokens.weight.grad = gradient
    kept.save(2, tensors_of(training.model.decoder, training.optimizers, training.ema), {})
    assert training.model.decoder.tokens.weight.grad is gradient
    training.model.decoder.tokens.weight.grad = None
    assert restored(tmp_path, 2).steps(2, 5) == training.steps(2, 5)


def test_what_happens_after_save_does_not_reach_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training.of(model_of())
    training.steps(0, 2)
    tensors = tensors_of(training.model.decoder, training.optimizers, training.ema)
    before = {name: tensor.clone() for name, tensor in flatten(tensors)[0].items()}
    may_write = threading.Event()
    write = checkpoint_files.write_tensors

    def late(*arguments: Any) -> Any:
        assert may_write.wait(10)
        return write(*arguments)

    monkeypatch.setattr(checkpoint_files, "write_tensors", late)
    kept = checkpoints_in(tmp_path, background=True)
    numbers = {"losses": [1.0]}
    for step in (2, 3):  # the second time the copies are made into the memory of the first
        kept.save(step, tensors, numbers)
        numbers["losses"].append(9.0)
        with torch.no_grad():
            for tensor in flatten(tensors)[0].values():
                tensor.add_(1)
        may_write.set()
        kept.wait()
        may_write.clear()
    for step in (2, 3):
        found = flatten(tensors_of(*of(restored(tmp_path, step))))[0]
        assert all(torch.equal(found[name], tensor + (step - 2)) for name, tensor in before.items())
        assert kept.numbers(step) == {"losses": [1.0, 9.0][: step - 1]}


def of(training: Training) -> tuple[Any, Any, Any]:
    return training.model.decoder, training.optimizers, training.ema


NUMBERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=15)
@given(numbers=st.dictionaries(st.text(), NUMBERS))
def test_numbers_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, numbers: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    kept = checkpoints_in(folder)
    kept.save(1, {"model": {"a": torch.zeros(1)}}, numbers)
    assert kept.numbers(1) == numbers
    shutil.rmtree(folder)


def test_the_newest_are_kept_and_every_nth_for_good(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path, keep=2, keep_every=30)
    for step in range(10, 101, 10):
        kept.save(step, state(step), {})
    assert sorted(os.listdir(tmp_path)) == [f"step-{step:08}" for step in (30, 60, 90, 100)]
    assert kept.newest() == 100
    assert kept.newest(before=100) == 90
    assert kept.newest(before=30) is None
    assert [fill_of(kept, step) for step in kept.steps()] == [30.0, 60.0, 90.0, 100.0]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoints_in(tmp_path / "none").newest() is None


FILES = (".metadata", "__0_0.distcp", "numbers.json", "manifest.json")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    for step in (1, 2):
        checkpoints_in(tmp_path).save(step, state(step), {})
    harm(tmp_path / "step-00000002" / name)
    told: list[str] = []
    assert checkpoints_in(tmp_path, told.append).newest() == 1
    assert len(told) == 1
    assert str(tmp_path / "step-00000002") in told[0]
    assert name in told[0] or name == "manifest.json"


def test_if_all_are_damaged_all_are_named(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints_in(tmp_path).save(step, state(step), {})
        flip(tmp_path / f"step-{step:08}" / "__0_0.distcp")
    with pytest.raises(DaybreakError, match=r"step-00000002 is damaged.*step-00000001 is damaged"):
        checkpoints_in(tmp_path, print).newest()


def test_damaged_ones_do_not_push_out_the_good(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoints_in(tmp_path, keep=3).save(step, state(step), {})
    flip(tmp_path / "step-00000030" / "__0_0.distcp")
    flip(tmp_path / "step-00000020" / "__0_0.distcp")
    kept = checkpoints_in(tmp_path, lambda line: None, keep=2)
    assert kept.newest() == 10
    kept.save(15, state(15), {})
    assert kept.steps() == [10, 15]
    kept.save(20, state(21), {})
    assert kept.steps() == [15, 20]
    assert kept.newest() == 20
    assert fill_of(kept, 20) == 21.0


def test_later_checkpoints_are_dropped_where_the_run_turns_back(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path, keep=9, background=True)
    for step in (1, 2, 3):
        kept.save(step, state(step), {})
    kept.drop_after(1)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001"]


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path)
    kept.save(7, state(1), {"way": 1})
    kept.save(7, state(2), {"way": 2})
    assert kept.newest() == 7
    assert kept.numbers(7) == {"way": 2}
    assert fill_of(kept, 7) == 2.0
    assert os.listdir(tmp_path) == ["step-00000007"]


OPERATIONS = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir")]


def end_at(number: int) -> None:
    """This process will be gone when it comes to the operation of that number on the file system."""
    count = 0

    def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os._exit(9)
            return operation(*arguments, **options)

        return call

    for module, name in OPERATIONS:
        setattr(module, name, watched(getattr(module, name)))


def die_at(number: int, action: Callable[[], None]) -> bool:
    """Do it in a process that ends at an operation; False: it came to its end."""
    child = os.fork()
    if not child:
        try:
            end_at(number)
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def save_two(folder: Path) -> None:
    kept = checkpoints_in(folder, lambda line: None, keep=1)
    kept.save(2, state(2.5), {})
    kept.save(3, state(3), {})


def test_a_process_that_is_killed_leaves_one_state_or_the_next(tmp_path: Path) -> None:
    found = []
    for step in (1, 2):
        checkpoints_in(tmp_path / "before").save(step, state(step), {})
    for number in range(1, 200):
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(number))
        killed = die_at(number, partial(save_two, folder))
        told: list[str] = []
        kept = checkpoints_in(folder, told.append, keep=1)
        step = kept.newest()
        assert step is not None
        assert not told, "what is there is complete"
        found.append((step, fill_of(kept, step)))
        kept.save(9, state(9), {})
        assert os.listdir(folder) == ["step-00000009"]
        shutil.rmtree(folder)
        if not killed:
            break
    assert not killed
    assert len(found) > 30
    order = [(2, 2.0), (2, 2.5), (3, 3.0)]
    assert sorted(found) == found, "later ends leave later states"
    assert set(found) == set(order)


def test_a_process_that_is_killed_while_it_drops_leaves_no_half_of_a_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints_in(tmp_path / "before").save(step, state(step), {})
    found = []
    for number in range(1, 50):
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(number))
        killed = die_at(number, partial(checkpoints_in(folder).drop_after, 1))
        found.append(checkpoints_in(folder).newest())  # which has nothing to tell
        if not killed:
            break
    assert not killed
    assert set(found) == {1, 2}
    assert len(found) > 4


def test_everything_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    named: list[set[int]] = []
    fsync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    def noted_replace(old: Path, new: Path) -> None:
        named.append({file.stat().st_ino for file in [old, *old.iterdir()]} - synced)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    checkpoints_in(tmp_path).save(1, state(), {})
    assert named == [set()]
    assert tmp_path.stat().st_ino in synced


def test_what_was_left_over_is_removed_and_told(tmp_path: Path) -> None:
    (tmp_path / "step-00000003.partial").mkdir()
    (tmp_path / "step-00000003.partial" / "__0_0.distcp").write_bytes(b"half")
    told: list[str] = []
    kept = checkpoints_in(tmp_path, told.append)
    assert kept.newest() is None
    kept.save(3, state(3), {})
    assert os.listdir(tmp_path) == ["step-00000003"]
    assert len(told) == 1
    assert "step-00000003.partial" in told[0]


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """The operating system refuses to let files grow beyond `most` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


BIG = {"model": {"a": torch.zeros(1000, 1000)}}
FULL = r"step 2 cannot be written to .*no space left.*; the run stops, and the checkpoint of step 1 is intact"


@pytest.mark.parametrize("most", [0, 5000, 3_999_000])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, most: int) -> None:
    kept = checkpoints_in(tmp_path, keep=1)
    kept.save(1, state(1), {})
    with small_files(most), pytest.raises(DaybreakError, match=FULL):
        kept.save(2, BIG, {})
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert kept.newest() == 1
    kept.save(2, BIG, {})
    assert kept.newest() == 2


def test_a_full_disk_in_the_background_is_told_by_wait(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path, background=True)
    kept.save(1, state(1), {})
    kept.wait()
    with small_files(5000):
        kept.save(2, BIG, {})
        with pytest.raises(DaybreakError, match=FULL):
            kept.wait()
    kept.wait()
    assert os.listdir(tmp_path) == ["step-00000001"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here; the limit on files is tested in any case")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    kept = checkpoints_in(small_disk)
    kept.save(1, state(1), {})
    with pytest.raises(DaybreakError, match=FULL):
        kept.save(2, BIG, {})
    assert os.listdir(small_disk) == ["step-00000001"]
    (small_disk / "other").write_bytes(bytes(1_900_000))
    left = shutil.disk_usage(small_disk).free
    (small_disk / "more").write_bytes(bytes(left - 8192))  # room for tensors and none for what follows
    with pytest.raises(DaybreakError, match=FULL):
        kept.save(2, state(2), {})
    assert kept.newest() == 1


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path)
    kept.save(1, state(1), {})
    mark = tmp_path / "run"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(mark),)

    (tmp_path / "step-00000001" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DaybreakError, match=r"\.metadata.*names (posix|nt)\.mkdir"):
        kept.load(1, state())
    assert not mark.exists()


class Spelled:
    """An object that a pickle makes by a call of getattr."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return getattr, self.arguments


def test_members_of_enumerations_may_be_spelled_by_their_names(tmp_path: Path) -> None:
    """As Python 3.11.0 to 3.11.3 do; nothing else may be got by its name."""
    file = tmp_path / ".metadata"
    encoding = torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING
    member = Spelled(encoding, "TORCH_CONTIGUOUS_FORMAT")
    file.write_bytes(pickle.dumps(member))
    with file.open("rb") as handle:
        assert checkpoint_files._Unpickler(handle).load() is encoding.TORCH_CONTIGUOUS_FORMAT
    for arguments in ((checkpoint_files.Metadata, "__init__"), (encoding, "__class__"), ("text", "format")):
        file.write_bytes(pickle.dumps(Spelled(*arguments)))
        with pytest.raises(DaybreakError, match=r"not what a checkpoint .* holds"):
            checkpoint_files.read_places(tmp_path)


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    """Torch reads such entries with the unpickler that runs everything."""
    from torch.distributed import checkpoint as dcp

    checkpoints_in(tmp_path).save(1, state(1), {})
    dcp.save({"model/b": ["an object"]}, checkpoint_id=tmp_path / "other")
    for name in (".metadata", "__0_0.distcp"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "step-00000001" / name)
    with pytest.raises(DaybreakError, match="BytesStorageMetadata"):
        checkpoints_in(tmp_path).load(1, {"model": {"b": torch.zeros(())}})


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\x80\x04K\x01.", b"junk"])
def test_places_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    checkpoints_in(tmp_path).save(1, state(1), {})
    (tmp_path / "step-00000001" / ".metadata").write_bytes(content)
    with pytest.raises(DaybreakError, match=r"\.metadata"):
        checkpoints_in(tmp_path).load(1, state())


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path)
    kept.save(1, state(1), {})
    with pytest.raises(DaybreakError, match="model/c is not in the checkpoint; continue with the model"):
        kept.load(1, {**state(), "model": {**state()["model"], "c": torch.zeros(1)}})
    with pytest.raises(DaybreakError, match=r"model/a.weight is in the checkpoint and not in this run"):
        kept.load(1, {**state(), "model": {"b": torch.zeros(())}})
    with pytest.raises(DaybreakError, match=r"model/a.weight has the shape \[2, 3\], and \[3, 2\] here"):
        kept.load(1, {**state(), "model": {"a.weight": torch.zeros(3, 2), "b": torch.zeros(())}})


def test_other_groups_of_the_optimizer_are_refused(tmp_path: Path) -> None:
    training = Training.of(model_of())
    kept = checkpoints_in(tmp_path)
    kept.save(1, tensors_of(*of(training)), {})
    other = Training.of(model_of())
    groups = other.optimizers[0].param_groups
    groups[0]["params"].append(groups[1]["params"].pop())
    with pytest.raises(DaybreakError, match="group the parameters in another way"):
        kept.load(1, tensors_of(*of(other)))


def test_values_that_a_newer_torch_knows_and_ways_to_compute_keep_theirs() -> None:
    tree = {"groups": [{"params": ["a"], "lr": 1.0, "new": 3, "fused": None}]}
    set_values(
        tree, {"groups/0/params": ["a"], "groups/0/lr": 2.0, "groups/0/old": 4, "groups/0/fused": True}
    )
    assert tree == {"groups": [{"params": ["a"], "lr": 2.0, "new": 3, "fused": None}]}


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    checkpoints_in(tmp_path).save(1, state(1), {})
    file = tmp_path / "step-00000001" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    with pytest.raises(DaybreakError, match="format 2, and this daybreak reads 1"):
        checkpoints_in(tmp_path).newest()


def test_a_checkpoint_says_nothing_about_the_machine(tmp_path: Path) -> None:
    checkpoints_in(tmp_path).save(1, state(1), {})
    for file in (tmp_path / "step-00000001").iterdir():
        assert tmp_path.name.encode() not in file.read_bytes()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_other_errors_are_named_as_well(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoints.files, "sync_folder", refuse)
    with pytest.raises(DaybreakError, match=f"{os.strerror(number)}; the run stops, and there is no earlier"):
        checkpoints_in(tmp_path).save(1, state(1), {})
    assert os.listdir(tmp_path) == []


def test_the_tree_is_flattened_by_path() -> None:
    one, other = torch.zeros(1), torch.ones(1)
    tree: dict[str, Any] = {"a": {"b.c": one, "d": 1}, "g": [{"lr": other, "betas": (1, 2), "params": ["x"]}]}
    tensors, values = flatten(tree)
    assert {name: tensor is one for name, tensor in tensors.items()} == {"a/b.c": True, "g/0/lr": False}
    assert values == {"a/d": 1, "g/0/betas": (1, 2), "g/0/params": ["x"]}
    assert isinstance(tensors["g/0/lr"], Tensor)
