"""One forward pass as a value: recording it, walking it, following its axes."""
