"""The condensation: settings, memory plan, the iteration, and the loop round it."""
