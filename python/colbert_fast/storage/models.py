"""What an index records of the model that built it, and whether another may take its place."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT
    from colbert_fast.storage.manifest import Manifest

__all__ = ["SETTINGS", "ModelRecord", "check_model", "fingerprint_of"]

logger = logging.getLogger(__name__)

# The fields of `ModelConfig`, which needs torch, but for dim, which a model's weights fix.
SETTINGS = frozenset((
    "query_length", "document_length", "query_prefix", "document_prefix", "query_prompt",
    "document_prompt", "do_query_expansion", "attend_to_expansion_tokens", "skiplist_words",
))  # fmt: skip


class ModelRecord(NamedTuple):
    """What finds a model again; None where it is not known.

    Attributes
    ----------
    name
        The name or path that `ColBERT.from_pretrained` takes.
    fingerprint
        Tells weights of one name apart.
    settings
        Lengths, markers, prompts and so on, as JSON has them: options of `from_pretrained`.
    """

    name: str | None = None
    fingerprint: str | None = None
    settings: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: ColBERT | None) -> ModelRecord:
        """The record of a model; of none, an empty one."""
        if model is None:
            return cls()
        return cls(str(model.name), fingerprint_of(model), _settings_of(model))


def fingerprint_of(model: object) -> str | None:
    """What tells the model's weights from others of the same name, if it can tell."""
    fingerprint = getattr(model, "fingerprint", None)
    return None if fingerprint is None else str(fingerprint())


def _settings_of(model: object) -> dict[str, Any] | None:
    config: Any = getattr(model, "config", None)
    if not dataclasses.is_dataclass(config):
        return None
    settings = json.loads(json.dumps(vars(config)))
    return {name: value for name, value in settings.items() if name in SETTINGS}


def check_model(manifest: Manifest, model: ColBERT) -> None:
    """Raise ValueError if `model` has another dim or other weights than built the index.

    Other settings are warned of: queries may be meant to be longer, say.
    """
    if model.dim != manifest.dim:
        raise ValueError(
            f"model: its dim is {model.dim}, the index has dim {manifest.dim}; pass the model that "
            f"the index was built with ({manifest.model or 'not recorded'})"
        )
    found = None if manifest.model_fingerprint is None else fingerprint_of(model)
    if found not in (None, manifest.model_fingerprint):
        raise ValueError(
            "model: the index was built with other weights (fingerprint "
            f"{manifest.model_fingerprint}, this model has {found}); pass the model that it was "
            f"built with ({manifest.model}), or build the index again with this one"
        )
    known, given = manifest.model_settings or {}, _settings_of(model) or {}
    for name in known.keys() & given.keys():
        if known[name] != given[name]:
            logger.warning(
                "model: its %s is %r, the index was built with %r: queries and documents may "
                "become other tokens",
                name,
                given[name],
                known[name],
            )
