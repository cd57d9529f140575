"""Families of models: what each brings to be trained, scored and used, and the zoo that names them."""
