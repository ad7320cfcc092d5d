"""Steps: what is done to a change. Plain functions, a batch in, a batch out; no Faust, no Kafka, no AWS.

`flow.py` runs the steps of a flow, `event.py` is what they work on. Not here: making steps of settings
(`pipeline/flows/compile.py`).
"""
