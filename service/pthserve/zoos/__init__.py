"""Where architectures come from: a state dict to an nn.Module."""
