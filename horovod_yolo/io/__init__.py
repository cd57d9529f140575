"""Files that are whole or not there, and files from strangers."""
