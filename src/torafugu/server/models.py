"""Which models can be asked for: the policies first, then every worker by its own id.

A name is looked up by whom it is asked for: workers that a key may not call do not exist for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..errors import ConfigError, RequestError
from ..orchestrate import Direct, Policy
from ..pool.spec import WorkerSpec
from ..types import Json
from .auth import Client

__all__ = ["Models"]


class Models:
    """The catalogue of one server; it does not change while the server runs."""

    def __init__(self, policies: Mapping[str, Policy], workers: Mapping[str, WorkerSpec]) -> None:
        """
        Raises:
            ConfigError: a policy and a worker have the same name.
        """
        self._workers = dict(workers)
        if both := policies.keys() & self._workers.keys():
            raise ConfigError(f"{sorted(both)} name both a policy and a worker: rename the worker")
        self._policies = dict(policies)
        self._by_pin = {policy.id: policy for policy in policies.values()}
        self._direct = {id: Direct(id) for id in self._workers}
        self._created = int(time.time())

    def find_policy(self, model: str, client: Client) -> Policy:
        """Who decides for this model name; `fugu@1f2e3d4c` insists on the policy of that id.

        Raises:
            RequestError: 404, naming what there is.
        """
        policy = self._policies.get(model) or self._by_pin.get(model)
        if policy is None and client.may_call(model):
            policy = self._direct.get(model)
        if policy is not None:
            return policy
        name = model.partition("@")[0]
        if name in self._policies:
            problem = f"model {model!r} is not loaded: {name!r} is {self._policies[name].id!r} here"
        else:
            problem = f"model {model!r} does not exist: expected one of {', '.join(self._names(client))}"
        raise RequestError(problem, code="model_not_found", status=404, param="model")

    def list_models(self, client: Client) -> dict[str, Json]:
        """The body of GET /v1/models, as OpenAI's clients and as Anthropic's read it: the fields of both."""
        names = self._names(client)
        data = [self._describe(name) for name in names]
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
        return {"object": "list", "data": data, "has_more": False, **ends}

    def describe_model(self, model: str, client: Client) -> dict[str, Json]:
        """The body of GET /v1/models/{id}.

        Raises:
            RequestError: 404.
        """
        self.find_policy(model, client)
        return self._describe(model)

    def _names(self, client: Client) -> list[str]:
        return [*self._policies, *filter(client.may_call, self._workers)]

    def _describe(self, name: str) -> dict[str, Json]:
        entry: dict[str, Json] = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "torafugu",
            "type": "model",
            "display_name": name,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._created)),
            "lifecycle": "active",
        }
        policy = self._policies.get(name) or self._by_pin.get(name)
        if policy is not None:
            return {**entry, "fugu": {"kind": "policy", "policy": policy.id}}
        spec = self._workers[name]
        return {
            **entry,
            "owned_by": spec.tags.provider or spec.dialect,
            "context_length": spec.context_tokens,
            "max_input_tokens": spec.context_tokens,
            "max_output_tokens": spec.max_output_tokens,
            "max_tokens": spec.max_output_tokens,
            "fugu": {
                "kind": "worker",
                "model": spec.model,
                "modalities": spec.modalities,
                "tools": spec.tools,
                "region": spec.tags.region,
                "zero_retention": spec.tags.zero_retention,
                "licence": spec.tags.licence,
            },
        }
