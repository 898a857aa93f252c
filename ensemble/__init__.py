"""From the out-of-fold table to intervals: stacker, weighted ensemble, decoding, NMS, submission."""
