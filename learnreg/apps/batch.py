"""``learnreg batch``: register many pairs, from a table to a folder per pair."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar

import torch
from tqdm.auto import tqdm

from learnreg import __version__, reporting
from learnreg.apps.engines import Engine, submit
from learnreg.apps.errors import reason_of
from learnreg.apps.jobs import Job, read_jobs
from learnreg.apps.output import check_folder
from learnreg.apps.records import FAILED, FILES, Row, read_row, records_of, write_results
from learnreg.apps.register import REPORT, check_network_options, check_writing, measure, set_device
from learnreg.apps.report import INDEX, results_in
from learnreg.data.checks import check_comparable
from learnreg.data.files import content_of, stamp_of
from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.io import write_image
from learnreg.methods import Registration
from learnreg.methods.api import DEFAULT, choose_method, register_several
from learnreg.methods.base import Method
from learnreg.methods.start import StartName, start_of
from learnreg.methods.verdicts import LEVELS, exit_status
from learnreg.reporting.index import write_index
from learnreg.transforms import Transform
from learnreg.typing import PathLike
from learnreg.writing import own_part, remove_parts, write_atomically

Pair: TypeAlias = tuple[Image, Image, Transform | StartName | None]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What is equal for all pairs; see the options of ``learnreg batch``."""

    output: Path
    method: str | None = None
    checkpoint: str | None = None
    refine: int = 0
    weight: float | None = None
    save: tuple[str, ...] = ("transform", "metrics", "report")
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


def run(
    pairs: PathLike,
    settings: Settings,
    *,
    shard: tuple[int, int] = (1, 1),
    jobs: int = 1,
    threads: int | None = None,
    retry: bool = False,
    strict: bool = False,
    quiet: bool = False,
) -> None:
    """Register the pairs of a shard that are not done; exit with status 1 if some failed.

    Args:
        pairs: Table of the pairs.
        settings: How to register.
        shard: ``(I, N)``: every N-th pair from the I-th on.
        jobs: Processes.
        threads: Threads of the CPU.
        retry: Try the pairs that failed before again.
        strict: A verdict FAIL counts as failed.
        quiet: No progress bar and no summary.
    """
    rows = register_pairs(pairs, settings, shard=shard, jobs=jobs, threads=threads, retry=retry, quiet=quiet)
    if any(row["status"] == "failed" or exit_status(row.get("verdict", "PASS"), strict=strict) for row in rows):
        raise SystemExit(1)


def run_shards(
    pairs: PathLike,
    settings: Settings,
    engine: Engine,
    *,
    jobs: int = 1,
    threads: int | None = None,
    retry: bool = False,
    quiet: bool = False,
) -> None:
    """Register the pairs in shards on an engine; exit with status 1 if some failed. See :func:`run`."""
    settings = _checked(settings, threads)
    total = len(read_jobs(pairs))
    settings.load()  # an error of the method is one of all pairs
    arguments = [*_for_a_shard(pairs, settings), "--jobs", str(jobs)]
    arguments += [] if threads is None else ["--threads", str(threads)]
    submit(engine, [*arguments, *(["--retry"] if retry else [])], settings.output, total, quiet=quiet)


def register_pairs(
    pairs: PathLike,
    settings: Settings,
    *,
    shard: tuple[int, int] = (1, 1),
    jobs: int = 1,
    threads: int | None = None,
    retry: bool = False,
    quiet: bool = False,
) -> list[Row]:
    """Register the pairs of a shard that are not done, and return the rows of all of it. See :func:`run`."""
    settings = _checked(settings, threads)
    all_pairs = read_jobs(pairs)
    method = settings.load()
    first, shards = shard
    own = all_pairs[first - 1 :: shards]
    settings.output.mkdir(parents=True, exist_ok=True)
    remove_parts(settings.output)
    left = to_do(own, settings, retry=retry)
    if not quiet:
        print(f"{len(own)} pairs, {len(own) - len(left)} done or failed before, {len(left)} to do", flush=True)
    try:
        results = _results(left, settings, method, jobs=jobs, threads=threads)
        with tqdm(total=len(left), unit="pair", disable=quiet or not sys.stderr.isatty()) as bar:
            failed = 0
            for row in results:
                failed += row["status"] == "failed"
                bar.set_postfix(failed=failed)
                bar.update()
    finally:
        name = "results.csv" if shards == 1 else f"results-{first}-of-{shards}.csv"
        rows = write_results([job.name for job in own], settings.output, name)
        if shards > 1 and all(any(f.exists() for f in records_of(job.name, settings.output)) for job in all_pairs):
            write_results([job.name for job in all_pairs], settings.output, "results.csv")
        if rows:
            write_index(results_in(settings.output), settings.output / INDEX)
    wrong = sum(row["status"] == "failed" for row in rows)
    if not quiet:
        print(f"Wrote {settings.output}: {name}, {INDEX}, {sum(row['status'] == 'done' for row in rows)} pairs")
        counts = {level: sum(row.get("verdict") == level for row in rows) for level in LEVELS}
        print("verdicts: " + ", ".join(f"{count} {level}" for level, count in counts.items()))
    if wrong:
        print(f"{wrong} of {len(own)} pairs failed; see {settings.output / FAILED}, and --retry", file=sys.stderr)
    return rows


def _checked(settings: Settings, threads: int | None) -> Settings:
    """Check the settings, set the number of threads, and return the settings with the device that is taken."""
    check_network_options(settings.refine, settings.weight, settings.checkpoint)
    if settings.together > 1 and not settings.checkpoint:
        raise InputError("--batch puts several pairs through a network at once; give --checkpoint too.")
    check_folder(settings.output)
    return replace(settings, device=set_device(settings.device, threads))


def _for_a_shard(pairs: PathLike, settings: Settings) -> list[str]:
    """Return the arguments of ``learnreg batch`` that tell what to register and how."""
    arguments = [str(Path(pairs).absolute()), "-o", str(settings.output.absolute())]
    given = {
        "method": settings.method,
        "checkpoint": settings.checkpoint,
        "refine": settings.refine,
        "weight": settings.weight,
        "device": settings.device,
        "batch": settings.together,
    }
    for name, value in given.items():
        if value is not None:
            is_file = name in ("method", "checkpoint") and Path(str(value)).is_file()
            arguments += [f"--{name}", str(Path(str(value)).absolute() if is_file else value)]
    for package in settings.trust:
        arguments += ["--trust", package]
    return [*arguments, "--save", *settings.save]


def to_do(jobs: Sequence[Job], settings: Settings, *, retry: bool = False) -> list[Job]:
    """Return the pairs without a result.

    Raises:
        InputError: A result was made with other options or from other files.
    """
    left = []
    for job in jobs:
        row = read_row(job.name, settings.output)
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
    """Hash the files of a pair, with the time points to read and the word of its start."""
    found = f" {job.initial}" if isinstance(job.initial, str) else ""
    return f"{hashed(job.files)} {job.fixed.time} {job.moving.time}{found}"


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


def _results(
    left: Sequence[Job], settings: Settings, method: Method, *, jobs: int, threads: int | None
) -> Iterator[Row]:
    return _in_processes(left, settings, jobs, threads) if jobs > 1 else _in_this_process(left, settings, method)


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
    return fixed, moving, start_of(job.initial, fixed, moving)


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
    part = settings.output / f"{own_part()}{job.name}"
    part.mkdir()
    try:
        if "transform" in settings.save:
            result.save_transform(part / FILES["transform"])
        if "warped" in settings.save:
            write_image(result.warped.data[0], result.fixed.grid, part / FILES["warped"])
        if "figure" in settings.save:
            names = job.fixed.image.name, job.moving.image.name
            pair = result.fixed, result.moving, result.sampled
            figure = reporting.registration_figure(*pair, initial=result.initial, title=job.name, names=names)
            reporting.save_figure(figure, part / FILES["figure"])
        row: Row = {"pair": job.name, "status": "done", "fixed": str(job.fixed.image), "moving": str(job.moving.image)}
        row |= {"fingerprint": settings.fingerprint, "learnreg": __version__}
        row |= {"stamp": _inputs(job, stamp_of), "content": _inputs(job, content_of)}
        row |= {"checkpoint": settings.checkpoint} if settings.checkpoint else {"method": settings.method or DEFAULT}
        row |= measure(result) if "metrics" in settings.save else {"seconds": round(result.seconds, 3)}
        if "report" in settings.save:
            reporting.write_report(result, row, part / REPORT)
        (part / FILES["metrics"]).write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
        with suppress(OSError):  # another process has finished the same pair
            part.rename(settings.output / job.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    records_of(job.name, settings.output)[1].unlink(missing_ok=True)
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
