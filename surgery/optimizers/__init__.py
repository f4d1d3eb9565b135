"""Training goes on: optimizers that follow operations, groups of parameters, staged unfreezing."""
