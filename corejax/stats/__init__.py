"""What a ranking needs to be believed: intervals, nulls, reliability.

numpy and scipy only; no head, layer or model is known here. Beside the axis
letters of `corejax` this package uses

    U  resampling units (clusters; where it is said so, examples)
    X  heads, flat: X = L * N, or any other independent columns
    Z  resamples, permutations or splits
"""
