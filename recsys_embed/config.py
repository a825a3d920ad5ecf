"""The configuration: one closed tree, read from TOML.

An unknown key is an error that names its path and the nearest key there is. Everything a run depends on
is in the tree, so that ``resolved`` written back to disk repeats the run.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from recsys_embed.errors import ConfigError
from recsys_embed.storage import FP32, Storage, StorageType


class Node(BaseModel):
    """A table of the config: closed, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _a_size(value: int | str | None) -> int | str | None:
    from recsys_embed.budget import size_in_bytes  # which needs the nodes below

    if value is not None:
        size_in_bytes(value)
    return value


# --- embedding strategies: the union below is the list of them -----------------------------------------------


class StrategyNode(Node):
    """An embedding strategy, told apart by its name.

    ``bytes``: a budget of their own for the features under it, of which small ones then stay exact only by name;
    without it they share what others leave of ``embedding.budget``.
    """

    name: str
    bytes: int | str | None = None

    @property
    def settled(self) -> bool:
        """Whether its options give its size, and nothing is left to a budget."""
        return False

    @field_validator("bytes")
    @classmethod
    def _size(cls, value: int | str | None) -> int | str | None:
        return _a_size(value)

    def table_storage(self) -> Storage:
        """How its tables are stored, each around the middle of its initial weights."""
        return FP32


class StoredNode(StrategyNode):
    """A strategy whose tables can be stored in fewer bits. ``scale``: the step of integers; by default of the type."""

    storage: StorageType = "fp32"
    scale: float | None = Field(default=None, gt=0)

    @field_validator("scale")
    @classmethod
    def _scale_of_integers(cls, scale: float | None, info: ValidationInfo) -> float | None:
        storage = info.data.get("storage")  # absent where it is itself wrong
        if scale is not None and storage is not None and not Storage.of(storage).integer:
            raise ValueError(f"a scale is for storage 'int8' and 'int16', and not for {storage!r}")
        return scale

    def table_storage(self) -> Storage:
        """The storage that was asked for."""
        return Storage.of(self.storage, self.scale)


class FullConfig(StoredNode):
    """One row per id: no compression."""

    name: Literal["full"] = "full"


class HashConfig(StoredNode):
    """The hashing trick: one smaller table per feature, ids hashed to its rows."""

    name: Literal["hash"] = "hash"


class UnifiedConfig(StoredNode):
    """Unified (multiplexed) embedding: every feature reads ``chunks`` rows of ``tables`` shared tables."""

    name: Literal["unified"] = "unified"
    chunks: int = Field(default=2, ge=1)
    tables: int = Field(default=1, ge=1)


class CompositionalConfig(StoredNode):
    """Compositional embedding: ``partitions`` complementary partitions (2: quotient and remainder)."""

    name: Literal["compositional"] = "compositional"
    operation: Literal["multiply", "add", "concat"] = "multiply"
    partitions: int = Field(default=2, ge=2, le=4)


class RobeConfig(StrategyNode):
    """ROBE: every feature reads blocks of ``block`` neighbouring floats of one array, with hashed signs."""

    name: Literal["robe"] = "robe"
    block: int = Field(default=8, ge=1)
    signs: bool = True


class CafeConfig(StrategyNode):
    """CAFE: rows of their own for the ids whose gradients matter most, found by a sketch; hashed rows for the others.

    Importance is 1 for an average occurrence. An id gets a row at a score of ``threshold``; scores shrink by ``decay``
    as importance accrues, and are brought up to date ``every`` so many steps. ``hash_rate`` is the share of the bytes
    for hashed rows. Threshold and hash rate follow from the budget where they are left out.
    """

    name: Literal["cafe"] = "cafe"
    threshold: float | None = Field(default=None, gt=0)
    hash_rate: float | None = Field(default=None, gt=0, lt=1)
    decay: float = Field(default=0.99, gt=0, le=1)
    every: int = Field(default=10, ge=1)


class DnisConfig(StrategyNode):
    """DNIS: search, per block of ids of like frequency, which dimensions matter; prune to the budget; retrain.

    ``blocks`` of each vocabulary hold equally many ids. ``alpha_lr`` is the mean move of a block's importances
    in a step of the search, ``alpha_l1`` the weight of the sum of importances.
    """

    name: Literal["dnis"] = "dnis"
    blocks: int = Field(default=10, ge=1)
    warm_up_epochs: int = Field(default=2, ge=1)
    search_epochs: int = Field(default=2, ge=1)
    alpha_lr: float = Field(default=0.01, gt=0)
    alpha_l1: float = Field(default=1e-5, ge=0)


class MixedDimensionConfig(StoredNode):
    """Mixed dimension embedding: narrower rows for larger vocabularies, projected to the common width.

    ``width``: that of every row; a tuple has one for each block of ids of like frequency, 0 drops a block or feature,
    and nothing is left to the budget. Else widths fall with cardinality to the power of ``alpha``, where 0 is one width
    for all, and the budget sets the widest; without ``alpha`` the widest is full and the budget sets alpha.
    ``power_of_two``: widths that are found are rounded to powers of two.
    """

    name: Literal["mixed_dimension"] = "mixed_dimension"
    width: int | tuple[int, ...] | None = None
    alpha: float | None = Field(default=None, ge=0, le=1)
    power_of_two: bool = True

    @field_validator("width")
    @classmethod
    def _widths(cls, width: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if width is not None and (width == () or min(_each(width)) < 0):
            raise ValueError("a width is 0 or more, or a list of such numbers, one for each block of ids")
        return width

    @field_validator("alpha", "power_of_two")
    @classmethod
    def _one_rule(cls, value: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("width") is not None and value is not None and value is not True:
            raise ValueError(f"this is for widths that are found, and width = {info.data['width']} gives them")
        return value

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each block, where they are given."""
        return () if self.width is None else _each(self.width)

    @property
    def settled(self) -> bool:
        """Whether widths are given."""
        return self.width is not None


def _each(width: int | tuple[int, ...]) -> tuple[int, ...]:
    return width if isinstance(width, tuple) else (width,)


class MagnitudeConfig(StrategyNode):
    """Magnitude pruning: train for ``warm_up_epochs``; keep the largest weights, as many as the budget has; retrain."""

    name: Literal["magnitude"] = "magnitude"
    warm_up_epochs: int = Field(default=2, ge=1)


class PepConfig(StrategyNode):
    """PEP: learn soft thresholds, sigmoid(s), per block of ids and dimension; prune to the budget; retrain.

    ``blocks`` of each vocabulary hold equally many ids. ``s_start`` is where s begins; below -16 the loss's part in its
    gradient would be lost in Adam's eps. ``s_lr`` is its Adam's learning rate, about the most it moves in a step.
    ``s_decay`` draws it to 0 against the loss: the gradient has ``s_decay · s`` in it.
    """

    name: Literal["pep"] = "pep"
    blocks: int = Field(default=10, ge=1)
    search_epochs: int = Field(default=4, ge=1)
    s_start: float = Field(default=-8.0, ge=-16, le=0)
    s_lr: float = Field(default=0.1, gt=0)
    s_decay: float = Field(default=1e-4, ge=0)


StrategyConfig = Annotated[
    FullConfig
    | HashConfig
    | UnifiedConfig
    | CompositionalConfig
    | RobeConfig
    | CafeConfig
    | DnisConfig
    | MixedDimensionConfig
    | MagnitudeConfig
    | PepConfig,
    Field(discriminator="name"),
]
STRATEGIES: dict[str, type[StrategyNode]] = {
    cls.model_fields["name"].default: cls
    for cls in (
        FullConfig,
        HashConfig,
        UnifiedConfig,
        CompositionalConfig,
        RobeConfig,
        CafeConfig,
        DnisConfig,
        MixedDimensionConfig,
        MagnitudeConfig,
        PepConfig,
    )
}


def as_patterns(value: Any) -> Any:
    """A strategy's name, or one strategy's table, stands for the pattern ``*``.

    A table whose key ``name`` is the name of a strategy is a strategy, unless all its keys that are no option have a
    strategy as their value; any other table maps patterns to strategies.
    """

    def table(one: Any) -> Any:
        return {"name": one} if isinstance(one, str) else one

    if isinstance(value, (str, Node)):
        return {"*": table(value)}
    if isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"] in STRATEGIES:
        known = {key for cls in STRATEGIES.values() for key in cls.model_fields}
        others = [one for key, one in value.items() if key not in known]
        if not others or not all(isinstance(one, (dict, Node)) or str(one) in STRATEGIES for one in others):
            return {"*": value}
    if isinstance(value, dict):
        return {pattern: table(one) for pattern, one in value.items()}
    return value


class EmbeddingConfig(Node):
    """How the categorical features become vectors, and how many bytes that may take: options of an embedding layer."""

    strategy: dict[str, StrategyConfig] = Field(default={"*": FullConfig()}, min_length=1)
    budget: int | float | str | None = None
    exact: tuple[str, ...] | None = None
    on_unknown: Literal["unseen", "error"] = "unseen"
    decay: float = Field(default=0.0, ge=0)
    seed: int = 0
    hash_seed: int = 0
    backend: Literal["auto", "reference", "native", "fused", "sharded"] = "auto"

    _patterns = field_validator("strategy", mode="before")(as_patterns)


class TrainedEmbeddingConfig(EmbeddingConfig):
    """Options of an embedding layer, and what its tables begin with.

    ``initial``: for some features, a file of vectors to begin with, relative to the working directory as ``data.path``
    is: a column ``id`` of raw values and a column ``vector`` of lists, or columns ``v0``, ``v1``, … of numbers. Ids
    without a vector begin with random weights as ever, the unseen one among them; ids that the training split does
    not have are left out. It takes a strategy whose rows are vectors: ``full``, also of small features that stay
    exact, and ``mixed_dimension`` at full width.
    """

    initial: dict[str, str] = {}


class ShardingConfig(Node):
    """Where tables lie when several processes train. ``placement`` maps patterns of table names to a kind.

    ``auto``: data-parallel below ``replicate_below`` bytes, else what TorchRec's planner chooses. ``device_memory``:
    bytes a rank may give to rows and their optimizer state. ``timeout_seconds``: how long a rank waits for the others
    before it gives up; what one of them saves or logs between two steps has to take less.
    """

    placement: dict[str, Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"]] = {"*": "auto"}
    replicate_below: int | str = "64KB"
    device_memory: int | str | None = None
    timeout_seconds: float = Field(default=600.0, ge=5)

    @field_validator("replicate_below", "device_memory")
    @classmethod
    def _sizes(cls, value: int | str | None) -> int | str | None:
        return _a_size(value)


# --- data ----------------------------------------------------------------------------------------------------

DataFormat = Literal["auto", "criteo", "avazu", "movielens_1m", "movielens_25m", "libsvm"]


class LabelConfig(Node):
    """Which values of a column are positive and which negative; rows with any other value are dropped and counted."""

    column: str
    positive: tuple[str | int | float, ...] = ("1",)
    negative: tuple[str | int | float, ...] = ("0",)


class TimeSplitConfig(Node):
    """Rows in the order of a column: validation begins at the value ``val``, test at ``test``; or, with ``fractions``,
    where these shares of all rows lie before. Numbers, or text in the order of its bytes, as ISO 8601 is."""

    column: str
    val: int | float | str | None = None
    test: int | float | str | None = None
    fractions: tuple[float, float, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _default(cls, value: Any) -> Any:
        return {"column": value, "fractions": (0.8, 0.1, 0.1)} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way(self) -> TimeSplitConfig:
        given = (self.val is not None, self.test is not None)
        if any(given) == (self.fractions is not None) or given[0] != given[1]:
            raise ValueError("time needs either val and test, or fractions")
        if self.fractions is not None:
            _check_fractions(self.fractions, "time.fractions")
        elif isinstance(self.val, str) != isinstance(self.test, str):
            raise ValueError(f"val and test are both numbers or both text, got {self.val!r} and {self.test!r}")
        elif self.val >= self.test:  # type: ignore[operator]
            raise ValueError(f"validation begins before test, got {self.val!r} and {self.test!r}")
        return self


def _check_fractions(fractions: tuple[float, float, float], name: str) -> None:
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"{name} fractions are positive and sum to 1, got {list(fractions)}")


class SplitConfig(Node):
    """Seeded random fractions, all rows of one value of ``group`` in one split; a column that says train/val/test; the
    order of time; ``every = k``: of each k rows of a file the last is for test and the one before it for validation;
    or one file per split."""

    random: tuple[float, float, float] | None = None
    seed: int = 0
    group: str | None = None
    column: str | None = None
    time: TimeSplitConfig | None = None
    every: int | None = Field(default=None, ge=3)
    files: dict[Literal["train", "val", "test"], str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _default(cls, value: Any) -> Any:
        if isinstance(value, dict) and not {"random", "column", "time", "every", "files"} & set(value):
            return {**value, "random": (0.8, 0.1, 0.1)}
        return value

    @model_validator(mode="after")
    def _one_way(self) -> SplitConfig:
        if sum(way is not None for way in (self.random, self.column, self.time, self.every, self.files)) != 1:
            raise ValueError("split is exactly one of random, column, time, every, files")
        if self.random is not None:
            _check_fractions(self.random, "random")
        if self.group is not None and self.random is None:
            raise ValueError("group goes with random")
        if self.files is not None and set(self.files) != {"train", "val", "test"}:
            raise ValueError(f"files names train, val and test, got {sorted(self.files)}")
        return self


class PlantedConfig(Node):
    """The planted data set: Zipf-distributed features and a known logistic model with pairwise interactions."""

    rows: int = Field(default=300_000, ge=100)
    cardinalities: tuple[int, ...] = (100_000, 50_000, 20_000, 10_000, 5_000, 2_000, 1_000, 500, 100, 10)
    exponent: float = Field(default=0.9, gt=0)
    multi_valued: int = Field(default=1, ge=0)
    numeric: int = Field(default=2, ge=0)
    noise: float = Field(default=0.0, ge=0)
    seed: int = 0


class ColumnConfig(Node):
    """What differs for one feature from what ``data`` says of all."""

    min_count: int | None = Field(default=None, ge=1)
    max_vocabulary: int | None = Field(default=None, ge=1)
    missing: Literal["pooled", "own"] | None = None
    raw_hash: bool | None = None


class DataConfig(Node):
    """Where the rows are and what their columns mean.

    A public ``format`` brings label and features with it, which keys given here replace one by one. ``auto`` is any
    CSV, TSV or Parquet file; ``separator`` is for these.

    A value gets an id when it is counted at least ``min_count`` times in the training rows, and is among the
    ``max_vocabulary`` most frequent ones. The others, and those not seen in training, share id 0; a missing cell too
    where ``missing`` is ``pooled``, and has an id of its own where it is ``own``. ``columns`` says otherwise for some
    features. ``crosses`` are features made of several columns, and ``buckets`` of a numeric one: so many quantiles of
    its training rows, or ``log_square``.

    ``weight``: a column that says how much each row counts in the training loss and in every metric, not negative.
    Vocabularies, frequencies and scalers count rows all the same. Prediction does not need it.

    ``negative_rate``: negative rows, in all splits alike, were kept with this probability before the data were
    written. Training takes the rows as they are; predictions are brought back to the rows there were, and logloss,
    normalised entropy and calibration are measured on those; see :class:`recsys_embed.recommender.Recommender`. Where
    ``weight`` undoes the sampling already, leave it at 1.

    ``raw_hash``: no vocabulary; ids are 63-bit hashes of the values, with the seed ``hash_seed``, for strategies that
    hash, and budgets are bytes. A missing cell is id 0, and no value is.

    A row that cannot be used (text in a numeric column, a field too few, …) is an error that names it. Where
    ``on_bad_rows`` is ``skip`` such rows are left out, and counted by reason in the data set and in reports.
    """

    path: str | None = None
    format: DataFormat = "auto"
    planted: PlantedConfig | None = None
    label: str | LabelConfig = "label"
    weight: str | None = None
    negative_rate: float = Field(default=1.0, gt=0, le=1)
    categorical: tuple[str, ...] = ()
    multi_valued: dict[str, str] = {}
    numeric: tuple[str, ...] | dict[str, Literal["log", "standard"]] = ()
    split: SplitConfig = SplitConfig(random=(0.8, 0.1, 0.1))
    crosses: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = {}
    buckets: dict[str, Annotated[int, Field(ge=2)] | Literal["log_square"]] = {}
    min_count: int = Field(default=1, ge=1)
    max_vocabulary: int | None = Field(default=None, ge=1)
    missing: Literal["pooled", "own"] = "pooled"
    raw_hash: bool = False
    hash_seed: int = 0
    columns: dict[str, ColumnConfig] = {}
    on_bad_rows: Literal["error", "skip"] = "error"
    separator: str | None = None
    vocabulary: dict[str, str] = {}
    pooling: Literal["sum", "mean"] = "mean"

    @model_validator(mode="before")
    @classmethod
    def _usual_roles(cls, value: Any) -> Any:
        name = value.get("format", "auto") if isinstance(value, dict) else "auto"
        if name == "auto" or name not in get_args(DataFormat):
            return value
        from recsys_embed.data.formats import FORMATS  # which needs the nodes below

        return {**FORMATS[name].roles, **value}

    @model_validator(mode="after")
    def _separator_of_auto(self) -> DataConfig:
        if self.separator is not None and self.format != "auto":
            raise ValueError(f"a separator is for format 'auto': {self.format!r} has its own")
        if self.planted is not None and self.format != "auto":
            raise ValueError(f"planted data are not read from files: leave out format = {self.format!r}")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if sum(source is not None for source in (self.path, self.planted, self.split.files)) != 1:
            raise ValueError("data comes from exactly one of path, planted, split.files")
        if self.planted is not None and self.negative_rate < 1:
            raise ValueError(f"planted data are not sampled, got negative_rate = {self.negative_rate}")
        return self

    @property
    def labels(self) -> LabelConfig:
        """The label as a column with its positive and negative values."""
        return self.label if isinstance(self.label, LabelConfig) else LabelConfig(column=self.label)

    @property
    def feature_names(self) -> list[str]:
        """Categorical columns, crosses, buckets, multi-valued columns: the order of a data set's features."""
        return [*self.categorical, *self.crosses, *self.buckets, *self.multi_valued]

    def missing_of(self, feature: str) -> Literal["pooled", "own"]:
        """What a missing cell of a feature is."""
        return self.columns.get(feature, ColumnConfig()).missing or self.missing

    def limits_of(self, vocabulary: str) -> ColumnConfig:
        """The least count and the largest size of a vocabulary."""
        own = self.columns.get(vocabulary, ColumnConfig())
        return ColumnConfig(
            min_count=own.min_count or self.min_count, max_vocabulary=own.max_vocabulary or self.max_vocabulary
        )

    def hashes(self, feature: str) -> bool:
        """Whether a feature's ids are hashes of its values."""
        own = self.columns.get(self.vocabulary.get(feature, feature), ColumnConfig()).raw_hash
        return self.raw_hash if own is None else own

    @property
    def scalings(self) -> dict[str, str]:
        """Each numeric column with its scaling; ``standard`` where only names were given."""
        return dict(self.numeric) if isinstance(self.numeric, dict) else dict.fromkeys(self.numeric, "standard")


class GrowthConfig(Node):
    """How vocabularies change when a model is trained on with the rows of a new day; see ``continue_data``.

    A value that is not known gets an id when it is in the day's training rows and was counted ``admit_count`` times,
    over all nights. ``expire_after``: it loses the id after so many nights without an occurrence (``expire_by =
    "inactivity"``), or so many nights after it got it (``"age"``); the id is given to another value then.

    ``max_ids`` is the most ids that a vocabulary may ever have, id 0 included. When all are taken the value that was
    not seen for longest makes room, or the oldest by ``"age"``; of equals the rarest tonight, then the rarest ever,
    then that of the largest id. A value of this day makes room for those alone that are more frequent in it.

    ``pending``: the most values of a vocabulary that wait to be counted often enough. Beyond that the rarest are
    forgotten, and the account of the night says how many.
    """

    admit_count: int = Field(default=1, ge=1)
    expire_after: int | None = Field(default=None, ge=1)
    expire_by: Literal["inactivity", "age"] = "inactivity"
    max_ids: int | None = Field(default=None, ge=2)
    pending: int = Field(default=1_000_000, ge=0)


# --- model and training --------------------------------------------------------------------------------------


class DCNv2Config(Node):
    """Deep & cross network, version 2, stacked."""

    name: Literal["dcn_v2"] = "dcn_v2"
    dim: int = Field(default=16, ge=1)
    cross_layers: int = Field(default=2, ge=1)
    hidden: tuple[int, ...] = (256, 128)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class DLRMConfig(Node):
    """DLRM: dot products between all pairs of vectors."""

    name: Literal["dlrm"] = "dlrm"
    dim: int = Field(default=16, ge=1)
    bottom: tuple[int, ...] = (64,)
    top: tuple[int, ...] = (256, 128)
    dropout: float = Field(default=0.0, ge=0, lt=1)


ModelConfig = Annotated[DCNv2Config | DLRMConfig, Field(discriminator="name")]


class OptimizerConfig(Node):
    """One optimizer for the tables, one for everything else.

    ``tables = "adam"`` trains plain parameters densely; ``"lazy_adam"`` (``torch.optim.SparseAdam``) only rows that
    were read: their moments, of twice the bytes of the weights, decay in such steps alone.
    """

    tables: Literal["rowwise_adagrad", "adagrad", "sgd", "lazy_adam", "adam"] = "rowwise_adagrad"
    tables_lr: float = Field(default=0.05, gt=0)
    dense: Literal["adam", "adagrad", "sgd"] = "adam"
    dense_lr: float = Field(default=0.001, gt=0)
    dense_decay: float = Field(default=0.0, ge=0)


class TrainingConfig(Node):
    """The training protocol: early stopping on validation, the best weights kept.

    A checkpoint is written after every epoch and, with ``checkpoint_steps``, each so many steps; the newest
    ``keep_checkpoints`` are kept, and the best epochs of these.

    A split of which training reads shuffled rows, and that takes more than ``shuffle_memory`` as it is encoded, is
    shuffled by blocks of neighbouring rows: as many rows as that has room for are mixed at a time, and no more of it is
    held by a process. The order depends on it, so it is no share of the memory that a machine happens to have.

    ``precision`` is that of matrix products in training steps; ``bench/dense.py`` measures on CPU what it brings, and
    that AUC stays the same. ``medium`` lets torch round the factors where that is faster, and only there
    (``torch.set_float32_matmul_precision``): to bfloat16 on CPU, to TF32 on CUDA. ``bf16`` computes the model's layers
    in bfloat16, by autocast, which can be faster still on a processor that multiplies bfloat16, and is many times
    slower on one that does not. Weights, tables, optimizers, the loss and every evaluation are float32 in any case, and
    so are the products of vectors in a DLRM where the native kernels compute them.

    With ``compile`` the model, without its embeddings, is compiled by ``torch.compile`` before the first step, which
    needs a C++ compiler on CPU; the same command does so again where a training goes on.
    """

    batch_size: int = Field(default=4096, ge=1)
    epochs: int = Field(default=10, ge=1)
    patience: int = Field(default=2, ge=1)
    monitor: Literal["auc", "logloss"] = "auc"
    optimizer: OptimizerConfig = OptimizerConfig()
    warmup_steps: int = Field(default=0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    seed: int = 0
    deterministic: bool = False
    threads: int | None = Field(default=None, ge=1)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    checkpoint_steps: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    shuffle_memory: int | str = "2GB"
    precision: Literal["fp32", "medium", "bf16"] = "medium"
    compile: bool = False

    @field_validator("shuffle_memory")
    @classmethod
    def _shuffle_memory_is_a_size(cls, value: int | str) -> int | str | None:
        return _a_size(value)

    @property
    def shuffle_bytes(self) -> int:
        """``shuffle_memory`` in bytes."""
        from recsys_embed.budget import size_in_bytes

        return size_in_bytes(self.shuffle_memory)

    def protocol(self) -> dict[str, Any]:
        """All that the outcome depends on, as plain values: how often a run is saved is not among it."""
        tree = self.model_dump(mode="json", exclude={"checkpoint_steps", "keep_checkpoints"})
        return {**tree, "shuffle_memory": self.shuffle_bytes}


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"a range goes from low to high, got {list(bounds)}")
    return bounds


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LogRange = Annotated[tuple[_Positive, _Positive], AfterValidator(_ordered)]
"""From where to where a positive number may be, each order of magnitude as likely; equal bounds hold it fixed."""


class TuningConfig(Node):
    """Equal tuning: the same trials for every strategy, full included, judged on validation alone.

    Each of ``epochs`` is a setting of its own, with ``trials`` trainings and a result: embeddings overfit from the
    second epoch on, which small tables hide. The first trial has the settings as configured; the others are drawn.
    ``tables_lr`` and ``dense_lr`` are those of the optimizer, which keeps its own where a range is left out; ``decay``
    is that of the embedding, and 0 in a share ``no_decay`` of what is drawn. Stages of fixed length, as some
    strategies have, are not shortened by ``epochs``.
    """

    trials: int = Field(default=8, ge=1)
    epochs: tuple[PositiveInt, ...] = Field(default=(1, 10), min_length=1)
    tables_lr: LogRange = (0.005, 0.5)
    dense_lr: LogRange | None = None
    decay: LogRange = (1e-7, 1e-3)
    no_decay: float = Field(default=0.25, ge=0, le=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("epochs")
    @classmethod
    def _each_once(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(epochs)) < len(epochs):
            raise ValueError(f"epochs lists each setting once, got {list(epochs)}")
        return epochs


class SearchConfig(Node):
    """A search for widths and strategies within ``embedding.budget``, by one or more methods; validation decides.

    ``uniform`` (one width), ``mde`` (widths by cardinality), ``magnitude``, ``pep`` and ``dnis`` (which weights to
    keep) train once; so does ``full``, which is there to compare with. ``random`` and ``optuna`` train ``trials``
    proposals for the best AUC within the budget; ``pareto`` for the front of AUC against serving bytes, from a share
    ``smallest`` of the budget up, and with ``latency`` also against the time that a row takes. A proposal has a width
    for each vocabulary, or for each of ``blocks`` of its ids by frequency, one of ``strategies`` for each vocabulary,
    and what else has a range here.

    The best ``finalists`` of every method are trained with each of ``seeds``, trials with the first of them. ``seed``
    is that of what is drawn. ``warm_start``: so many of the best earlier trials that tracking holds are tried first.

    ``storage``: ``sqlite`` or ``journal`` in the output folder, a database's URL, or the path of a journal. ``workers``
    processes share it, and the same command started again, on any machine that reaches it, joins. A trial that shows no
    sign of life for ``grace_seconds`` is tried again.
    """

    methods: tuple[Literal["full", "uniform", "mde", "magnitude", "pep", "dnis", "random", "optuna", "pareto"], ...] = (
        Field(default=("uniform", "mde", "optuna"), min_length=1)
    )
    trials: int = Field(default=30, ge=1)
    strategies: tuple[StrategyConfig, ...] = Field(default=(MixedDimensionConfig(),), min_length=1)
    blocks: int = Field(default=1, ge=1)
    tables_lr: LogRange | None = None
    dense_lr: LogRange | None = None
    decay: LogRange | None = None
    sampler: Literal["gp", "tpe", "random"] = "gp"
    pruner: Literal["none", "median", "hyperband"] = "none"
    smallest: float = Field(default=0.1, gt=0, le=1)
    latency: bool = False
    finalists: int = Field(default=1, ge=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    seed: int = Field(default=0, ge=0)
    warm_start: int = Field(default=0, ge=0)
    storage: str = "sqlite"
    workers: int = Field(default=1, ge=1)
    grace_seconds: float = Field(default=180.0, ge=1)

    @field_validator("strategies", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return (
            [{"name": one} if isinstance(one, str) else one for one in value]
            if isinstance(value, (list, tuple))
            else value
        )

    @field_validator("methods", "seeds", "strategies")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if any(one in value[:place] for place, one in enumerate(value)):
            raise ValueError(f"{info.field_name} lists each once")
        return value


class StudyConfig(Node):
    """What a report compares: every strategy at every budget with every seed, as it is and, with ``tuning``, tuned."""

    strategies: tuple[dict[str, StrategyConfig], ...] = Field(
        default=({"*": FullConfig()}, {"*": HashConfig()}, {"*": UnifiedConfig()}, {"*": CompositionalConfig()}),
        min_length=1,
    )
    budgets: tuple[int | float | str, ...] = Field(default=(1.0, 0.5, 0.1), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    workers: int = Field(default=1, ge=1)
    tuning: TuningConfig | None = None

    @field_validator("strategies", mode="before")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        return [as_patterns(one) for one in value] if isinstance(value, (list, tuple)) else value


class TrackingConfig(Node):
    """Where runs are logged.

    With ``log_model``, ``train`` logs its model too, as an MLflow model; a report exports none. A model that continues
    another and is promoted then becomes a version of ``registered_model``, and the alias ``champion`` moves to it.
    """

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    experiment: str = "recsys_embed"
    log_model: bool = False
    registered_model: str = Field(default="recsys_embed", min_length=1)


class Config(Node):
    """A whole run or study."""

    data: DataConfig
    growth: GrowthConfig = GrowthConfig()
    model: ModelConfig = DCNv2Config()
    embedding: TrainedEmbeddingConfig = TrainedEmbeddingConfig()
    training: TrainingConfig = TrainingConfig()
    study: StudyConfig = StudyConfig()
    search: SearchConfig = SearchConfig()
    tracking: TrackingConfig = TrackingConfig()
    sharding: ShardingConfig = ShardingConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _default_model(cls, value: Any) -> Any:
        return {"name": "dcn_v2", **value} if isinstance(value, dict) else value

    @property
    def _strategies(self) -> list[tuple[str, dict[str, StrategyConfig]]]:
        """Every choice of strategies with its path."""
        searched = (f"search.strategies.{place}" for place in range(len(self.search.strategies)))
        return [
            ("embedding.strategy", self.embedding.strategy),
            *((f"study.strategies.{place}", one) for place, one in enumerate(self.study.strategies)),
            *((path, {"*": one}) for path, one in zip(searched, self.search.strategies, strict=True)),
        ]

    @model_validator(mode="after")
    def _back_end_can(self) -> Config:
        if self.training.optimizer.tables == "adam" and self.embedding.backend in ("fused", "native"):
            raise ValueError(
                "training.optimizer.tables = 'adam' trains plain parameters, which "
                f"embedding.backend = {self.embedding.backend!r} cannot hold (on CPU it has no Adam): use "
                "backend 'auto', or another optimizer for the tables"
            )
        if self.training.optimizer.tables == "lazy_adam" and self.embedding.backend in ("fused", "sharded"):
            raise ValueError(
                f"training.optimizer.tables = 'lazy_adam' cannot be had of embedding.backend = "
                f"{self.embedding.backend!r}: use backend 'auto', or another optimizer"
            )
        for path, patterns in self._strategies:
            for pattern, node in patterns.items():
                dtype = node.table_storage().dtype
                asked = f"{path}.{pattern}.storage = {dtype!r}"
                if dtype != "fp32" and self.training.optimizer.tables == "adam":
                    raise ValueError(
                        f"{asked} needs a tables optimizer, and training.optimizer.tables = 'adam' is none"
                    )
                if dtype != "fp32" and self.embedding.backend == "fused":
                    raise ValueError(f"{asked} cannot be held by embedding.backend = 'fused': use backend 'auto'")
        return self

    @model_validator(mode="after")
    def _optimizer_can(self) -> Config:
        from recsys_embed.embeddings import CLASSES  # which needs the nodes above

        if self.training.optimizer.tables != "adam":
            return self
        for _, patterns in self._strategies:
            for node in patterns.values():
                if CLASSES[type(node)].needs_tables_optimizer():
                    raise ValueError(
                        "training.optimizer.tables = 'adam' trains plain parameters, but strategy "
                        f"{node.name!r} changes tables in training: use another optimizer for the tables"
                    )
        return self

    def to_toml(self) -> str:
        """The resolved tree as TOML; reading it back gives an equal config."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


# --- reading -------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a TOML file. ``overrides`` are ``a.b=value`` with a TOML value (bare text is a string).

    Relative paths in it are relative to the working directory, as on the command line.

    Raises:
        ConfigError: the file is missing or is not TOML, a key is unknown or a value is impossible.
    """
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read config {str(path)!r}: {error}") from error
    return parse_config(tree, overrides, source=str(path))


def parse_config(tree: dict[str, Any], overrides: tuple[str, ...] = (), *, source: str = "config") -> Config:
    """Validate a tree of plain values; see :func:`load_config`."""
    for override in overrides:
        _set(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, source) from None


def _set(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"--set takes a.b=value, got {override!r}")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, key = path.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {parent!r} is not a table", path=path)
    tree[key] = value


def explain(error: ValidationError, source: str, root: type[Node] | None = None) -> ConfigError:
    """One message per problem, each with its dotted path; unknown keys with the nearest known one."""
    lines = []
    path = None
    for problem in error.errors(include_url=False):
        keys = [str(part) for part in problem["loc"] if not _is_union_tag(part, problem["loc"])]
        dotted = ".".join(keys)
        path = path or dotted
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(
                keys[-1], _known_keys(root or Config, problem["loc"][:-1]), n=1, cutoff=0.0
            )
            hint = f"; did you mean {near[0]!r}?" if near else ""
            if having := _strategies_with(keys[-1], problem["loc"]):
                hint = f": strategy {problem['loc'][-2]!r} has no such option; {', '.join(having)} have it"
            lines.append(f"unknown key {dotted!r}{hint}")
        else:
            shown = problem["input"]
            shown = "" if isinstance(shown, dict) else f" (value {shown!r})"
            lines.append(f"{dotted}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return ConfigError(f"{source}: " + "; ".join(dict.fromkeys(lines)), path=path)


_TAGS = {"dcn_v2", "dlrm", *STRATEGIES}


def _is_union_tag(part: Any, loc: tuple[Any, ...]) -> bool:
    """Pydantic puts the chosen member of a union into the location: it is no key of the user's."""
    text = str(part)
    if "[" in text or text in {"str", "int", "float", "LabelConfig"}:
        return True
    return (
        text in _TAGS
        and bool(loc)
        and loc[0] in {"model", "embedding", "study", "search", "strategy", "strategies"}
        and part is not loc[-1]
    )


def _strategies_with(key: str, loc: tuple[Any, ...]) -> list[str]:
    """The strategies that have an option, where it was given to one that has not."""
    if len(loc) < 2 or loc[-2] not in STRATEGIES:
        return []
    return [name for name, node in STRATEGIES.items() if key in node.model_fields]


def _known_keys(root: type[Node], loc: tuple[Any, ...]) -> list[str]:
    node: Any = root
    for part in loc:
        nodes = _members(node)
        node = next((cls.model_fields[part].annotation for cls in nodes if part in cls.model_fields), None) or next(
            (cls for cls in nodes if "name" in cls.model_fields and cls.model_fields["name"].default == part), node
        )
    return sorted({key for cls in _members(node) for key in cls.model_fields})


def _members(annotation: Any) -> list[type[BaseModel]]:
    """The config tables an annotation can hold, through unions, containers and ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType, dict, tuple, list):
        return [cls for arg in get_args(annotation) for cls in _members(arg)]
    return []
