"""Sinks: take messages out of the sink topics to a destination, each once, in order of each item.

`base.py` is their contract, `runner.py` runs one beside the slices, `carrier.py` attaches one to a worker. A destination is a
folder: `lake`, `mirror`, `replica`; Pub/Sub is a file. Not here: what is sent to a sink topic (`pipeline/flows`).
"""
