"""Stage one: the TSM backbone, its fine-tuning, and the extraction of every view into the feature store."""
