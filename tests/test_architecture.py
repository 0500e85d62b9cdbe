"""What the project promises about itself: import rules, import cost, and what stands in the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SDKS = ("openai", "anthropic", "vllm")
HEAVY = (*SDKS, "torch", "transformers", "trl", "datasets", "peft", "accelerate", "pyarrow", "sympy")


def loaded_after(code: str) -> set[str]:
    """The top-level modules loaded by a fresh interpreter that runs ``code``."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('|'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return {name.partition(".")[0] for name in out.splitlines()[-1].split("|")}


@pytest.mark.parametrize(
    "code",
    [
        "import rlaif",
        "from rlaif.cli import main; main(['--help'])",
        "from rlaif.cli import main; main(['generate', '--help'])",
        "from rlaif.cli import main; main(['train', '--help'])",
        "from rlaif.cli import main; main(['constitution', 'lint', 'brief'])",
        "import rlaif.types, rlaif.pairing, rlaif.judges, rlaif.training, rlaif.engine",
        "from rlaif.cli import main; main(['verify', '--help'])",
        "import rlaif.rewards, rlaif.verifiers.math, rlaif.verifiers.code, rlaif.verifiers.instructions",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


def test_every_exported_name_is_there() -> None:
    import rlaif

    assert callable(rlaif.generate)
    for name in rlaif.__all__:
        assert getattr(rlaif, name) is not None
    with pytest.raises(AttributeError):
        _ = rlaif.no_such_name


def test_the_wheel_holds_the_constitutions_and_prompts_and_works_outside_the_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for kind, pattern in (("constitutions", "*.yaml"), ("prompts", "*.jinja")):
        shipped = {f"rlaif/_shipped/{kind}/{p.name}" for p in (ROOT / kind).glob(pattern)}
        assert shipped
        assert shipped <= names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/"))]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import rlaif; assert 'site' in rlaif.__file__\n"
        "from rlaif.constitution import load_constitution\n"
        "from rlaif.judges.pairwise import MUST_USE, VARIABLES\n"
        "from rlaif.templates import load_template\n"
        "load_template('pairwise', variables=VARIABLES, must_use=MUST_USE)\n"
        "print(load_constitution('brief').name)"
    )
    out = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert out.stdout.strip() == "brief", out.stderr
