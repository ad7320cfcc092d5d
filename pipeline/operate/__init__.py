"""What an operator asks and does: status, checks, positions, dead letters, snapshots. Reads Kafka; needs no worker.

The commands of `headwater/commands` print what these modules find. Not here: anything that a worker runs.
"""
