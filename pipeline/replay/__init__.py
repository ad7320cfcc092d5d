"""Replay: a range of raw, or of the lake's files, through the flows again; into shadow topics, unless told otherwise.

Its modules, in the order of a run:

- `plan.py` says what is to be replayed; `manage.py` begins, finds and resumes replays, on the topic <p>.replays.
- `range.py` finds the offsets of the range, and whether all of it is there still.
- `flows.py` compiles the flows, with the references as they are now.
- `run.py` does it: `source.py` reads the range, from raw or from the lake; `transaction.py` has the producer and its commits.
- `diff.py` compares the shadow topics with the live ones.
- `promote.py` copies the messages of the shadow topics to the live ones, behind what is there: consumers get them twice.
"""
