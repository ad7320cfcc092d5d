"""What is made of the outcomes of Faust's own tests; they run by `make faust-tests`."""

from __future__ import annotations

from support.paths import ROOT
from upstream import results, run, stress
from upstream.results import KnownFailure, Outcome

LISTED = [
    KnownFailure("a.py::test_dictionary", "It looks inside."),
    KnownFailure("a.py::test_sets", "No sets.", refused="keeps neither sets"),
    KnownFailure("a.py::test_gone", "It was there once."),
]
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a.Test_A" name="test_x[1]" file="tests/unit/test_a.py"/>
<testcase classname="tests.unit.test_a" name="test_y" file="tests/unit/test_a.py">
<failure message="no">line</failure></testcase>
<testcase classname="tests.unit.test_a" name="test_z" file="tests/unit/test_a.py"><skipped message="no redis"/></testcase>
<testcase classname="tests.unit.test_a" name="test_t" file="tests/unit/test_a.py"/>
<testcase classname="tests.unit.test_a" name="test_t" file="tests/unit/test_a.py">
<error message="left over">threads</error></testcase>
</testsuite></testsuites>"""
GOOD = "[2026-12-01 11:43:40,172] [316] [INFO] [^-StressApp]: f-stress-dedupe-v7:{} increasing: was 1284 now 2420"
BAD = "[2026-12-01 11:43:40,172] [316] [INFO] [^-StressApp]: f-stress-dedupe-v7:{} not increasing (x4): was 9 now 9"
TWICE = "[2026-12-01 11:43:40,172] [316] [ERROR] [^-StressApp]: Found duplicate number in TP(topic='t', partition=0): 3"


def test_a_failure_counts_as_the_list_says() -> None:
    report = results.sort(
        [
            Outcome("a.py::test_dictionary", "failed", "AttributeError"),
            Outcome("a.py::test_sets", "failed", "ImproperlyConfigured: store headwater:// keeps neither sets nor"),
            Outcome("a.py::test_fine", "passed"),
            Outcome("a.py::test_redis", "skipped"),
        ],
        LISTED,
    )
    assert report.counts == "passed 1, failed 1, refused 1"
    assert (report.news, report.better, report.absent) == ([], [], ["a.py::test_gone"])


def test_what_is_not_listed_and_what_is_not_refused_as_listed_are_news() -> None:
    other = Outcome("a.py::test_sets", "failed", "TimeoutError")
    new = Outcome("a.py::test_new", "failed", "AssertionError")
    report = results.sort([other, new, Outcome("a.py::test_dictionary", "passed")], LISTED)
    assert report.news == [other, new]
    assert report.better == ["a.py::test_dictionary"]
    assert report.counts == "passed 1, failed 2, refused 0"


def test_names_of_tests_are_those_that_pytest_takes() -> None:
    assert [(outcome.test, outcome.state) for outcome in results.of_pytest(JUNIT)] == [
        ("tests/unit/test_a.py::Test_A::test_x[1]", "passed"),
        ("tests/unit/test_a.py::test_y", "failed"),
        ("tests/unit/test_a.py::test_z", "skipped"),
        ("tests/unit/test_a.py::test_t", "failed"),
    ]


def test_a_stress_application_fails_by_what_it_says_itself() -> None:
    good = "\n".join(GOOD.format(check) for check in ("events_total", "counter_received"))
    first = f"{good}\n{TWICE}"
    waiting = BAD.format("events_total")
    stuck = "\n".join(line.format("counter_received") for line in (GOOD, BAD))
    last = f"{waiting}\n{GOOD.format('events_total')}\n{stuck}"
    states = {
        outcome.test.rpartition("::")[2]: outcome.state
        for outcome in stress.verdicts("forwarder", [first, last], [last])
    }
    assert states == {"events_total": "passed", "counter_received": "failed", "duplicates": "failed", "gaps": "passed"}


def test_the_list_is_of_the_locked_version_and_says_why() -> None:
    known = results.known()
    assert known.version == run.locked("faust-streaming")[0]
    assert all(why.endswith(".") for _, _, why in results.rows())
    assert all(why.endswith(".") for _, why in results.rows_left_out())


def test_the_tests_of_faust_are_not_part_of_ci() -> None:
    assert "faust-tests" not in (ROOT / ".ci" / "run").read_text()
