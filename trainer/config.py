"""What a rank reads of a job: the sections run, model, data, train, checkpoint, deepspeed and tracking.

Imports neither torch nor ray, so that a laptop can validate. Every field says what it is, with its unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["bf16", "fp16", "fp32"]
MomentsPrecision = Literal["fp32", "bf16"]
Codec = Literal["fp32", "bf16", "int8", "int4"]
FEDPROX_MU = 0.01
"""Of FedProx, where `silos.strategy_options` does not say."""
Packing = Literal["concatenate", "best_fit"]
PYTHON_STDLIB, PYTHON_PACKAGES = "python-stdlib", "python-packages"
DEFAULT_SILO = "main"
DEFAULT_SOURCE = "corpus"
"""Name of the one source of a corpus that is no mixture."""


def is_of_python(entry: str) -> bool:
    """Whether an entry of `files` means files of the Python that reads them, wherever that is."""
    return entry.partition("/")[0] in (PYTHON_STDLIB, PYTHON_PACKAGES)


PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
UserFunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen section of the job; a key it does not know is refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class RunConfig(Section):
    name: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9._-]{0,45}[a-z0-9])?$")
    """Name of the run, its folder under `storage` (lower-case letters, digits, `.`, `_`, `-`). Without one, the recipe's name and a timestamp."""
    storage: str = "./runs"
    """Folder or fsspec URL that holds run folders. `ZEROFLEET_STORAGE` sets the default."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initial weights, sample order and dropout. Frozen for the life of a run."""
    init_from: str | None = None
    """`RUN@STEP` (or `RUN` for its newest step): start with the weights of another run's checkpoint, at step 0 with a fresh optimizer."""


class ModelConfig(Section):
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of a transformers config (`model_type` and its sizes): the model starts with random weights. Without `vocab_size`, the tokenizer's, rounded up to a multiple of 64."""
    pretrained: str | None = None
    """A folder or a hub id whose weights to start from, instead of `config`."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel, as transformers names it. `auto` takes what was measured to be faster (docs/speed.md): `eager` on CPUs for short sequences in bf16, `sdpa` else."""
    liger_kernels: bool = False
    """Whether norms, rotary embeddings and gated MLPs are Liger Kernel's, on GPUs (`pip install zerofleet[liger]`). No checkpoint knows of it."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if bool(self.config) == bool(self.pretrained):
            raise ValueError(
                "give either `model.config` (random weights) or `model.pretrained` (a folder or hub id), one of the two"
            )
        if self.config and "model_type" not in self.config:
            raise ValueError("`model.config` needs `model_type`, for example `llama`, `gpt2` or `qwen2`")
        return self


class HubDataset(Section):
    id: str
    """Dataset id on the Hugging Face hub (`HF_ENDPOINT` names another server)."""
    name: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split to read."""
    revision: str | None = None
    """Commit or tag. Pin it: the cache is keyed by it."""


class SourceFields(Section):
    files: list[str] = Field(default_factory=list)
    """Globs, local or any fsspec URL. `python-stdlib` is the standard library's source: a corpus that needs no network; `python-stdlib/GLOB` and `python-packages/GLOB` are files of this Python's standard library and installed packages."""
    hub: HubDataset | None = None
    """A dataset of the Hugging Face hub, instead of `files`."""
    format: Literal["auto", "text", "jsonl", "parquet", "csv", "arrow"] = "auto"
    """Format of `files`; `auto` goes by the ending (.jsonl/.json, .parquet, .csv, .arrow, else text: one document per file). .gz, .zst, .bz2 and .xz are decompressed."""
    text_field: str = "text"
    """Column or key that holds the text, in every format but `text`."""


class DataSource(SourceFields):
    """One source of a mixture, under a name of your choice."""

    weight: PositiveFloat
    """Its share of the samples is this over the sum of all weights."""

    @model_validator(mode="after")
    def _one_place(self) -> DataSource:
        if bool(self.files) == (self.hub is not None):
            raise ValueError("a source of `data.sources` has either `files` or `hub`, one of the two")
        return self


_DECIDED_BY_PUBLICATION = (
    "format",
    "text_field",
    "on_bad",
    "filter",
    "scrub",
    "deduplicate",
    "tokenizer",
    "tokenizer_vocab_size",
    "packing",
    "heldout_fraction",
)


class StreamConfig(Section):
    """A prepared corpus that is larger than the disk."""

    url: str
    """Folder or fsspec URL that `python -m zerofleet.trainer.data.stream.publish` has filled."""
    window_shards: PositiveInt = 16
    """Data shards whose sequences are shuffled together. Frozen for the life of a run: it is part of the order."""
    max_bytes: PositiveInt = 64 * 2**30
    """Most bytes of data shards that a node keeps on its disk: two windows must fit."""


class DataConfig(SourceFields):
    sources: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")], DataSource] = Field(default_factory=dict)
    """A mixture instead of one corpus: sources by name, each with `weight` and with `files` or `hub`, `format` and `text_field` as above."""
    stream: StreamConfig | None = None
    """A corpus that was prepared elsewhere and is read in shards as it is needed, instead of `files`."""
    on_bad: Literal["stop", "quarantine"] = "stop"
    """What becomes of data that cannot be read (bytes that do not decode, a damaged file or row group, a file that goes or changes meanwhile): `stop` names it and ends, `quarantine` leaves it out, counts it and names it in the cache."""
    max_document_bytes: PositiveInt = 2**28
    """Bytes of the longest document, in lines of JSON of the longest line. What is longer is never held in memory, and is bad data."""
    filter: UserFunctionName | None = None
    """`package.module:function` (text -> bool) that says which documents are kept. It is imported where data is prepared; its module's source is part of the cache's name."""
    scrub: UserFunctionName | None = None
    """`package.module:function` (text -> text) that every document goes through after `filter`, for example to take personal data out. As above."""
    deduplicate: Literal["exact", "near"] | None = None
    """Keep one of several equal documents (`exact`), or of nearly equal ones too (`near`: MinHash over five tokens, similarity 0.8; needs `datasketch`). Of all sources together."""
    tokenizer: str | None = None
    """A folder or hub id. Without one, a byte-level BPE is trained on the corpus."""
    tokenizer_vocab_size: int = Field(default=8192, ge=257)
    """Entries of the tokenizer that is trained when none is given: the 256 bytes, the end of a document, and what is learned."""
    sequence_length: int = Field(default=512, ge=2)
    """Tokens per training sequence."""
    packing: Packing = "concatenate"
    """How documents share sequences: `concatenate` puts one after the other and cuts them wherever a sequence is full; `best_fit` cuts only documents that are longer than a sequence."""
    curriculum_stages: PositiveInt = 1
    """Curriculum by length: in so many stages, shuffled each by itself, every epoch goes from sequences of short documents to sequences of long ones. 1 shuffles all together. Needs `best_fit`."""
    document_mask: bool = False
    """Intra-document masking: a token attends to its own document only, and positions start from 0 in each."""
    heldout_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.01
    """Share of documents kept for evaluation, chosen by a keyed hash of their content."""
    cache: str | None = None
    """Local folder for prepared data. By default `$ZEROFLEET_CACHE`, else `~/.cache/zerofleet`."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if [bool(self.files), self.hub is not None, bool(self.sources), self.stream is not None].count(True) != 1:
            raise ValueError(
                f"give `data.files` (globs, or `{PYTHON_STDLIB}`), `data.hub`, `data.sources` or `data.stream`, one of the four"
            )
        decided = {name: type(self).model_fields[name].default for name in _DECIDED_BY_PUBLICATION if self.stream}
        if changed := [f"data.{name}" for name, default in decided.items() if getattr(self, name) != default]:
            raise ValueError(
                f"a corpus in `data.stream` was prepared when it was published: remove {', '.join(changed)}"
            )
        if self.sources and self.packing != "best_fit":
            raise ValueError(
                "`data.sources` needs data.packing=best_fit: concatenated sequences would run across sources"
            )
        if self.curriculum_stages > 1 and (self.packing != "best_fit" or self.stream):
            raise ValueError(
                f"data.curriculum_stages={self.curriculum_stages} needs data.packing=best_fit, and no data.stream: what is concatenated or"
                " streamed in shards has no order by the length of documents"
            )
        return self

    @property
    def by_source(self) -> Mapping[str, SourceFields]:
        """Where each source's documents are, names ascending; one source where it is no mixture."""
        return dict(sorted(self.sources.items())) or {DEFAULT_SOURCE: self}

    @property
    def weights(self) -> dict[str, float]:
        """The sources' weights by name."""
        return {name: source.weight for name, source in self.sources.items()} or {DEFAULT_SOURCE: 1.0}


class ProfileConfig(Section):
    steps: tuple[PositiveInt, PositiveInt]
    """First and last step that is traced. A few: a trace has a line for every op."""
    ranks: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Ranks that are traced."""

    @model_validator(mode="after")
    def _in_order(self) -> ProfileConfig:
        if self.steps[0] > self.steps[1]:
            raise ValueError(f"steps must be the first and the last step that is traced, not {list(self.steps)}")
        return self


class TrainSection(Section):
    steps: PositiveInt
    """Optimizer steps of the whole run."""
    global_batch_size: PositiveInt
    """Sequences per optimizer step: the constant of a run, whatever the number of ranks."""
    micro_batch_size: PositiveInt
    """Sequences per rank and micro-step; also the size of the blocks that the global batch is dealt in."""
    min_micro_batch_size: PositiveInt | None = None
    """Sequences down to which a micro-batch that runs out of memory is halved, with twice the micro-steps and the same global batch; without it, never."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """0 replicates everything; 1 partitions optimizer states, 2 also gradients, 3 also weights."""
    precision: Precision = "bf16"
    """Dtype of the weights in forward and backward; master weights are fp32 always."""
    activation_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more compute."""
    compile: bool = False
    """Compile the model's layers with torch.compile, each for itself: steps are faster, and every start of ranks is later by the compilation. Not with ZeRO-3."""
    moments_precision: MomentsPrecision = "fp32"
    """Dtype of AdamW's two moments, in checkpoints too: bf16 saves 4 bytes per parameter (2 x 2). A run goes on with the dtype that it began with."""
    keep_freed_memory: bool = True
    """On CPUs: a rank keeps what it frees for its next tensors, which makes a small model's step less than half as long; what it holds stays at its peak, and up to twice what is in use. `false` gives it back."""
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 leaves gradients as they are."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's weight decay, on matrices only (biases and norms have none)."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Learning rate after warmup. `wsd` stays at the peak, then falls linearly over the last `decay_steps`."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warmup from 0."""
    decay_steps: NonNegativeInt = 0
    """Steps of the final decay under `wsd`."""
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate, as a share of the peak."""
    eval_interval_steps: NonNegativeInt = 0
    """Steps between evaluations on held-out documents; 0 evaluates before the first step and after the last only."""
    eval_sequences: NonNegativeInt = 0
    """Held-out sequences per evaluation; 0 takes all."""
    deterministic: bool = False
    """Ask torch for deterministic kernels: needed for bitwise claims on GPUs, slower there."""
    loss_spike_threshold: Annotated[float, Field(ge=0)] = 0.0
    """Robust standard deviations above the median of the last 64 losses from which a step is not kept but played again, and its samples left out when it spikes the same; 0 keeps every step. 10 or more is sensible; needs `deterministic` on GPUs."""
    replica_check_interval_steps: NonNegativeInt = 100
    """Steps between comparisons of the 16-bit weights over ranks (stages 0 to 2); 0 never."""
    profile: ProfileConfig | None = None
    """Trace some steps with torch's profiler, into the run folder's `profile/`."""

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> TrainSection:
        if self.min_micro_batch_size is not None and self.min_micro_batch_size > self.micro_batch_size:
            raise ValueError(
                f"min_micro_batch_size ({self.min_micro_batch_size}) exceeds micro_batch_size ({self.micro_batch_size}): lower it"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainSection:
        decay = self.decay_steps if self.schedule == "wsd" else 0
        if self.warmup_steps + decay > self.steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) + decay_steps ({decay}) exceed steps ({self.steps}): lower one or raise train.steps"
            )
        if self.decay_steps and self.schedule != "wsd":
            raise ValueError(
                f"decay_steps belongs to schedule wsd, not {self.schedule}: remove it, or set train.schedule=wsd"
            )
        return self


class CheckpointConfig(Section):
    interval_steps: NonNegativeInt | Literal["auto"] = 50
    """Steps between checkpoints in storage; 0 saves at the end only, `auto` follows their measured cost and the failures seen (Daly 2006). One that is due while the one before is still on its way follows as soon as that is done. A stop always saves."""
    interval_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds after which a save is due whatever the step; 0 never for that reason."""
    snapshot_interval_steps: NonNegativeInt | Literal["auto"] = "auto"
    """Steps between snapshots in the node agents' memory, which a restart goes on from; `auto` as above, or more often where that costs at most 0.5 % of the time; 0 takes none."""
    keep_last: PositiveInt = 3
    """Newest checkpoints to keep."""
    keep_every_steps: NonNegativeInt = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 keeps none for that reason."""
    export: bool = True
    """Write a Hugging Face model folder to `export/` when the run has finished."""
    export_dtype: Precision = "fp32"
    """Dtype of the exported weights; fp32 are the master weights themselves."""


class WandbConfig(Section):
    enabled: bool = False
    """Report to Weights & Biases: one id over all attempts; offline without `WANDB_API_KEY`."""
    project: str = "zerofleet"
    """Project that the run appears in."""
    entity: str | None = None
    """Team or user; the key's own by default."""


class TrackingConfig(Section):
    wandb: WandbConfig = WandbConfig()
    """Weights & Biases. JSON lines under `metrics/` are written always."""


class PrivacyConfig(Section):
    clip_norm: PositiveFloat
    """Length (L2 norm) that a silo's whole delta is cut down to where it is longer."""
    noise_multiplier: PositiveFloat
    """Standard deviation of the Gaussian noise in each element, in clipping norms."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Probability with which epsilon may not hold; below one by the number of records that a silo has."""


class MaskingConfig(Section):
    weight: PositiveFloat
    """What the silo's tokens are multiplied by."""
    weight_limit: PositiveFloat
    """What tokens x weight of all silos in a round cannot exceed together."""


class SiloConfig(Section):
    name: str
    """Name of the silo: keys its sample order, and signs what it sends."""
    interval_steps: PositiveInt
    """Inner steps between two outer steps."""
    overlap_steps: NonNegativeInt = 0
    """Inner steps that go on while an outer step is under way; 0 waits for it."""
    codec: Codec = "fp32"
    """How deltas travel."""
    proximal_mu: float = Field(default=0.0, ge=0)
    """Of fedprox: inner gradients get mu x (weights - outer weights)."""
    privacy: PrivacyConfig | None = None
    """Clipping and noise."""
    key_file: str | None = None
    """Where the silo's secret is kept, instead of its run folder."""
    masking: MaskingConfig | None = None
    """Secure aggregation: deltas leave under masks."""


class TrainConfig(Section):
    """The sections that a rank reads; launch composes them with `cluster` into the JobConfig."""

    run: RunConfig = RunConfig()
    """The run: name, storage, seed."""
    model: ModelConfig
    """The model."""
    data: DataConfig
    """The corpus, its tokenizer and sequence length."""
    train: TrainSection
    """Batch, ZeRO stage, precision, optimizer, schedule, evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save, what to keep, what to export."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Passed through to DeepSpeed's config; what zerofleet owns or cannot checkpoint is refused (`trainer/lint.py`)."""
    tracking: TrackingConfig = TrackingConfig()
    """Trackers besides the run folder."""
    silo: SiloConfig | None = None
    """Written by zerofleet: this run is one silo of another, which says so here."""

    def with_micro_batch(self, size: int) -> TrainConfig:
        """The same with another `train.micro_batch_size`."""
        return self.model_copy(update={"train": self.train.model_copy(update={"micro_batch_size": size})})

    @property
    def order_key(self) -> str:
        """What keys the sample order besides the seed: silos with the same data would else walk through it side by side."""
        return self.silo.name if self.silo is not None else DEFAULT_SILO
