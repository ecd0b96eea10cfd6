"""`orchestrate/policies.py`: any trained folder loads as what its card says it is, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinators import make_head as make_coordinator
from heads import Texts, models
from heads import make_head as make_selector
from torafugu.errors import ModelError
from torafugu.orchestrate.coordinator import Coordinator, CoordinatorHead
from torafugu.orchestrate.head import Head
from torafugu.orchestrate.policies import KINDS, load_policy
from torafugu.orchestrate.selector import Selector

WORKERS = "abc"


def save(folder: Path, kind: str) -> Path:
    (make_selector(WORKERS) if kind == "selector" else make_coordinator(WORKERS)).save(folder)
    return folder


@pytest.mark.parametrize(("kind", "of"), [("selector", Selector), ("coordinator", Coordinator)])
def test_a_folder_loads_as_what_its_card_says(kind: str, of: type, tmp_path: Path) -> None:
    """A selector's folder is the policy behind `fugu`, a coordinator's that behind `fugu-trinity`."""
    policy = load_policy(save(tmp_path / "policy", kind), Texts(), models(WORKERS))
    assert isinstance(policy, of)
    assert (
        policy.id
        == f"{KINDS[kind]}@{json.loads((tmp_path / 'policy' / 'card.json').read_text())['weights_sha256'][:12]}"
    )


def test_one_kind_is_not_read_as_the_other(tmp_path: Path) -> None:
    """Each head refuses the other's folder, naming both kinds."""
    with pytest.raises(ModelError, match="a 'coordinator' of schema 1: expected 'selector'"):
        Head.load(save(tmp_path / "trinity", "coordinator"))
    with pytest.raises(ModelError, match="a 'selector' of schema 1: expected 'coordinator'"):
        CoordinatorHead.load(save(tmp_path / "policy", "selector"))


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """A card of a kind that nobody serves is an error that lists those there are."""
    folder = save(tmp_path / "policy", "selector")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"kind": "conductor"}))
    with pytest.raises(ModelError, match="a 'conductor' of schema 1: expected 'selector' or 'coordinator'"):
        load_policy(folder, Texts(), models(WORKERS))


@pytest.mark.parametrize("kind", ["selector", "coordinator"])
def test_what_does_not_fit_is_refused(kind: str, tmp_path: Path) -> None:
    """An empty folder, damaged weights, another encoder and other workers are errors: there is no fallback."""
    with pytest.raises(ModelError, match="no trained head here"):
        load_policy(tmp_path, Texts(), models(WORKERS))
    folder = save(tmp_path / "policy", kind)
    with pytest.raises(ModelError, match="'texts'; this is 'other'"):
        load_policy(folder, Texts("other"), models(WORKERS))
    with pytest.raises(ModelError, match="was trained for"):
        load_policy(folder, Texts(), models("abd"))
    raw = (folder / "head.safetensors").read_bytes()
    (folder / "head.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ModelError, match="damaged"):
        load_policy(folder, Texts(), models(WORKERS))
