"""`zerofleet eval RUN|RUN@STEP|FOLDER [--data ...]`: loss and perplexity of a checkpoint or an export, on its run's held-out part or other data."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from zerofleet.launch.chatter import chatter_apart
from zerofleet.launch.commands.export import at_step
from zerofleet.launch.drivers import effective_job
from zerofleet.launch.exit_codes import OK
from zerofleet.trainer.config import DataConfig, ModelConfig, Precision, TrainConfig, TrainSection
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs
    from zerofleet.trainer.evaluation import Evaluation

_MICRO_BATCH_SIZE = 4
"""Sequences at a time, of an export whose run is not known."""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("eval", help="loss and perplexity of a checkpoint or an export on other data")
    parser.add_argument(
        "model", metavar="RUN|RUN@STEP|FOLDER", help="a run, a step of it, or an exported model's folder"
    )
    parser.add_argument(
        "--data", nargs="+", metavar="GLOB", help="files, as data.files has them (default: the run's own held-out part)"
    )
    parser.add_argument("--text-field", metavar="NAME", help="of these files' records (default: the run's)")
    parser.add_argument("--sequence-length", type=int, metavar="N", help="tokens (default: the run's)")
    parser.add_argument("--sequences", type=int, default=0, metavar="N", help="the first so many (default: all)")
    parser.add_argument("--precision", choices=get_args(Precision), help="of the weights (default: the run's)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(handler=run)


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model's folder, or a run of which one is to be made."""

    run: RunFolder | None
    step: int | None = None
    folder: Path | None = None

    @staticmethod
    def of(text: str) -> Subject:
        """Raises NotFoundError, UserError."""
        folder = Path(text)
        if (folder / "config.json").is_file():
            is_runs_own = (folder.parent / "job.yaml").is_file()
            return Subject(RunFolder.open(str(folder.absolute().parent)) if is_runs_own else None, folder=folder)
        name, at, step = text.rpartition("@")
        if not at or "/" in step:
            return Subject(RunFolder.open(text))
        if not step.isdecimal():
            raise UserError(
                f"{text!r}: {step!r} is no step: write RUN@STEP, for example {name}@1000, or {name} for its newest"
            )
        return Subject(RunFolder.open(name), int(step))


def run(arguments: argparse.Namespace) -> int:
    subject = Subject.of(arguments.model)
    if arguments.sequences < 0:
        raise UserError(f"--sequences is {arguments.sequences}: give a number of sequences, or leave it out for all")
    job = None if subject.run is None else effective_job(subject.run)
    if job is not None and job.silos is not None and not arguments.data:
        raise UserError("a run of silos has no data of its own: name some with --data, or evaluate one silo's run")
    config = None if job is None else job.train_config()
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix="zerofleet-eval-") as place, chatter_apart():
        try:
            found = _evaluate(subject, config, arguments, Path(place), said)
        except ImportError as error:
            raise UserError(f"eval needs {error.name}: pip install 'zerofleet[train]'") from error
    sys.stderr.write("".join(f"warning: {sentence}\n" for sentence in said))
    facts = {"loss": found.loss, "perplexity": found.perplexity, "tokens": found.tokens, "sequences": found.sequences}
    if arguments.json:
        sys.stdout.write(json.dumps({"model": arguments.model, "data": arguments.data, **facts}) + "\n")
    else:
        sys.stdout.write(
            f"loss {found.loss:.4f}, perplexity {found.perplexity:.4g}, over {found.tokens:,} tokens in {found.sequences:,} sequences\n"
        )
    return OK


def _evaluate(
    subject: Subject, config: TrainConfig | None, arguments: argparse.Namespace, place: Path, said: list[str]
) -> Evaluation:
    from zerofleet.trainer.checkpoint.export import export
    from zerofleet.trainer.data.prepare import prepare
    from zerofleet.trainer.evaluation import check_positions, check_vocabulary, evaluate, load_model

    folder = subject.folder
    if folder is None:
        assert subject.run is not None
        checkpoint = None if subject.step is None else at_step(subject.run, subject.step)
        folder = Path(export(subject.run, checkpoint, place / "model", "fp32", said.append))
    config = evaluated(config, folder, arguments)
    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None)
    model = load_model(folder, config)
    check_vocabulary(model, cache.tokenizer_size)
    check_positions(model, config.data.sequence_length)
    store = cache.train if arguments.data else cache.heldout
    return evaluate(model, config, store, arguments.sequences)


def evaluated(config: TrainConfig | None, folder: Path, arguments: argparse.Namespace) -> TrainConfig:
    """The run's config with other data and options; of an export whose run is not known, one that says as much as is needed. Raises
    UserError."""
    if arguments.sequence_length is not None and arguments.sequence_length < 2:
        raise UserError(
            f"--sequence-length={arguments.sequence_length}: a token is told from those before it, so at least 2 are needed"
        )
    if config is None:
        if not arguments.data or arguments.sequence_length is None:
            raise UserError(f"{folder} does not lie in its run: give --data and --sequence-length")
        data = DataConfig(files=arguments.data, tokenizer=str(folder), sequence_length=arguments.sequence_length)
        train = TrainSection(steps=1, global_batch_size=1, micro_batch_size=_MICRO_BATCH_SIZE, precision="fp32")
        config = TrainConfig(model=ModelConfig(pretrained=str(folder)), data=data, train=train)
    if not arguments.data and arguments.sequence_length is not None:
        raise UserError("--sequence-length goes with --data: the run's own held-out part is cut as it was in training")
    if arguments.data:
        config = config.model_copy(update={"data": _other_data(config.data, folder, arguments)})
    precision = arguments.precision or config.train.precision
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def _other_data(own: DataConfig, folder: Path, arguments: argparse.Namespace) -> DataConfig:
    """Every document of these files, by the model's tokenizer, cut and packed as the run's own data."""
    return DataConfig(
        files=arguments.data,
        text_field=arguments.text_field or own.text_field,
        tokenizer=str(folder),
        sequence_length=arguments.sequence_length or own.sequence_length,
        packing=own.packing,
        document_mask=own.document_mask,
        heldout_fraction=0.0,
        cache=own.cache,
    )
