"""The rules of the house, walked on the source: who imports whom, what kernels may contain, what is documented."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import refsnn
from refsnn import twin

PACKAGE = Path(refsnn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
KERNELS = sorted((PACKAGE / "ops" / "kernels").rglob("[a-z]*.py"))

# What a module may import of refsnn; "*" is anything. errors and schema may be imported by all.
ALLOWED = {
    "cli": "*", "progress": "runs twin train", "__main__": "cli", "__init__": "*",
    "errors": "", "schema": "errors", "rng": "", "twin": "machine", "pq": "",
    "optim": "", "metrics": "", "encode": "ops", "trace": "disk",
    "config": "", "topology": "pq", "rewire": "pq topology",
    "datasets/samples": "", "datasets/augment": "datasets rng", "datasets/__init__": "datasets rng",
    "datasets/images": "datasets", "datasets/cifar": "datasets",
    "datasets/unpickle": "", "datasets/events": "datasets disk",
    "datasets/frames": "datasets", "datasets/resize": "", "datasets/cache": "datasets disk",
    "datasets/simulate": "datasets disk rng", "datasets/camera": "datasets", "datasets/recordings": "datasets",
    "layers": "ops", "fusion": "layers ops twin", "chain": "fusion layers ops", "notation": "",
    "plan": "chain layers notation ops",
    "models": "chain layers plan topology rng ops given", "given": "",
    "evaluate": "metrics encode chain datasets layers models ops trace",
    "tables": "metrics evaluate ops pq rewire train",
    "train": "models encode optim pq rewire topology metrics trace config rng datasets ops evaluate layers tables "
             "recording",
    "recording": "layers ops pq rewire", "tracing": "show trace train runs config twin datasets", "safe_read": "trace",
    "runs": "disk train models encode optim pq rewire metrics trace config rng datasets ops evaluate",
    "verdict": "trace", "wiring": "chain layers models ops plan", "traced": "wiring",
    "recompute": "chain encode layers ops plan traced",
    "recompute_method": "optim pq rewire topology traced",
    "conventions": "ops plan recompute recompute_method traced verdict", "ties": "plan traced verdict",
    "compare": "config conventions models safe_read ties trace verdict",
    "bench": "disk ops twin", "budget": "chain evaluate fusion layers models rewire trace", "disk": "", "machine": "",
    "stock": "config datasets",
    "series": "config trace ops", "plot": "disk series config ops", "show": "*", "walk": "*", "measure": "pq topology",
}
# What does several operations in one pass reads those.
FUSES = {
    "ops/fused": {"ops/norm", "ops/neuron", "ops/pool", "ops/surrogate"},
    "ops/kernels/fused": {"ops/kernels/norm"},
    "ops/kernels/fused_pool": {"ops/kernels/fused", "ops/kernels/norm", "ops/kernels/pool"},
}
THIRD_PARTY = {
    "numba": ("twin", "ops/kernels"), "scipy": ("ops", "datasets"),
    "h5py": ("trace", "safe_read", "datasets", "export"),
    "matplotlib": ("plot",), "tqdm": ("progress",),
}


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path: Path) -> set[str]:
    """Every module that a file imports, dotted, type-checking imports left out."""
    tree = ast.parse(path.read_text())
    checked = {id(node) for branch in ast.walk(tree) if isinstance(branch, ast.If)
               and ast.unparse(branch.test) == "TYPE_CHECKING" for node in ast.walk(branch)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            folder = PACKAGE / base.removeprefix("refsnn").replace(".", "/").lstrip("/")
            inside = [alias.name for alias in node.names if (folder / f"{alias.name}.py").exists()]
            found |= {f"{base}.{name}" for name in inside} or {base}
            if inside and len(inside) < len(node.names):
                found.add(base)
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_what_its_level_allows(path: Path) -> None:
    name = module_name(path)
    own = {i.removeprefix("refsnn").lstrip(".").replace(".", "/") for i in imports(path) if i.split(".")[0] == "refsnn"}
    own -= {"errors", "schema"} if name not in ("errors", "twin", "pq", "rewire", "rng") else set()
    if name.startswith("ops/kernels"):
        own -= FUSES.get(name, set())
        assert all(f"{one}/".startswith("ops/kernels/blocks/") for one in own), (
            f"a kernel file imports building blocks only, {name} imports {own}")
    elif name.startswith("ops/"):
        own -= FUSES.get(name, set())
        assert own <= {"twin", "ops/sparse", "ops/static", "ops"}, f"{name} imports {own}"
    elif ALLOWED[name] != "*":
        allowed = ALLOWED[name].split()
        for one in own:
            assert any(one == a or one.startswith(a + "/") for a in allowed), f"{name} may not import {one}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_package_is_used_only_where_it_belongs(path: Path) -> None:
    name = module_name(path)
    for package in {i.split(".")[0] for i in imports(path)} & set(THIRD_PARTY):
        places = THIRD_PARTY[package]
        assert any(name == place or name.startswith(place + "/") for place in places), f"{name} imports {package}"


@pytest.mark.parametrize("path", KERNELS, ids=module_name)
def test_kernels_keep_to_what_gives_the_same_bits_on_every_machine(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.expr) else ""
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)), f"{path.name}: BLAS: {text}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not re.search(r"\.(sum|mean|dot|prod|var|std|vdot|matmul|tensordot)$", called), (
                f"{path.name}:{node.lineno}: reduction {called} in a kernel")
            assert called not in ("vectorize", "guvectorize"), f"{path.name}: {called}"
        if isinstance(node, ast.keyword) and node.arg == "fastmath":
            assert ast.unparse(node.value) == "{'contract'}", f"{path.name}: fastmath={ast.unparse(node.value)}"


@pytest.mark.parametrize("path", KERNELS, ids=module_name)
def test_no_kernel_reduces_a_scalar_over_prange(path: Path) -> None:
    for loop in ast.walk(ast.parse(path.read_text())):
        if isinstance(loop, ast.For) and ast.unparse(loop.iter).startswith("prange("):
            inside = {n.id for node in ast.walk(loop) for n in ast.walk(node)
                      if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
                      and not isinstance(node, ast.AugAssign)}
            for node in ast.walk(loop):
                if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                    assert node.target.id in inside, f"{path.name}:{node.lineno}: {node.target.id} summed over prange"


def compiled_by(function: ast.FunctionDef) -> str:
    """The name of its first decorator."""
    return ast.unparse(function.decorator_list[0]).split("(")[0] if function.decorator_list else ""


def test_what_uses_building_blocks_is_compiled_again_when_they_change() -> None:
    # Numba's cache looks at a function's own file only; kernel_jit's at the files of the building blocks as well
    functions = [(path, f) for path in KERNELS for f in ast.walk(ast.parse(path.read_text()))
                 if isinstance(f, ast.FunctionDef)]
    users = {f.name: path for path, f in functions if compiled_by(f) == "kernel_jit"}
    assert len(users) > 40
    for path, function in functions:
        called = {c.func.id for c in ast.walk(function) if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
        if compiled_by(function) == "njit":
            assert not called & users.keys(), f"{path.name}: {function.name} calls {called & users.keys()}: kernel_jit"


def test_an_operation_that_must_agree_exactly_is_not_contracted() -> None:
    for operation in twin.REGISTRY.values():
        if operation.kernel_path is None or operation.agree != "exact":
            continue
        file, function = operation.kernel_path.split(":")
        tree = ast.parse((PACKAGE / "ops" / "kernels" / f"{file}.py").read_text())
        kernel = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
        assert "fastmath" not in ast.unparse(kernel.decorator_list[0]), operation.name


def test_every_kernel_belongs_to_a_definition_and_takes_its_arguments() -> None:
    import refsnn.train  # noqa: F401  (imports all operations)

    bound = {op.kernel_path for op in twin.REGISTRY.values() if op.kernel_path}
    for path in KERNELS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                assert f"{path.stem}:{node.name}" in bound, f"{node.name} has no definition"
    for operation in twin.REGISTRY.values():
        if operation.kernel_path:
            file, function = operation.kernel_path.split(":")
            tree = ast.parse((PACKAGE / "ops" / "kernels" / f"{file}.py").read_text())
            kernel = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
            assert [a.arg for a in kernel.args.args] == list(operation.signature.parameters), operation.name
            assert ast.get_docstring(kernel, clean=True).startswith(f"Kernel of `{operation.name}`"), operation.name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_public_thing_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name != "__main__.py":
        assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f is not node]
            nested = any(node in ast.walk(f) for f in functions)
            assert nested or ast.get_docstring(node), f"{module_name(path)}:{node.name} has no docstring"


def test_a_docstring_of_an_operation_names_every_argument() -> None:
    import refsnn.train  # noqa: F401

    for operation in twin.REGISTRY.values():
        module = inspect.getmodule(operation.definition)
        text = f"{inspect.getdoc(operation.definition)}\n{module.__doc__}"
        for name in operation.signature.parameters:
            assert re.search(rf"\b{name}\b", text), f"{operation.name}: {name} is not explained"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_fit_a_screen_and_files_one_subject(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 460, f"{path.name}: {len(lines)} lines"
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = node.end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 50, f"{module_name(path)}:{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_global_random_state(path: Path) -> None:
    legacy = r"np\.random\.(seed|rand|randn|randint|choice|shuffle|permutation|normal|uniform)\b|^import random"
    assert not re.search(legacy, path.read_text(), re.M)
