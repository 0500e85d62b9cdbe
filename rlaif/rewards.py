"""One composite reward from verifiers, judges, reward models and shaping: a number, or None (masked)."""
