"""What is installed, what it imports, and what is pinned."""

import configparser
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradscope
from gradscope import errors
from gradscope.versions import OLDEST

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT.joinpath("pyproject.toml").read_text()


def _modules_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement", ["import gradscope", "import gradscope.cli; gradscope.cli.parser()", "import gradscope.pytest_plugin"]
)
def test_importing_costs_neither_torch_nor_rich(statement):
    assert _modules_after(statement).isdisjoint({"torch", "numpy", "rich"})


@pytest.mark.parametrize("name", gradscope.__all__)
def test_every_public_name_is_there(name):
    assert getattr(gradscope, name) == getattr(gradscope, name)
    assert name in dir(gradscope)


def test_public_names_are_what_a_type_checker_sees():
    source = Path(gradscope.__file__).read_text()
    typed = source.partition("if TYPE_CHECKING:")[2].partition("#: Public name")[0]
    imported = re.findall(r"\b\w+\b", " ".join(re.findall(r"import \(?([^()]*?)\)?\n(?=    (?:from|\n|__)|\n)", typed)))
    assert sorted({*imported, "__version__"}) == sorted(gradscope.__all__)


def test_every_error_is_public():
    tree = {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)}
    assert tree <= set(gradscope.__all__)
    assert all(issubclass(getattr(errors, name), errors.GradscopeError) for name in tree)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'gradscope' has no attribute 'wach'"):
        _ = gradscope.wach


def test_the_version_is_the_distributions():
    assert gradscope.__version__ == importlib.metadata.version("torch-gradscope")
    assert f'version = "{gradscope.__version__}"' in PYPROJECT


@pytest.mark.parametrize("name", [name for name in OLDEST if name != "numpy"])
def test_what_is_refused_is_what_the_metadata_refuse(name):
    least = ".".join(map(str, OLDEST[name]))
    assert f'"{name}>={least}"' in PYPROJECT


def test_the_readme_names_the_oldest_torch():
    assert f"torch {'.'.join(map(str, OLDEST['torch']))} or newer" in ROOT.joinpath("README.md").read_text()


def test_every_entry_point_loads():
    points = importlib.metadata.distribution("torch-gradscope").entry_points
    assert {point.name for point in points} >= {"gradscope"}
    for point in points:
        assert point.load() is not None


def test_every_dependency_is_pinned():
    listed = " ".join(re.findall(r"^(?:dependencies|demo|dev) = \[.*", PYPROJECT, re.MULTILINE))
    named = re.findall(r'"([A-Za-z][\w-]*)(?:[<>=][^"]*)?"', listed)
    pinned = set(re.findall(r"^([\w-]+)==", ROOT.joinpath("constraints.txt").read_text(), re.M))
    assert "torch" in named
    assert set(named) <= pinned


def test_setup_cfg_holds_the_import_contract_alone():
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    assert all(section.partition(":")[0] == "importlinter" for section in parsed.sections())


def test_the_changelog_begins_with_this_version():
    heading = re.search(r"^## (\S+)", ROOT.joinpath("CHANGELOG.md").read_text(), re.M)
    assert heading is not None
    assert heading[1] == gradscope.__version__
