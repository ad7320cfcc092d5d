"""The machinery: settings, transport, state, sources, steps, sinks, command line, lab."""
