"""What a shard of the shared cache takes, and how fast it is, with as many answers as it may have to hold.

    python -m cluster.bench.cache_scale --entries 100000 --folder build/cache_scale

Times are wall clock, and in brackets the processor's, which neighbours on a busy machine do not lengthen as much.

Fills a shard that keeps its answers on disk, or adds to the one that is in `--folder` from a run before. Then a new
process reads it again, and looks questions up in it: by the vector (search and verifier), and by the text (encoder
too). All is done by the product's own classes, in one process and on one thread, without a cluster.

The questions are the project's own (`router.cache_training`) with a word of another one put in; their vectors those of
the question, a little towards another one's. All are of one tenant and one scope, which is the hardest case: the index
is one graph, and a lookup finds eight candidates.

`--exact` measures instead what a hit in an ingress' own cache takes, with 10,000 answers in it: the digest of the whole
request, which is most of it, and the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import quantiles

import numpy as np
from numpy.typing import NDArray

from models.encoder import Encoder
from models.messages import ChatRequest, Event, Finish, Message, Sampling, TextDelta, TextPart, Usage
from router.cache_log import CHUNK, CacheLog
from router.cache_records import Stored
from router.collecting import Collector
from router.exact_cache import ExactCache
from router.fingerprint import fingerprint, partition
from router.index_files import IndexFiles
from router.packed_answer import PackedAnswer
from router.ports import CachedAnswer, CacheKey
from router.scope_index import CANDIDATES, codes_of
from router.sealing import NO_SEALER
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings, IngressSettings

Vectors = NDArray[np.float32]
TENANT, SCOPE = partition("bench", ""), f"{7:064x}"
BASES, INSERTED = 2000, 10_000
YEAR_S = 365 * 86_400.0
ANSWER = "It depends on what is meant; the short answer is that there is more than one way to see it, and all of them."


class Clock:
    """Seconds since it was made, of the wall and of this process."""

    def __init__(self) -> None:
        self._began_s = (time.perf_counter(), time.process_time())

    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self._began_s[0], time.process_time() - self._began_s[1]

    def __str__(self) -> str:
        wall_s, processor_s = self.seconds()
        return f"{wall_s:.1f} s ({processor_s:.1f} s)"


class Corpus:
    """Questions by number, the same in each run."""

    def __init__(self, encoder: Encoder) -> None:
        from router.cache_training.pairs import questions

        asked = sorted({question.text for question in questions(0) if len(question.text) < 100})
        rng = np.random.default_rng(0)
        self._texts = [asked[at] for at in rng.permutation(len(asked))[:BASES]]
        self._vectors = encoder.encode(self._texts)

    def text(self, number: int) -> str:
        words, other = self._texts[number % BASES].split(" "), self._texts[number * 7919 % BASES].split(" ")
        at = number // BASES % len(words)
        return " ".join([*words[:at], other[number % len(other)], *words[at:]])

    def vectors(self, numbers: NDArray[np.int64]) -> Vectors:
        """[n, d], at a cosine of 0.7 to 0.95 to the question that each was made of."""
        rng = np.random.default_rng(int(numbers[0]))
        share = rng.uniform(0.3, 0.8, (len(numbers), 1)).astype(np.float32)
        noise = rng.standard_normal((len(numbers), self._vectors.shape[1])).astype(np.float32) / 20
        found = self._vectors[numbers % BASES] + share * (self._vectors[numbers * 7919 % BASES] + 0.7 * noise)
        unit: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit


def fill(folder: Path, entries: int) -> None:
    corpus = Corpus(Encoder())  # first: onnxruntime does not load (it crashes) in a process that has usearch
    store, log, files = _opened(folder)
    present = len(store.entry_ids())
    clock = Clock()
    words = tuple(TextDelta(f" {word}", 1) for word in ANSWER.split(" "))
    for start in range(present, entries, CHUNK):
        numbers, bulk = np.arange(start, min(entries, start + CHUNK)), list[Stored]()
        for number, vector in zip(numbers.tolist(), corpus.vectors(numbers), strict=True):
            name = f"req_{number:032x}"
            answer = CachedAnswer(name, "model", (*words, Finish("stop")), Usage(60, 25), 40, time.time(), YEAR_S)
            if start - present < INSERTED:
                store.store(_key(corpus, number), answer, vector.astype("<f4").tobytes())
            else:  # as from a log: many at once
                bulk.append(Stored(_key(corpus, number), PackedAnswer.of(answer), codes_of(vector.tobytes())))
        for each in bulk:
            log.kept(each.key, each.answer, each.codes)
        store.replay(bulk, time.time())
        log.write(log.take())
        if start - present < INSERTED <= start + CHUNK - present:
            print(f"{start + CHUNK - present} answers stored one by one in {clock}", flush=True)
    print(f"{max(0, entries - present)} answers stored in {clock}", flush=True)
    for place in store.vectors.unsaved(1):
        clock = Clock()
        saved = store.vectors.save(*place)
        copied_s, _ = clock.seconds()
        if saved is not None:
            files.write(saved)
        print(f"the index saved in {clock}, of which its copy {copied_s:.2f} s")
    log.close()


def measure(folder: Path, lookups: int, without_index: bool) -> None:
    encoder = Encoder()
    corpus = Corpus(encoder)
    import usearch.index  # noqa: F401  (its own memory is not the entries')

    collector = Collector()  # as a shard has it from its start
    gc.collect()
    before_bytes, clock = _resident_bytes(), Clock()
    if without_index:
        for path in (folder / "indexes").glob("*.index"):
            path.unlink()
    store, log, _ = _opened(folder)
    took = str(clock)
    gc.collect()
    collector.grown(store.count)
    stats, count = store.stats(), len(store.entry_ids())
    print(f"{count} answers read in {took} {'without' if without_index else 'with'} the index's own file")
    taken_bytes = _resident_bytes() - before_bytes
    print(
        f"memory: {taken_bytes / count:.0f} bytes an answer, the shard counts {stats['used_bytes'] / count:.0f}, ",
        end="",
    )
    print(f"of which {stats['index_bytes'] / count:.0f} for the index ({stats['index_bytes'] / 1e9:.3f} GB)")
    print(f"on disk: {stats['log_bytes'] / count:.0f} bytes an answer, and the index")
    _look_up(store, corpus, encoder, lookups, count)
    log.close()


def _look_up(store: SemanticStore, corpus: Corpus, encoder: Encoder, lookups: int, count: int) -> None:
    rng = np.random.default_rng(1)
    by_vector, by_text, searches = [], [], []
    for at, number in enumerate(rng.integers(0, count, 2 * lookups).tolist()):
        text = corpus.text(number)
        key = CacheKey(TENANT, f"asked {at}", SCOPE, text)
        clock = Clock()
        vector = encoder.encode([text])[0]
        after = Clock()
        store.lookup(key, vector.astype("<f4").tobytes())
        by_vector.append(after.seconds())
        by_text.append(clock.seconds())
    found = 0.0
    for number in rng.integers(0, count, min(lookups, 200)).tolist():
        (vector,) = corpus.vectors(np.array([number]))
        clock = Clock()
        near = store.vectors.nearest(TENANT, SCOPE, vector, 0.7)
        searches.append(clock.seconds())
        exact = {each for _, each in store.vectors.within_scope(TENANT, SCOPE, vector, 0.7)[:CANDIDATES]}
        found += len(exact.intersection(each for _, each in near)) / max(1, len(exact))
    _say("search", searches)
    _say("search and verify", by_vector[lookups:])  # the first half warms up
    _say("encoder, search and verify", by_text[lookups:])
    print(f"recall of the eight nearest: {found / len(searches):.3f}")


def exact_hits(lookups: int) -> list[tuple[float, float]]:
    """Seconds of the wall and of the processor for each hit."""
    settings = IngressSettings()
    cache, words = ExactCache(settings.exact_cache), tuple(TextDelta(f" {word}", 1) for word in ANSWER.split(" "))
    rules = Message("system", (TextPart("You answer briefly and say so when you are not sure. " * 4),))
    took = []
    for storing in (True, False):
        for number in range(INSERTED if storing else lookups):
            text = f"What is to be done with wagon {number % INSERTED} of the freight train that came in last?"
            request = ChatRequest("auto", (rules, Message("user", (TextPart(text),))), Sampling(max_tokens=200))
            clock = Clock()
            asked = fingerprint(request, "bench", "", settings)
            if asked is None or storing == (cache.get(asked.exact.exact) is not None):
                raise AssertionError("each question is stored once, and found again")
            if storing:
                events: tuple[Event, ...] = (*words, Finish("stop"))
                answer = CachedAnswer(f"req_{number}", "model", events, Usage(60, 25), 40, time.time(), YEAR_S)
                cache.put(asked.exact, answer)
            else:
                took.append(clock.seconds())
    return took


def _say(what: str, seconds: list[tuple[float, float]]) -> None:
    wall, processor = (quantiles((each[of] * 1000 for each in seconds), n=100) for of in (0, 1))
    print(f"{what}: p50 {wall[49]:.3g} ms ({processor[49]:.3g}), p95 {wall[94]:.3g} ms ({processor[94]:.3g})")


def _key(corpus: Corpus, number: int) -> CacheKey:
    return CacheKey(TENANT, f"{number:064x}", SCOPE, corpus.text(number), f"{number + 2**64:064x}")


def _opened(folder: Path) -> tuple[SemanticStore, CacheLog, IndexFiles]:
    """A shard as it is after a restart."""
    store = SemanticStore(CacheSettings(audit=0, ttl_s=YEAR_S, max_bytes=2**36))
    log, files = CacheLog(folder, NO_SEALER), IndexFiles(folder / "indexes", NO_SEALER)
    asyncio.run(_restore(store.restore(log, list(files.read()))))
    return store, log, files


async def _restore(steps: Iterator[None]) -> None:
    for _ in steps:
        await asyncio.sleep(0)


def _resident_bytes() -> int:
    return int((Path("/proc/self/statm")).read_text().split()[1]) * 4096


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("build/cache_scale"))
    parser.add_argument("--lookups", type=int, default=1000)
    parser.add_argument("--rebuild", action="store_true", help="read the log without the index's own file too")
    parser.add_argument("--exact", action="store_true", help="only what a hit in an ingress' own cache takes")
    parser.add_argument("--only-measure", choices=("with", "without"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.exact:
        _say("exact hit", exact_hits(arguments.lookups))
        return
    if arguments.only_measure:
        measure(arguments.folder, arguments.lookups, arguments.only_measure == "without")
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    fill(arguments.folder, arguments.entries)
    again = [sys.executable, "-m", "cluster.bench.cache_scale", "--folder", str(arguments.folder)]
    for how in ("with", "without") if arguments.rebuild else ("with",):
        subprocess.run([*again, "--lookups", str(arguments.lookups), "--only-measure", how], check=True)


if __name__ == "__main__":
    main()
