from __future__ import annotations

from pipeline.sources.shards import Lineage, ReadUpTo, Shard, ancestors

FINISHED = ReadUpTo(after="9", finished=True)
BEGUN = ReadUpTo(after="5")


def test_rule_2_child_shard_starts_at_trim_horizon() -> None:
    lineage = Lineage([Shard("parent"), Shard("child", ("parent",))], {"parent": FINISHED})

    assert lineage.readable() == {"child": ReadUpTo(after=None, finished=False)}


def test_a_shard_without_parents_is_readable_from_its_start() -> None:
    assert Lineage([Shard("root")], {}).readable() == {"root": ReadUpTo()}


def test_a_shard_that_was_begun_continues_after_its_position() -> None:
    assert Lineage([Shard("root")], {"root": BEGUN}).readable() == {"root": BEGUN}


def test_child_shard_waits_for_its_parent() -> None:
    listed = [Shard("parent"), Shard("child", ("parent",))]

    assert list(Lineage(listed, {}).readable()) == ["parent"]
    assert list(Lineage(listed, {"parent": BEGUN}).readable()) == ["parent"]
    assert Lineage(listed, {"parent": BEGUN}).waits_for("child") == ("parent",)


def test_merged_shard_waits_for_both_parents() -> None:
    listed = [Shard("left"), Shard("right"), Shard("merged", ("left", "right"))]

    assert list(Lineage(listed, {"left": FINISHED}).readable()) == ["right"]
    assert Lineage(listed, {"left": FINISHED}).waits_for("merged") == ("right",)
    assert list(Lineage(listed, {"left": FINISHED, "right": FINISHED}).readable()) == ["merged"]


def test_both_children_of_a_split_are_readable_at_once() -> None:
    listed = [Shard("parent"), Shard("low", ("parent",)), Shard("high", ("parent",))]

    assert list(Lineage(listed, {"parent": FINISHED}).readable()) == ["low", "high"]


def test_grandchild_waits_although_its_grandparent_is_finished() -> None:
    listed = [Shard("a"), Shard("b", ("a",)), Shard("c", ("b",))]

    assert list(Lineage(listed, {"a": FINISHED}).readable()) == ["b"]


def test_rule_3_a_finished_shard_is_never_read_again_while_it_is_listed() -> None:
    listed = [Shard("parent"), Shard("child", ("parent",))]

    assert Lineage(listed, {"parent": FINISHED, "child": FINISHED}).readable() == {}
    assert Lineage(listed, {"parent": FINISHED, "child": FINISHED}).forgettable() == ()


def test_rule_3_a_finished_shard_is_kept_until_all_its_children_were_begun() -> None:
    children = [Shard("low", ("parent",)), Shard("high", ("parent",))]

    assert Lineage(children, {"parent": FINISHED, "low": BEGUN}).forgettable() == ()
    assert Lineage(children, {"parent": FINISHED, "low": BEGUN, "high": BEGUN}).forgettable() == ("parent",)
    assert Lineage(children, {"parent": FINISHED, "low": FINISHED, "high": BEGUN}).forgettable() == ("parent",)


def test_rule_3_a_finished_shard_that_a_late_listing_leaves_out_is_kept() -> None:
    assert Lineage([], {"newest": FINISHED}).forgettable() == ()
    assert Lineage([Shard("older")], {"older": FINISHED, "newest": FINISHED}).forgettable() == ()


def test_an_unfinished_shard_is_never_forgettable() -> None:
    assert Lineage([Shard("child", ("parent",))], {"parent": BEGUN, "child": BEGUN}).forgettable() == ()


def test_rule_8_a_parent_that_is_gone_is_not_waited_for() -> None:
    lineage = Lineage([Shard("child", ("trimmed",))], {})

    assert lineage.waits_for("child") == ()
    assert lineage.readable() == {"child": ReadUpTo()}


def test_rule_8_a_merged_shard_does_not_wait_for_the_one_parent_that_is_gone() -> None:
    listed = [Shard("right"), Shard("merged", ("trimmed", "right"))]

    assert Lineage(listed, {"right": BEGUN}).waits_for("merged") == ("right",)
    assert list(Lineage(listed, {"right": FINISHED}).readable()) == ["merged"]


def test_a_shard_that_was_begun_continues_when_it_is_no_longer_listed_and_its_child_waits() -> None:
    lineage = Lineage([Shard("child", ("parent",))], {"parent": BEGUN})

    assert lineage.readable() == {"parent": BEGUN}
    assert lineage.waits_for("child") == ("parent",)


def test_rule_8_a_child_missing_after_a_close_is_asked_for() -> None:
    assert Lineage([Shard("closed")], {"closed": FINISHED}).awaiting_children() == ("closed",)


def test_children_are_not_asked_for_when_one_is_listed_or_the_shard_is_still_read() -> None:
    assert Lineage([Shard("a"), Shard("b", ("a",))], {"a": FINISHED}).awaiting_children() == ()
    assert Lineage([Shard("a")], {"a": BEGUN}).awaiting_children() == ()
    assert Lineage([Shard("a")], {}).awaiting_children() == ()


def test_children_of_a_trimmed_shard_are_not_asked_for_any_more() -> None:
    assert Lineage([Shard("later")], {"trimmed": FINISHED}).awaiting_children() == ()


def test_a_shard_listed_twice_counts_once() -> None:
    listed = [Shard("a"), Shard("a"), Shard("b", ("a",)), Shard("b", ("a",))]

    assert list(Lineage(listed, {}).readable()) == ["a"]
    assert list(Lineage(listed, {"a": FINISHED}).readable()) == ["b"]


def test_a_lineage_keeps_what_it_was_built_from() -> None:
    positions = {"a": BEGUN}
    lineage = Lineage([Shard("a")], positions)
    positions["a"] = FINISHED

    assert lineage.readable() == {"a": BEGUN}


def test_ancestors_go_back_as_far_as_the_listing_does() -> None:
    listed = [Shard("b", ("a",)), Shard("c", ("b", "x")), Shard("d", ("c",)), Shard("e", ("b",))]
    assert ancestors(listed, ["d"]) == {"b", "c"}
    assert ancestors(listed, []) == set()
