"""The sinks: what takes changes out of the sink topics."""
