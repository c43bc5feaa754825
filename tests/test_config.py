"""Configurations: what is written reads back, merges follow their order, and whatever is wrong is one clear line."""

import dataclasses
import os
import re
import subprocess
import sys
from importlib import resources
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refsnn import config
from refsnn import schema as keys
from refsnn.errors import UserError
from refsnn.schema import KEYS, PRESETS, SECTIONS, Config, OptimConfig, RewireConfig


def error_of(text: str = "", *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.loads(text, overrides, "my.toml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def values_of(one: keys.Key) -> st.SearchStrategy[Any]:
    """Any value that a key may hold."""

    def of(kind: Any) -> st.SearchStrategy[Any]:
        if get_origin(kind) is Literal:
            return st.sampled_from(get_args(kind))
        if get_origin(kind) is tuple:
            return st.lists(st.integers(1, 10**6), min_size=2, max_size=2).map(tuple)
        if kind in (bool, str, type(None)):
            return {bool: st.booleans(), str: st.text(), type(None): st.none()}[kind]
        low, high = (float(end) for end in one.within[1:-1].split(","))
        if kind is int:
            return st.integers(int(low), None if high == float("inf") else int(high))
        bounds: dict[str, Any] = {"min_value": low, "exclude_min": one.within[0] == "("} if low > -float("inf") else {}
        bounds |= {"max_value": high, "exclude_max": one.within[-1] == ")"} if high < float("inf") else {}
        return st.floats(**bounds, allow_nan=False, allow_infinity=False)

    kinds = get_args(one.kind) if get_origin(one.kind) in (Union, type(int | str)) else (one.kind,)
    return st.one_of([of(kind) for kind in kinds])


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    tied = ("data.name", "data.path", "data.labels", "model.name", "rewire.p", "rewire.q")      # to each other
    flat = {name: draw(values_of(one)) for name, one in KEYS.items() if name not in tied}
    flat |= draw(st.sampled_from([{}, {"data.name": "npz", "data.path": draw(st.text(min_size=1))},
                                  {"data.name": "cifar100", "data.labels": "coarse"}]))
    flat |= draw(st.sampled_from([{}, {"rewire.p": 0.125, "rewire.q": draw(st.floats(0.2, 1e300))}]))
    flat |= {"optim.warmup": draw(st.integers(0, flat["train.epochs"] - 1))}
    flat |= {"optim.momentum": 0.5} if flat["optim.nesterov"] else {}
    flat |= {"optim.step_every": 3} if flat["optim.schedule"] == "step" else {}
    sections = {
        section: SECTIONS[section](**{n.partition(".")[2]: v for n, v in flat.items() if n.startswith(section + ".")})
        for section in SECTIONS
    }
    return Config(seed=flat["seed"], dtype=flat["dtype"], **sections)


# ------------------------------------------------------------------------------------------------ reading and writing
@settings(max_examples=60, deadline=None)
@given(configurations())
def test_what_is_written_reads_back_the_same(one: Config) -> None:
    again = config.loads(config.dumps(one))
    assert again == one
    assert config.config_hash(again) == config.config_hash(one)
    assert config.differences(again, one) == []


def test_the_written_file_is_complete() -> None:
    text = config.dumps(Config())
    for name, one in KEYS.items():
        present = re.search(rf"^{name.rpartition('.')[2]} = ", text, re.MULTILINE) is not None
        assert present == (one.default is not None), name


@pytest.mark.parametrize("name", config.names())
def test_every_bundled_configuration_loads_and_explains_itself(name: str) -> None:
    one = config.load(name)
    text = (resources.files("refsnn") / "configs" / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}: ")
    assert max(len(line) for line in text.splitlines()) <= 120
    assert config.loads(config.dumps(one)) == one


PAPER = {"cifar10_resnet19", "cifar10_resnet19_neuron", "cifar100_resnet19", "cifar10dvs_vggsnn", "cifar10_conv6fc2"}
SMALL = {"cifar10_small", "cifar100_small", "nmnist", "cifar10dvs_small"}


def test_the_bundled_configurations_are_what_they_are_called() -> None:
    assert {"tiny", "digits", "digits_neuron", *PAPER, *SMALL} == set(config.names())
    layer, neuron = config.load("digits"), config.load("digits_neuron")
    assert config.differences(layer, neuron) == ['rewire.scope = "layer" against "neuron"']
    assert (layer.model.channels, layer.model.hidden, layer.encode.steps) == ((32, 64), 128, 4)
    assert (layer.train.iterations, layer.train.epochs, layer.train.batch) == (10, 4, 32)
    assert (layer.optim.kind, layer.optim.lr, layer.rewire.preset) == ("adam", 0.016, "figures")
    for name in config.names():  # "sap" starts dense: no bundled file may pin the density
        assert config.load(name, ["rewire.preset=sap"]).structure.density == 1.0


def test_a_file_is_read_by_its_path(tmp_path: Any) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seed = 7\n[optim]\nlr = 1\n", encoding="utf-8")
    assert config.load(file) == config.load(str(file)) == Config(seed=7, optim=OptimConfig(lr=1.0))
    assert type(config.load(file).optim.lr) is float


def test_files_that_cannot_be_read_are_named(tmp_path: Any) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# caf\xe9\n")
    for name, words in {
        "no_such": "bundled: cifar100_resnet19, .*, digits, digits_neuron, .*tiny",
        str(tmp_path / "gone.toml"): "no such file",
        str(latin): "UTF-8",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            config.load(name)
        assert str(caught.value).startswith(name)


def test_every_key_is_explained_once_and_its_default_is_allowed() -> None:
    for name, one in KEYS.items():
        assert len(one.help) > 15, name
        assert one.help.endswith("."), name
        assert keys.fits(one.default, one.kind), name
        numeric = {int, float} & {one.kind, *get_args(one.kind)}
        assert bool(one.within) == bool(numeric), name
    assert len({one.help for one in KEYS.values()}) == len(KEYS)


# ------------------------------------------------------------------------------------------------ merging
def test_the_later_layer_wins() -> None:
    file = '[rewire]\npreset = "literal"\ninner_every = 5\n[optim]\nlr = 0.1\n'
    one = config.loads(file, ["optim.lr=0.2", "optim.lr=0.3"])
    assert (one.rewire.regrow_share, one.rewire.inner_every, one.optim.lr) == (1.0, 5, 0.3)
    assert one.optim.beta1 == OptimConfig().beta1
    assert config.loads(file, ["rewire.inner_every=2"]).rewire.inner_every == 2


@pytest.mark.parametrize(
    ("preset", "share", "inner", "rewind", "density"),
    [("figures", 0.0, 1, False, 0.5), ("literal", 1.0, 0, False, 0.5), ("partial", "ratio", 0, False, 0.5),
     ("sap", 0.0, 0, True, 1.0)],
)  # fmt: skip
def test_presets(preset: str, share: float | str, inner: int, rewind: bool, density: float) -> None:
    one = config.loads("", [f"rewire.preset={preset}"])
    got = (one.rewire.preset, one.rewire.regrow_share, one.rewire.inner_every, one.rewire.rewind, one.structure.density)
    assert got == (preset, share, inner, rewind, density)
    assert config.loads(f'rewire.preset = "{preset}"') == one


def test_the_defaults_are_those_of_the_default_preset() -> None:
    assert set(PRESETS) == set(get_args(KEYS["rewire.preset"].kind))
    assert all(KEYS[name].default == value for name, value in PRESETS[RewireConfig().preset].items())


def test_a_preset_from_the_command_line_replaces_that_of_the_file_but_not_its_keys() -> None:
    file = '[rewire]\npreset = "sap"\nrewind = true\n'
    one = config.loads(file, ["rewire.preset=partial"])
    assert (one.rewire.regrow_share, one.rewire.rewind, one.structure.density) == ("ratio", True, 0.5)
    kept = config.loads("structure.density = 0.3", ["rewire.preset=sap", "rewire.rewind=false"])
    assert (kept.structure.density, kept.rewire.rewind, kept.rewire.inner_every) == (0.3, False, 0)


def test_a_preset_that_would_change_nothing_is_refused() -> None:
    complete = config.dumps(Config())
    message = error_of(complete, "rewire.preset=literal")
    assert "--set rewire.preset=literal" in message
    assert "rewire.regrow_share" in message
    assert config.loads(complete, ["rewire.preset=figures"]) == Config()


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.lr = 1e-3", "optim.lr", 1e-3),
        ("model.channels=[4, 8]", "model.channels", (4, 8)),
        ("rewire.scope=neuron", "rewire.scope", "neuron"),
        ('rewire.scope="neuron"', "rewire.scope", "neuron"),
        ("rewire.regrow_share=ratio", "rewire.regrow_share", "ratio"),
        ("rewire.regrow_share=1", "rewire.regrow_share", 1.0),
        ("neuron.preset=if", "neuron.preset", "if"),
        ("neuron.detach_reset=true", "neuron.detach_reset", True),
        ("structure.start=2024", "structure.start", "2024"),
        ("structure.start=a=b c.npz", "structure.start", "a=b c.npz"),
        ("seed=3", "seed", 3),
    ],
)
def test_override(override: str, name: str, value: Any) -> None:
    got = keys.settings(config.loads("", [override]))[name]
    assert got == value
    assert type(got) is type(value)


# ------------------------------------------------------------------------------------------------ refusing
@pytest.mark.parametrize(
    "override",
    [
        "rewire.p=0", "rewire.p=-1", "rewire.p=nan", "rewire.eta=-0.1", "rewire.gamma=0", "rewire.beta=0",
        "rewire.beta=1.1", "rewire.regrow_share=1.5", "rewire.regrow_share=all", "rewire.inner_every=-1",
        "rewire.grow_beta=1", "rewire.rewind=0", "rewire.scope=row", "structure.density=0", "structure.density=1.2",
        "encode.steps=0", "encode.steps=2.0", "encode.steps=true", "train.batch=0", "train.epochs=0",
        "train.iterations=0", "train.max_steps=-1", "train.clip=inf", "optim.momentum=1", "optim.lr=-0.1",
        "optim.lr=fast", "optim.eps=0", "optim.beta2=1", "optim.weight_decay=-1", "optim.step_factor=0",
        "model.dropout=1", "model.channels=[4, 0]", "model.channels=[]", "model.channels=4",
        "model.channels=[1, true]", "neuron.decay=1.1", "neuron.alpha=0", "neuron.gain=0", "data.validation=1",
        "data.test_share=0", "seed=-1", "seed=4294967296", "dtype=float16", "optim.lr=", "optim.lr=" + "9" * 400,
    ],
)  # fmt: skip
def test_a_value_that_is_not_allowed_names_key_value_range_and_place(override: str) -> None:
    name, _, value = override.partition("=")
    message = error_of("", override)
    assert message.startswith(f"--set {override}: {name} = ")
    assert value.strip('"[]') in message
    assert f"allowed: {keys.allowed(KEYS[name])}" in message


def test_a_value_in_the_file_names_the_file() -> None:
    assert error_of("rewire.beta = 0") == "my.toml: rewire.beta = 0.0 is not allowed; allowed: a number in (0, 1]"


def test_the_ends_of_an_interval_belong_to_it_as_written() -> None:
    for override in ["rewire.beta=1", "structure.density=1", "data.validation=0", "optim.lr=0", "seed=4294967295"]:
        config.loads("", [override])


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("rewire.p = 1.0", (), "my.toml: rewire.p = 1.0 does not go with rewire.q = 1.0: the PQ index needs 0 < p < q"),
        ("rewire.p = 1.0", ("rewire.q=0.5",), "my.toml: rewire.p = 1.0 does not go with rewire.q = 0.5"),
        ("", ("rewire.q=0.5",), "--set rewire.q=0.5: rewire.q = 0.5 does not go with rewire.p = 0.5"),
        ("rewire.p = 0.9995", (), "further apart"),
        ("", ("data.name=npz",), "set data.path"),
        ("data.path = 'x.npz'", (), 'my.toml: data.path = "x.npz" names no file: data.name = "digits"'),
        ("", ("model.channels=[1, 2, 3]",), "two convolutions"),
        ("[optim]\nnesterov = true\nmomentum = 0", (), "needs optim.momentum above 0"),
        ("optim.schedule = 'step'", (), "needs optim.step_every"),
        ("optim.warmup = 4", (), "my.toml: optim.warmup = 4 must be below 4"),
        ("optim.warmup = 40", ("optim.restart=false",), "must be below 40"),
    ],
)
def test_values_that_do_not_go_together(text: str, overrides: tuple[str, ...], words: str) -> None:
    assert words in error_of(text, *overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("[rewire]\nregrow_shar = 1", (), "there is no key rewire.regrow_shar; the nearest is rewire.regrow_share"),
        ("[rewrie]\np = 1", (), "my.toml: there is no section [rewrie]; the nearest is [rewire]"),
        ("", ("density=0.3",), "--set density=0.3: there is no key density; the nearest is structure.density"),
        ("", ("optim.learning_rate=1",), "--set optim.learning_rate=1: there is no key optim.learning_rate"),
        ("batch_size = 3", (), "the nearest is train.batch"),
        ("rewire = 3", (), "rewire is a section"),
        ("[[rewire]]\np = 1", (), "rewire is a section"),
        ("", ("rewire={p=1}",), "rewire is a section"),
        ("[seed]\nvalue = 1", (), "my.toml: seed = "),
        ("", ("optim.lr",), "write KEY=VALUE"),
        ("seed = ", (), "my.toml: not valid TOML"),
        ("seed = 1\nseed = 2", (), "my.toml: not valid TOML"),
        ("seed = 2020-01-01", (), "my.toml: seed = "),
        ("", ("seed=1\nbatch=2",), "seed = "),
    ],
)
def test_what_is_unknown_or_malformed_is_refused(text: str, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as caught:
        config.loads(text, overrides, "my.toml")
    assert words in str(caught.value)


def test_a_configuration_built_in_python_is_checked_too() -> None:
    with pytest.raises(UserError, match=r"^rewire.beta = 2.0 is not allowed; allowed: a number in \(0, 1\]$"):
        Config(rewire=RewireConfig(beta=2.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------ identity
def test_the_hash_changes_with_every_setting_that_decides_a_result() -> None:
    base = config.load("tiny")
    assert config.config_hash(base) == config.config_hash(config.load("tiny"))
    assert len(config.config_hash(base)) == 16
    for override in ["seed=1", "dtype=float64", "optim.lr=0.003", "neuron.decay=0.4", "model.channels=[8, 4]"]:
        other = config.load("tiny", [override])
        assert config.config_hash(other) != config.config_hash(base)
        assert [line.partition(" ")[0] for line in config.differences(base, other)] == [override.partition("=")[0]]


def test_the_name_of_a_preset_decides_nothing_its_keys_do() -> None:
    named = config.loads("", ["rewire.preset=literal"])
    spelled = config.loads("", ["rewire.regrow_share=1.0", "rewire.inner_every=0"])
    assert named != spelled
    assert config.config_hash(named) == config.config_hash(spelled)
    assert config.differences(named, spelled) == []


def test_equal_numbers_are_one_setting() -> None:
    ones = [Config(rewire=RewireConfig(gamma=gamma, eta=eta)) for gamma, eta in [(1, 0.0), (1.0, -0.0), (1.0, 0)]]
    assert len({config.config_hash(one) for one in ones}) == 1


def test_the_hash_does_not_depend_on_the_process() -> None:
    code = "from refsnn.config import config_hash, load; print(config_hash(load('tiny')))"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == config.config_hash(config.load("tiny"))
