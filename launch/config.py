"""A job: the sections that a rank reads plus `cluster`. YAML and `key=value` overrides in, a validated JobConfig out.

Imports neither torch nor ray nor transformers, so that a laptop validates in a moment.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from zerofleet.cluster.config import ClusterConfig
from zerofleet.launch.config_fields import ConfigField, config_fields, known_path, unknown_key, validated
from zerofleet.launch.metrics.config import MetricsConfig
from zerofleet.launch.recipe_text import Override, parse_mapping, parse_overrides, read_text, set_path
from zerofleet.launch.silos.config import SilosConfig
from zerofleet.trainer import frozen
from zerofleet.trainer.config import SourceFields, TrainConfig, is_of_python
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import default_storage


class JobConfig(TrainConfig):
    """Everything a job says. DESIGN 2."""

    cluster: ClusterConfig = ClusterConfig()
    """Nodes, ranks, resources and time limits."""
    metrics: MetricsConfig = MetricsConfig()
    """Where a Prometheus may scrape the run's driver; docs/metrics.md."""
    silos: SilosConfig | None = None
    """Several runs over data that stays apart, which share their weights every so many steps; docs/silo-runs.md."""

    def train_config(self) -> TrainConfig:
        """The sections that a rank reads."""
        return TrainConfig(**{name: getattr(self, name) for name in TrainConfig.model_fields})

    def to_yaml(self) -> str:
        """The resolved job: every field, in the order of its definition. `parse_job` gives the same job back."""
        fields = self.model_dump(mode="json")
        for name in ("silo", "silos"):
            if fields[name] is None:
                del fields[name]
        return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)


def job_fields() -> dict[str, ConfigField]:
    """Every field of a job by its dotted path."""
    return config_fields(JobConfig)


def load_job(path: Path | str, overrides: Iterable[str] = ()) -> JobConfig:
    """Reads a recipe, applies `key=value` overrides, fills in defaults and makes local paths absolute.

    NotFoundError when the file is missing, UserError for whatever is wrong in it.
    """
    return resolve_paths(parse_job(read_text(Path(path), "recipe"), str(path), overrides))


def parse_job(text: str, source: str, overrides: Iterable[str] = ()) -> JobConfig:
    """A JobConfig from YAML text; `source` names the text in errors. Paths stay as they are."""
    return _validate(parse_mapping(text, source), source, parse_overrides(overrides))


def override_job(job: JobConfig, overrides: Iterable[str]) -> JobConfig:
    """`job` with `key=value` changes. UserError for a wrong one."""
    return _validate(job.model_dump(mode="json"), "the run's job", parse_overrides(overrides))


def frozen_changes(before: JobConfig, after: JobConfig) -> list[str]:
    """One line for each frozen field that differs between two jobs: what a resume must refuse."""
    return frozen.frozen_changes(before.model_dump(mode="json"), after.model_dump(mode="json"))


def resolve_paths(job: JobConfig) -> JobConfig:
    """Makes local paths absolute, so that the run can be resumed from any folder."""
    sources = {name: source.model_copy(update=_files(source)) for name, source in job.data.sources.items()}
    data = job.data.model_copy(
        update={
            **_files(job.data),
            "sources": sources,
            "tokenizer": _absolute_if_there(job.data.tokenizer),
            "cache": _absolute(job.data.cache) if job.data.cache else None,
        }
    )
    model = job.model.model_copy(update={"pretrained": _absolute_if_there(job.model.pretrained)})
    run = job.run.model_copy(update={"storage": _absolute(job.run.storage)})
    return job.model_copy(update={"run": run, "model": model, "data": data, "silos": _resolved_silos(job.silos)})


def _resolved_silos(silos: SilosConfig | None) -> SilosConfig | None:
    if silos is None:
        return None
    members = {
        name: member.model_copy(
            update={
                **_files(member),
                "environment_file": _absolute(member.environment_file) if member.environment_file else None,
            }
        )
        for name, member in silos.members.items()
    }
    return silos.model_copy(update={"members": members})


def _files(source: SourceFields) -> dict[str, list[str]]:
    return {"files": [file if is_of_python(file) else _absolute(file) for file in source.files]}


def resolve_overrides(overrides: Iterable[str]) -> list[str]:
    """Overrides of a resume with local paths made absolute: they are kept, and read again from any folder."""
    return [_resolved(override) for override in parse_overrides(overrides)]


def _resolved(override: Override) -> str:
    if override.path != "data.cache" or override.value is None:
        return f"{override.path}={override.text}"
    path = (
        override.value if isinstance(override.value, str) else override.text
    )  # what looks like something else is text
    return f"{override.path}={json.dumps(_absolute(path))}"  # in quotes, for the same reason


def _validate(mapping: dict[str, Any], source: str, overrides: list[Override]) -> JobConfig:
    fields, mapping = job_fields(), copy.deepcopy(mapping)
    for override in overrides:
        set_path(mapping, override.keys, _override_value(override, fields))
    run = mapping.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("storage", default_storage())
    return validated(JobConfig, mapping, source)


def _override_value(override: Override, fields: dict[str, ConfigField]) -> Any:
    """The value in the field's type: `run.name=007` is text where text is meant. UserError for an unknown key."""
    path = holder = known_path(override.keys, fields)
    while holder and holder not in fields:
        holder = holder.rpartition(".")[0]
    field = fields.get(holder)
    if field is None or (holder != path and not field.is_open):
        raise UserError(unknown_key(override.keys, fields))
    takes_text = holder == path and str in field.types
    is_text = override.value is None or isinstance(override.value, str)
    return override.text if takes_text and not is_text else override.value


def _absolute(path: str) -> str:
    """A local path or glob made absolute; URLs as they are."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _absolute_if_there(path: str | None) -> str | None:
    """A folder's absolute path; a hub id, which looks like a relative path, as it is."""
    return _absolute(path) if path and Path(path).expanduser().exists() else path
