"""How the processes of a training share gradients, parameters and optimiser states."""
