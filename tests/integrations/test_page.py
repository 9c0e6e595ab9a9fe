"""What docs/trainers.md shows is run from its own text."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainers.md"


@pytest.mark.filterwarnings("ignore")
def test_the_listings_of_the_page_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    for name in ("lightning", "transformers", "accelerate"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "trainers"}
    for number, listing in enumerate(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)):
        exec(compile(listing, f"trainers.md[{number}]", "exec"), names)
    assert capsys.readouterr().out.count("average over windows 1–") == 3
