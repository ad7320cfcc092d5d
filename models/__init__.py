"""What flows through Headwater: frozen, no I/O."""
