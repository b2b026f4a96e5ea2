"""The nearest vectors: exactly, by FAISS over vectors that stay on disk, or approximately, by its HNSW graph.

Unusual: the exact search needs no index in memory. FAISS compares the queries with one stretch of the mapped vectors
after the other, so that memory stays flat, and vectors kept as float16 are widened stretch by stretch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from searching.store import Index, View

# As in metrics/retrieval.py, which the app, that searches too, does not have: one text in two batches differs by 1e-7.
SCORE_DECIMALS = 6
STRETCH_BYTES = 64 * 2**20  # of vectors that are in memory at once
NUM_LINKS = 32  # of a vector in the graph; 16 to 64 are usual, more are slower to build and more exact
EF_CONSTRUCTION, EF_SEARCH = 200, 128  # candidates that are looked at
NUM_PROBES = 200  # vectors by which a graph is compared with the exact search


def import_faiss():
    """Import the library when it is needed, or say how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"a search needs FAISS ({error}): `pip install faiss-cpu`.") from None
    return faiss


def nearest(
    view: "View", queries: "np.ndarray", top_k: int, *, approximate: bool = False
) -> tuple["np.ndarray", "np.ndarray"]:
    """Find the vectors of an index with the highest cosines.

    Args:
        view: one kind of vectors.
        queries: (Q, D) float32 of length 1.
        top_k: how many for each query; fewer where the index has fewer.
        approximate: whether to use the graph, which may miss some.

    Returns:
        (cosines (Q, K), best first; places in the view (Q, K)). Those that differ by rounding alone are equal, and in
        the order of the rows.

    Raises:
        ValueError: When widths differ, or there is no graph.
    """
    import numpy as np

    if queries.shape[1] != view.vectors.shape[1]:
        raise ValueError(
            f"the query has {queries.shape[1]} numbers and the vectors of the index have {view.vectors.shape[1]}: "
            "they are of different models."
        )
    top_k = min(top_k, len(view))
    cosines, places = (_by_graph if approximate else _exactly)(view, queries, top_k)
    cosines = cosines.clip(-1, 1).round(SCORE_DECIMALS)
    order = np.lexsort((places, -cosines), axis=1)
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(places, order, 1)


def ranked(index: "Index", view: "View", scores: "np.ndarray", places: "np.ndarray") -> list[dict[str, Any]]:
    """Give the rows that were found, with their ranks and scores.

    Args:
        index: that was searched.
        view: one kind of its vectors.
        scores: (K,), best first.
        places: (K,), in the view.

    Returns:
        Of each row `rank` (from 1), `score` (cosine), `row` (from 1), `file` and `cells`, its own columns.
    """
    rows = index.rows(view.positions[places])
    return [
        {
            "rank": rank,
            "score": round(float(score), SCORE_DECIMALS),
            **{key: row[key] for key in ("row", "file", "cells")},
        }
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
    ]


def _exactly(view: "View", queries: "np.ndarray", top_k: int) -> tuple["np.ndarray", "np.ndarray"]:
    faiss = import_faiss()
    best = faiss.ResultHeap(len(queries), top_k, keep_max=True)
    for first, stretch in stretches(view.vectors):
        cosines, places = faiss.knn(queries, stretch, min(top_k, len(stretch)), faiss.METRIC_INNER_PRODUCT)
        best.add_result(cosines, places + first)
    best.finalize()
    return best.D, best.I


def stretches(vectors: "np.ndarray") -> Iterator[tuple[int, "np.ndarray"]]:
    """Yield (place of the first, float32 vectors) of one stretch after the other."""
    size = max(1, STRETCH_BYTES // (4 * vectors.shape[1]))
    for first in range(0, len(vectors), size):
        yield first, vectors[first : first + size].astype("float32")


# -- the graph --------------------------------------------------------------------------------------------------------


def write_graph(view: "View", path: Path) -> float:
    """Build the graph of a view, write it, and give the share of the exact ten nearest that it finds.

    Source: HNSW (Malkov & Yashunin 2016, arXiv:1603.09320), with inner products of unit vectors.
    """
    import numpy as np

    faiss = import_faiss()
    graph = faiss.IndexHNSWFlat(view.vectors.shape[1], NUM_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = EF_CONSTRUCTION, EF_SEARCH
    for _, stretch in stretches(view.vectors):
        graph.add(stretch)
    faiss.write_index(graph, str(path))

    chosen = np.sort(np.random.default_rng(0).permutation(len(view))[:NUM_PROBES])
    probes = view.vectors[chosen].astype("float32")
    top_k = min(10, len(view))
    exact, _ = _exactly(view, probes, top_k)
    found, _ = graph.search(probes, top_k)
    # By cosine, not by place: of two rows with the same cell either will do.
    return float((found >= exact[:, -1:] - 1e-6).mean())


def _by_graph(view: "View", queries: "np.ndarray", top_k: int) -> tuple["np.ndarray", "np.ndarray"]:
    faiss = import_faiss()
    if view.graph is None:
        raise ValueError(
            f"`approximate`: the index has no graph of its `{view.name}` vectors: leave it out for the exact search, "
            "or build the index with `--approximate`."
        )
    try:
        graph = faiss.read_index(str(view.graph))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`{view.graph}` cannot be read by FAISS ({reason}): build it again.") from None
    graph.hnsw.efSearch = max(EF_SEARCH, 2 * top_k)
    cosines, places = graph.search(queries, top_k)
    if (places < 0).any():  # the graph reached fewer than were asked for
        return _exactly(view, queries, top_k)
    return cosines, places
