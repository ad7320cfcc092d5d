"""Topics: names and their configuration, how they are created, and reading them outside the consumer group.

Not here: the transport, and what the messages of a topic mean.
"""
