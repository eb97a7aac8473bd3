"""What runs a forward pass, and the heat maps that each engine can make."""
