"""The sources: what brings changes in. Pure parts (`shards`, `records`) apart from those that talk to AWS."""
