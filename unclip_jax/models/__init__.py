"""The networks (priors, U-Net, MoVQ decoder), each in one module with its config."""
