"""The keys of a configuration: frozen dataclasses, one field per key, and what each may hold.

A field carries its default, its allowed interval and one sentence (what it does, unit, source): `key(default, interval,
sentence)`. Programs read them from `KEYS`. Sources: "paper" is Shen et al., ICLR 2025; "choice" and a letter is a
question that the paper leaves open. How configurations are read, merged and written: refsnn/config.py.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from refsnn.errors import UserError

Value = bool | int | float | str | tuple[int, ...] | None
ANY = "(-inf, inf)"
ORDER_GAP = 1e-3  # q - p may not be less than this share of q, see refsnn/pq.py


def key(default: Value, within: str, text: str, registry: str = "") -> Any:
    """A field with its default, its interval (of numbers; "" elsewhere) and the sentence that explains it.

    registry: "module:DICT", where the words that the key may hold are the entries of a dictionary of the package; they
    are looked up when a value is checked, so that a new entry is written in one place.
    """
    return field(default=default, metadata={"within": within, "help": text, "registry": registry})


# ---------------------------------------------------------------------------------------------------------- the keys
@dataclass(frozen=True)
class DataConfig:
    """[data]: the samples, and which of them are kept for testing."""

    name: str = key(
        "digits", "", "Data set: the embedded digits, arrays in your own file, or one of the field's (data/README.md).",
        registry="datasets:DATASETS",
    )
    path: str = key("", "", 'npz: file with arrays x, y (x_test, y_test); other sets: their folder; empty: search.')
    test_share: float = key(0.2, "(0, 1)", "Share of samples drawn for testing where a file has no x_test, y_test.")
    validation: float = key(
        0.0, "[0, 1)", "Share of the training set held out; above 0 it replaces the test set, which stays unseen."
    )
    labels: Literal["fine", "coarse"] = key("fine", "", "Classes of cifar100: the 100 fine ones or the 20 coarse ones.")
    normalise: Literal["tet", "training"] = key(
        "tet", "", "Mean and deviation that CIFAR images are normalised by: TET's, or those of the training set."
    )
    train_samples: int = key(0, "[0, inf)", "First samples of a CIFAR training set to use; 0: all, of a complete one.")
    test_samples: int = key(0, "[0, inf)", "The same of its test set.")


@dataclass(frozen=True)
class AugmentConfig:
    """[augment]: what is done at random to training samples; the same for all time steps of a sample."""

    crop: int = key(0, "[0, inf)", "Largest shift in pixels, the border coming in black: a crop after padding; 0: off.")
    flip: bool = key(False, "", "Whether a sample is mirrored left and right with probability 1/2.")
    cutout: int = key(0, "[0, inf)", "Edge in pixels of a square covered with the mean; 0: off.")
    roll: int = key(0, "[0, inf)", "Largest cyclic shift in pixels (event frames; as TET: 5); 0: off.")


@dataclass(frozen=True)
class EventsConfig:
    """[events]: how recordings of an event camera become encode.steps frames (cifar10dvs, nmnist)."""

    frames_by: Literal["number", "time"] = key(
        "number", "", "Frames of equal numbers of events (choice; as TET), or of equal time."
    )
    remainder: Literal["last", "drop"] = key(
        "last", "", "Events left over: in the last frame (as SpikingJelly), or dropped (as tonic)."
    )
    size: int = key(0, "[0, inf)", "Edge in pixels that frames are resized to; 0: as recorded; the paper: 48.")
    resize: str = key(
        "antialias", "", "How they are resized; no way is agreed on (refsnn/datasets/resize.py).",
        registry="datasets.resize:METHODS",
    )
    convention: str = key(
        "spikingjelly", "", "Orientation and polarity that addresses of AEDAT 2.0 are read by.",
        registry="datasets.events:CONVENTIONS",
    )
    split: str = key(
        "spikingjelly", "", "Which recordings of cifar10dvs are for testing, a tenth of each class.",
        registry="datasets.recordings:SPLITS",
    )
    cache: str = key("", "", "Folder for converted frames; empty: refsnn, in the user's folder for caches.")


@dataclass(frozen=True)
class EncodeConfig:
    """[encode]: from a sample to the input at every time step."""

    kind: str = key(
        "direct", "", "direct: the static image at every step (choice; as TET); frames: the data has a time axis.",
        registry="encode:ENCODERS",
    )
    steps: int = key(4, "[1, inf)", "T, time steps per sample; paper: 2 on CIFAR, 10 on DVS-CIFAR10 (Table 1).")


@dataclass(frozen=True)
class ModelConfig:
    """[model]: the layers of the network."""

    name: str = key(
        "conv2fc2", "", "Network: conv2fc2 (pooled 3x3 convolutions, two linear layers), the paper's, or model.layers.",
        registry="models:MODELS",
    )
    layers: str = key("", "", 'name = "layers": the chain, such as "64C3 AP2 128R FC"; refsnn/notation.py explains it.')
    channels: tuple[int, ...] = key((32, 64), "[1, inf)", "conv2fc2: filters of each convolution, in order.")
    hidden: int = key(128, "[1, inf)", "conv2fc2: spiking neurons of the first linear layer.")
    pool: Literal["average", "max"] = key("average", "", "conv2fc2: pooling after each convolution's spikes.")
    dropout: float = key(0.0, "[0, 1)", "conv2fc2: probability that a hidden neuron's spikes are dropped; 0: off.")


@dataclass(frozen=True)
class NeuronConfig:
    """[neuron]: a key left out takes its preset's number (NEURONS in ops/neuron.py), or the surrogate's own alpha."""

    preset: str = key(
        "paper", "", "Named set of the neuron's numbers: paper (eqs. 5-7), or what a framework's neuron computes.",
        registry="ops.neuron:NEURONS",
    )
    decay: float | None = key(None, "[0, 1]", "Share of the membrane kept from step to step; paper's tau: 0.5.")
    gain: float | None = key(None, "(0, inf)", "Factor on the input; paper: 1, the input is not scaled by 1 - decay.")
    bias: float | None = key(None, ANY, "Constant added to the membrane at every step; paper: none.")
    v_threshold: float | None = key(None, ANY, "Membrane above which a spike is fired; 1 (choice; as TET).")
    v_reset: float | None = key(None, ANY, "Membrane after a spike with the hard reset; paper: 0.")
    reset: Literal["hard", "soft", "none"] | None = key(
        None, "", "After a spike: set to v_reset (hard; paper eq. 7), subtract reset_amount (soft), or leave (none)."
    )
    reset_amount: float | None = key(None, "(0, inf)", "Subtracted from the membrane by the soft reset.")
    v_init: float | None = key(None, ANY, "Membrane before the first step; paper: 0.")
    detach_reset: bool | None = key(None, "", "Whether the gradient ignores the reset; false (choice; as TET).")
    compare: Literal["gt", "ge"] | None = key(
        None, "", "A membrane exactly at the threshold fires (ge) or not (gt; choice; as TET)."
    )
    form: Literal["affine", "spikingjelly", "spikingjelly_full_input", "norse", "snntorch"] | None = key(
        None, "", "Order of the floating-point operations in the charge; decides rounding and ties only."
    )
    surrogate: str = key(
        "triangle", "", "Stand-in for the derivative of the spike; triangle (choice; as TET).",
        registry="ops.surrogate:SURROGATES",
    )
    alpha: float | None = key(None, "(0, inf)", "Width or slope of the surrogate, in its own formula; triangle: 1.")


@dataclass(frozen=True)
class StructureConfig:
    """[structure]: which connections exist at the start, and their initial weights."""

    density: float = key(
        0.5, "(0, 1]", "Active share of all conv and linear weights at the start; paper: 0.5, in one ablation 1.0."
    )
    spread: Literal["er", "erk", "uniform"] = key(
        "er", "", "Share per layer: er (paper eq. 1, on channel counts), erk (with kernel sizes), uniform (choice i)."
    )
    draw: Literal["exact", "bernoulli"] = key(
        "exact", "", "Mask: exactly the asked number of connections, or one coin per connection (choice j)."
    )
    init: Literal["kaiming_normal", "kaiming_uniform", "xavier_normal"] = key(
        "kaiming_normal", "", "Distribution of the initial weights; it decides the first rewiring ratio (choice p)."
    )
    fan: Literal["dense", "active"] = key(
        "dense", "", "Inputs counted for the initial scale: all of the dense layer, or the active ones (choice p)."
    )
    start: str = key("", "", "Npz file of given weights and masks to start from; empty: draw them.")
    execution: Literal["auto", "sparse", "dense"] = key(
        "auto", "", "Whether kernels run convolutions by active weights or by all places; auto: by density and shape."
    )


@dataclass(frozen=True)
class RewireConfig:
    """[rewire]: how many connections go and come, which ones, and when."""

    preset: Literal["figures", "literal", "partial", "sap"] = key(
        "figures", "", "Reading of Algorithm 1: sets regrow_share, inner_every, rewind (sap also density, fresh)."
    )
    ratio: str = key(
        "pq", "", "Rewiring ratio: from the PQ index (paper eqs. 2-4), or no rewiring.",
        registry="rewire:RATIOS",
    )
    scope: Literal["layer", "neuron", "global"] = key(
        "layer", "", "Unit with its own index and ratio: a layer, a neuron (conv filter, output unit), or all weights."
    )
    p: float = key(0.5, "(0, inf)", "Smaller order of the PQ index, eq. 2; 0 < p < q (not printed; as SAP).")
    q: float = key(1.0, "(0, inf)", "Larger order of the PQ index, eq. 2.")
    eta: float = key(0.001, "[0, inf)", "The paper's alpha_r in the bound on retained weights, eq. 3: 0.001.")
    gamma: float = key(1.0, "(0, inf)", "Factor on the share beyond the bound, eq. 4; paper: 1.")
    beta: float = key(0.9, "(0, 1]", "Largest share of a unit's active weights removed at once, eq. 4; paper: 0.9.")
    rounding: Literal["integer", "exact", "float32"] = key(
        "integer", "", "How eq. 4 becomes a count: in integers, as printed in float64, or as SAP's float32 (choice b)."
    )
    regrow_share: float | Literal["ratio"] = key(
        0.0, "[0, 1]", "Share of what an iteration's end prunes that regrows; ratio: the rewiring ratio, count/d."
    )
    inner_every: int = key(
        1, "[0, inf)", "Epochs between rewires at constant density inside an iteration; 0: none (choice k)."
    )
    rewind: bool = key(False, "", "Whether each iteration starts from the initial weights again (choice d; as SAP).")
    prune: str = key(
        "magnitude", "", "Score whose smallest connections are removed; paper: |w|.",
        registry="rewire:PRUNE",
    )
    grow: str = key(
        "momentum", "", "Score whose largest free places regrow; paper: momentum of the dense gradient (choice f).",
        registry="rewire:GROW",
    )
    grow_beta: float = key(0.9, "[0, 1)", "Decay of the momentum kept for growth (choice f).")
    grow_window: int = key(
        0, "[0, inf)", "Momentum over all steps (0), or from zero so many steps before a rewire: cheaper, another rule."
    )
    return_at_once: bool = key(True, "", "Whether a connection just pruned may regrow in the same rewire (choice g).")
    shortfall: Literal["report", "redistribute"] = key(
        "report", "", "Where free places run out: report the shortfall, or regrow elsewhere in the layer (choice n)."
    )


@dataclass(frozen=True)
class TrainConfig:
    """[train]: the course of a run."""

    iterations: int = key(10, "[1, inf)", "Cycles of Stage I and II, the last without Stage II; paper's figures: 10.")
    epochs: int = key(4, "[1, inf)", "Epochs of Stage I in each iteration (choice k).")
    batch: int = key(32, "[1, inf)", "Samples per optimiser step.")
    loss: str = key(
        "tet", "", "tet: mean over steps of the cross entropy (paper eq. 8); or that of the mean; or squared error.",
        registry="ops.loss:LOSSES",
    )
    max_steps: int = key(0, "[0, inf)", "Steps after which the run, and the iteration under way, ends; 0: no limit.")
    clip: float = key(0.0, "[0, inf)", "Largest global norm of the gradient, scaled down beyond it; 0: off (choice m).")


@dataclass(frozen=True)
class OptimConfig:
    """[optim]: from gradients to weights."""

    kind: Literal["adam", "adamw", "sgd"] = key("adam", "", "Optimiser (the paper names none; Adam as TET).")
    lr: float = key(0.002, "[0, inf)", "Learning rate at the top of the schedule.")
    momentum: float = key(0.9, "[0, 1)", "Momentum of sgd; 0: off.")
    nesterov: bool = key(False, "", "Nesterov's form of sgd's momentum.")
    beta1: float = key(0.9, "[0, 1)", "Adam's decay of the mean gradient.")
    beta2: float = key(0.999, "[0, 1)", "Adam's decay of the mean squared gradient.")
    eps: float = key(1e-8, "(0, inf)", "Added to the denominator of Adam's step.")
    weight_decay: float = key(0.0, "[0, inf)", "Decay of active weights: in the gradient, or beside it (adamw).")
    schedule: Literal["cosine", "constant", "step"] = key(
        "cosine", "", "Shape of the learning rate; cosine ends at 0."
    )
    warmup: int = key(0, "[0, inf)", "Epochs of linear rise from 0 at the start of a period; 0: none.")
    step_every: int = key(0, "[0, inf)", 'Epochs between the drops of schedule = "step".')
    step_factor: float = key(0.1, "(0, 1]", 'Factor of each drop of schedule = "step".')
    restart: bool = key(True, "", "Whether a period is one iteration (choice k), or, if false, the whole run.")
    fresh: bool = key(False, "", "Whether the optimiser's state is cleared at each iteration (choice q).")
    regrown_step: Literal["own", "global"] = key(
        "own", "", "Adam's step count of a regrown weight: starts anew, or is that of all weights (choice o)."
    )


@dataclass(frozen=True)
class Config:
    """A complete configuration; building one checks every value.   Raises UserError."""

    seed: int = key(0, "[0, 4294967295]", "Every random number of the run follows from it.")
    dtype: Literal["float32", "float64"] = key("float32", "", "Floating-point type of weights, spikes and gradients.")
    data: DataConfig = field(default_factory=DataConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    neuron: NeuronConfig = field(default_factory=NeuronConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    rewire: RewireConfig = field(default_factory=RewireConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        check(settings(self), {})


# The readings of Algorithm 1 as plain keys; what each of them means: refsnn/rewire.py.
PRESETS: dict[str, dict[str, Value]] = {
    "figures": {"rewire.regrow_share": 0.0, "rewire.inner_every": 1, "rewire.rewind": False},
    "literal": {"rewire.regrow_share": 1.0, "rewire.inner_every": 0, "rewire.rewind": False},
    "partial": {"rewire.regrow_share": "ratio", "rewire.inner_every": 0, "rewire.rewind": False},
    "sap": {
        "rewire.regrow_share": 0.0,
        "rewire.inner_every": 0,
        "rewire.rewind": True,
        "structure.density": 1.0,
        "optim.fresh": True,
    },
}


@dataclass(frozen=True)
class Key:
    """One key: its name ("optim.lr"), type, default, interval and explanation."""

    name: str
    declared: Any
    default: Value
    within: str
    help: str
    registry: str

    @property
    def kind(self) -> Any:
        """The type that a value must have; for words of a registry a Literal of its entries."""
        if not self.registry:
            return self.declared
        module, entries = self.registry.split(":")
        return Literal[tuple(getattr(import_module(f"refsnn.{module}"), entries))]

    @property
    def takes_float(self) -> bool:
        """Whether integers written for this key mean floats."""
        return float in (self.declared, *get_args(self.declared))


def _keys() -> tuple[dict[str, type], dict[str, Key]]:
    """The sections, and every key by its name, read off the dataclasses."""
    sections: dict[str, type] = {}
    keys: dict[str, Key] = {}

    def collect(owner: type, prefix: str) -> None:
        kinds = get_type_hints(owner)
        for one in dataclasses.fields(owner):
            if dataclasses.is_dataclass(kinds[one.name]):
                sections[one.name] = kinds[one.name]
                collect(kinds[one.name], one.name + ".")
            else:
                name, about = prefix + one.name, one.metadata
                default: Any = one.default
                keys[name] = Key(name, kinds[one.name], default, about["within"], about["help"], about["registry"])

    collect(Config, "")
    return sections, keys


SECTIONS, KEYS = _keys()


# ------------------------------------------------------------------------------------------------------ checking
def fits(value: Any, kind: Any) -> bool:
    """Whether a value has a key's type; an int passes for a float, a bool for nothing else."""
    if get_origin(kind) is Literal:
        return type(value) is str and value in get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return type(value) is tuple and len(value) > 0 and all(type(one) is int for one in value)
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) <= 2**53)
    return type(value) is kind


def _inside(value: Any, within: str) -> bool:
    """Whether every number of a value lies in an interval such as "(0, 1]"; NaN lies in none."""
    if isinstance(value, tuple):
        return all(_inside(one, within) for one in value)
    if not within or isinstance(value, str | bool | NoneType):
        return True
    low, high = (float(end) for end in within[1:-1].split(","))
    return low < value < high or (value == low and within[0] == "[") or (value == high and within[-1] == "]")


def allowed(one: Key) -> str:
    """What a key may hold, in words: for messages and for tables."""
    words = []
    for kind in get_args(one.kind) if get_origin(one.kind) in (Union, UnionType) else (one.kind,):
        if get_origin(kind) is Literal:
            words.append(" | ".join(f'"{option}"' for option in get_args(kind)))
        elif get_origin(kind) is tuple:
            words.append(f"a list of integers in {one.within}")
        elif kind is not NoneType:
            number = {int: f"an integer in {one.within}", float: f"a number in {one.within}"}
            words.append(({bool: "true | false", str: "a text"} | number)[kind])
    return " or ".join(words)


def literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        plain = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{"".join(plain)}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(literal(one) for one in value)}]"
    return repr(value)


def settings(config: Config) -> dict[str, Value]:
    """Every key with its value, as {"optim.lr": 0.002, ...}."""
    top = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    flat = {name: value for name, value in top.items() if name not in SECTIONS}
    return flat | {f"{name}.{leaf}": value for name in SECTIONS for leaf, value in vars(top[name]).items()}


def check(values: Mapping[str, Value], places: Mapping[str, str]) -> None:
    """Raise UserError at the first value of the wrong type, out of its range, or at odds with another one.

    `places` says for a key where it was written (a file, or --set); keys without a place are defaults.
    """

    def refuse(name: str, why: str) -> NoReturn:
        place = f"{places[name]}: " if name in places else ""
        raise UserError(f"{place}{name} = {literal(values[name])} {why}")

    for name, one in KEYS.items():
        if not fits(values[name], one.kind) or not _inside(values[name], one.within):
            refuse(name, f"is not allowed; allowed: {allowed(one)}")
    v: Any = values
    if v["rewire.q"] - v["rewire.p"] < ORDER_GAP * v["rewire.q"]:
        name, other = ("rewire.p", "rewire.q") if "rewire.p" in places else ("rewire.q", "rewire.p")
        why = f"the PQ index needs 0 < p < q, further apart than {ORDER_GAP} q"
        refuse(name, f"does not go with {other} = {v[other]!r}: {why}")
    if v["data.name"] == "npz" and not v["data.path"]:
        refuse("data.name", "needs the file with the arrays: set data.path")
    if v["data.name"] == "digits" and v["data.path"]:
        refuse("data.path", 'names no file: data.name = "digits" is part of the package')
    if v["data.labels"] != "fine" and v["data.name"] != "cifar100":
        refuse("data.labels", f'belongs to data.name = "cifar100", and data.name is {literal(v["data.name"])}')
    for name in ("model.layers", "model.channels", "model.hidden", "model.pool", "model.dropout"):
        owner = "layers" if name == "model.layers" else "conv2fc2"
        if places.get(name, "").startswith("--set") and v["model.name"] != owner:   # a file's may lie idle
            refuse(name, f'belongs to model.name = "{owner}", and model.name is {literal(v["model.name"])}')
    if v["model.name"] == "layers" and not v["model.layers"]:
        refuse("model.name", 'needs the chain of layers: set model.layers, such as "64C3 AP2 128R FC"')
    if v["model.name"] == "conv2fc2" and len(v["model.channels"]) != 2:
        refuse("model.channels", 'must have two entries: model.name = "conv2fc2" has two convolutions')
    if v["optim.nesterov"] and v["optim.momentum"] == 0:
        refuse("optim.nesterov", "needs optim.momentum above 0")
    if v["optim.schedule"] == "step" and v["optim.step_every"] == 0:
        refuse("optim.schedule", "needs optim.step_every, the epochs between two drops, of at least 1")
    period = v["train.epochs"] * (1 if v["optim.restart"] else v["train.iterations"])
    if v["optim.warmup"] and v["optim.warmup"] >= period:
        refuse("optim.warmup", f"must be below {period}, the epochs in a period of the learning rate")
