"""Looking into models and runs: what the notebooks and `swin-lightning report` show. Nothing else imports it."""
