import pytest
from scipy import stats

from gradscope.statistics.student_t import student_t_inside, student_t_quantile

FREEDOMS = [1, 2, 3, 4, 5, 9, 19, 20, 99, 1000]


@pytest.mark.parametrize("freedom", FREEDOMS)
@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 2.5, 40.0])
def test_the_probability_within_t_is_scipys(freedom, t):
    assert student_t_inside(t, freedom) == pytest.approx(1 - 2 * stats.t.sf(t, freedom), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("freedom", FREEDOMS)
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_the_quantile_is_scipys(freedom, confidence):
    assert student_t_quantile(confidence, freedom) == pytest.approx(
        stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9
    )


@pytest.mark.parametrize(("confidence", "freedom"), [(0.0, 3), (1.0, 3), (float("nan"), 3), (0.95, 0)])
def test_what_is_no_confidence_or_no_freedom_is_refused(confidence, freedom):
    with pytest.raises(ValueError, match="need 0 < confidence < 1 and freedom"):
        student_t_quantile(confidence, freedom)
