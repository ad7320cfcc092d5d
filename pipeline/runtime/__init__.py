"""What a worker is: the Faust app with its agents, its web pages, its upkeep of offsets.

Not here: what agents do with a batch, and how batches come and are committed (`pipeline/transport`).
"""
