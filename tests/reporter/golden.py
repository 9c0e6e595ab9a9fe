"""Golden text: what is drawn is compared with a file that somebody has looked at.

``GRADSCOPE_UPDATE_GOLDEN=1 pytest tests/reporter`` writes the files anew; look at them before you commit them.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def check_golden(name, text):
    """Compare ``text`` with the golden file of that name; a missing one is a failure."""
    path = FOLDER / name
    if os.environ.get("GRADSCOPE_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert path.exists(), f"{path} is missing: GRADSCOPE_UPDATE_GOLDEN=1 writes it"
    assert text + "\n" == path.read_text(encoding="utf-8")
