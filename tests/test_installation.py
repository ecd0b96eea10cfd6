"""Trained conductors in an installation: what a card brings along, beside which heads they stand, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torafugu
from commands import Fugu
from llamas import chain_config, chain_weights, random_lora, random_weights, tiny, write_adapter, write_folder
from torafugu.cli.installation import Installation, Opened, open_installation, read_installation
from torafugu.conductors import (
    CARD,
    HOME_CONDUCTOR,
    find_folder,
    read_conductor_card,
    write_conductor_card,
)
from torafugu.errors import ConfigError, ModelError
from torafugu.local import MiniLM
from torafugu.orchestrate import orchestrate
from torafugu.orchestrate.conductor import ConductorConfig
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from torafugu.pool.home import home_pool_path
from torafugu.pool.spec import read_pool
from torafugu.types import Message, Request

HOME = {worker.id: worker.model for worker in read_pool(home_pool_path()).worker}
BRIEF = ConductorConfig(
    worker="conductor",
    prompt="brief",
    names=True,
    attempts=1,
    on_error="fail",
    recursion=False,
    max_output_tokens=7,
)
"""As a tiny conductor is trained."""
PLANNER = """
[[worker]]
id = "planner"
dialect = "scripted"
model = "planner"
prices = { input = 0, output = 0 }
extra_body = { text = '''subtasks: ["Solve the task."]
model_id: [3]
access_list: [[]]''' }
"""
EXTRA = """
[[worker]]
id = "newcomer"
dialect = "home"
model = "hasty"
prices = { input = 0, output = 0 }
"""


@pytest.fixture
def fugu(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fugu:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Fugu(capsys)


def write_model(
    folder: Path, workers: Mapping[str, str] = HOME, config: ConductorConfig = BRIEF, text: str = "\nok"
) -> Path:
    """A conductor that writes one text, with its card."""
    write_folder(folder, chain_config(), chain_weights(chain_config(), text), format="bare")
    write_conductor_card(folder, config, workers)
    return folder


def local(id: str, folder: str) -> str:
    prices = "{ input = 0, output = 0 }"
    return f'[[worker]]\nid = "{id}"\ndialect = "local"\nmodel = "{folder}"\nprices = {prices}\ntools = false\n'


def write_installation(folder: Path, *workers: str, conductor: str = "", more: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pool.toml").write_text("\n".join([home_pool_path().read_text(), *workers]))
    table = f"[conductor]\n{conductor}\n" if conductor else ""
    (folder / "fugu.toml").write_text(f'pool = "pool.toml"\n{more}\n{table}')
    return folder / "fugu.toml"


def write_head(folder: Path, models: Mapping[str, str], favourite: str) -> Path:
    """A head that always asks one worker."""
    encoder = MiniLM()
    encoder.close()
    features = FeatureMap(np.zeros(encoder.dim, np.float32), np.zeros((encoder.dim, 1), np.float32))
    card = Card(
        encoder=encoder.name,
        workers=tuple(WorkerIdentity(id, model) for id, model in models.items()),
        training={},
        metrics={},
        baselines={"best_single": {"worker": favourite, "accuracy": 0.5}},
    )
    weight = np.array([[0, float(worker == favourite)] for worker in models], np.float32)
    Head.create(features, weight, card).save(folder)
    return folder


def opened(installation: Installation, look: Callable[[Opened], Any] = lambda opened: opened) -> Any:
    async def go() -> Any:
        async with open_installation(installation) as found:
            looked = look(found)
            return await looked if asyncio.iscoroutine(looked) else looked

    return asyncio.run(go())


def ask(model: str, text: str = "What is 2 + 3?") -> Callable[[Opened], Any]:
    async def go(found: Opened) -> Any:
        request = Request(model=model, messages=(Message(role="user", content=text),))
        return await orchestrate(request, found.policy_for(model), found.pool)

    return go


# --- the card ---


def test_a_card_says_how_its_model_is_asked_and_for_whom_it_was_trained(tmp_path: Path) -> None:
    """The card holds what differs from usual settings, the workers and the hashes of the files; a lost step, which ends
    an episode of training, is given to the next worker when served."""
    folder = write_model(tmp_path / "model")
    card = read_conductor_card(folder)
    assert card.conductor == {
        "prompt": "brief",
        "names": True,
        "attempts": 1,
        "on_error": "substitute",
        "recursion": False,
        "max_output_tokens": 7,
    }
    assert {worker.id: worker.model for worker in card.workers} == HOME
    assert set(card.sha256) == {"graph.onnx", "model.safetensors", "tokenizer.json"}


def test_what_a_model_was_trained_with_comes_with_it_and_what_is_written_wins(tmp_path: Path) -> None:
    """`[conductor] worker = ...` is enough for a trained conductor; every other key that stands there is kept; a worker
    named on the command line brings its own card."""
    write_model(tmp_path / "model")
    file = write_installation(tmp_path, local("ours", "model"), PLANNER, conductor='worker = "ours"')
    config = read_installation(file).conductor
    assert config is not None
    assert (config.worker, config.prompt, config.names, config.attempts) == ("ours", "brief", True, 1)
    assert (config.on_error, config.recursion, config.max_output_tokens) == ("substitute", False, 7)
    write_installation(
        tmp_path, local("ours", "model"), PLANNER, conductor='worker = "ours"\nattempts = 3\nworkers = ["facts"]'
    )
    written = read_installation(file).conductor
    assert written is not None
    assert (written.attempts, written.workers, written.prompt) == (3, ("facts",), "brief")
    planner = read_installation(file, conductor="planner").conductor
    assert planner is not None
    assert (planner.worker, planner.attempts, planner.prompt) == ("planner", 3, "full")
    named = read_installation(None, pool=tmp_path / "pool.toml", conductor="ours").conductor
    assert named == config


def test_a_conductor_table_without_a_worker_still_names_what_is_missing(tmp_path: Path) -> None:
    """Neither file nor command line names the worker: the key that is missing is named."""
    file = write_installation(tmp_path, conductor="attempts = 2")
    with pytest.raises(ConfigError, match=r"conductor: key 'worker' is missing"):
        read_installation(file)
    assert read_installation(file, conductor="facts").conductor == ConductorConfig(worker="facts", attempts=2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "graph.onnx").write_bytes(b"x" + (f / "graph.onnx").read_bytes()[1:]), "graph.onnx: damaged"),
        (lambda f: (f / CARD).write_text("{"), f"{CARD}: damaged"),
        (lambda f: spoil_card(f, schema=2), "schema 2"),
        (lambda f: spoil_card(f, workers=[]), "0 workers"),
        (lambda f: spoil_card(f, conductor={"prompts": "brief"}), "unknown key 'prompts'"),
        (lambda f: spoil_card(f, conductor={"workers": ["a"]}), "none of worker, workers"),
    ],
)
def test_a_damaged_conductor_is_not_served(
    spoil: Callable[[Path], object], message: str, fugu: Fugu, tmp_path: Path
) -> None:
    """A file that is missing, changed or malformed: nothing is opened, `doctor` fails, both name the file; the record
    of old runs can be read all the same."""
    write_model(tmp_path / "model")
    file = write_installation(tmp_path, local("ours", "model"), conductor='worker = "ours"')
    opened(read_installation(file))
    spoil(tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        opened(read_installation(file))
    assert message in caught.value.message
    said = fugu("doctor")
    assert said.status == 1
    assert message in said.out
    assert fugu("runs").status == 0


def spoil_card(folder: Path, **changes: Any) -> None:
    (folder / CARD).write_text(json.dumps(json.loads((folder / CARD).read_text()) | changes))


def test_another_model_is_another_policy(tmp_path: Path) -> None:
    """The id in the record changes with the conductor's weights, though its folder keeps its name."""
    ids = []
    for text in ("\nok", "\nno"):
        write_model(tmp_path / "model", text=text)
        file = write_installation(tmp_path, local("ours", "model"), conductor='worker = "ours"')
        ids.append(opened(read_installation(file)).policies["fugu-ultra"].id)
    assert ids[0] != ids[1]


# --- for which workers ---


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (HOME, None),
        ({**HOME, "gone": "gone"}, None),
        ({id: HOME[id] for id in ("facts", "hasty")}, "it never learnt to call exact-math, text-ops, generalist"),
        ({**HOME, "facts": "older"}, "'facts' was 'older' in training and is 'facts' here"),
    ],
)
def test_workers_it_was_not_trained_for_are_told(
    trained: dict[str, str], said: str | None, fugu: Fugu, tmp_path: Path
) -> None:
    """A worker that left needs no word; one that it never saw, or that another model stands behind now, is a warning
    when serving and a failure of `doctor`."""
    write_model(tmp_path / "model", trained)
    file = write_installation(tmp_path, local("ours", "model"), conductor='worker = "ours"')
    warnings = opened(read_installation(file)).warnings
    checked = fugu("doctor")
    if said is None:
        assert not warnings
        assert checked.status == 0, checked.out
        assert "trained for exact-math" in checked.out
    else:
        (warning,) = warnings
        assert said in warning
        assert "fugu train conductor" in warning
        assert checked.status == 1
        assert said in checked.out


def test_two_trained_conductors(fugu: Fugu, tmp_path: Path) -> None:
    """Another one in the pool has no answers: it is not called, and nobody has to have learnt to call it."""
    write_model(tmp_path / "model", HOME)
    write_model(tmp_path / "other", HOME)
    file = write_installation(tmp_path, local("ours", "model"), local("theirs", "other"), conductor='worker = "ours"')
    assert opened(read_installation(file)).warnings == ()
    checked = fugu("doctor")
    assert checked.status == 0, checked.out
    (tmp_path / "other" / "model.safetensors").write_bytes(b"damaged")
    checked = fugu("doctor")
    assert checked.status == 1
    assert "damaged" in checked.out


def test_only_those_it_may_call_have_to_be_known(tmp_path: Path) -> None:
    """With `workers` in `[conductor]`, nobody else in the pool is asked about."""
    write_model(tmp_path / "model", {"facts": "facts"})
    file = write_installation(tmp_path, local("ours", "model"), EXTRA, conductor='worker = "ours"\nworkers = ["facts"]')
    assert opened(read_installation(file)).warnings == ()


# --- beside heads, panel and other conductors ---


def test_fugu_and_fugu_ultra_are_served_from_one_pool(fugu: Fugu, tmp_path: Path) -> None:
    """A head for the five home workers stands beside a conductor that it never saw: it is never chosen, nor failed over
    to; both policies and the conductor itself answer."""
    write_head(tmp_path / "policy", HOME, "exact-math")
    file = write_installation(tmp_path, PLANNER, conductor='worker = "planner"', more='policy = "policy"')
    run = opened(read_installation(file), ask("fugu"))
    (planned,) = run.plans
    assert planned.plan.steps[0].worker == "exact-math"
    assert set(planned.plan.scores) == set(HOME)
    assert "planner" not in planned.plan.steps[0].alternates
    assert opened(read_installation(file), ask("fugu-ultra")).workers == ("planner", "generalist")
    assert opened(read_installation(file), ask("planner")).answer.text.startswith("subtasks")
    for model in ("fugu", "fugu-ultra", "planner"):
        said = fugu(f"route --model {model} 'What is 2 + 3?'")
        assert said.status == 0, said.err
    assert fugu("doctor").status == 0


def test_trained_conductors_are_no_answerers_whoever_conducts(tmp_path: Path) -> None:
    """Of two trained conductors in a pool, neither head nor the other conductor asks the one that does not conduct; it
    still answers by its name."""
    write_model(tmp_path / "model")
    write_model(tmp_path / "start", text="\nno")
    write_head(tmp_path / "policy", HOME, "facts")
    file = write_installation(
        tmp_path,
        local("ours", "model"),
        local("start", "start"),
        conductor='worker = "ours"',
        more='policy = "policy"',
    )
    found = opened(read_installation(file))
    assert found.installation.conductor.workers == tuple(HOME)
    assert set(opened(read_installation(file), ask("fugu")).plans[0].plan.scores) == set(HOME)
    assert opened(read_installation(file), ask("start")).answer.text.startswith("no")


def test_a_conductor_that_the_head_knows_is_still_its_choice(tmp_path: Path) -> None:
    """A model that answers as well as it plans stays among those that `fugu` chooses from."""
    write_head(tmp_path / "policy", HOME, "generalist")
    file = write_installation(tmp_path, conductor='worker = "generalist"', more='policy = "policy"')
    assert opened(read_installation(file), ask("fugu")).workers == ("generalist",)


@pytest.mark.parametrize("conductor", ["", 'worker = "facts"', 'worker = "newcomer"\nworkers = ["newcomer", "facts"]'])
def test_a_worker_that_does_not_only_conduct_has_to_be_known(conductor: str, tmp_path: Path) -> None:
    """A head refuses a pool with a worker that it never saw, unless that one does nothing but conduct."""
    write_head(tmp_path / "policy", HOME, "facts")
    file = write_installation(tmp_path, EXTRA, conductor=conductor, more='policy = "policy"')
    with pytest.raises(ModelError, match="the pool also has newcomer"):
        opened(read_installation(file))


def test_a_budget_a_panel_and_a_conductor_go_together(tmp_path: Path) -> None:
    """With everything configured in one pool, each policy keeps to its own workers and to the budget."""
    write_head(tmp_path / "policy", HOME, "facts")
    more = 'policy = "policy"\n[panel]\nworkers = ["facts", "exact-math"]\nmode = "vote"\n[budget]\nusd = 0.5'
    file = write_installation(tmp_path, PLANNER, conductor='worker = "planner"', more=more)
    for model, asked in (
        ("fugu-panel", {"facts", "exact-math"}),
        ("fugu", {"facts"}),
        ("fugu-ultra", {"planner", "generalist"}),
    ):
        assert set(opened(read_installation(file), ask(model)).workers) == asked


def test_eval_compares_fugu_ultra_with_fugu_beside_a_conductor(fugu: Fugu, tmp_path: Path) -> None:
    """`fugu eval --policy fugu-ultra --against fugu` runs both in one pool with a dedicated conductor."""
    write_head(tmp_path / "policy", HOME, "generalist")
    write_installation(tmp_path, PLANNER, conductor='worker = "planner"', more='policy = "policy"')
    said = fugu(
        "eval --policy fugu-ultra --tasks home-multi --n 12 --against fugu --against facts --json out.json --yes"
    )
    assert said.status == 0, said.err
    report = json.loads(Path("out.json").read_text())
    assert set(report["policies"]) == {"fugu-ultra", "fugu", "facts"}
    assert report["gain_over"]["fugu"]["n"] == 12


def test_eval_takes_the_start_of_another_folder_with_its_card(fugu: Fugu, tmp_path: Path) -> None:
    """A conductor before training, named in a TOML file, is asked as its own card says."""
    write_model(tmp_path / "model")
    write_model(tmp_path / "start", text="\nno")
    write_installation(tmp_path, local("ours", "model"), local("old", "start"), conductor='worker = "ours"')
    (tmp_path / "start.toml").write_text('[conductor]\nworker = "old"\n')
    said = fugu("eval --policy fugu-ultra --tasks home-multi --n 4 --against facts --start start.toml --json out.json")
    assert said.status == 0, said.err
    policies = json.loads(Path("out.json").read_text())["policies"]
    assert set(policies) == {"fugu-ultra", "facts", "start: old"}
    assert all("plan" in fault["code"] for fault in policies["start: old"]["faults"])


def test_profile_asks_no_conductor(fugu: Fugu, tmp_path: Path) -> None:
    """A trained conductor has no answers to be profiled, and the command says so."""
    write_model(tmp_path / "model")
    write_installation(tmp_path, local("ours", "model"))
    said = fugu("profile --pool pool.toml --tasks home-multi --n 4 --out profile")
    assert said.status == 0, said.err
    assert "only conduct: ours" in said.err
    assert "ours" not in said.out
    assert "20 calls" in said.err


# --- what ships ---


def test_the_shipped_conductor_works_at_once(fugu: Fugu) -> None:
    """`init --home` names the conductor that ships: `doctor` is content, `fugu-ultra` is offered, its settings are
    those of its training, and the question that `init` proposes is answered by a workflow."""
    said = fugu("init --home")
    assert said.status == 0
    proposed = next(line for line in said.out.splitlines() if "--model fugu-ultra" in line)
    answered = fugu(proposed.strip().removeprefix("fugu "))
    assert answered.status == 0, answered.err
    assert "<answer>14121</answer>" in answered.out
    assert "home-conductor -> " in answered.err
    checked = fugu("doctor")
    assert checked.status == 0, checked.out
    assert "fugu-ultra@" in checked.out
    config = read_installation(Path("fugu.toml")).conductor
    assert config is not None
    assert (config.worker, config.prompt, config.names, config.on_error) == (
        "home-conductor",
        "brief",
        True,
        "substitute",
    )


def test_the_shipped_conductor_needs_no_torch(fugu: Fugu, tmp_path: Path) -> None:
    """Serving it imports none of the packages that it was trained with."""
    assert fugu("init --home").status == 0
    code = (
        "import sys\nfrom torafugu.cli import main\n"
        "main(['ask', '--model', 'home-conductor', 'hello'])\n"
        "print('heavy:', {'torch', 'transformers', 'onnx', 'peft'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "heavy: set()" in ran.stdout, ran.stderr


def test_a_conductor_that_did_not_ship_is_named(tmp_path: Path) -> None:
    """`shipped:` names only what is here, and the error says what that is."""
    with pytest.raises(ModelError, match=r"'shipped:nowhere'.*this installation has home"):
        find_folder("shipped:nowhere", tmp_path)
    assert find_folder("model", tmp_path) == tmp_path / "model"
    assert (find_folder(HOME_CONDUCTOR, tmp_path) / CARD).is_file()


@pytest.mark.parametrize("name", [CARD, "model.safetensors"])
def test_without_its_conductor_the_demo_ends_before_it_began(name: str, tmp_path: Path) -> None:
    """An installation whose conductor lacks a file: the demo fails at once, says which, and shows nothing else."""
    shutil.copytree(Path(torafugu.__file__).parent, tmp_path / "torafugu", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "torafugu" / "conductors" / "home" / name).unlink()
    ran = subprocess.run(
        [sys.executable, "-m", "torafugu.cli", "demo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "home" in ran.stderr
    assert "Traceback" not in ran.stderr


# --- adapters ---


def test_an_adapter_brings_its_card(fugu: Fugu, tmp_path: Path) -> None:
    """`models add --adapter` of a trained conductor makes a conductor, with a table for both files; without the adapter
    the same folder is none any more."""
    pytest.importorskip("onnx")
    config = tiny(vocabulary=264, max_positions=400)
    source = write_folder(tmp_path / "source", config, random_weights(config))
    shapes = {"model.layers.0.self_attn.q_proj": (64, 64)}
    adapter = write_adapter(tmp_path / "adapter", random_lora(shapes, rank=2), rank=2, alpha=1)
    (adapter / "generation.json").write_text('{"format": "bare"}')
    write_conductor_card(adapter, BRIEF, HOME)
    said = fugu("models add source --to model --id ours --adapter adapter")
    assert said.status == 0, said.err
    worker, _, table = said.out.partition("\n[conductor]")
    assert table == '\nworker = "ours"\n'
    file = write_installation(tmp_path, worker, conductor=table)
    found = opened(read_installation(file))
    assert found.installation.conductor.prompt == "brief"
    assert found.warnings == ()
    assert "trained for exact-math" in fugu("models list model").out
    (source / "conductor.json").unlink(missing_ok=True)
    assert fugu("models add source --to model --id ours --force").status == 0
    assert not (tmp_path / "model" / CARD).exists()


def test_an_adapter_that_lies_apart_makes_a_conductor_too(tmp_path: Path) -> None:
    """A worker whose `extra_body` names the adapter's folder is what that folder's card says."""
    pytest.importorskip("onnx")
    adapter = write_adapter(
        tmp_path / "adapter", random_lora({"model.layers.0.self_attn.q_proj": (64, 64)}, rank=2), rank=2, alpha=1
    )
    write_conductor_card(adapter, BRIEF, HOME)
    worker = local("ours", "model") + 'extra_body = { adapter = "adapter" }\n'
    file = write_installation(tmp_path, worker, conductor='worker = "ours"')
    config = read_installation(file).conductor
    assert config is not None
    assert config.prompt == "brief"
