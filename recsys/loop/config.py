"""Settings of the closed loop: its world, its arms, its visitors, and the jobs of a night."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from recsys.demo.days import DaysConfig

Night = Literal["none", "items", "refresh", "anew"]


@dataclass(frozen=True)
class Arm:
    """One way to choose pictures, which meets the visitors in a world of its own."""

    meaning: str
    """One sentence for the page."""
    served: bool = False
    """Whether a running server chooses the pictures; False: a rule that is computed in this process."""
    night: Night = "none"
    """Work of a night: `refresh` (append, warm start, delta bundle), `anew` (everything from the start of
    the log), `items` (new pictures are added to the server, the model stays), or none."""
    explores: Literal["", "epsilon", "thompson"] = ""
    """Exploration of its server; "": none."""


ARMS = {
    "ours": Arm("refreshed every night: append, warm start, delta bundle", True, "refresh"),
    "never": Arm("the model of day 1, never refreshed", True),
    "never_trained": Arm("the model of day 1, new pictures added to the server", True, "items"),
    "anew": Arm("trained anew on the whole log every night", True, "anew"),
    "epsilon": Arm("ours with epsilon-greedy exploration", True, "refresh", "epsilon"),
    "thompson": Arm("ours with Thompson sampling", True, "refresh", "thompson"),
    "popularity": Arm("most bookmarked so far"),
    "random": Arm("drawn at random"),
    "oracle": Arm("highest true probability of a bookmark"),
}
"""Arms by name, in the order of tables and legends."""


@dataclass(frozen=True, kw_only=True)
class VisitorsConfig:
    """Behaviour of the simulated visitors."""

    visit_rate: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Probability that a user comes on a day; a new user comes on its first day for certain."""
    pictures: Annotated[int, Field(ge=1, le=100)] = 10
    """Pictures that a visitor is shown."""
    position_bias: Annotated[float, Field(ge=0)] = 0.5
    """Exponent b of the position bias: a visitor looks at place j with probability j ** -b; 0: at all."""
    known_bias: bool = True
    """Whether the site knows b, and weighs rows by it (position_bias= of launch/events.py)."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The closed loop."""

    workspace: str
    """Folder of the world, the arms, and the page."""
    overwrite: bool = False
    """Begin anew where a loop with other settings is there already."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds; each draws a world and visitors of its own."""
    arms: list[str] = field(default_factory=lambda: [arm for arm in ARMS if arm != "epsilon"])
    """Arms to run: ours, never, never_trained, anew, epsilon, thompson, popularity, random,
    oracle. The default leaves out `epsilon`, which costs as much as `thompson`."""
    parallel: Annotated[int, Field(ge=1)] = 2
    """Arms side by side, each with jobs of one thread."""
    world: DaysConfig = field(default_factory=DaysConfig)
    """Size and nature of the world."""
    visitors: VisitorsConfig = field(default_factory=VisitorsConfig)
    """Behaviour of the visitors."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.1
    """explore.epsilon of the arm `epsilon`'s server."""
    thompson: Annotated[float, Field(gt=0, le=10)] = 0.5
    """explore.thompson of the arm `thompson`'s server."""
    embed: list[str] = field(
        default_factory=lambda: [
            "encoder.image.size=64",
            "encoder.image.pretext_epochs=24",
            "encoder.image.pretext_min_count=5",
            "encoder.text.epochs=4",
        ]
    )
    """Settings of launch/embed.py."""
    train: list[str] = field(
        default_factory=lambda: [
            "experiment=umair_fps",
            "train.global_batch_size=256",
            "train.epochs=4",
            "model.embedding_dim=8",
            "model.interest_shrinkage=0.0",
            "optim.table.l2=1.0e-2",
        ]
    )
    """Settings of launch/train.py."""
    refresh: list[str] = field(
        default_factory=lambda: [
            "train.splits=[all]",
            "train.order=shuffled",
            "train.epochs=1",
            "optim.dense_learning_rate=2.0e-3",
            "optim.table.learning_rate=2.0e-3",
        ]
    )
    """More settings of launch/train.py for the warm start of a night. By default one pass over the whole
    log: passes over the day alone, of some five steps each, earn less (LOG.md)."""
    export: list[str] = field(
        default_factory=lambda: ["precision=fp32", "map=false", "thumbnail_pixels=0"]
    )
    """Settings of launch/export.py."""

    def problems(self) -> list[str]:
        """Return a text for arms that are none, and for lists without or with repeated entries."""
        problems = []
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            problems.append(f"arms={unknown}: expected some of {', '.join(ARMS)}")
        for key in ("arms", "seeds"):
            given: list[Any] = getattr(self, key)
            if not given or len(set(given)) < len(given):
                problems.append(f"{key}={given}: expected one entry or more, each once")
        return problems
