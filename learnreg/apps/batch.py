"""``learnreg batch``: register many pairs, from a table to a folder per pair."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from tqdm.auto import tqdm

from learnreg import __version__
from learnreg.apps.engines import submit
from learnreg.apps.errors import reason_of
from learnreg.apps.output import check_folder
from learnreg.apps.register import check_writing, measure, set_device
from learnreg.data.checks import check_comparable
from learnreg.data.files import content_of, stamp_of
from learnreg.data.formats import TABLES, Subject, read_pairs, table_rows
from learnreg.errors import InputError, MissingFileError
from learnreg.image import Image
from learnreg.io import write_image
from learnreg.methods import Registration
from learnreg.methods.api import DEFAULT, choose_method, register_several
from learnreg.methods.base import Method
from learnreg.reporting.figures import registration_figure, save_figure
from learnreg.transforms import Transform
from learnreg.transforms.itk import read_transform
from learnreg.writing import PART, distinct_names, write_atomically

FILES = {"transform": "transform.h5", "warped": "warped.nii.gz", "figure": "figure.png", "metrics": "metrics.json"}
FAILED = "failed"
HIDDEN = ("fingerprint", "stamp", "content")  # of metrics.json, not columns of a table
COLUMNS = ("pair", "status", "reason", "fixed", "moving", "seconds", "folding_percent", "sd_log_jacobian")

Row: TypeAlias = dict[str, Any]
Pair: TypeAlias = tuple[Image, Image, Transform | None]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One row of the table.

    Args:
        name: Name of the pair and of its folder.
        fixed: Files of the fixed image.
        moving: Files of the moving image.
        initial: Transform to start from.
    """

    name: str
    fixed: Subject
    moving: Subject
    initial: Path | None = None

    @property
    def files(self) -> list[Path | None]:
        """All files that are read for the pair."""
        return [*self.fixed.files, *self.moving.files, self.initial]


@dataclass(frozen=True)
class Settings:
    """What is equal for all pairs; see the options of ``learnreg batch``."""

    output: Path
    method: str | None = None
    checkpoint: str | None = None
    refine: int = 0
    weight: float | None = None
    save: tuple[str, ...] = ("transform", "metrics")
    trust: tuple[str, ...] = ()
    device: str = "cpu"
    together: int = 1

    def load(self) -> Method:
        """Return the method."""
        return choose_method(
            self.method,
            checkpoint=self.checkpoint,
            refine=self.refine,
            weight=self.weight,
            trust=self.trust,
            device=self.device,
        )

    @cached_property
    def source(self) -> str:
        """Hash of the file of the method or model, or of its name."""
        name = self.checkpoint or self.method or DEFAULT
        return hashlib.sha256(Path(name).read_bytes() if Path(name).is_file() else name.encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what the results depend on besides the files of the pairs."""
        known = repr((self.source, self.refine, self.weight, self.save))
        return hashlib.blake2b(known.encode(), digest_size=12).hexdigest()


def run(options: argparse.Namespace) -> None:
    """Register the pairs of a shard that are not done; exit with status 1 if some failed."""
    settings = Settings(
        Path(options.output),
        options.method,
        options.checkpoint,
        options.refine,
        options.weight,
        tuple(dict.fromkeys(options.save)),
        tuple(options.trust),
        options.device,
        options.batch,
    )
    if settings.together > 1 and not settings.checkpoint:
        raise InputError("--batch puts several pairs through a network at once; give --checkpoint too.")
    check_folder(settings.output)
    set_device(options)
    jobs = read_jobs(options.pairs)
    method = settings.load()  # an error of the method is one of all pairs
    if options.on:
        submit(options, _for_a_shard(options), len(jobs))
        return
    first, shards = options.shard
    own = jobs[first - 1 :: shards]
    settings.output.mkdir(parents=True, exist_ok=True)
    _remove_parts(settings.output)
    left = to_do(own, settings, retry=options.retry)
    if not options.quiet:
        print(f"{len(own)} pairs, {len(own) - len(left)} done or failed before, {len(left)} to do", flush=True)
    try:
        if options.jobs > 1:
            results = _in_processes(left, settings, options.jobs, options.threads)
        else:
            results = _in_this_process(left, settings, method)
        with tqdm(total=len(left), unit="pair", disable=options.quiet or not sys.stderr.isatty()) as bar:
            failed = 0
            for row in results:
                failed += row["status"] == "failed"
                bar.set_postfix(failed=failed)
                bar.update()
    finally:
        name = "results.csv" if shards == 1 else f"results-{first}-of-{shards}.csv"
        rows = write_results(own, settings.output, name)
        if shards > 1 and all(any(file.exists() for file in _records(job, settings.output)) for job in jobs):
            write_results(jobs, settings.output, "results.csv")
    wrong = sum(row["status"] == "failed" for row in rows)
    if not options.quiet:
        print(f"Wrote {settings.output}: {name}, {sum(row['status'] == 'done' for row in rows)} pairs")
    if wrong:
        print(f"{wrong} of {len(own)} pairs failed; see {settings.output / FAILED}, and --retry", file=sys.stderr)
        raise SystemExit(1)


def _for_a_shard(options: argparse.Namespace) -> list[str]:
    """Return the arguments of this command without those of the engine."""
    arguments = [str(Path(options.pairs).absolute()), "-o", str(Path(options.output).absolute())]
    for name in ("method", "checkpoint", "refine", "weight", "jobs", "threads", "device", "batch"):
        value = getattr(options, name)
        if value:
            is_file = name in ("method", "checkpoint") and Path(value).is_file()
            arguments += [f"--{name}", str(Path(value).absolute() if is_file else value)]
    for package in options.trust:
        arguments += ["--trust", package]
    return [*arguments, "--save", *options.save, *(["--retry"] if options.retry else [])]


def read_jobs(table: str) -> list[Job]:
    """Read a table of pairs.

    Args:
        table: A CSV with the columns of :func:`learnreg.data.read_pairs`, and ``name`` and ``initial`` if wanted; or a
            ``dataset.json`` with pairs.

    Raises:
        InputError: It has no pairs, or two pairs have one name.
    """
    pairs = read_pairs(table)
    if not pairs:
        raise InputError(f"{table} has no pairs; give a CSV with the columns fixed,moving.")
    images = [subject.image for pair in pairs for subject in pair]
    files = dict(zip(dict.fromkeys(images), distinct_names(list(dict.fromkeys(images))), strict=True))
    rows: list[dict[str, str]] = [{} for _ in pairs]
    if Path(table).suffix in TABLES:
        rows = table_rows(Path(table).expanduser())
    jobs = []
    for (fixed, moving), row in zip(pairs, rows, strict=True):
        name = (row.get("name") or "").strip() or f"{files[fixed.image]}__{files[moving.image]}"
        start = (row.get("initial") or "").strip()
        initial = Path(table).expanduser().parent / Path(start).expanduser() if start else None
        if initial is not None and not initial.exists():
            raise MissingFileError(
                f"No such file: {initial}, the initial transform of {name} in {table}; check the path."
            )
        jobs.append(Job(name.replace("/", "-"), fixed, moving, initial))
    seen: dict[str, int] = {}
    for number, job in enumerate(jobs, start=1):
        if job.name in seen or job.name in ("", FAILED) or job.name.startswith("."):
            same = f"rows {seen[job.name]} and {number} are" if job.name in seen else f"row {number} is"
            raise InputError(f"{table}: {same} named {job.name!r}; give each pair its own name in the column `name`.")
        seen[job.name] = number
    return jobs


def to_do(jobs: Sequence[Job], settings: Settings, *, retry: bool = False) -> list[Job]:
    """Return the pairs without a result.

    Raises:
        InputError: A result was made with other options or from other files.
    """
    left = []
    for job in jobs:
        row = _read_row(job, settings.output)
        if row is None or (row["status"] == "failed" and retry):
            left.append(job)
        elif row["status"] == "done":
            _check_same(row, job, settings)
    return left


def _check_same(row: Row, job: Job, settings: Settings) -> None:
    """Check that a result is that of the given options and of files with the same content."""
    changed = ""
    if row.get("fingerprint") != settings.fingerprint:
        changed = "with other options"
    elif row.get("stamp") != _inputs(job, stamp_of) and row.get("content") != _inputs(job, content_of):
        changed = "from files with another content"
    if changed:
        raise InputError(f"{settings.output / job.name} was made {changed}; give another folder (-o), or remove it.")


def _inputs(job: Job, hashed: Callable[[list[Path | None]], str]) -> str:
    """Hash the files of a pair, and the time points to read."""
    return f"{hashed(job.files)} {job.fixed.time} {job.moving.time}"


def _in_this_process(jobs: Sequence[Job], settings: Settings, method: Method) -> Iterator[Row]:
    """Register one group of pairs after the other, while the next one is read and the last one is written."""
    groups = _groups(jobs, settings)
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(_read, group) for group in groups[:1]]
        writing: Future[list[Row]] | None = None
        for number, group in enumerate(groups):
            ready = reading.pop()
            if number + 1 < len(groups):
                reading.append(pool.submit(_read, groups[number + 1]))
            results = _registered(ready.result(), method, settings)
            if writing is not None:
                yield from writing.result()
            writing = pool.submit(_finish, group, results, settings)
        if writing is not None:
            yield from writing.result()


def _groups(jobs: Sequence[Job], settings: Settings) -> list[Sequence[Job]]:
    """Return the pairs that are registered at once."""
    return [jobs[first : first + settings.together] for first in range(0, len(jobs), settings.together)]


def _in_processes(jobs: Sequence[Job], settings: Settings, count: int, threads: int | None) -> Iterator[Row]:
    each = threads or max(1, (os.cpu_count() or 1) // count)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin_worker, (settings, each)) as pool:
        tasks = [pool.submit(_of_a_worker, group) for group in _groups(jobs, settings)]
        try:
            for task in as_completed(tasks):
                yield from task.result()
        except BrokenProcessPool as error:
            raise InputError(
                "A process was killed, perhaps because memory ran out. What is done is kept: run the command again "
                f"to go on, with fewer --jobs than {count}."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: tuple[Settings, Method]


def _begin_worker(settings: Settings, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = settings, settings.load()


def _of_a_worker(jobs: Sequence[Job]) -> list[Row]:
    settings, method = _worker
    return _finish(jobs, _registered(_read(jobs), method, settings), settings)


def _attempted(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    """Call a function; return its result, or the error that it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def _read(jobs: Sequence[Job]) -> list[Pair | Exception]:
    return [_attempted(_pair, job) for job in jobs]


def _pair(job: Job) -> Pair:
    fixed, moving = job.fixed.read(), job.moving.read()
    check_comparable(fixed, moving, (job.fixed.image, job.moving.image))
    check_writing(fixed, moving)
    return fixed, moving, None if job.initial is None else read_transform(job.initial, ndim=fixed.ndim)


def _registered(
    pairs: Sequence[Pair | Exception], method: Method, settings: Settings
) -> list[Registration | Exception]:
    """Register the pairs that could be read, together; if that fails, one by one."""
    results: dict[int, Registration | Exception] = {}
    good = {k: pair for k, pair in enumerate(pairs) if not isinstance(pair, Exception)}
    if len(good) > 1:
        with suppress(Exception):  # it shows again for the pair to which it belongs
            results = dict(
                zip(good, register_several(list(good.values()), method, device=settings.device), strict=True)
            )
    for k, pair in enumerate(pairs):
        if isinstance(pair, Exception):
            results[k] = pair
        elif k not in results:
            alone = _attempted(register_several, [pair], method, device=settings.device)
            results[k] = alone if isinstance(alone, Exception) else alone[0]
    return [results[k] for k in range(len(pairs))]


def _finish(jobs: Sequence[Job], results: Sequence[Registration | Exception], settings: Settings) -> list[Row]:
    """Write each result, or the reason why there is none."""
    rows = []
    for job, result in zip(jobs, results, strict=True):
        row = result if isinstance(result, Exception) else _attempted(_save, job, result, settings)
        rows.append(_fail(job, row, settings) if isinstance(row, Exception) else row)
    return rows


def _save(job: Job, result: Registration, settings: Settings) -> Row:
    """Write a pair's folder, which appears when it is whole."""
    settings.output.mkdir(parents=True, exist_ok=True)
    part = settings.output / f"{PART}{socket.gethostname()}-{os.getpid()}-{job.name}"
    part.mkdir()
    try:
        if "transform" in settings.save:
            result.save_transform(part / FILES["transform"])
        if "warped" in settings.save:
            write_image(result.warped.data[0], result.fixed.grid, part / FILES["warped"])
        if "figure" in settings.save:
            figure = registration_figure(result.fixed, result.moving, result.sampled, title=job.name)
            save_figure(figure, part / FILES["figure"])
        row: Row = {"pair": job.name, "status": "done", "fixed": str(job.fixed.image), "moving": str(job.moving.image)}
        row |= {"fingerprint": settings.fingerprint, "learnreg": __version__}
        row |= {"stamp": _inputs(job, stamp_of), "content": _inputs(job, content_of)}
        row |= {"checkpoint": settings.checkpoint} if settings.checkpoint else {"method": settings.method or DEFAULT}
        row |= measure(result) if "metrics" in settings.save else {"seconds": round(result.seconds, 3)}
        (part / FILES["metrics"]).write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
        with suppress(OSError):  # another process has finished the same pair
            part.rename(settings.output / job.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _records(job, settings.output)[1].unlink(missing_ok=True)
    return row


def _fail(job: Job, error: Exception, settings: Settings) -> Row:
    row = {"pair": job.name, "status": "failed", "reason": reason_of(error)}
    row |= {"fixed": str(job.fixed.image), "moving": str(job.moving.image)}
    lines = [] if isinstance(error, InputError) else traceback.format_exception(error)
    text = json.dumps({**row, "traceback": "".join(lines).splitlines()}, indent=2) + "\n"
    write_atomically(
        settings.output / FAILED / f"{job.name}.json", lambda part: Path(part).write_text(text, encoding="utf-8")
    )
    return row


def _read_row(job: Job, output: Path) -> Row | None:
    for file in _records(job, output):
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise InputError(f"{file} is damaged; remove it.") from error
        if not isinstance(row, dict) or not {"status", "pair"} <= row.keys():
            raise InputError(f"{file.parent} was not made by `learnreg batch`; give another folder (-o).")
        return row
    return None


def _records(job: Job, output: Path) -> tuple[Path, Path]:
    """Return the file of a pair that is done, and that of one that failed."""
    return output / job.name / FILES["metrics"], output / FAILED / f"{job.name}.json"


def write_results(jobs: Sequence[Job], output: Path, name: str) -> list[Row]:
    """Write a table with a row per pair, as far as they are done, and return the rows.

    With pandas and pyarrow, a table of all pairs is also written as ``results.parquet``.
    """
    rows = [row for job in jobs if (row := _read_row(job, output)) is not None]
    table = [flat(row) for row in rows]
    columns = list(dict.fromkeys([*COLUMNS, *(key for row in table for key in row)]))

    def write(part: str) -> None:
        with Path(part).open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, columns)
            writer.writeheader()
            writer.writerows(table)

    write_atomically(output / name, write)
    if name == "results.csv":
        with suppress(ImportError):
            import pandas  # type: ignore[import-untyped]

            frame = pandas.DataFrame(table, columns=columns)
            write_atomically(output / "results.parquet", lambda part: frame.to_parquet(part, engine="pyarrow"))
    return rows


def flat(row: Row) -> Row:
    """Return a row whose measures before and after are columns; those by label stay in ``metrics.json``."""
    columns = {key: value for key, value in row.items() if not isinstance(value, (dict, list)) and key not in HIDDEN}
    for side in ("before", "after"):
        measures = row.get(side, {})
        columns |= {f"{key}_{side}": value for key, value in measures.items() if not isinstance(value, (dict, list))}
    return columns


def _remove_parts(output: Path) -> None:
    """Remove what processes of this machine that were killed have left half-written."""
    begin = f"{PART}{socket.gethostname()}-"
    for folder in output.glob(f"{begin}*"):
        process = folder.name.removeprefix(begin).partition("-")[0]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
