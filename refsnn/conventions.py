"""What others do differently: a table of conventions, each a change to the rule that a record is recomputed by.

`explain` takes a record of OTHER that does not agree with GOLDEN and recomputes it from its recorded inputs: by the
program's own rule, and under every convention of the table that has something to say about it. It names those that
give OTHER's numbers, or says that none of so many does. To add a convention: a line in `CONVENTIONS`, and where its
rule cannot express it, a keyword in refsnn/recompute.py or refsnn/recompute_method.py.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import recompute as network
from refsnn import recompute_method as method
from refsnn.ops.loss import LOSSES
from refsnn.ops.surrogate import SURROGATES
from refsnn.plan import alpha_of, neuron_of
from refsnn.schema import Config
from refsnn.traced import STEP, Step, UnavailableError
from refsnn.verdict import Tolerance

Array = npt.NDArray[Any]
Rule = Callable[..., Array]
Changes = Mapping[str, Any] | Callable[[Config], Mapping[str, Any]]


@dataclass(frozen=True)
class Convention:
    """One thing that others do differently.

    | Field | Meaning |
    |---|---|
    | rule | the rule that it changes: a key of `RULES` |
    | changes | the rule's keyword arguments, or a function of GOLDEN's configuration that gives them |
    | text | one sentence: what OTHER does |
    | parts | last parts of the names that it speaks of; (): all of the rule's |
    """

    rule: str
    changes: Changes
    text: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """What the recomputations say of a record that differs.

    | Field | Meaning |
    |---|---|
    | reproducible | the program's rule gives GOLDEN's record from GOLDEN's inputs, so the others can be believed |
    | follows | the program's rule gives OTHER's record from OTHER's inputs: the record is not at fault |
    | fitting | names of the conventions that give OTHER's record |
    | tried | how many had something to say |
    """

    reproducible: bool
    follows: bool
    fitting: tuple[str, ...]
    tried: int


def page(name: str) -> str:
    """Where to read about a convention."""
    return f'docs/conventions.md, row "{name}"'


# ------------------------------------------------------------------------------------------------ which rule, for what


def rules_of(step: Step, name: str) -> dict[str, Rule]:
    """The rules that compute a record, by their key in the table, the program's own one first; {} for none.

    name: without its step. Raises nothing: a name of no known form has no rule.
    """
    parts = name.split("/")
    stage, part = parts[0], parts[-1]
    if stage in ("rng", "input"):
        return {"draws": partial(method.draws, step, name)}
    if stage == "encode":
        return {"encode": partial(network.encode, step, part)}
    if stage == "loss":
        return {"loss": partial(network.loss, step, part)}
    if stage == "stage1":
        return {"measurement": partial(method.measurement, step, part)}
    if stage == "stage2" and len(parts) == 2:
        return {"counts": partial(method.counts, step, part)}
    if len(parts) != 3:
        return {}
    owner = parts[1]
    by_stage = {"params": "state", "optim": "optimiser", "growth": "growth", "stage2": "rewiring"}
    if stage in by_stage:
        rule = getattr(method, by_stage[stage])
        return {by_stage[stage]: partial(rule, step, owner, part)}
    return _rules_of_layer(step, stage, owner, part)


def _rules_of_layer(step: Step, stage: str, layer: str, part: str) -> dict[str, Rule]:
    """Forward and backward of a layer, by its kind in the configuration."""
    if stage not in ("forward", "backward"):
        return {}
    try:
        forward, backward = network.RULES.get(type(step.wired(layer).layer), ((), ()))
    except UnavailableError:
        return {}
    names = backward if stage == "backward" else forward
    if part == "slope":
        names = ("surrogate",)
    return {name: partial(getattr(network, name), step, layer, part) for name in names}


def candidates(step: Step, name: str) -> dict[str, Rule]:
    """Every convention that speaks of a record, by name, as a function without arguments that recomputes it."""
    rules, part = rules_of(step, name), name.rpartition("/")[2]
    counted = step.given("stage1/count")        # then OTHER's measurement was compared by itself
    if "counts" in rules and not counted:
        rules["measurement"] = rules["counts"]
    elif "rewiring" in rules and part in ("pruned", "grown", "mask") and not counted:
        rewiring = rules["rewiring"]
        rules["measurement"] = lambda **changes: rewiring(measure=changes)
    found: dict[str, Rule] = {}
    for title, convention in CONVENTIONS.items():
        if convention.rule in rules and (not convention.parts or part in convention.parts):
            given = convention.changes
            changes = given(step.config) if callable(given) else given
            found[title] = partial(rules[convention.rule], **changes)
    return found


def explain(golden: Mapping[str, Array], other: Mapping[str, Array], name: str, kind: str, config: Config,
            tolerance: Tolerance, *, forced: bool = False, where: Array | None = None) -> Explanation:
    """Recompute OTHER's record `name` under every convention, from OTHER's inputs, or GOLDEN's where OTHER has none.

    forced: OTHER was fed GOLDEN's inputs, so they are GOLDEN's always (but for the state of a neuron through time,
    which is OTHER's own). where: the entries that count, None for all.
    """
    prefix = name[:len(name) - len(short := STEP.match(name)[3])]       # type: ignore[index]
    target = other[name]
    golden, other = _near(golden, prefix), _near(other, prefix)
    if forced:
        layer = re.fullmatch(r"forward/([^/]+)/[hsv]", short)
        own = {f"{prefix}forward/{layer[1]}/{part}" for part in "hsv"} if layer else set()
        other = {one: value for one, value in other.items() if one in own}
    step = Step(golden, other, prefix, config, target)
    plain = replace(step, other=golden, target=None)

    def fits(rule: Rule, wanted: Array) -> bool:
        """Whether a rule gives an array, by the kind's own comparison on the entries that count."""
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = np.asarray(rule())
        except (UnavailableError, ValueError, IndexError, KeyError, TypeError, ZeroDivisionError):
            return False
        if where is not None and where.shape == found.shape == wanted.shape:
            found, wanted = found * where, wanted * where
        real = kind == "real" and wanted.dtype.kind == "f"
        return tolerance.agree(kind, found.astype(wanted.dtype if real else found.dtype), wanted)

    own_rules = list(rules_of(plain, short).values())
    conventions = candidates(step, short)
    reproducible = short.startswith(("rng/", "input/")) or (bool(own_rules) and fits(own_rules[0], golden[name]))
    if not reproducible:
        return Explanation(False, False, (), len(conventions))
    follows = "draws" not in rules_of(step, short) and fits(next(iter(rules_of(step, short).values())), target)
    fitting = tuple(title for title, rule in conventions.items() if fits(rule, target)) if not follows else ()
    return Explanation(True, follows, fitting, len(conventions))


def _near(records: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The records of a step, of the one before it, and the initial weights: all that a rule may read."""
    number = prefix.strip("step_/")
    before = f"step_{int(number) - 1:0{len(number)}d}/" if number and int(number) else prefix
    initial = f"step_{0:0{len(number)}d}/params/" if number else prefix
    return {name: value for name, value in records.items() if name.startswith((prefix, before, initial))}


# ---------------------------------------------------------------------------------------------------------- the table


def _decay(value: Callable[[float], float], scaled: bool = False) -> Callable[[Config], dict[str, float]]:
    """Another decay, a function of the configured one; scaled: the input by 1 - that decay."""
    def changes(config: Config) -> dict[str, float]:
        decay = value(neuron_of(config).decay)
        return {"decay": decay} | ({"gain": 1 - decay} if scaled else {})
    return changes


def _other_compare(config: Config) -> dict[str, str]:
    return {"compare": "gt" if neuron_of(config).compare == "ge" else "ge"}


def _other_detach(config: Config) -> dict[str, bool]:
    return {"detach_reset": not neuron_of(config).detach_reset}


def _late_reset(config: Config) -> dict[str, Any]:
    n = neuron_of(config)
    return {"reset": "soft", "reset_amount": n.v_threshold / (n.decay or 1.0)}


CONVENTIONS: dict[str, Convention] = {
    # neuron, forward
    ">= against >": Convention("neuron", _other_compare,
        "a membrane exactly at the threshold fires in one of the two and not in the other."),
    "soft reset": Convention("neuron", lambda c: {"reset": "soft", "reset_amount": neuron_of(c).v_threshold},
        "a spike subtracts the threshold from the membrane."),
    "soft reset after the decay": Convention("neuron", _late_reset,
        "a spike subtracts the threshold after the next step's decay: threshold / decay before it (snnTorch)."),
    "hard reset": Convention("neuron", {"reset": "hard", "v_reset": 0.0}, "a spike sets the membrane to 0."),
    "no reset": Convention("neuron", {"reset": "none"},
        "a spike leaves the membrane as it is, or v was recorded before the reset."),
    "decay exp(-1/tau), tau = 1/(1-decay)": Convention("neuron", _decay(lambda d: math.exp(d - 1)),
        "the leak is solved exactly for the time constant whose Euler step is the configured decay."),
    "decay exp(-1/tau), input scaled": Convention("neuron", _decay(lambda d: math.exp(d - 1), scaled=True),
        "the same, and the input is scaled by 1 - decay."),
    "decay taken for a time constant": Convention("neuron", _decay(lambda d: math.exp(-1 / d) if d else 0.0),
        "the number meant as a factor is used as tau in exp(-1/tau)."),
    "1 - decay for decay": Convention("neuron", _decay(lambda d: 1 - d), "the share lost is taken for the share kept."),
    "no decay": Convention("neuron", {"decay": 1.0}, "the membrane does not leak: integrate-and-fire."),
    "input scaled by 1 - decay": Convention("neuron", _decay(lambda d: d, scaled=True),
        "the input is scaled by 1 - decay (SpikingJelly's decay_input, Norse, NIR)."),
    "input not scaled": Convention("neuron", {"gain": 1.0}, "the input enters with factor 1."),
    # neuron, backward
    "detached reset": Convention("neuron_backward", _other_detach,
        "the gradient passes through the reset in one of the two and not in the other (detach_reset)."),
    "no gradient through time": Convention("neuron_backward", {"decay": 0.0},
        "every step is differentiated by itself; the membrane's past is a constant."),
    "no decay on the way back": Convention("neuron_backward", {"decay": 1.0},
        "the gradient of the membrane is carried back without the decay."),
    "soft reset on the way back": Convention("neuron_backward", lambda c: {
        "reset": "soft", "reset_amount": neuron_of(c).v_threshold}, "the reset is differentiated as a subtraction."),
    "surrogate twice as wide": Convention("surrogate", {"scale": 2.0}, "the surrogate's alpha is doubled."),
    "surrogate half as wide": Convention("surrogate", {"scale": 0.5}, "the surrogate's alpha is halved."),
    "surrogate with 1 / alpha": Convention("surrogate", lambda c: {"alpha": 1 / alpha_of(c)},
        "width and sharpness are exchanged."),
    "surrogate at v": Convention("surrogate", {"at": "v"}, "the surrogate sees the membrane after its reset."),
    "surrogate without the threshold": Convention("surrogate", {"at": "0"},
        "the surrogate sees h, not h - v_threshold."),
    **{f"surrogate {name}": Convention("surrogate", {"name": name}, f"the surrogate is {name}, alpha {one.alpha:g}.")
       for name, one in SURROGATES.items()},
    "surrogate sigmoid, alpha 25": Convention("surrogate", {"name": "sigmoid", "alpha": 25.0},
        "snnTorch's sigmoid at its own default."),
    # encoding, convolution, linear map, pooling, dropout
    "image at the first step only": Convention("encode", {"first_only": True}, "later steps get no input."),
    "flipped kernel": Convention("product", {"flip": True}, "a true convolution: the kernel is turned by 180 degrees."),
    "transposed kernel": Convention("product", {"swap": True}, "the kernel's two axes are exchanged."),
    "no padding": Convention("product", {"padding": "none"}, "no zeros are added at the border."),
    **{f"padding by {how}": Convention("product", {"padding": how}, f"the border is padded by {what}.")
       for how, what in (("edge", "its last value"), ("reflect", "reflection"), ("wrap", "the opposite side"))},
    **{f"stride {n}": Convention("product", {"stride": n}, f"the convolution moves by {what}: "
                                 "its stride is another, or stands in another layer.")
       for n, what in ((1, "one place"), (2, "two places"))},
    "currents for spikes": Convention("product", {"currents": True},
        "x is what drives the neurons before the layer, not their spikes (MS-ResNet's shortcut with a convolution)."),
    "no bias": Convention("product", {"bias": False}, "the bias is left out."),
    "flattened channels last": Convention("product", {"flatten": "HWC"}, "maps are laid flat in the order H, W, C."),
    "kernel not flipped for dx": Convention("product_backward", {"flip": True},
        "the input's gradient is correlated with the kernel, not convolved.", ("dx",)),
    "dense gradient masked": Convention("product_backward", {"masked": True},
        "the gradient is taken through the mask and is 0 where no connection is.", ("dweight_dense",)),
    "gradient averaged over the batch again": Convention("product_backward", {"scale": "batch"},
        "the loss is a mean over the batch already."),
    "gradient averaged over time again": Convention("product_backward", {"scale": "time"},
        "the loss is a mean over time already."),
    **{f"{kind} pooling": Convention("pool", {"kind": kind}, f"a window gives its {what}.")
       for kind, what in (("max", "maximum"), ("average", "mean"), ("sum", "sum"))},
    "every maximum gets the gradient": Convention("pool", {"kind": "max", "share": "all"},
        "equal maxima of a window all receive its gradient.", ("dx",)),
    "votes summed": Convention("vote", {"summed": True},
        "a class is the sum of its units (snnTorch's population code)."),
    "votes interleaved": Convention("vote", {"interleaved": True},
        "class k of K is the mean of the units k, k + K, k + 2 K, ..., not of consecutive ones."),
    "dropout not rescaled": Convention("dropout", {"rescaled": False}, "what is kept is not divided by 1 - p."),
    # residual blocks
    "no shortcut": Convention("join", {"shortcut": "none"}, "the shortcut is not added."),
    "shortcut without batch norm": Convention("join", {"shortcut": "no norm"},
        "the shortcut's convolution is added as it is."),
    "membrane shortcut": Convention("join", {"shortcut": "currents"},
        "the shortcut starts before the neurons, not at their spikes (MS-ResNet)."),
    "neurons before the join": Convention("neuron", {"branch": True},
        "the second neurons of a block are driven by its body alone; the shortcut is not in their input (SEW-ResNet)."),
    **{f"SEW-ResNet {connect}": Convention("sew", {"connect": connect},
                                           f"the join is behind the neurons and gives {what}.", ("y", "s"))
       for connect, what in (("ADD", "the sum of spikes, 0, 1 or 2"), ("AND", "a spike where both have one"),
                             ("IAND", "a spike where the shortcut has one and the body none"))},
    "gradient along the body only": Convention("join_backward", {"way": "body"},
        "what comes back through the shortcut is left out of the block's input gradient."),
    "gradient along the shortcut only": Convention("join_backward", {"way": "shortcut"},
        "what comes back through the body is left out of the block's input gradient."),
    # batch norm
    "unbiased variance in the normalisation": Convention("norm", {"var": "unbiased"},
        "n - 1 in place of n in the variance that normalises.", ("var", "y")),
    "biased variance in the running statistics": Convention("norm", {"running": "biased"},
        "n in place of n - 1 in the running variance."),
    "running momentum 0.9": Convention("norm", {"momentum": 0.9},
        "momentum is taken for the share of the old (0.9 new)."),
    "running momentum 0.01": Convention("norm", {"momentum": 0.01}, "a hundredth of the new (Keras)."),
    "statistics per time step": Convention("norm", {"per_step": True},
        "every time step is normalised with its own mean and variance."),
    "running statistics in training": Convention("norm", {"frozen": True}, "batch norm runs in evaluation mode."),
    "eps outside the root": Convention("norm", {"eps_place": "outside"}, "eps is added to the deviation."),
    "eps 1e-3": Convention("norm", {"eps": 1e-3}, "Keras's eps."),
    "no eps": Convention("norm", {"eps": 0.0}, "eps is left out."),
    "statistics taken for constants": Convention("norm_backward", {"constant": True},
        "mean and variance are not differentiated.", ("dx",)),
    # loss
    **{f"loss {kind}": Convention("loss", {"kind": kind}, f"the loss is {what}.") for kind, what in zip(LOSSES, (
        "TET, the mean over time of the cross entropy of every step", "the cross entropy of the mean over time",
        "the squared difference of the rate"), strict=True)},
    "softmax before the mean": Convention("loss", {"softmax_first": True},
        "probabilities, not logits, are averaged over time."),
    "sum over the batch": Convention("loss", {"scale": "batch"}, "the loss is summed over the batch, not averaged."),
    "sum over time": Convention("loss", {"scale": "time"}, "the loss is summed over time, not averaged."),
    "sum over batch and time": Convention("loss", {"scale": "both"}, "the loss is summed over both, not averaged."),
    # optimiser
    "coupled weight decay": Convention("optimiser", {"decay": "coupled"},
        "weight decay is added to the gradient (L2)."),
    "decoupled weight decay": Convention("optimiser", {"decay": "decoupled"},
        "weight decay is taken from the weight directly (AdamW)."),
    "no weight decay": Convention("optimiser", {"decay": "none"}, "weight decay is left out."),
    "Adam eps inside the root": Convention("optimiser", {"eps": "inside"}, "eps is added under the root.", ("after",)),
    "Adam eps before the bias correction": Convention("optimiser", {"eps": "early"},
        "eps is added to the root of the uncorrected second moment.", ("after",)),
    "no bias correction": Convention("optimiser", {"corrected": False},
        "Adam's moments are used as they are.", ("after",)),
    "global step count": Convention("optimiser", lambda c: {
        "count": "own" if c.optim.regrown_step == "global" else "global"},
        "a weight that came has the step count of the others in one of the two, its own in the other.",
        ("steps", "after")),
    "moments of regrown weights kept": Convention("optimiser", {"kept": True},
        "a connection that comes back finds its old moments."),
    "pruned weights moved": Convention("optimiser", {"unmasked": True},
        "moments or decay move weights that have no connection.", ("after",)),
    "momentum averaged": Convention("optimiser", {"momentum": "averaged"},
        "the gradient enters the buffer with 1 - momentum (dampening)."),
    "learning rate inside the momentum": Convention("optimiser", {"momentum": "lr inside"},
        "the buffer holds steps, not gradients."),
    "Nesterov": Convention("optimiser", lambda c: {"nesterov": not c.optim.nesterov},
        "one of the two looks ahead along the momentum.", ("after",)),
    "fresh optimiser": Convention("optimiser", lambda c: {"fresh": not c.optim.fresh},
        "all moments are cleared after an iteration in one of the two and not in the other."),
    # growth memory
    "growth memory masked": Convention("growth", {"masked": True}, "the average is 0 where no connection is."),
    "growth memory summed": Convention("growth", {"summed": True}, "m <- beta m + g, without 1 - beta."),
    "growth memory is the last gradient": Convention("growth", {"last": True}, "nothing is averaged."),
    # measurement
    "d counts non-zeros": Convention("measurement", {"d": "non-zeros"}, "an active weight that is 0 is not counted."),
    "d counts places": Convention("measurement", {"d": "places"}, "every place of the dense weight counts."),
    "p and q swapped": Convention("measurement", {"swap": True}, "the two orders are exchanged."),
    "eq. (2) with a minus sign": Convention("measurement", {"index": "minus"},
        "the misprint of the displayed equation."),
    "eq. (2) with the exponent flipped": Convention("measurement", {"index": "flipped"}, "the misprint in the text."),
    "eq. (2) without d": Convention("measurement", {"index": "norms"}, "norms in place of means."),
    "norms without their root": Convention("measurement", {"rooted": False}, "sums of powers in place of norms."),
    "eta left out": Convention("measurement", {"eta": 0.0}, "eq. (3) with eta = 0."),
    "eta with the other sign": Convention("measurement", {"bound": "inverse"}, "(1 + eta) to the power +q/(q-p)."),
    "gamma left out": Convention("measurement", {"gamma": 1.0}, "eq. (4) with gamma = 1."),
    "beta left out": Convention("measurement", {"beta": 1.0}, "eq. (4) without its cap."),
    "count rounded up": Convention("measurement", {"count": "ceil"}, "ceil in place of floor in eq. (4)."),
    "bound rounded down": Convention("measurement", {"count": "floor bound"}, "floor in place of ceil for r."),
    "count rounded to the nearest": Convention("measurement", {"count": "round"},
        "round in place of floor in eq. (4)."),
    "rounding exact": Convention("measurement", {"count": "exact"}, "eq. (4) as printed, r not rounded."),
    "rounding float32": Convention("measurement", {"count": "float32"}, "the float32 arithmetic of SAP's code."),
    "count of all places": Convention("measurement", {"count": "of N"}, "the ratio is taken of the dense weight."),
    "ratio of all places": Convention("measurement", {"ratio": "N"},
        "count / N, the paper's c, in place of count / d."),
    **{f"scope {scope}": Convention("measurement", {"scope": scope}, f"one index and count {what}.")
       for scope, what in (("layer", "a layer"), ("neuron", "a neuron"), ("global", "for the whole network"))},
    # rewiring
    "signed weights pruned": Convention("rewiring", {"score": "signed"}, "the score is w, not |w|."),
    "|w g| pruned": Convention("rewiring", {"score": "gradient"}, "the score is the loss's first-order change."),
    "largest pruned": Convention("rewiring", {"largest": True}, "the largest scores go.", ("pruned", "grown", "mask")),
    "<= at the cut": Convention("rewiring", {"ties": "all"},
        "everything equal to the score at the cut goes, past the count.",
        ("pruned", "grown", "mask")),
    "ties to the higher place": Convention("rewiring", {"ties": "higher"},
        "of equal scores the later place goes or comes.",
        ("pruned", "grown", "mask")),
    "just-pruned may not return": Convention("rewiring", lambda c: {"return_at_once": not c.rewire.return_at_once},
        "a place just left is free at once in one of the two and not in the other.", ("grown", "mask")),
    **{f"competition {scope}": Convention("rewiring", {"scope": scope}, f"scores compete {what}.",
                                          ("pruned", "grown", "mask"))
       for scope, what in (("layer", "in a layer"), ("neuron", "in a neuron"), ("global", "in the whole network"))},
    "shortfall redistributed": Convention("rewiring", {"shortfall": "redistribute"},
        "what a full neuron cannot take grows elsewhere in the layer.", ("grown", "mask")),
    **{f"growth by {rule}": Convention("rewiring", {"grow": rule}, f"the growth score is {what}.",
                                       ("grow_score", "grown", "mask"))
       for rule, what in (("momentum", "|m|"), ("adam", "|m| / sqrt(v)"), ("gradient", "|g|"))},
    "growth score masked": Convention("rewiring", {"masked": True}, "the score is 0 at every free place.",
        ("grow_score", "grown", "mask")),
    "growth score signed": Convention("rewiring", {"signed": True}, "the score is m, not |m|.",
        ("grow_score", "grown", "mask")),
    # state and draws
    "returning weights keep their value": Convention("state", {"keeps_value": True},
        "a connection pruned and regrown at once starts from its old weight, not from 0 (rigl-torch)."),
    "rewinding": Convention("state", lambda c: {"rewind": not c.rewire.rewind},
        "weights go back to their initial values after an iteration in one of the two and not in the other."),
    "running statistics not kept": Convention("state", {"committed": False},
        "batch norm's running values do not move."),
    "another random order": Convention("draws", {}, "the same samples in another order: the draws were not read."),
}
