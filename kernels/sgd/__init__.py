"""The update of the synthetic images: `sgd_step`."""
