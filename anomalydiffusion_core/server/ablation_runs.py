"""Running an ablation on a ComfyUI server: one folder for each variant and seed, tables over all that is finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InputError
from ..evaluation.tables import build_tables, find_records, to_markdown
from ..evaluation.tables.files import write_tables
from ..synthetic.fewshot import CATEGORY, render_fewshot_set
from .ablations import FULL, PROTOCOLS, REDUCED, Variant, label_results, variant_workflow, variants
from .client import OnProgress
from .runs import QUICKSTART, run_workflow, server_at
from .workflow import Workflow, load_workflow, parse_assignment, with_dataset, with_inputs

TABLES = "tables"
PICTURES = "pictures"
SUMMARY = "summary.json"


class AblationRuns:
    """One ablation in one folder. A variant whose folder is complete is not run again."""

    def __init__(
        self,
        out: Path,
        protocol: str,
        tables: Sequence[int],
        workflow: Path | None,
        data: Path | None,
        category: str,
        seeds: int,
        assignments: Sequence[str],
    ) -> None:
        """See the command `ablate`.

        Raises:
            InputError: an unknown protocol or table, or the full protocol without workflow and data.
        """
        if protocol not in PROTOCOLS:
            raise InputError(f"protocol: unknown value '{protocol}'. Choose one of {', '.join(PROTOCOLS)}.")
        self.protocol = PROTOCOLS[protocol]
        self.variants = variants(self.protocol, tables)
        self.tables = sorted({table for variant in self.variants for table, _ in variant.places})
        if self.protocol is FULL and (workflow is None or data is None or not category):
            raise InputError(
                "protocol: full needs --workflow with a model such as Stable Diffusion 1.5, --data and --category. "
                "The quickstart has the demo prior, which is for the reduced protocol."
            )
        if self.protocol is REDUCED and data is not None:
            raise InputError("data: the reduced protocol renders its own images. Leave it out, or use full.")
        self.out, self.seeds, self.data, self.category = out, seeds, data, category
        changed = with_inputs(load_workflow(workflow or QUICKSTART), [parse_assignment(text) for text in assignments])
        for variant in self.variants:
            variant_workflow(changed, self.protocol, variant)  # a mistake should show before the first run
        self.base = changed

    def run(
        self,
        address: str | None = None,
        say: Callable[[str], None] = lambda text: None,
        on_progress: OnProgress | None = None,
    ) -> str:
        """Run what is missing, write the tables anew, and return them as Markdown."""
        self.out.mkdir(parents=True, exist_ok=True)
        waiting = [(v, s) for s in range(self.seeds) for v in self.variants if not self._done(v, s)]
        if waiting:
            base = self._with_data()
            with server_at(address, self.out / "server.log") as (where, _):
                for number, (variant, seed) in enumerate(waiting, start=1):
                    say(f"{number} of {len(waiting)}: {variant.name}, seed {seed}, {self.protocol.name} protocol")
                    changed = variant_workflow(base, self.protocol, variant, seed)
                    run_workflow(changed, self._folder(variant, seed), where, on_progress=on_progress)
                    label_results(self._folder(variant, seed), variant, self.protocol)
                    self._write_tables()  # so that an interrupted ablation has its tables
        return self._write_tables()

    def _with_data(self) -> Workflow:
        if self.data is None:
            folder = render_fewshot_set(self.out / PICTURES).parent
            return with_dataset(self.base, {"folder": folder.as_posix(), "category": CATEGORY})
        values = {"folder": self.data.absolute().as_posix(), "category": self.category, "split": "lowest third"}
        return with_dataset(self.base, values)

    def _folder(self, variant: Variant, seed: int) -> Path:
        return self.out / variant.name / f"seed_{seed}"

    def _done(self, variant: Variant, seed: int) -> bool:
        folder = self._folder(variant, seed)
        if not (folder / SUMMARY).is_file():
            return False
        label_results(folder, variant, self.protocol)
        return True

    def _write_tables(self) -> str:
        built = build_tables(find_records([self.out]), self.tables)
        staging = self.out / f".{TABLES}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write_tables(staging, built)
        shutil.rmtree(self.out / TABLES, ignore_errors=True)
        staging.rename(self.out / TABLES)
        return to_markdown(built)
