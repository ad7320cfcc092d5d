"""Replay: a range of raw, or of the lake's files, through the flows again; into shadow topics, unless told otherwise.

`plan.py` says what is to be replayed, `run.py` does it, `source.py` reads the range, `diff.py` compares shadow with live,
`promote.py` makes the shadow live.
"""
