"""Small evaluations inside a run, as `[eval]` says: a line of metrics.jsonl each, and `best.safetensors`.

The pictures are the same noise and classes at every step, so that what changes between two lines is the weights alone. The
training goes on as if nothing had been: every number of a run hangs on (seed, place), and none is drawn here from those.

`best.safetensors` holds the weights with the best score so far by the first metric: the lowest, or the highest of one such
as the Inception Score. Its value goes into the checkpoint, so a run that goes on compares with what an unbroken one would.
The file may be newer than the checkpoint that a run goes on from: it is written again at the same step, the same.
"""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hdit_cli import catalog, runtime
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.memory.out_of_memory import in_evaluation
from hdit_cli.engine.model import Model
from hdit_cli.engine.run import weights as names
from hdit_cli.engine.run.best import BEST, read_score, write_best
from hdit_cli.engine.run.events import Evaluated, Working
from hdit_cli.engine.run.stop import StopRequest
from hdit_cli.engine.sampling.generate import choose_labels
from hdit_cli.engine.scoring.one_pass import Breaks, Fed, needs_net
from hdit_cli.engine.scoring.picture_sets import Generated, Stored
from hdit_cli.engine.scoring.reconstructed import Reconstructed, Trained
from hdit_cli.engine.scoring.request import open_net
from hdit_cli.engine.scoring.scores import Score, check_counts, check_net, check_reference, collect_all, verdicts
from hdit_cli.errors import Interrupted, OutOfMemory, UsageError
from hdit_cli.metrics import feature_net
from hdit_cli.metrics.frechet import SFID
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.patch_grid import PatchGrid
from hdit_cli.recipe import Recipe
from hdit_cli.recipe.section import plain
from hdit_cli.tasks.sampling import Sampling, of_section


class Evaluator:
    """Scores a run's weights against its training data; several processes share the pictures.

    Args:
        recipe: validated and resolved, with `eval.every`.
        model: of the run.
        reader: the training data.
        folder: of the run.

    Raises:
        UsageError: `eval.during_weights` names an average that the run does not track, or a received recipe a file as net.
        DataError: weights of the feature net are missing, it does not take pictures of these sizes, or too few pictures.
    """

    def __init__(self, recipe: Recipe, *, model: Model, reader: ShardReader, folder: Path) -> None:
        section = recipe.eval
        self.recipe, self.folder = recipe, folder
        self.weights = [_checked(word, recipe) for word in section.during_weights]
        wanted = section.during_metrics or section.metrics
        kinds: list[type[Metric]] = [catalog.get("metric", name) for name in wanted]
        self.metrics = [PatchGrid.of(model.seams) if kind is PatchGrid else kind for kind in kinds]
        if kinds[0].better is None:
            raise UsageError(
                f"{kinds[0].name} does not say which weights are best", hint="name another metric first in [eval]"
            )
        self.reference = Stored(reader, name=str(reader.folder))
        self.sampling = Sampling(
            seed=recipe.train.seed,
            batch_size=section.batch_size,
            cfg_channels=recipe.task.cfg_channels,
            **of_section(recipe.sample.model_dump()),
        )
        counts = {"pictures": section.during_n, "reference": self.reference.count}
        self.notes = check_counts(self.metrics, counts=counts, allow_small=True)
        check_reference(self.metrics, self._pictures(model), self.reference)
        if recipe.left_out and needs_net(self.metrics):
            raise UsageError(
                f"eval.features is the file {recipe.left_out}, and the recipe comes out of a checkpoint or a run: what a "
                "received file names is not opened, since it may run",
                hint=f"if you trust it, --set eval.features={shlex.quote(recipe.left_out)}; else --set eval.features=inception",
            )
        if SFID in kinds and feature_net.parse(section.features)[0] != "adm":  # told before Inception is downloaded
            raise UsageError(
                "sfid needs Inception's spatial features, which the usual net does not give",
                hint="--set eval.features=adm",
            )
        self.net = open_net(section.features) if needs_net(self.metrics) else None
        self.fed = [Fed(self.metrics, self.net)]
        if self.net is not None:
            check_net(self.metrics, self.net)
            for height, width in {
                self._pictures(model).size,
                *reader.sizes,
            }:  # what it cannot take is told now, not in an hour
                self.net([np.zeros((height, width, 3), dtype=np.uint8)])
        self.known: dict[Path, Metric] = {}
        self.step, self.best = 0, None  # of the last evaluation, and what the best one said

    def due(self, step: int) -> bool:
        """Whether this step passes a multiple of `eval.every` images, or is the last."""
        every, batch = self.recipe.eval.every, self.recipe.train.batch_size
        passed = step * batch // every > (step - 1) * batch // every
        return self.step < step and (passed or step == self.recipe.train.steps)

    def evaluate(
        self,
        models: Mapping[str, Model],
        *,
        step: int,
        stop: StopRequest | None,
        tell: Callable[[Working], None] = lambda working: None,
    ) -> Evaluated | None:
        """Scores the weights named in the recipe, and keeps the best.

        Args:
            models: the run's, by what their weights are called.
            stop: asked after each batch, and between two steps of the sampler.
            tell: hears how far it is.

        Returns:
            what metrics.jsonl is to say, on the first process; None where the evaluation was broken off: it is due again.
        """
        lines, best = [], self.best
        for weights in self.weights:
            model = models[weights]
            scores = self._scores(model, stop=stop, tell=tell)
            if scores is None:
                return None
            if not runtime.ranks().is_main:
                continue
            line = self._line(scores, weights=weights, step=step)
            if weights == self.weights[0] and self._is_better(scores[0], best):
                best = {"step": step, **self._basis(), "value": scores[0].value}
                line["eval"]["best"] = True
                write_best(self.folder / BEST, model, best)
            lines.append(line)
        self.step, self.best = step, best
        return Evaluated(step, lines)

    def told(self) -> dict[str, Any]:
        """What a checkpoint must know."""
        return {"step": self.step, "best": self.best}

    def restore(self, told: dict[str, Any] | None, *, step: int) -> None:
        """Takes over what a checkpoint of this step knows; None where it was made without `[eval]`."""
        path = self.folder / BEST
        if told is None:
            self.best = read_score(path) if path.is_file() else None
            if self.best is not None and self.best["step"] > step:
                self.best = None
        else:
            self.step, self.best = told["step"], told["best"] if path.is_file() else None
        if self.best is not None and not self._compares(self.best):
            self.best = None  # scores of other metrics, pictures, feature nets or weights compare with nothing here

    def _compares(self, best: dict[str, Any]) -> bool:
        basis = self._basis()
        if basis.get("features", {}).get("net") == "inception":  # all there was when runs did not write down which net
            best = {"features": basis["features"], **best}
        return all(best.get(name) == value for name, value in basis.items())

    def _basis(self) -> dict[str, Any]:
        """What two scores must share to be compared."""
        how = {name: plain(getattr(self.sampling, name)) for name in ("steps", "sampler", "cfg")}
        if self.metrics[0].needs:
            how["features"] = self._features()
        return {"metric": self.metrics[0].name, "n": self.recipe.eval.during_n, "weights": self.weights[0], **how}

    def _features(self) -> dict[str, Any] | None:
        """The feature net, as a line of the log names it; None where no metric needs one."""
        told = None if self.net is None else feature_net.facts(self.net)
        return told and {key: told[key] for key in ("net", "sha256", "resize")}

    @staticmethod
    def _is_better(score: Score, best: dict[str, Any] | None) -> bool:
        if best is None:
            return True
        return score.value > best["value"] if score.better == "higher" else score.value < best["value"]

    def _pictures(self, model: Model) -> Generated | Reconstructed:
        n = self.recipe.eval.during_n
        if model.reconstructs:  # nothing of it is kept by its name: its weights are others at every step
            return Reconstructed(
                self.reference, Trained(model, ""), name="reconstructed", n=min(n, self.reference.count)
            )
        labels = choose_labels(model, n=n, wanted=None, seed=self.sampling.seed)
        return Generated(model, n, labels, self.sampling)

    def _scores(self, model: Model, *, stop: StopRequest | None, tell: Callable[[Working], None]) -> list[Score] | None:
        training = model.task.training
        model.task.eval()
        try:
            states = collect_all(
                self._pictures(model),
                self.reference,
                self.fed,
                on_progress=lambda what, done, total: tell(Working(f"evaluating: {what}", done, total, "image")),
                breaks=Breaks(stop),
                kept=self.known,
            )
            return verdicts(states, self.fed) if runtime.ranks().is_main else []
        except Interrupted:
            return None
        except OutOfMemory as error:
            raise in_evaluation(self.recipe) from error
        finally:
            model.task.train(training)

    def _line(self, scores: list[Score], *, weights: str, step: int) -> dict[str, Any]:
        told = {
            "weights": weights,
            "scores": {score.metric: score.value for score in scores},
            "n": scores[0].n,
            "n_reference": scores[0].n_reference,
            "features": self._features(),
            "reference": self.reference.fingerprint,
            "sampling": {name: plain(getattr(self.sampling, name)) for name in ("seed", "steps", "sampler", "cfg")},
            "best": False,
        }
        return {"step": step, "images": step * self.recipe.train.batch_size, "eval": told}


def _checked(word: str, recipe: Recipe) -> str:
    """The name of weights that a run has.

    Raises:
        UsageError: an average that the run does not track.
    """
    name = names.parse(word)
    std = names.std_of(name)
    if std is not None and std not in recipe.ema.stds:
        there = ", ".join(f'"{names.label(each)}"' for each in recipe.ema.stds) or "none"
        raise UsageError(
            f"eval.during_weights names an average of width {std:g}, which the run does not track",
            hint=f"ema, raw, or one of ema.stds ({there})",
        )
    return name
