"""The sample data set: procedurally rendered recordings with sound, in the BinEgo-360 layout."""
