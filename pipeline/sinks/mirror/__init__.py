"""The mirror: sink topics on another Kafka cluster, each record once.

`sink.py` copies, `other_cluster.py` talks to the cluster.
"""
