"""What `hdit eval-fid` does: checks what can be checked at once, then scores; broken off, it goes on where it was."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hdit_cli import files, runtime
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.folder import run_of
from hdit_cli.engine.run.stop import StopRequest
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.settings import check_asked
from hdit_cli.engine.scoring.job import Job, facts_of, plan
from hdit_cli.engine.scoring.nearest import draw_nearest
from hdit_cli.engine.scoring.one_pass import Breaks, OnProgress
from hdit_cli.engine.scoring.request import (
    Request,
    Session,
    model_of,
    prepare_folder,
)
from hdit_cli.engine.scoring.scores import Score, States, collect_all, verdicts
from hdit_cli.engine.scoring.unfinished import Unfinished
from hdit_cli.errors import StorageError, UsageError
from hdit_cli.metrics.memorisation import Memorisation

FORMAT = "hdit-scores/1"
SCORES = "scores.jsonl"  # in a run folder: a line for each evaluation of its checkpoints
NEAREST = "memorisation.png"


@dataclass(frozen=True)
class Evaluation:
    """Scores with all that they depend on.

    Attributes:
        facts: what was scored, against what, with which features, sampler, seed, software.
        notes: what to know when reading the scores.
    """

    scores: list[Score]
    facts: dict[str, Any]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "format": FORMAT,
            "scores": [_told(score) for score in self.scores],
            "notes": self.notes,
            **self.facts,
        }


def _told(score: Score) -> dict[str, Any]:
    told = asdict(score)
    return {name: value for name, value in told.items() if name != "features" or value}


def evaluate(
    request: Request,
    *,
    on_progress: OnProgress,
    on_download: Callable[[int, int], None] = lambda done, total: None,
    on_model: Callable[[Model], None] = lambda model: None,
    on_note: Callable[[str], None] = lambda note: None,
    session: Session | None = None,
) -> Evaluation | None:
    """Scores what was asked for; several processes share the work.

    Args:
        on_progress: called with (what, pictures done, pictures in all).
        on_download: called with (bytes done, bytes in all) while the Inception weights arrive.
        on_model: called before anything is generated.
        on_note: called with what should be known before that; it is among the notes too.
        session: what this evaluation shares with others; None nothing.

    Returns:
        the evaluation on the first process, None on the others.

    Raises:
        UsageError: an option that does not fit what is scored, or another process makes this very evaluation.
        DataError: pictures or weights are missing, damaged or too few.
        CheckpointError: not a checkpoint.
        NonFiniteError: the model or the feature net gave NaN or infinity.
        Interrupted: by a signal; what was done is kept, and the same request goes on.
    """
    session = session or Session()
    model = model_of(request, session)
    if model is not None:
        check_asked([sampling_of(model, **request.sampling)], request.sampling)
    job = plan(request, session, on_download=on_download, on_note=on_note)
    if job.model is not None:
        on_model(job.model)
    return run(job, session, on_progress=on_progress)


def run(job: Job, session: Session, *, on_progress: OnProgress) -> Evaluation | None:
    """Does the work of a job; see `evaluate`."""
    with ExitStack() as stack:
        unfinished: Unfinished | None = Unfinished(job.told())
        try:
            stack.enter_context(unfinished)
        except StorageError as error:
            job.notes.append(f"a break would have lost the work: {error.message}")
            unfinished = None
        prepare_folder(job.request.save, goes_on=unfinished is not None and unfinished.exists)
        stop = session.stop
        if stop is None and threading.current_thread() is threading.main_thread():  # only there signals can be caught
            stop = stack.enter_context(StopRequest(seconds=None))
        breaks = Breaks(stop, unfinished)
        states = collect_all(
            job.pictures,
            job.reference,
            job.fed,
            on_progress=on_progress,
            held_out=job.held_out,
            through_codec=job.through_codec,
            breaks=breaks,
            kept=session.references,
        )
        scores = verdicts(states, job.fed) if runtime.ranks().is_main else []
        if unfinished is not None:
            unfinished.remove()
        if job.count is not None:
            job.count.forget()
    if not runtime.ranks().is_main:
        return None
    evaluation = Evaluation(scores, facts_of(job), job.notes + _notes_on_bias(scores))
    _draw_nearest(job, evaluation, states)
    if job.model is not None:
        evaluation.notes.extend(_keep(evaluation, job.request.source))
    return evaluation


def _draw_nearest(job: Job, evaluation: Evaluation, states: Sequence[States]) -> None:
    """Draws the closest samples and their nearest training pictures, where there is a place for that.

    Of several nets, each has a picture with its name and the beginning of its SHA-256.
    """
    drawn = [(each.net, of) for each, of in zip(job.fed, states, strict=True) if Memorisation in each.metrics]
    if not drawn:
        return
    run = run_of(job.request.source) if job.model is not None else None
    path = job.request.grid or (run and run / NEAREST)
    if path is None:
        evaluation.notes.append("--grid FILE draws the closest samples beside their nearest training pictures")
        return
    files.make_folder(path.parent)
    places = []
    for net, of in drawn:
        assert net is not None
        place = path if len(job.fed) == 1 else path.with_stem(f"{path.stem}-{net.kind}-{net.sha256[:8]}")
        files.write_bytes(place, draw_nearest(job.pictures, job.reference, of))
        places.append(str(place))
    evaluation.facts["nearest"] = places[0] if len(job.fed) == 1 else places


def _keep(evaluation: Evaluation, source: Path) -> list[str]:
    """Adds the scores to the log of the run that the checkpoint lies in; a note where that cannot be done.

    A line for each feature net: step, weights, n, scores (metric => value), details (the numbers of pictures and the rest),
    sampling, reference, features, environment (versions, hardware), date (UTC).
    """
    run = run_of(source)
    if run is None:
        return []
    facts = evaluation.facts
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    nets = facts["features"] if isinstance(facts["features"], list) else [facts["features"]]
    lines = []
    for net in nets:
        scores = [s for s in evaluation.scores if s.features == net or (s.features is None and net is nets[0])]
        line = {
            "step": facts["model"]["step"],
            "weights": facts["model"]["weights"],
            "n": max(score.n for score in scores),
            "scores": {score.metric: score.value for score in scores},
            "details": {s.metric: {"n": s.n, "n_reference": s.n_reference, **s.details} for s in scores},
            "sampling": facts.get("sampling"),
            "reference": facts["reference"],
            "features": net,
            "environment": facts["environment"],
            "date": date,
        }
        lines.append(json.dumps(line))
    try:
        for line in lines:
            files.append_line(run / SCORES, line)
    except (
        StorageError,
        UsageError,
    ) as error:  # the scores took long to make: they are printed, whatever becomes of the log
        return [f"the scores were not added to {run / SCORES}: {error.message}"]
    return []


def _notes_on_bias(scores: list[Score]) -> list[str]:
    """What is owed to the number of pictures alone, or to the codec."""
    notes = []
    of_codec = {score.metric: score.details["of_the_codec"] for score in scores if "of_the_codec" in score.details}
    plain = [f"{name.upper()} {value:.3g}" for name, value in of_codec.items() if isinstance(value, float)]
    if plain:
        notes.append(
            f"the reference through the codec scores {', '.join(plain)}: so would a model that made the very latents of the "
            "reference"
        )
    for score in (each for each in scores if "of_a_perfect_model" in each.details):
        of = "" if score.features is None else f" of {score.features['file']}"
        notes.append(
            f"{score.metric.upper()}{of} at n = {score.n:,}: {score.details['of_a_perfect_model']:.3g} of it is what a perfect "
            "model would get too, were features Gaussian: the bias of so many pictures"
        )
    return notes
