"""Runs the tests that other projects ship on this transport: make faust-tests."""
