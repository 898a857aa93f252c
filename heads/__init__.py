"""Stage two: cheap heads on cached features, cross-fitted over the folds into one out-of-fold table."""
