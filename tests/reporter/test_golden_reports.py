import pytest
from golden import FOLDER, check_golden
from reports import REPORTS, language_model

from gradscope import reporter
from gradscope.reporter.glyphs import ASCII, UNICODE

DRAWINGS = [(40, UNICODE), (80, UNICODE), (120, UNICODE), (80, ASCII)]


@pytest.mark.parametrize(("width", "glyphs"), DRAWINGS, ids=lambda value: getattr(value, "encoding", str(value)))
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_looks_as_it_did_when_somebody_looked(name, width, glyphs):
    text = reporter.render(REPORTS[name](), width, glyphs=glyphs)
    check_golden(f"{name}-{width}-{glyphs.encoding}.txt", text)


def test_an_opened_report_looks_as_it_did_when_somebody_looked():
    check_golden("language_model_opened-80-utf-8.txt", reporter.render(language_model(), 80, 1, glyphs=UNICODE))


def test_log_lines_look_as_they_did_when_somebody_looked():
    check_golden("log_lines.txt", "\n".join(reporter.log_line(make()) for make in REPORTS.values()))


def test_every_golden_file_belongs_to_a_test():
    expected = {f"{name}-{width}-{glyphs.encoding}.txt" for name in REPORTS for width, glyphs in DRAWINGS}
    expected |= {"language_model_opened-80-utf-8.txt", "log_lines.txt"}
    assert {path.name for path in FOLDER.iterdir()} == expected
