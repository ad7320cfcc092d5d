from pipeline.transport.logs import UNKNOWN, Log, url_safe

HERE = Log("SD6_wysGYFvg7cUastt98g", "wsPN0qbZQjuGeqMBxMLH8g")


def test_a_log_is_the_same_after_it_was_kept_as_text() -> None:
    assert Log.parse(str(HERE)) == HERE
    assert Log.parse(str(Log("c", ""))) == Log("c", "")
    assert Log.parse(str(UNKNOWN)) == UNKNOWN


def test_what_others_keep_beside_an_offset_is_not_a_log() -> None:
    for text in (None, "", "1,5", "some words", "a/b c"):
        assert Log.parse(text) == UNKNOWN


def test_a_topic_that_was_recreated_is_another_log_and_an_unknown_one_may_be_any() -> None:
    recreated = HERE._replace(topic_id="AAAAAAAAAAAAAAAAAAAAAQ")
    assert not HERE.may_be(recreated)
    assert not HERE.may_be(Log("another", HERE.topic_id))
    assert HERE.may_be(UNKNOWN)
    assert UNKNOWN.may_be(HERE)
    assert HERE.may_be(Log(HERE.cluster, ""))


def test_a_difference_names_both_sides() -> None:
    assert "recreated" in HERE.difference(HERE._replace(topic_id="AAAAAAAAAAAAAAAAAAAAAQ"))
    assert "another cluster" in HERE.difference(Log("other", "AAAAAAAAAAAAAAAAAAAAAQ"))
    assert HERE.difference(Log("other", "")) == "the cluster was SD6_wysGYFvg7cUastt98g and is other now"


def test_an_id_is_written_as_kafka_s_own_tools_write_it() -> None:
    assert url_safe("xOo9gS9AT4yYHqROkGNV/Q") == "xOo9gS9AT4yYHqROkGNV_Q"
    assert url_safe("Bq2p0XvMR/+nZ1s7tQxY3w") == "Bq2p0XvMR_-nZ1s7tQxY3w"
