"""How far estimates of a policy gradient are from the gradient itself."""
