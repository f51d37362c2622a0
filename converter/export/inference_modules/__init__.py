"""What an exported `inference.py` is made of: copied into its directory, with the files of mlxbert that it needs."""
