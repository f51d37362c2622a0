"""House Prices: the price of a house from a description in words; one fifth of the houses is held out and predicted.

    mlxbert-convert sentence-transformers/all-MiniLM-L6-v2          # once
    python -m examples.house_prices DATA_DIR                        # has train.csv

It sets everything itself, without the ready configuration: the columns of the text, the logarithm of the price as the
target, the metric. If you have the competition's test.csv, use test=DATA_DIR/"test.csv" instead of hold_out.
"""

from __future__ import annotations

import pandas as pd

from examples.arguments import arguments
from mlxbert.runs import Run, train

TEXT = (
    "{Neighborhood}, {BldgType} {HouseStyle}, quality {OverallQual}, condition {OverallCond}, built {YearBuilt}, "
    "remodeled {YearRemodAdd}, living area {GrLivArea}, basement {TotalBsmtSF} {BsmtQual}, lot {LotArea}, "
    "{TotRmsAbvGrd} rooms, {FullBath} baths, kitchen {KitchenQual}, {Fireplaces} fireplaces, "
    "garage {GarageCars} cars {GarageArea}"
)


def main(argv: list[str] | None = None) -> Run:
    """Train, predict the held-out houses, and compare with a guess of the typical price."""
    options = arguments("house-prices", __doc__, argv)
    numbers = {"epochs": 4, "batch_size": 16, "metric": "rmsle", **options.settings}
    run = train(
        options.data / "train.csv",
        model=options.model or "mlx_models/all-MiniLM-L6-v2",
        text=TEXT,
        target="SalePrice",
        id="Id",
        task="regression",
        head={"log_targets": True},
        hold_out=0.2,
        out=options.out,
        **numbers,
    )
    assert run.scores is not None
    held_out = run.scores["hold_out"]
    guess = typical_price_error(run)
    print(f"RMSLE out of fold: {run.scores['pooled']['rmsle']:.4f}")
    print(
        f"RMSLE of {held_out['rows']} held-out houses: {held_out['metrics']['rmsle']:.4f} (typical price: {guess:.4f})"
    )
    print(f"submission: {run.files.submission}")
    return run


def typical_price_error(run: Run) -> float:
    """Return the RMSLE of one price for all held-out houses: the geometric mean of the others."""
    import numpy as np

    known = np.log1p(run.oof()["target"])
    held_out = np.log1p(pd.read_csv(run.files.hold_out)["target"])
    return float(np.sqrt(np.mean((held_out - known.mean()) ** 2)))


if __name__ == "__main__":
    main()
