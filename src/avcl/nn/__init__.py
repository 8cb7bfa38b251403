"""Parts that several systems share: pooling over time, projections into the common space."""
