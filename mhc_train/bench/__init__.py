"""What connections cost on this machine: arms that take turns, each in a process of its own."""
