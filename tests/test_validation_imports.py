"""The checks in validation/: what their peers may import, that they skip with a reason, and that they can fail."""

import ast
import functools
import importlib
import math
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refsnn
from refsnn.chain import chain_backward, chain_forward

VALIDATION = Path(refsnn.__file__).parents[1] / "validation"
pytestmark = pytest.mark.skipif(not (VALIDATION / "common.py").is_file(), reason="validation/ is not installed")
PEERS = sorted((VALIDATION / "peers").glob("*.py"))
CHECKS = sorted(VALIDATION.glob("check_*.py"))
FRAMEWORKS = ("torch", "torchvision", "rigl_torch", "sparsimony", "spikingjelly", "snntorch", "norse", "tonic")
NEEDS_TORCH = ("check_torch", "check_networks", "check_data", "check_events", "check_sap", "check_rigl",
               "check_torch_prune")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a module of validation/ as its programs do."""
    monkeypatch.syspath_prepend(str(VALIDATION))
    return importlib.import_module


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file; relative imports as "."."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module))
    return found


@pytest.mark.parametrize("path", PEERS, ids=lambda path: path.stem)
def test_a_peer_imports_nothing_of_refsnn(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(path)}
    local = {p.stem for p in VALIDATION.glob("*.py")}
    assert "refsnn" not in roots
    assert not roots & local, f"{path.name} imports {roots & local}, which may import refsnn"
    text = path.read_text()
    assert "import_module(" not in text
    assert "__import__(" not in text


@pytest.mark.parametrize("path", CHECKS, ids=lambda path: path.stem)
def test_a_check_uses_the_public_functions_of_refsnn(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "refsnn":
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{path.name} imports {private} of {node.module}"


@pytest.mark.parametrize("name", NEEDS_TORCH)
def test_a_check_is_skipped_with_a_reason_where_its_framework_is_absent(name: str) -> None:
    program = (f"import sys, runpy; sys.modules.update(dict.fromkeys({FRAMEWORKS!r}))\n"
               f"sys.path.insert(0, {str(VALIDATION)!r})\n"
               f"runpy.run_path({str(VALIDATION / name)!r} + '.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "skipped: torch is not installed"


# ------------------------------------------------------------------------------------------ a table that can say no


def test_a_row_holds_up_to_its_limit_and_no_further(load: Callable[[str], Any]) -> None:
    common = load("common")
    assert common.Row("", 1, 1e-12, 1e-12).holds
    assert not common.Row("", 1, np.nextafter(1e-12, 1), 1e-12).holds


@pytest.mark.parametrize(("cases", "worst"), [(0, 0.0), (1, math.nan), (1, math.inf), (1, 1.0)])
def test_nothing_compared_or_not_a_number_does_not_hold(load: Callable[[str], Any], cases: int, worst: float) -> None:
    table = load("common").Table(quiet=True)
    assert not table.holds
    assert not table.add("", cases, worst, 0.5)
    assert not table.holds


def test_errors_are_relative_to_the_largest_value_and_never_swallowed(load: Callable[[str], Any]) -> None:
    common = load("common")
    assert common.relative([1.0, 100.0], [2.0, 100.0]) == 0.01
    assert common.relative([1.0], [0.0]) == 1.0
    assert common.relative([1.0, 2.0], [1.0]) == math.inf
    assert math.isnan(common.relative([math.nan, 1.0], [0.0, 1.0]))
    worst = common.Worst()
    for got in (math.nan, 1.0, 0.0):
        worst.see([got], [1.0])
    assert math.isnan(worst.error)
    assert common.unequal([1, 2], [1, 3]) == 1
    assert common.unequal(np.zeros(3), np.zeros(2)) == 3


def test_the_exit_status_says_whether_the_check_holds(load: Callable[[str], Any], capsys: Any) -> None:
    common = load("common")

    def absent(_table: Any) -> None:
        common.need("no_such_framework")

    assert common.run("t", (), lambda table: table.add("row", 1, 0.0, 0.0) and None) == 0
    assert common.run("t", (), lambda table: table.add("row", 1, 1.0, 0.0) and None) == 1
    assert common.run("t", (), lambda _table: None) == 1
    assert common.run("t", (), absent) == 0
    assert "skipped: no_such_framework is not installed" in capsys.readouterr().out


# ------------------------------------------------------------------- planted faults: every check notices its own kind


def flipped(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A convolution with its filters turned around."""
    def convolve(x: Any, data: Any, indices: Any, indptr: Any, bias: Any, kernel_size: Any, *geometry: Any) -> Any:
        return forward(x[:, ::-1], data, indices, indptr, bias, kernel_size, *geometry)[:, ::-1]
    return convolve


SCIPY_FAULTS = {
    "flipped kernel": ("refsnn.ops.conv.conv2d_forward", flipped, "check_correlations"),
    "weights lost in the product": ("refsnn.ops.linear.linear_forward",
                                    lambda f: lambda x, data, *rest: f(x, data * (1 + 1e-11), *rest),
                                    "check_sparse_products"),
    "spike at the threshold": ("check_scipy.lif_forward", lambda f: lambda x, *rest: f(x, *rest[:8], "ge", "affine"),
                               "check_membranes"),
    "softmax before the mean": ("refsnn.ops.loss.LOSSES", lambda losses: losses | {"cross_entropy_mean": losses["tet"]},
                                "check_functions"),
    "p and q of the index": ("check_scipy.measure", lambda f: lambda *args, p, q: f(*args, p=p, q=1.01 * q),
                             "check_index"),
    "rounding in float32": ("check_scipy.measure", lambda f: lambda *args, p, q: f(*args, p=p, q=q, rounding="float32"),
                       "check_index"),
    "layers above 1 kept": ("check_scipy.layer_densities", lambda f: lambda s, d, k: [x * 1.0001 for x in f(s, d, k)],
                            "check_densities"),
}


@pytest.mark.parametrize("fault", [None, *SCIPY_FAULTS])
def test_the_scipy_check_fails_where_something_is_wrong(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    check, table = load("check_scipy"), load("common").Table(quiet=True)
    names = {name for *_, name in SCIPY_FAULTS.values()}
    if fault is not None:
        place, make, name = SCIPY_FAULTS[fault]
        plant(monkeypatch, place, make)
        if place.endswith("LOSSES"):
            monkeypatch.setattr(check, "LOSSES", importlib.import_module("refsnn.ops.loss").LOSSES)
        names = {name}
    for name in sorted(names):
        function, rng = getattr(check, name), np.random.default_rng(0)
        function(table) if name == "check_densities" else function(table, rng)
    assert table.holds == (fault is None)


def plant(monkeypatch: pytest.MonkeyPatch, place: str, make: Callable[[Any], Any]) -> None:
    """Replace a thing by what `make` makes of it."""
    module, _, name = place.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, make(getattr(importlib.import_module(module), name)))


TORCH_FAULTS = {
    "signed weights for magnitudes": ("check_sap", "prune_magnitude", lambda _f: lambda w: w),
    "p and q": ("check_sap", "measure", lambda f: lambda *args, rounding: f(*args, p=0.4, rounding=rounding)),
    "eta": ("check_sap", "measure", lambda f: lambda *args, rounding: f(*args, eta=0.0, rounding=rounding)),
    "no return at once": ("check_rigl", "rewire", lambda f: lambda *args: f(*args, return_at_once=False)),
    "growth of the smallest": ("check_rigl", "rewire",
                               lambda f: lambda a, b, c, *args: f(a, b, [1 / x for x in c], *args)),
    "er for erk": ("check_rigl", "layer_densities", lambda f: lambda shapes, density, _: f(shapes, density, "er")),
    "squares, signed": ("check_torch_prune", "prune_magnitude", lambda _f: lambda w: w * abs(w)),
    "batch-norm momentum": ("check_torch", "BatchNorm", lambda cls: functools.partial(cls, momentum=0.0999)),
    "detached reset": ("check_torch", "lif_backward", lambda f: lambda *args: f(*args[:9], True, *args[10:])),
    "wide surrogate": ("check_torch", "SURROGATES", lambda s: s | {"triangle": s["rectangle"]}),
    "nesterov": ("check_torch", "OptimConfig",
                 lambda f: lambda **keys: f(**keys | {"nesterov": keys.get("momentum") == 0.9})),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", TORCH_FAULTS)
def test_a_check_against_pytorch_fails_where_something_is_wrong(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    name, attribute, make = TORCH_FAULTS[fault]
    check, table = load(name), load("common").Table(quiet=True)
    for size, value in (("NETWORKS", 1), ("UPDATES", 20)):
        if isinstance(getattr(check, size, None), int):
            monkeypatch.setattr(check, size, value)
    parts = {"batch-norm momentum": "check_other_layers", "detached reset": "check_neurons",
             "wide surrogate": "check_neurons", "nesterov": "check_optimisers"}
    before = load("common").Table(quiet=True)
    run_part(check, parts.get(fault), before)
    monkeypatch.setattr(check, attribute, make(getattr(check, attribute)))
    run_part(check, parts.get(fault), table)
    broken = {row.what for row in table.rows if not row.holds} - {row.what for row in before.rows if not row.holds}
    assert broken


def run_part(check: Any, part: str | None, table: Any) -> None:
    """The whole check, or one function of it."""
    if part is None:
        check.check(table)
    else:
        getattr(check, part)(table, np.random.default_rng(0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", [None, "masked growth memory", "moments kept", "input scaled"])
def test_the_side_by_side_run_tells_two_methods_apart(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    side, table = load("side_by_side"), load("common").Table(quiet=True)
    monkeypatch.setitem(side.COURSE, "literal", {"epochs": 1, "iterations": 3})
    method = load("peers.torch_method").Method
    if fault == "masked growth memory":
        step = method.train_step

        def masked(self: Any, *batch: Any) -> Any:
            result = step(self, *batch)
            self.growth = {name: g * self.masks[name] for name, g in self.growth.items()}
            return result

        monkeypatch.setattr(method, "train_step", masked)
    elif fault == "moments kept":
        carry = method.carry_out

        def kept(self: Any, plans: Any) -> None:
            before = {name: {part: t.clone() for part, t in m.items()} for name, m in self.moments.items()}
            carry(self, plans)
            self.moments = before

        monkeypatch.setattr(method, "carry_out", kept)
    elif fault == "input scaled":
        torch_method = load("peers.torch_method")
        monkeypatch.setattr(torch_method, "lif", lambda x, lif=torch_method.lif: lif(x, gain=1 + 1e-6))
    side.check_method(table, "neuron", "literal", "adam")
    broken = {row.what.partition(": ")[2] for row in table.rows if not row.holds} - {"rewires, how many fewer than ten"}
    assert bool(broken) == (fault is not None), broken
    if fault == "masked growth memory":
        assert "masks, 2 rewires: differing" in broken
    if fault == "moments kept":
        assert "weights, absolute" in broken


def small_residual(net: Any, x: Any, classes: int) -> Any:
    """4C3 8Rs2 8R GAP FC, as peers/torch_networks.py has its networks."""
    x = net.block("block2", net.block("block1", net.spiking(1, x, 4), 8, 2), 8, 1)
    x = net.layer("pool1", x, lambda x: x.mean(dim=(3, 4), keepdim=True))
    return net.linear("fc1", net.flatten(x), classes)


def exchanged(handed_over: Callable[..., Any]) -> Callable[..., Any]:
    """Two batch norms of a block in each other's place."""
    def hand_over(state: Any) -> Any:
        parameters, statistics = handed_over(state)
        names = ("block1.norm2.gamma", "block1.shortcut_norm.gamma")
        return parameters | dict(zip(names, [parameters[name] for name in reversed(names)], strict=True)), statistics
    return hand_over


def no_shortcut_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A residual block that gives what its body gives."""
    return lambda self, *args: (chain_forward(self.body, *args)[0], forward(self, *args)[1])


def no_shortcut_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A residual block whose input's gradient comes through its body alone."""
    return lambda self, dy, cache, *args: (chain_backward(dy, cache[0], *args)[0],
                                           backward(self, dy, cache, *args)[1])


# what is wrong -> where, what it becomes, and rows that must fail
NETWORK_FAULTS: dict[str, tuple[str, Callable[..., Any], set[str]]] = {
    "a join without its shortcut": ("refsnn.chain.Residual.forward", no_shortcut_forward,
                                    {"small: membranes", "small, forced: entries of joins that are no sums"}),
    "a gradient along one way only": ("refsnn.chain.Residual.backward", no_shortcut_backward,
                                      {"small: gradients of weights at every place",
                                       "small, forced: entries of joins that are no sums"}),
    "batch norms exchanged": ("check_networks.handed_over", exchanged, {"small: membranes", "small, forced: outputs"}),
    "neurons driven too hard": ("refsnn.layers.lif_forward", lambda f: lambda x, *rest: f(x * 1.1, *rest),
                                {"small: spikes that differ", "small, forced: spikes that differ"}),
    "gradients of active weights": ("refsnn.ops.conv.conv2d_weight_gradient",
                                    lambda f: lambda *args: f(*args) * (1 + 1e-11),
                                    {"small, forced: gradients of active weights"}),
    "not all that went comes back": ("check_networks.end_counts", lambda f: lambda *args: (
        f(*args)[0], f(*args)[1] // 2), {"small, layer-wise rewire: mask entries that differ",
                                         "small, neuron-wise rewire: gone and come, counts that differ"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", [None, *NETWORK_FAULTS])
def test_the_check_of_networks_fails_where_something_is_wrong(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    check, table = load("check_networks"), load("common").Table(quiet=True)
    monkeypatch.setitem(load("peers.torch_networks").NETWORKS, "layers", small_residual)
    expected: set[str] = set()
    if fault is not None:
        place, make, expected = NETWORK_FAULTS[fault]
        monkeypatch.setattr(place, make(pkgutil.resolve_name(place)))
    keys = ["dtype=float64", "train.batch=2", "rewire.preset=literal", "rewire.grow_window=0", "model.name=layers"]
    config = check.load("cifar10_small", [*keys, "model.layers=4C3 8Rs2 8R GAP FC"])
    state, x, labels = check.setting(table, config)
    check.check_step(table, "small", state, x, labels)
    for scope in ("layer", "neuron"):
        check.check_rewire(table, "small", state, scope)
    broken = {row.what for row in table.rows if not row.holds}
    assert expected <= broken
    assert bool(broken) == (fault is not None), broken
