"""Analysis of models and runs, used by the notebooks and `swin-lightning report`. No other module imports it."""
