"""A search for hyperparameters: what is searched, and what is known of it."""
