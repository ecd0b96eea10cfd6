"""What one generation of sep-CMA-ES costs at TRINITY's size: ours, `cmaes`, `cma` (diagonal).

    python -m bench.sepcma

Prints one JSON object. CPU time is of the whole process, all threads; the fitness is free, so what is measured is
ask and tell. The optimisers take turns, generation by generation, so a busy machine is unfair to none.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
from cma import CMAEvolutionStrategy
from cmaes import SepCMA as PeerSepCMA
from numpy.typing import NDArray

from torafugu.train.sepcma import SepCMA

N = 19_456
POPSIZE = 32
GENERATIONS = 40
WARM_UP = 3


def main() -> None:
    fitness = np.random.default_rng(0).standard_normal(POPSIZE)
    measured = measure({"torafugu": ours(fitness), "cmaes": peer(fitness), "cma": pycma(fitness)})
    print(
        json.dumps(
            {
                "n": N,
                "popsize": POPSIZE,
                "generations": GENERATIONS,
                "python": platform.python_version(),
                "numpy": np.__version__,
                "optimisers": measured,
            },
            indent=2,
        )
    )


def measure(generations: Mapping[str, Callable[[], None]]) -> dict[str, dict[str, float]]:
    """Medians over GENERATIONS of each, after WARM_UP that do not count."""
    cpu_ms: dict[str, list[float]] = {name: [] for name in generations}
    wall_ms: dict[str, list[float]] = {name: [] for name in generations}
    for _ in range(WARM_UP + GENERATIONS):
        for name, run_generation in generations.items():
            cpu_ns, wall_ns = time.process_time_ns(), time.perf_counter_ns()
            run_generation()
            cpu_ms[name].append((time.process_time_ns() - cpu_ns) / 1e6)
            wall_ms[name].append((time.perf_counter_ns() - wall_ns) / 1e6)
    return {
        name: {
            "cpu_ms_per_generation": round(statistics.median(cpu_ms[name][WARM_UP:]), 2),
            "wall_ms_per_generation": round(statistics.median(wall_ms[name][WARM_UP:]), 2),
            "generations_per_s": round(1e3 / statistics.median(wall_ms[name][WARM_UP:]), 1),
        }
        for name in generations
    }


def ours(fitness: NDArray[np.float64]) -> Callable[[], None]:
    es = SepCMA(np.zeros(N), 0.03, popsize=POPSIZE, seed=1)

    def run_generation() -> None:
        es.ask()
        es.tell(fitness)

    return run_generation


def peer(fitness: NDArray[np.float64]) -> Callable[[], None]:
    es = PeerSepCMA(mean=np.zeros(N), sigma=0.03, population_size=POPSIZE, seed=1)

    def run_generation() -> None:
        es.tell([(es.ask(), value) for value in fitness])

    return run_generation


def pycma(fitness: NDArray[np.float64]) -> Callable[[], None]:
    es = CMAEvolutionStrategy(
        np.zeros(N), 0.03, {"CMA_diagonal": True, "popsize": POPSIZE, "seed": 1, "verbose": -9, "verb_disp": 0}
    )

    def run_generation() -> None:
        es.tell(es.ask(), list(fitness))

    return run_generation


if __name__ == "__main__":
    main()
