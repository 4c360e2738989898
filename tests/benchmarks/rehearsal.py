"""Rehearsal of a large site on paper: bytes and time of every job, computed from measured pieces.

    python -m tests.benchmarks.rehearsal          prints the tables of docs/rehearsal.md

10 billion rows, 2 billion users, 500 million items on 8 hosts of 8 H100 (`cluster=h100_8x8`). Tables,
their bytes and the time of a step come from the plan; everything else is a measured rate times a count.
"""

from dataclasses import dataclass

from recsys.runtime.env import silence_libraries
from recsys.sharding.plan import Plan
from tests.sharding.billions_worker import DIMS, ROWS, whole_plan

NUM_ROWS = 10_000_000_000
EVALUATED_ROWS = 1_000_000_000
"""Of the split that is evaluated."""
BYTES_A_USER = 16
"""Of prepare, by the code: the count of a user's training rows, the offset of the history."""
BYTES_AN_ITEM = 32
"""Of its share of the items on an evaluating rank, by the code: rows, first time and training rows of
each in 8 bytes, and bits of vectors, texts and tags."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A measured rate; on one core of this project's machine unless its name says otherwise."""

    value: float
    unit: str
    command: str
    """That measures it."""

    @property
    def line(self) -> str:
        """As a cell of a table."""
        amount = f"{self.value:,.0f}" if self.value >= 1000 else f"{self.value:g}"
        return f"{amount} {self.unit}"


PIECES = {
    "prepare": Piece(
        value=267_000,
        unit="rows/s on two cores",
        command="pytest -m bench tests/benchmarks/test_prepare_scale.py",
    ),
    "prepared row": Piece(
        value=14.5, unit="bytes", command="du -sb W/prepared/interactions of the drawn world"
    ),
    "pictures": Piece(
        value=203,
        unit="pictures/s on two cores (squeezenet1_0, 128 px)",
        command="pytest -m bench tests/benchmarks/test_embed_scale.py",
    ),
    "texts": Piece(
        value=161,
        unit="texts/s on two cores (MiniLM)",
        command="pytest -m bench tests/benchmarks/test_embed_scale.py",
    ),
    "drawn values": Piece(
        value=0.68, unit="GB/s", command="pytest -m bench tests/benchmarks/test_rehearsal.py"
    ),
    "copied vectors": Piece(
        value=0.66, unit="GB/s", command="pytest -m bench tests/benchmarks/test_rehearsal.py"
    ),
    "loader": Piece(value=790_000, unit="rows/s a rank, 72 ranks", command="the log, loader alone"),
    "card": Piece(
        value=5_950_000,
        unit="rows/s of one H200 alone, model=paper, bf16",
        command="python -m tests.benchmarks.gpu_throughput OUT",
    ),
    "checkpoint": Piece(
        value=0.43,
        unit="GB/s a process: written, synced, checksummed",
        command="pytest -m bench tests/benchmarks/test_checkpoint_cost.py",
    ),
    "evaluation": Piece(
        value=3.7,
        unit="microseconds a row of metrics and intervals",
        command="torchrun --nproc-per-node=2 tests/benchmarks/evaluation_size.py 16000000 800000",
    ),
    "evaluated row": Piece(
        value=26,
        unit="bytes a row of metrics and intervals, beside 0.3 GB",
        command="torchrun --nproc-per-node=2 tests/benchmarks/evaluation_size.py 48000000 2400000",
    ),
    "bundle item": Piece(
        value=5_235,
        unit="bytes an item of a bundle of 1 million",
        command="python -m tests.benchmarks.large_bundle W 1000000; du -sb W/bundles/large-*",
    ),
    "score": Piece(
        value=224,
        unit="requests/s of one worker, 500 candidates scored",
        command="pytest -m bench tests/benchmarks/test_serving_speed.py",
    ),
    "recommend": Piece(
        value=95,
        unit="requests/s of one worker, 1 million items",
        command="pytest -m bench tests/benchmarks/test_serving_speed.py",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job on paper."""

    job: str
    size: str
    """Bytes it writes, reads or holds."""
    time: str
    breaks: str
    """The first thing that stops it."""


def stages(plan: Plan) -> list[Stage]:
    """Return the jobs in the order in which a site runs them."""
    ranks = plan.num_ranks
    trained = sum(t.weight_bytes + t.optimizer_bytes for t in plan.tables if not t.frozen)
    frozen = sum(t.weight_bytes for t in plan.tables if t.frozen)
    vectors = ROWS["item_id"] * sum(DIMS.values()) * 2
    whole = trained + frozen
    steps = NUM_ROWS / (ranks * plan.batch_size_per_rank)
    drawing = trained / ranks / rate("drawn values") / 1e9
    # Every host fills its columns of a frozen table out of whole rows.
    copying = frozen / plan.cluster.accelerators_per_host / rate("copied vectors") / 1e9
    saving = trained / ranks / rate("checkpoint") / 1e9
    # A request for recommendations scores 500 candidates, too.
    millions = ROWS["item_id"] / 1e6
    searching = 1 / rate("recommend") - 1 / rate("score")
    own_rows = EVALUATED_ROWS / ranks
    arrays = ROWS["item_id"] * BYTES_AN_ITEM / ranks + ROWS["user_id"] / 8
    return [
        Stage(
            job="prepare",
            size=f"{NUM_ROWS * rate('prepared row') / 1e9:,.0f} GB of rows",
            time=f"{hours(NUM_ROWS / rate('prepare'))} on two cores of one host",
            breaks=f"arrays by user, memory-mapped: {BYTES_A_USER} bytes each, "
            f"{ROWS['user_id'] * BYTES_A_USER / 1e9:,.0f} GB of disk and page cache of one host (by the "
            f"code); engine=ray shares out the rows, not these",
        ),
        Stage(
            job="embed",
            size=f"{vectors / 1e12:.2f} TB of fp16 vectors",
            time=f"{days(ROWS['item_id'] / rate('pictures'))} for pictures and "
            f"{days(ROWS['item_id'] / rate('texts'))} for texts on two cores; ranks share it evenly",
            breaks="the two cores: cards are needed, whose rate is not measured",
        ),
        Stage(
            job="start of train",
            size=f"{whole / 1e12:.2f} TB of tables, {whole / ranks / 1e9:.1f} GB a rank; each host reads "
            f"the {vectors / 1e12:.2f} TB of vectors",
            time=f"{drawing:,.0f} s of drawing and {copying:,.0f} s of copying a rank",
            breaks="storage that gives every host all vectors at once",
        ),
        Stage(
            job="train, one pass",
            size=f"{NUM_ROWS * rate('prepared row') / 1e9:,.0f} GB of rows read",
            time=f"{steps:,.0f} steps of {plan.summary.critical_path_ms:.1f} ms by the plan: "
            f"{hours(steps * plan.summary.critical_path_ms / 1e3)}; the loader takes "
            f"{hours(NUM_ROWS / ranks / rate('loader'))}, and cards without a network "
            f"{hours(NUM_ROWS / ranks / rate('card'))}",
            breaks="nothing found; the plan's time is an estimate",
        ),
        Stage(
            job="checkpoint",
            size=f"{trained / 1e12:.2f} TB, {trained / ranks / 1e9:.1f} GB a rank (frozen tables are not "
            f"in it)",
            time=f"{saving:,.0f} s in the background, where storage takes "
            f"{rate('checkpoint') * ranks:,.0f} GB/s",
            breaks="a save after SIGTERM: longer than train.stop_within_seconds=25, so none is begun",
        ),
        Stage(
            job="evaluate, 1 billion rows",
            size=f"{own_rows * rate('evaluated row') / 1e9:.1f} GB a rank of rows, "
            f"{arrays / 1e9:.1f} GB a rank of numbers of its share of the items and a bit of each user",
            time=f"{own_rows * rate('evaluation') / 1e6:,.0f} s of metrics and intervals",
            breaks=f"ids in predictions.parquet: each rank reads those of {ROWS['user_id'] / 1e9:.0f} "
            f"billion users to write its own (by the code)",
        ),
        Stage(
            job="export",
            size=f"{ROWS['item_id'] * rate('bundle item') / 1e12:.1f} TB",
            time="one process; not measured at such a size",
            breaks="one process and one disk: items are written by rank 0 alone",
        ),
        Stage(
            job="serve",
            size=f"{ROWS['item_id'] * rate('bundle item') / 1e12:.1f} TB, memory-mapped",
            time=f"{searching * millions:.1f} s of search a request, if it grows with the items",
            breaks="the search, and one machine's disk: no index is cut over several",
        ),
    ]


def rate(name: str) -> float:
    """Return the value of a measured piece."""
    return PIECES[name].value


def hours(seconds: float) -> str:
    """Return a time in hours, minutes or seconds."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.0f} min"


def days(seconds: float) -> str:
    """Return a time in days."""
    return f"{seconds / 86_400:.0f} days"


def tables() -> str:
    """Return both tables as Markdown."""
    lines = ["| job | bytes | time | breaks first |", "|---|---|---|---|"]
    lines += [f"| {s.job} | {s.size} | {s.time} | {s.breaks} |" for s in stages(whole_plan())]
    lines += ["", "| piece | measured | by |", "|---|---|---|"]
    lines += [f"| {name} | {p.line} | `{p.command}` |" for name, p in PIECES.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    silence_libraries()
    print(tables())
