"""Who started this process: one class a launcher, each reads the variables that its launcher sets."""
