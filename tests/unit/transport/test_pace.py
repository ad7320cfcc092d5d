from hypothesis import given
from hypothesis import strategies as st

from pipeline.transport.pace import FIRST, Pace

MOST, BUDGET = 30_000, 3.0


def test_a_slice_begins_small_and_is_full_after_three_quick_ones() -> None:
    pace = Pace(MOST, BUDGET)
    assert pace.limit == FIRST
    for _ in range(3):
        pace.done(pace.limit, pace.limit * 20e-6)
    assert pace.limit == MOST


def test_a_slow_step_gets_as_many_records_as_fit() -> None:
    pace = Pace(MOST, BUDGET)
    for _ in range(10):
        pace.done(pace.limit, pace.limit * 5e-3)
        assert pace.limit * 5e-3 <= BUDGET
    assert pace.limit == 600


@given(st.floats(min_value=1e-6, max_value=20.0), st.integers(min_value=1, max_value=MOST))
def test_whatever_a_record_costs_slices_fit_after_a_few_that_did_not(cost: float, limit: int) -> None:
    pace = Pace(MOST, BUDGET)
    pace.limit = limit
    late = 0
    while pace.limit * cost > BUDGET and pace.limit > 1:
        pace.late(pace.limit, pace.limit * cost)
        late += 1
    assert late <= 8
    for _ in range(5):
        pace.done(pace.limit, pace.limit * cost)
        assert pace.limit == 1 or pace.limit * cost <= BUDGET * 1.001
