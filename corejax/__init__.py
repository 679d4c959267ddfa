"""corejax: which attention heads of a multimodal LLM retrieve the evidence.

Everything is numbered from 0. Arrays that cross a function boundary carry
their axes in their name, in these letters:

    B  batch                    L  layers
    T  query position           C  channels; row classes (regions.ROW_CLASSES)
    S  key position             I  visual tokens (patches) of one sequence
    N  query heads              P  probe rows
    K  key/value heads          Q  query sets   (corejax.regions.QUERY_SETS)
    G  query heads per kv head  R  regions      (corejax.regions.REGIONS)
    H  head dim                 E  examples
    D  model dim                M  media (pictures, pages, frames)
    F  mlp dim                  W  coordinates of a box: x0 y0 x1 y1
    V  vocabulary

The way of the data, one file a station:

    data.example.Example -> inputs.Encoded -> inputs.Inputs -> model.forward
      -> store.ScoreStore -> ranking.HeadRanking -> heads.HeadSet
      -> control.HeadControl -> model.forward
"""

__version__ = '0.1.0'
