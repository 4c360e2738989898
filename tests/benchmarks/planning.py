"""Plans a made-up model; prints processor seconds and peak memory as JSON. One process a case."""

import json
import resource
import sys
import time

from recsys.data.planned_manifest import planned_manifest
from recsys.data.recipe import FeatureRecipe, InteractionsRecipe, Recipe
from recsys.run.config import read_run_config
from recsys.run.planning import Planned
from recsys.runtime.env import silence_libraries
from recsys.sharding.cluster import ClusterConfig


def main(num_tables: int, num_ranks: int, search: str) -> None:
    """Tables from 10,000 to 100 million rows, evenly over the logarithm, 64 wide, on hosts of 8."""
    silence_libraries()
    features = {
        f"f{index}": FeatureRecipe(hash_rows=int(10 ** (4 + 4 * index / max(1, num_tables - 1))))
        for index in range(num_tables)
    }
    recipe = Recipe(name="made_up", interactions=InteractionsRecipe(features=features))
    total_bytes = sum(feature.hash_rows for feature in features.values()) * 65 * 4
    needed_gib = max(80, 2 * total_bytes / num_ranks / 2**30)
    planned = Planned(
        config=read_run_config({
            "model": {"name": "dcn_v2", "embedding_dim": 64, "cross": "none", "tower_dims": [8]},
            "plan": {"search": search},
        }),
        manifest=planned_manifest(recipe, {}),
        modality_dims={},
        cluster=ClusterConfig(
            name="made_up",
            device="cuda",
            hosts=num_ranks // 8,
            accelerators_per_host=8,
            accelerator_memory_gib=needed_gib,
            host_memory_gib=2048,
            batch_size_per_rank=1024,
        ),
    )
    started = time.process_time()
    summary = planned.plan().summary
    result = {
        "tables": num_tables,
        "ranks": num_ranks,
        "search": search,
        "processor_seconds": round(time.process_time() - started, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "step_ms": round(summary.critical_path_ms, 3),
        "memory_imbalance": round(summary.memory_imbalance, 3),
    }
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
