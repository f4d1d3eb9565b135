"""Verbs that change a model: planned, verified, atomic, undoable."""
