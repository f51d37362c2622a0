"""Losses by family; import them from `heads.loss_functions`."""
