"""Clients of services that several wings share: AWS, the Schema Registry, keys, HTTP look-ups.

Not here: what a source or a sink does with them. All of them block; callers run them in threads.
"""
