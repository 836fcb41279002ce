"""A training run from the outside: what decides it, the folder it lives in, starting it and going on with it."""
