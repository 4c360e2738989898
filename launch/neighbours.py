"""Show the nearest neighbours of items by semantics, by style and by text, side by side.

In: W/prepared/, W/features/, the pictures. Out: W/neighbours/ with neighbours.html, neighbours.json
and, where there are pictures, sheet.png. One process; any number of items, since the vectors are
read in pieces.

    python launch/neighbours.py data=demo workspace=W
    python launch/neighbours.py data=demo workspace=W 'items=[i00007,i00012]' k=8 exclude_same=content
"""

from typing import Any

from omegaconf import DictConfig

from embedding.features.catalogue import Catalogue
from embedding.features.nearest import nearest
from embedding.features.queries import open_present_features, rows_of, same_as, spread_rows
from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.files import new_folder
from recsys.job import hydra_job, open_command, run_job, say, stage
from recsys.report.neighbour_answers import (
    MODALITIES,
    NeighboursConfig,
    check_request,
    has_pictures,
    known_marks,
    read_answers,
    summary_lines,
)
from recsys.report.neighbours import write_neighbours
from recsys.report.sheet import draw_sheet, tile_pixels
from recsys.runtime.threads import threads_of_process, use_threads
from recsys.runtime.torchrun import rank_from_environment
from recsys.schema import read_manifest

KEYS = (WorkspaceConfig, NeighboursConfig)


def job(cfg: DictConfig) -> None:
    """Search, and write the page, the sheet and their content."""
    # 1. Settings, catalogue and vectors.
    place, config = read_job(cfg, KEYS)
    use_threads(threads_of_process(config.run.threads).count)
    workspace = place.folder
    manifest = read_manifest(workspace)
    check_request(config, manifest)
    catalogue = Catalogue(workspace / "prepared")
    with stage("vectors") as opening:
        tables, notes = open_present_features(workspace, tuple(MODALITIES), manifest)
        opening.done(", ".join(f"{n} {t.num_rows:,} x {t.dim}" for n, t in tables.items()))
    for note in notes:
        say(note)
    if manifest.has_images:
        # A sheet that is too narrow is refused before the search.
        tile_pixels(config.sheet_width, len(tables), config.k)

    # 2. The items asked about.
    if config.items:
        rows = rows_of(catalogue, list(dict.fromkeys(config.items)))
    else:
        rows = spread_rows(catalogue, tables, config.num_queries, config.seed)

    # 3. Their nearest neighbours.
    excluded = same_as(catalogue, config.exclude_same, rows)
    if excluded is not None:
        notes.insert(0, f"Items of the same {config.exclude_same} are left out.")
    with stage("search") as searching:
        found = {n: nearest(t, rows, k=config.k, excluded=excluded) for n, t in tables.items()}
        searching.done(f"{len(rows):,} x {catalogue.num_rows - 1:,} items, exact")

    # 4. Page, sheet and their content, written aside and renamed.
    answers = read_answers(catalogue, manifest, tables, rows, found)
    marks = known_marks(answers, config.exclude_same)
    title = f"{manifest.name}: nearest neighbours"
    notes.insert(0, "Most alike by cosine similarity of the stored vectors, best first.")
    settings = {"data": manifest.name, "k": config.k, "exclude_same": config.exclude_same}
    target = workspace / "neighbours"
    shown: dict[str, Any] = {"title": title, "notes": notes, "answers": answers, "marks": marks}
    with new_folder(target) as beside:
        write_neighbours(beside, **shown, settings=settings)
        if has_pictures(answers):
            sheet = draw_sheet(**shown, width=config.sheet_width)
            sheet.save(beside / "sheet.png", optimize=True)
    for line in summary_lines(answers):
        say(line)
    say(f"results: {target}")
    say(f"next: {open_command(target / 'neighbours.html')}")


@hydra_job("neighbours", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point; under torchrun one process does it."""
    if rank_from_environment() == 0:
        run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
