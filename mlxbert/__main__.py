"""``python -m mlxbert``: the command `mlxbert`."""

from mlxbert.cli import main

if __name__ == "__main__":
    main(prog_name="mlxbert")
