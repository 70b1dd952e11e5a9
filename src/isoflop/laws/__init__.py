"""Scaling laws: forms, fitting, intervals, certificates.

What other rooms call:

- `isoflop.laws.fit.fit_law(n, d, loss, ...) -> Fit` and `fit_document(fit, targets) -> dict` (what law.json holds);
- `isoflop.laws.prediction.predict(fit, n, d, level) -> list[Prediction]`: calibrated, with what the certificate says;
- `isoflop.laws.backtest.backtest(n, d, loss, level) -> Backtest`: dearer runs forecast from cheaper ones;
- `isoflop.laws.optimum.optimal(law, flops, draws) -> Optimum`;
- `isoflop.laws.tables.read_runs(path, columns) -> Runs` for anybody's CSV or Parquet.
"""
