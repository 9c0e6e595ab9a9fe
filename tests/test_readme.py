"""What README and CONTRIBUTING show is run from their own text."""

import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from gradscope.cli import parser

ROOT = Path(__file__).resolve().parents[1]
README = ROOT.joinpath("README.md").read_text()
PAGES = {path.name: path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def code_in(text):
    """Whole lines of shell blocks, and what stands between backticks."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


each_page = pytest.mark.parametrize("page", PAGES)


def test_the_readme_leads_with_two_commands():
    first = re.search(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert first[1] == "sh"
    assert [line.partition("#")[0].strip() for line in first[2].splitlines()] == ["make demo", "make test"]
    assert first.start() < 800


#: Pages whose listings are run by a test of their own: most of them must fail, or they need more than is installed here.
RUN_ELSEWHERE = {"is-my-accumulation-right.md", "trainers.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE])
def test_the_listings_of_a_page_run_one_after_the_other(page, capsys):
    names = {"__name__": page}
    for number, listing in enumerate(blocks(PAGES[page].read_text(), "python")):
        exec(compile(listing, f"{page}[{number}]", "exec"), names)
    out = capsys.readouterr().out
    if page == "README.md":
        assert "average over windows 1–20" in out
        assert "not resolved" in out
    assert "\x1b" not in out


@each_page
def test_every_make_target_exists(page):
    named = {word for code in code_in(PAGES[page].read_text()) for word in re.findall(r"\bmake ([a-z]+)", code)}
    assert named <= set(re.findall(r"^([a-z]+):", ROOT.joinpath("Makefile").read_text(), re.MULTILINE))


@each_page
def test_every_command_is_one_that_the_command_line_takes(page):
    for code in code_in(PAGES[page].read_text()):
        for command in re.findall(r"^gradscope ((?!is |COMMAND).*)", code.partition("#")[0]):
            parser().parse_args(shlex.split(command))


@each_page
def test_every_link_into_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[page].read_text()):
        assert PAGES[page].parent.joinpath(target).exists(), target


@each_page
def test_every_file_that_is_named_exists(page):
    for code in code_in(PAGES[page].read_text()):
        if re.fullmatch(r"(gradscope|tests|docs|examples|\.ci)/[\w./-]+", code):
            assert ROOT.joinpath(code).exists(), code


@pytest.mark.parametrize(
    "path", [*PAGES.values(), *sorted(ROOT.glob("gradscope/**/*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_nobody_is_told_to_install_the_other_gradscope(path):
    assert not re.search(r"(?:pip|uv) (?:install|add)[^`\n]* gradscope(?![\w/.-])", path.read_text())


def test_the_picture_is_a_report():
    picture = "".join(ElementTree.parse(ROOT / "docs/report.svg").getroot().itertext()).replace("\xa0", " ")
    assert "docs/report.svg" in README
    assert "noise scale" in picture
    assert "verdict" in picture
    assert "coverage" in picture
