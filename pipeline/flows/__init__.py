"""Flows: from the settings of a flow to the messages that it makes, live, replayed or only looked at.

`compile.py` makes steps of settings, `runner.py` runs them in a worker; `check`, `lint`, `explain`, `golden`, `graph`, `match`
and `apply` serve the commands. Not here: the steps themselves (`pipeline/steps`), and the state they use (`pipeline/state`).
"""
