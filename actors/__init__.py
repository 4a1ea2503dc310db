"""Processes with models: what runs on a card, or on its stand-in, a CPU."""

import gc

# Importing torch and transformers makes a million objects that stay. With Python's 700 new objects a collection, the
# collector looks through them often enough to take a fifth of the import's 7 s (measured: 7.3 against 5.7 CPU seconds),
# and each Ray worker pays that anew.
gc.set_threshold(10_000)
