"""The options that a configuration accepts are the entries of the dicts that do the work: neither has one more."""

from typing import get_args

import pytest

from conftest import train_tiny
from refsnn import config, pq, schema
from refsnn.datasets import DATASETS
from refsnn.encode import ENCODERS
from refsnn.errors import UserError
from refsnn.models import MODELS
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import NEURONS, Neuron
from refsnn.ops.surrogate import SURROGATES, Surrogate
from refsnn.rewire import GROW, PRUNE, RATIOS, Shortfall
from refsnn.topology import SPREADS, Draw, Scope


def options(name: str) -> set[str]:
    """The words that a key accepts, None and numbers aside."""
    kind = schema.KEYS[name].kind
    literals = [kind, *get_args(kind)]
    return {word for one in literals for word in get_args(one) if isinstance(word, str)} | {
        word for word in get_args(kind) if isinstance(word, str)
    }


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("data.name", DATASETS),
        ("encode.kind", ENCODERS),
        ("model.name", MODELS),
        ("neuron.preset", NEURONS),
        ("neuron.surrogate", SURROGATES),
        ("structure.spread", SPREADS),
        ("structure.draw", get_args(Draw)),
        ("rewire.scope", get_args(Scope)),
        ("rewire.shortfall", get_args(Shortfall)),
        ("rewire.rounding", get_args(pq.Rounding)),
        ("rewire.prune", PRUNE),
        ("rewire.grow", GROW),
        ("rewire.ratio", RATIOS),
        ("train.loss", LOSSES),
    ],
)
def test_options_are_the_registry(name: str, registry: object) -> None:
    assert options(name) == set(registry)  # type: ignore[call-overload]


def test_a_new_surrogate_is_written_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    gauss = Surrogate("gauss", SURROGATES["erf"].primitive, SURROGATES["erf"].derivative, 1.0, lambda _: ())
    monkeypatch.setitem(SURROGATES, "gauss", gauss)
    state = train_tiny("neuron.surrogate=gauss", "train.max_steps=2")
    assert state.network.layers[2].surrogate == "gauss"
    assert state.network.layers[2].alpha == 1.0
    with pytest.raises(UserError, match='"gauss"'):
        config.load("tiny", ["neuron.surrogate=gaus"])


def test_every_number_of_a_neuron_is_a_key_left_to_the_preset() -> None:
    own = {"preset", "surrogate", "alpha"}
    assert {name.removeprefix("neuron.") for name in schema.KEYS if name.startswith("neuron.")} - own == set(
        Neuron.__dataclass_fields__
    )
    assert all(schema.KEYS[f"neuron.{name}"].default is None for name in Neuron.__dataclass_fields__)


def test_the_orders_p_and_q_are_kept_as_far_apart_as_the_equations_need() -> None:
    assert schema.ORDER_GAP == pq.ORDER_GAP
