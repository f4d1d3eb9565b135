"""Pictures of models: the graph as a drawing, kernels and feature maps as images."""
