"""Checkpoints are whole or not there, damage is told, and a run that goes on is the run that was never ended."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torafugu.errors import ConfigError, ModelError, StoreError
from torafugu.train.checkpoint import Checkpoints, Resumed
from torafugu.train.sepcma import SepCMA

BOUND_TO = {"config": {"sigma0": 0.3, "popsize": 6}, "data_sha256": {"questions": "ab"}, "code_schema": 1}


def checkpoints(folder: Path, keep: int = 3, bound_to: Mapping[str, Any] = BOUND_TO) -> Checkpoints:
    return Checkpoints(folder=folder / "checkpoints", bound_to=bound_to, keep=keep, metrics=folder / "metrics.jsonl")


def load(checkpoints: Checkpoints) -> Resumed:
    resumed = checkpoints.load_latest()
    assert resumed is not None
    return resumed


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# --- a training run that is ended and goes on ---

TRAIN = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_checkpoint import train
def kill(when, generation):
    if (when, generation) == (sys.argv[3], 7):
        os.kill(os.getpid(), 9)
train(Path(sys.argv[2]), 10, kill)
"""


def train(folder: Path, generations: int, at: Any = lambda when, generation: None) -> SepCMA:
    """As a trainer does it: noisy fitness from a generator of its own, metrics after each generation, then the save."""
    kept = checkpoints(folder)
    resumed = kept.load_latest()
    if resumed is None:
        es, draw, done = SepCMA(np.full(5, 2.0), 0.3, popsize=6, seed=1), np.random.default_rng([7, 1]), 0
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    else:
        es, draw, done = SepCMA.from_state(resumed.state), resumed.rngs["draw"], resumed.generation
        kept.cut_metrics(resumed)
    with (folder / "metrics.jsonl").open("a") as metrics:
        for generation in range(done + 1, generations + 1):
            candidates = es.ask()
            fitness = -(candidates**2).sum(1) + draw.standard_normal(6) + draw.spawn(1)[0].standard_normal(6)
            es.tell(fitness)
            at("told", generation)
            metrics.write(json.dumps({"generation": generation, "reward/max": fitness.max()}) + "\n")
            metrics.flush()
            at("measured", generation)
            kept.save(es.state_dict(), generation=generation, rngs={"draw": draw})
            at("saved", generation)
    return es


def assert_same_run(folder: Path, other: Path) -> None:
    ours, theirs = load(checkpoints(folder)), load(checkpoints(other))
    assert ours.generation == theirs.generation == 10
    assert ours.state.keys() == theirs.state.keys()
    for key, value in ours.state.items():
        assert np.array_equal(value, theirs.state[key]), key
    assert ours.rngs["draw"].standard_normal() == theirs.rngs["draw"].standard_normal()
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert ours.warnings == ()


def test_five_and_five_are_ten(tmp_path: Path) -> None:
    """Training 10 generations, and training 5, stopping and going on for 5, give the same bits: weights and metrics."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    whole = train(tmp_path / "whole", 10)
    train(tmp_path / "halves", 5)
    halves = train(tmp_path / "halves", 10)
    assert np.array_equal(whole.mean, halves.mean)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize("when", ["told", "measured", "saved"])
def test_killed_run_goes_on(tmp_path: Path, when: str) -> None:
    """A run whose process is killed between tell and save, or after it, goes on to the same bits."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    train(tmp_path / "whole", 10)
    command = [sys.executable, "-c", TRAIN, str(Path(__file__).parent), str(tmp_path / "killed"), when]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert load(checkpoints(tmp_path / "killed")).generation == (7 if when == "saved" else 6)
    train(tmp_path / "killed", 10)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_stopped_between_ask_and_tell(tmp_path: Path) -> None:
    """A state that waits for its fitness comes back with the same candidates."""
    es = SepCMA(np.zeros(4), 0.3, popsize=5, seed=3)
    asked = es.ask()
    checkpoints(tmp_path).save(es.state_dict(), generation=0)
    assert np.array_equal(SepCMA.from_state(load(checkpoints(tmp_path)).state).ask(), asked)


SAVE_AND_DIE = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_checkpoint import checkpoints

def save(kept, generation):
    kept.save({"a": np.full(500, generation), "n": generation}, generation=generation)

def save_until(operation):
    seen = 0
    def count(event, args):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.listdir"):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), 9)
    sys.addaudithook(count)
    save(kept, 4)
    os._exit(0)

for operation in range(1, 100):
    kept = checkpoints(Path(sys.argv[2]) / str(operation), keep=2)
    for generation in (1, 2, 3):
        save(kept, generation)
    child = os.fork()
    if child == 0:
        save_until(operation)
    _, status = os.waitpid(child, 0)
    found = kept.load_latest()
    is_whole = set(found.state["a"]) == {found.state["n"]} == {found.generation}
    save(kept, 5)
    after = kept.load_latest()
    print(json.dumps([status, found.generation, bool(is_whole), found.warnings, after.generation, after.warnings]))
    if status == 0:
        break
"""


def test_killed_while_saving(tmp_path: Path) -> None:
    """At whichever file operation of a save a process is killed, the last whole checkpoint is found, none damaged."""
    command = [sys.executable, "-c", SAVE_AND_DIE, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [signal.SIGKILL] * (len(rows) - 1) + [0]
    found = [row[1] for row in rows]
    assert found == sorted(found)
    assert set(found) == {3, 4}
    assert all(row[2:] == [True, [], 5, []] for row in rows)


# --- values ---

scalars = st.one_of(st.integers(), st.floats(), st.text(), st.sampled_from([2**200, -0.0, float("nan"), "\udc80\0"]))
arrays = hnp.arrays(
    st.sampled_from(["f8", "f4", ">f8", "i8", "u1", "?", "U3", "c16"]), hnp.array_shapes(min_dims=0, min_side=0)
)


@settings(max_examples=60, deadline=None, database=None)
@given(state=st.dictionaries(st.text(), st.one_of(scalars, arrays), max_size=4))
def test_values_come_back(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    """Every value comes back bit for bit, with its type, dtype and shape, under any name."""
    folder = tmp_path_factory.mktemp("any")
    checkpoints(folder).save(state, generation=3)
    back = load(checkpoints(folder)).state
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert type(back[key]) is type(value)
        if isinstance(value, np.ndarray):
            assert (back[key].dtype, back[key].shape) == (value.dtype, value.shape)
            assert back[key].tobytes() == value.tobytes()
        else:
            assert repr(back[key]) == repr(value)


@pytest.mark.parametrize("key", ["file", "allow_pickle", "a/b.npy", "arr_0"])
def test_any_name(tmp_path: Path, key: str) -> None:
    """Names that mean something to numpy's files are names like others."""
    checkpoints(tmp_path).save({key: np.arange(3), "a/b": np.ones(2)}, generation=1)
    assert load(checkpoints(tmp_path)).state[key].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value",
    [True, None, [1], np.float64(1.0), np.array([None]), np.ma.masked_equal([1, 2], 2)],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_refused(tmp_path: Path, value: Any) -> None:
    """A value that would come back as something else is refused by name, and nothing is written."""
    with pytest.raises(TypeError, match=r"'odd'.*expected"):
        checkpoints(tmp_path).save({"odd": value}, generation=1)
    assert checkpoints(tmp_path).load_latest() is None


def test_generators_come_back(tmp_path: Path) -> None:
    """A generator draws on where it was, the half of a number that it had left over and its spawning included."""
    rng = np.random.default_rng(np.random.SeedSequence([np.int64(5), 2**70], spawn_key=(3,)))
    rng.integers(0, 10, dtype=np.uint32)
    rng.spawn(2)
    checkpoints(tmp_path).save({}, generation=1, rngs={"draw": rng, "other": np.random.default_rng(4)})
    back = load(checkpoints(tmp_path)).rngs
    assert (
        back["draw"].integers(0, 2**32, 5, dtype=np.uint32).tolist()
        == rng.integers(0, 2**32, 5, dtype=np.uint32).tolist()
    )
    assert back["draw"].spawn(1)[0].standard_normal() == rng.spawn(1)[0].standard_normal()
    assert back["other"].standard_normal() == np.random.default_rng(4).standard_normal()


@pytest.mark.parametrize("bits", [np.random.MT19937(1), np.random.PCG64DXSM(1)], ids=lambda bits: type(bits).__name__)
def test_other_generators_are_refused(tmp_path: Path, bits: np.random.BitGenerator) -> None:
    """A generator of a kind that could not be made anew is refused by name."""
    with pytest.raises(TypeError, match=r"generator 'draw'.*default_rng"):
        checkpoints(tmp_path).save({}, generation=1, rngs={"draw": np.random.Generator(bits)})


# --- damage ---


def save_three(folder: Path) -> Checkpoints:
    kept = checkpoints(folder)
    for generation in (10, 20, 30):
        kept.save({"a": np.full(50, generation), "s": f"at {generation}"}, generation=generation)
    return kept


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def replace_by_older(path: Path) -> None:
    path.write_bytes(path.with_stem("000002").read_bytes())


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("damage", [tear, empty, flip])
def test_damaged_newest(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, suffix: str) -> None:
    """A damaged newest checkpoint is passed over for the one before, and that is returned and logged."""
    kept = save_three(tmp_path)
    damage(tmp_path / "checkpoints" / f"000003{suffix}")
    with caplog.at_level(logging.WARNING):
        resumed = load(kept)
    assert (resumed.generation, resumed.state["s"]) == (20, "at 20")
    assert len(resumed.warnings) == 1
    assert "000003.json was passed over" in resumed.warnings[0]
    assert resumed.warnings[0] in caplog.text


def test_arrays_of_another_checkpoint(tmp_path: Path) -> None:
    """Arrays that are whole, but another checkpoint's, or gone, are damage too."""
    kept = save_three(tmp_path)
    replace_by_older(tmp_path / "checkpoints" / "000003.npz")
    assert load(kept).generation == 20
    (tmp_path / "checkpoints" / "000002.npz").unlink()
    resumed = load(kept)
    assert resumed.generation == 10
    assert ["damaged" in resumed.warnings[0], "missing" in resumed.warnings[1]] == [True, True]


@settings(max_examples=60, deadline=None, database=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), suffix=st.sampled_from([".json", ".npz"]))
def test_every_bit_counts(tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, suffix: str) -> None:
    """Whichever bit of a checkpoint flips, what is loaded is what was saved, or the damage is told."""
    folder = tmp_path_factory.mktemp("bits")
    kept = checkpoints(folder)
    kept.save({"a": np.arange(3.0), "x": 0.5}, generation=1)
    path = folder / "checkpoints" / f"000001{suffix}"
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))
    try:
        resumed = load(kept)
    except ModelError:
        return
    assert suffix == ".json"  # white space
    assert (resumed.generation, resumed.state["x"], resumed.state["a"].tolist()) == (1, 0.5, [0, 1, 2])


def test_all_damaged(tmp_path: Path) -> None:
    """Where checkpoints are and none is whole, training does not begin anew unasked."""
    kept = save_three(tmp_path)
    for number in (1, 2, 3):
        empty(tmp_path / "checkpoints" / f"00000{number}.npz")
    with pytest.raises(ModelError, match=r"no checkpoint is whole.*000003.*000002.*000001.*remove it"):
        kept.load_latest()


def test_nothing_saved(tmp_path: Path) -> None:
    """No folder, an empty one, and what an interrupted first save leaves are all no checkpoint."""
    kept = checkpoints(tmp_path)
    assert kept.load_latest() is None
    kept.folder.mkdir()
    assert kept.load_latest() is None
    (kept.folder / "000001.npz").write_bytes(b"whole arrays without their JSON")
    (kept.folder / "000002.npz.part").write_bytes(b"ha")
    assert kept.load_latest() is None
    kept.save({}, generation=1)
    assert load(kept).warnings == ()
    assert "000003.json" in names(tmp_path)


# --- how many are kept ---


def test_last_ones_are_kept(tmp_path: Path) -> None:
    """The last `keep` checkpoints stay, older ones go, and other files are left alone."""
    kept = checkpoints(tmp_path, keep=2)
    kept.folder.mkdir()
    (kept.folder / "notes.txt").touch()
    for generation in range(5):
        kept.save({}, generation=generation)
    assert names(tmp_path) == ["000004.json", "000004.npz", "000005.json", "000005.npz", "notes.txt"]


def test_damaged_ones_do_not_count(tmp_path: Path) -> None:
    """A damaged checkpoint is not counted among those kept, so there is always one to fall back to."""
    kept = checkpoints(tmp_path, keep=2)
    kept.save({}, generation=1)
    kept.save({}, generation=2)
    empty(kept.folder / "000002.npz")
    kept.save({}, generation=3)
    empty(kept.folder / "000003.npz")
    assert load(kept).generation == 1
    kept.save({}, generation=4)
    kept.save({}, generation=5)
    assert names(tmp_path) == ["000004.json", "000004.npz", "000005.json", "000005.npz"]


def test_nothing_goes_for_too_few(tmp_path: Path) -> None:
    """While fewer than `keep` are whole nothing is removed, damaged ones neither: somebody may mend them."""
    kept = checkpoints(tmp_path, keep=2)
    kept.save({}, generation=1)
    empty(kept.folder / "000001.npz")
    kept.save({}, generation=2)
    assert "000001.json" in names(tmp_path)
    kept.save({}, generation=3)
    assert "000001.json" not in names(tmp_path)


def test_at_least_one(tmp_path: Path) -> None:
    """To keep none is refused."""
    with pytest.raises(ConfigError, match="keep: 0"):
        checkpoints(tmp_path, keep=0)


# --- what it belongs to ---


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({**BOUND_TO, "config": {"sigma0": 0.1, "popsize": 6}}, r"config\.sigma0: 0\.3 in the checkpoint, 0\.1 now"),
        ({**BOUND_TO, "data_sha256": {"questions": "cd"}}, r"data_sha256\.questions: 'ab' in the checkpoint, 'cd' now"),
        ({**BOUND_TO, "code_schema": 2}, "code_schema: 1 in the checkpoint, 2 now"),
        ({**BOUND_TO, "code_schema": True}, "code_schema: 1 in the checkpoint, True now"),
        ({key: BOUND_TO[key] for key in ("config", "code_schema")}, "data_sha256: .* in the checkpoint, absent now"),
        ({**BOUND_TO, "pool": "b"}, "pool: absent in the checkpoint, 'b' now"),
    ],
)
def test_other_run(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """A checkpoint of other settings, data or code is refused, and the error names exactly the keys that changed."""
    save_three(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        checkpoints(tmp_path, bound_to=changed).load_latest()
    assert str(caught.value).count("in the checkpoint") == 1


def test_same_run(tmp_path: Path) -> None:
    """Settings are compared as JSON: order, tuples and NaN make no difference."""
    before = {"config": {"a": (1, 2), "b": float("nan")}, "data": "x"}
    now = {"data": "x", "config": {"b": float("nan"), "a": [1, 2]}}
    checkpoints(tmp_path, bound_to=before).save({}, generation=4)
    assert load(checkpoints(tmp_path, bound_to=now)).generation == 4


def reseal(path: Path, **changes: Any) -> None:
    """As if another version had saved it."""
    from torafugu.train.checkpoint import _digest

    body = json.loads(path.read_bytes())["body"] | changes
    path.write_text(json.dumps({"sha256": _digest(body), "body": body}))


def test_other_schema(tmp_path: Path) -> None:
    """A checkpoint of another schema is refused, not passed over as damaged, and survives the next save."""
    kept = save_three(tmp_path)
    reseal(kept.folder / "000003.json", schema=2)
    with pytest.raises(ConfigError, match="schema: 2 in the checkpoint, 1 now"):
        kept.load_latest()
    kept.save({}, generation=40)
    assert "000003.json" in names(tmp_path)


def test_other_numpy(tmp_path: Path) -> None:
    """Going on with another numpy is possible, and on record: it may draw otherwise."""
    kept = save_three(tmp_path)
    reseal(kept.folder / "000003.json", numpy="1.0")
    resumed = load(kept)
    assert resumed.generation == 30
    assert resumed.warnings == (f"saved with numpy 1.0, this is {np.__version__}: random draws may differ",)


# --- the metrics beside it, and the disk ---


def test_metrics(tmp_path: Path) -> None:
    """Metrics written after the checkpoint are cut off; where rows from before it are missing, that is an error."""
    kept = checkpoints(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("one\n")
    kept.save({}, generation=1)
    with metrics.open("a") as file:
        file.write("two\nthr")
    resumed = load(kept)
    assert resumed.metrics_bytes == 4
    kept.cut_metrics(resumed)
    assert metrics.read_text() == "one\n"
    metrics.write_text("o")
    with pytest.raises(ModelError, match="1 bytes, expected at least the 4"):
        kept.cut_metrics(resumed)


def test_no_metrics(tmp_path: Path) -> None:
    """Without metrics there is no length and nothing to cut; metrics that have not begun have length 0."""
    without = Checkpoints(folder=tmp_path / "checkpoints", bound_to={})
    without.save({}, generation=1)
    resumed = load(without)
    assert resumed.metrics_bytes is None
    without.cut_metrics(resumed)
    begun = checkpoints(tmp_path, bound_to={})
    begun.save({}, generation=2)
    assert load(begun).metrics_bytes == 0
    begun.cut_metrics(load(begun))


def test_disk_refuses(tmp_path: Path) -> None:
    """What the disk refuses is a StoreError that names the folder."""
    (tmp_path / "checkpoints").touch()
    with pytest.raises(StoreError, match="checkpoints"):
        checkpoints(tmp_path).save({}, generation=1)
    with pytest.raises(StoreError, match="checkpoints"):
        checkpoints(tmp_path).load_latest()
