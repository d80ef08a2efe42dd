"""Lloyd's iterations under Ray against those of others on the same rows, from the same start, with equal threads."""

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np

from s2l_ray.clustering import kmeans, nearest, seeding
from s2l_ray.config import PoolResources, ResourcesConfig
from s2l_ray.stages import runtime
from s2l_ray.stages.blocks import each, rows_at_once, spans
from s2l_ray.stages.distributed_kmeans import StratumRows
from s2l_ray.stages.trajectory_blocks import Block
from tests.benchmarks.harness import Benchmark, Ratio, alternate

T, K, ITERATIONS, THREADS, ROUNDS = 12, 100, 20, 2, 3


def trajectories(n: int, part: int = 0) -> np.ndarray:
    """Make curves like those of losses, of a few hundred kinds whose counts have a long tail; float32 [N, T].

    Args:
        part: the kinds are the same in every part, and the curves are others.
    """
    generator = np.random.default_rng(0)
    start, rate, floor = (generator.gamma(4, size, (400, 1)) for size in (0.8, 0.1, 0.2))
    kinds = floor + start * np.exp(-rate * np.arange(T))
    generator = np.random.default_rng([0, part]) if part else generator
    noise = generator.normal(0, 0.1, (n, T))
    loss = kinds[generator.zipf(1.3, n) % len(kinds)] * np.exp(noise)
    return (np.round(loss * 2**20) / 2**20).astype(np.float32)


def measure(n: int) -> Iterator[Ratio]:
    """Time `ITERATIONS` of them and the assignment at the end."""
    loss_NT = trajectories(n)
    start_KT = seeding.initial_centroids(loss_NT[:65_536], K, 0)
    runtime.connect(ResourcesConfig())
    try:
        blocks, pool = blocks_of(loss_NT), PoolResources(actors=(1, THREADS))
        rows = StratumRows(blocks, 0, pool)

        def assigned(block_NT: np.ndarray, centroid_KT: np.ndarray) -> float:
            return float(nearest.assign(block_NT, centroid_KT).sq_distance.sum())

        def ours() -> float:
            centroid_KT = kmeans.lloyd(rows.step(), start_KT, ITERATIONS, relocate=rows.farthest).centroid_KT
            return sum(each(assigned, ((block.feature, centroid_KT) for block in blocks), pool))

        inertia = ours()
        for name, peer in peers(loss_NT, start_KT).items():
            np.testing.assert_allclose(peer(), inertia, rtol=1e-3)
            seconds, peer_seconds = alternate(ours, peer, ROUNDS)
            work = f"k-means, N = {n:,}, T = {T}, K = {K}, {ITERATIONS} iterations"
            yield Ratio(work, f"{name}, {THREADS} threads", seconds, peer_seconds, "s", ROUNDS)
    finally:
        runtime.disconnect()


def blocks_of(loss_NT: np.ndarray) -> list[Block]:
    """Put rows into Ray's object store as the stage does."""
    cut = spans(len(loss_NT), rows_at_once(len(loss_NT), loss_NT.shape[1]))
    return [Block.put(loss_NT[start:stop], np.arange(start, stop)) for start, stop in cut]


def peers(loss_NT: np.ndarray, start_KT: np.ndarray) -> dict[str, Callable[[], float]]:
    """Return who else does it: all return the inertia."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    def scikit_learn() -> float:
        with threadpool_limits(THREADS):
            fitted = KMeans(K, init=start_KT, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd").fit(loss_NT)
        return float(fitted.inertia_)

    found: dict[str, Callable[[], float]] = {"scikit-learn's Lloyd": scikit_learn}
    if importlib.util.find_spec("faiss"):
        import faiss

        def faiss_on_all() -> float:
            faiss.omp_set_num_threads(THREADS)
            fitted = faiss.Kmeans(T, K, niter=ITERATIONS, max_points_per_centroid=len(loss_NT))
            fitted.train(loss_NT, init_centroids=start_KT.astype(np.float32))
            return float(fitted.assign(loss_NT)[0].sum())

        found["faiss on all rows"] = faiss_on_all
    return found


BENCHMARK = Benchmark("kmeans", "Lloyd's iterations against scikit-learn and faiss", lambda: measure(1_000_000))
LARGE = Benchmark("kmeans-10m", "the same, ten million rows", lambda: measure(10_000_000), is_large=True)
