"""Pool: the queue of requests, the workers that answer them, and the change from bundle to bundle.

In: requests of the front process. Out: replies. A worker that dies is replaced, and
the requests that it had are answered by another. A newer bundle is compared with its checksums, and
opened by a new worker beside the old ones; where that succeeds, the others follow one by one, and each
old one ends after what it has been sent. Called by app.py.
"""

import asyncio
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.bundle.spec import check_bytes
from recsys.errors import UserError
from recsys.serving.server.config import ServeConfig, num_workers
from recsys.serving.server.deltas import DeltaFollower
from recsys.serving.server.likes import NewerLikes
from recsys.serving.server.link import Job, Link, Sent
from recsys.serving.server.log import log
from recsys.serving.server.messages import FAILED, Batch, NewItems, Reply, WorkerArguments
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.opened import OpenedBundle
from recsys.serving.server.store_thread import StoreThread
from recsys.serving.server.target import Target, find_target
from recsys.serving.server.zygote import Zygote
from recsys.serving.store import AddedItem, Like

LOOK_SECONDS = 0.5
START_SECONDS = 300.0
MAX_START_FAILURES = 3
MAX_DEATHS = 2
STUCK_FACTOR = 3
"""A worker is killed that computes on one batch for this many times `request_seconds`."""
_TICK_SECONDS = 0.05
_BATCHED = ("recommend", "score")


class BusyError(Exception):
    """A request cannot be answered now; says why."""


class Pool:
    """Workers of one server."""

    def __init__(
        self,
        config: ServeConfig,
        opener: str,
        store: StoreThread,
        likes: NewerLikes,
        metrics: Metrics,
    ):
        self._config = config
        self._opener = opener
        self._store = store
        self._likes = likes
        self._metrics = metrics
        self._num_workers = num_workers(config)
        self._queue: deque[Job] = deque()
        self._links: list[Link] = []
        self._zygote: Zygote | None = None
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: Counter[Target] = Counter()
        self._start_after = self._look_after = 0.0
        self._loop = asyncio.get_running_loop()
        self._will_feed = False
        self._verified: Target | None = None
        self._opened: dict[Target, OpenedBundle] = {}
        self._recent_items: list[AddedItem] = []
        self.target: Target | None = None
        self.refused: tuple[Target, str] | None = None
        """The last bundle that could not be opened, with the reason."""
        self.deltas = DeltaFollower(config, metrics)
        self.first_ready: asyncio.Future[Link] = self._loop.create_future()
        """Done when the first worker is ready; raises UserError where the first bundle is refused."""

    # Requests

    def ask(self, method: str, request: Any, user: str | None = None) -> "asyncio.Future[Reply]":
        """Queue a request, and return its future reply.

        Args:
            method: of recsys.serving.server.worker.Worker.
            user: whose newer likes go with it.

        Raises:
            BusyError: max_queue requests wait. The future raises it after request_seconds.
        """
        if len(self._queue) >= self._config.max_queue:
            raise BusyError(f"{len(self._queue)} requests wait already")
        future: asyncio.Future[Reply] = self._loop.create_future()
        deadline = time.monotonic() + self._config.request_seconds
        self._queue.append(Job(method, request, user, future, deadline))
        self._feed_soon()
        return future

    def newer_likes(self, user: str) -> list[Like]:
        """Return the likes of a user that came after the served bundle, oldest first."""
        return self._likes.of(user, self._since)

    def newer_likers(self, item: str) -> list[str]:
        """Return the users who came to like an item after the served bundle."""
        return self._likes.likers(item, self._since)

    @property
    def _since(self) -> float:
        """Time up to which the histories of every open bundle reach, in seconds since 1970."""
        ready = [link.ready.since for link in self._links if link.ready is not None]
        return min(ready, default=0.0)

    def _feed_soon(self) -> None:
        """Send what waits as soon as nothing more comes; a full batch at once.

        Answers that are ready go out before a worker is woken, which may take this process's core.
        """
        if self._queue and self._is_full():
            self._feed()
        elif not self._will_feed:
            self._will_feed = True
            self._loop.call_soon(self._feed_after, -1)

    def _feed_after(self, num_waiting: int) -> None:
        """Send what waits, unless requests came in the last turn of the event loop.

        Those that arrive together are read in turns that follow each other: they share a batch.

        Args:
            num_waiting: requests that waited a turn ago; -1: this is the first turn.
        """
        if len(self._queue) > num_waiting:
            self._loop.call_soon(self._feed_after, len(self._queue))
            return
        self._will_feed = False
        self._feed()

    def _feed(self) -> None:
        """Send what waits to workers that can take it, in equal parts."""
        while self._queue:
            is_full = self._is_full()
            free = [link for link in self._links if link.can_take(is_full=is_full)]
            if not free:
                break
            link = min(free, key=lambda link: len(link.outstanding))
            if jobs := self._take(-(-len(self._queue) // len(free))):
                self._metrics.batch.observe(len(jobs))
                newer = {
                    job.user: likes
                    for job in jobs
                    if job.user is not None and (likes := self._likes.of(job.user, link.since))
                }
                link.send(Batch(jobs[0].method, [job.request for job in jobs], newer), jobs)
        self._metrics.queue.set(len(self._queue))

    def _is_full(self) -> bool:
        """Return whether the next batch will not grow by waiting; `_take` says where one ends."""
        first = self._queue[0]
        most = min(self._config.max_batch, self._config.max_queue)
        if first.method not in _BATCHED or len(self._queue) >= most:
            return True
        return any(job.is_suspect or job.method != first.method for job in self._queue)

    def _take(self, share: int) -> list[Job]:
        """Return the next batch: requests of one method; a suspect alone; [] where all were given up.

        Args:
            share: most requests of it; the other workers that are free get as many.
        """
        jobs: list[Job] = []
        most = 1
        while self._queue and len(jobs) < most:
            job = self._queue[0]
            if job.future.done():
                self._queue.popleft()
                continue
            if jobs and (job.is_suspect or job.method != jobs[0].method):
                break
            if not jobs and job.method in _BATCHED and not job.is_suspect:
                most = min(share, self._config.max_batch)
            jobs.append(self._queue.popleft())
        return jobs

    def add_items(self, items: list[AddedItem]) -> None:
        """Hand added items to all workers; a request that is sent later finds them."""
        if self._starting is not None:
            self._recent_items += items
        for link in self._links:
            link.send(NewItems(items))

    # Workers

    @property
    def versions(self) -> list[str]:
        """Versions of the bundles that ready workers have open, the target's last."""
        ready = sorted(self._links, key=lambda link: link.target == self.target)
        return list(dict.fromkeys(link.ready.version for link in ready if link.ready))

    @property
    def num_ready(self) -> int:
        """Workers that take requests."""
        return sum(not link.is_retiring for link in self._links)

    async def run(self) -> None:
        """Keep the right number of workers on the right bundle, for ever."""
        while True:
            self._expire()
            if self._starting is None and (target := self._next_target()):
                self._starting = asyncio.create_task(self._start(target))
            await asyncio.sleep(_TICK_SECONDS)

    def _next_target(self) -> Target | None:
        """Return the bundle for which a worker is to be started now; None where all is well."""
        now = time.monotonic()
        if now < self._start_after:
            return None
        if now >= self._look_after:
            self._look_after = now + LOOK_SECONDS
            if newer := self._newer_bundle():
                return newer
        ready = sum(k.target == self.target and not k.is_retiring for k in self._links)
        return self.target if ready < self._num_workers else None

    def _newer_bundle(self) -> Target | None:
        """Return the bundle on the disk where it is neither the one served nor one refused."""
        try:
            found = find_target(self._config.bundle)
        except UserError as error:
            if self.target is None:
                self._give_up(error)
            return None
        is_refused = self.refused is not None and found == self.refused[0]
        return None if found == self.target or is_refused else found

    async def _start(self, target: Target) -> None:
        """Start one worker for a bundle, and take it in when it is ready."""
        link = None
        try:
            opened = await self._open(target)
            link = await opened.worker()
            ready = await asyncio.wait_for(link.wait_until_ready(), START_SECONDS)
            await self._store.follow(ready.since)
            self._join(link)
        except UserError as error:
            self._failed(target, str(error), is_final=True)
        except Exception as error:
            if link is not None:
                link.kill()
            if not isinstance(error, OSError | EOFError):  # not just the end of a process
                log("error", traceback=traceback.format_exc())
            self._close_opened(lambda other: other == target)
            self._failed(target, f"its worker ended before it was ready ({error!r})")
        finally:
            if link is not None and link not in self._links:
                link.close()
            self._starting = None
            self._recent_items = []

    async def _open(self, target: Target) -> OpenedBundle:
        """Return the process that has a bundle open; it is verified and opened the first time."""
        if self._zygote is None or self._zygote.process.poll() is not None:
            self._close_opened(lambda other: True)
            self._zygote = Zygote.start(self._opener, target.folder)
        if target not in self._opened:
            if self._config.verify == "sha256" and self._verified != target:
                await asyncio.to_thread(check_bytes, Path(target.folder))
                self._verified = target
            arguments = WorkerArguments(self._opener, target.folder, self._store.place)
            self._opened[target] = await OpenedBundle.start(
                self._zygote, arguments, target, START_SECONDS
            )
        return self._opened[target]

    def _close_opened(self, is_closed: Callable[[Target], bool]) -> None:
        """Let the processes of some bundles end after their workers; the workers go on."""
        for target in [target for target in self._opened if is_closed(target)]:
            self._opened.pop(target).close()

    def _join(self, link: Link) -> None:
        """Take a ready worker in, and let one of an older bundle end in its place."""
        assert link.ready is not None
        del self._failures[link.target]
        if link.target != self.target:
            self.target = link.target
            self._close_opened(lambda other: other != link.target)
            self._metrics.swaps.inc()
            self._metrics.bundle.clear()
            self._metrics.bundle.labels(version=link.ready.version).set(1)
            log("bundle", version=link.ready.version, folder=link.target.folder)
        missed = [item for item in self._recent_items if item.sequence > link.ready.last_item]
        if missed:
            link.send(NewItems(missed))
        self._links.append(link)
        log("worker ready", pid=link.pid, version=link.ready.version)
        staying = [link for link in self._links if not link.is_retiring]
        older = [link for link in staying if link.target != self.target]
        if older and len(staying) > self._num_workers:
            older[0].is_retiring = True
            self._end_if_idle(older[0])
        elif not older:
            self._likes.forget(link.ready.since)
        task = asyncio.create_task(self._listen(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not self.first_ready.done():
            self.first_ready.set_result(link)
        self._changed()

    def _failed(self, target: Target, reason: str, *, is_final: bool = False) -> None:
        """Note a failed start: a new bundle is refused, a known one is tried again later."""
        self._failures[target] += 1
        failures = self._failures[target]
        self._start_after = time.monotonic() + min(5.0, 0.1 * 2**failures)
        log("worker failed", folder=target.folder, reason=reason)
        if target == self.target or not (is_final or failures >= MAX_START_FAILURES):
            return
        if self.target is None:
            self._give_up(UserError(reason))
            return
        self.refused = (target, reason)
        self._metrics.refused.inc()
        log("bundle refused", folder=target.folder, reason=reason, serving=self.target.folder)

    def _give_up(self, error: UserError) -> None:
        if not self.first_ready.done():
            self.first_ready.set_exception(error)

    async def _listen(self, link: Link) -> None:
        """Give a worker's replies to those who wait for them, until it ends."""
        try:
            while True:
                sent, replies = await link.next_replies()
                for job, reply in zip(sent.jobs, replies or [], strict=True):
                    if not job.future.done():
                        job.future.set_result(reply)
                self._end_if_idle(link)
                self._feed_soon()
        except (OSError, EOFError):
            self._lost(link)

    def _end_if_idle(self, link: Link) -> None:
        if link.is_retiring and not link.outstanding:
            link.close()

    def _lost(self, link: Link) -> None:
        """Queue again, in front, what a dead worker had; its batch is suspect if it died by itself."""
        self._links.remove(link)
        link.close()
        is_expected = link.is_retiring and not link.outstanding
        log("worker ended", pid=link.pid, is_expected=is_expected)
        if not is_expected:
            self._metrics.lost.inc()
        is_alone = self._zygote is None or self._zygote.process.poll() is None
        if link.outstanding and is_alone:  # all workers end with the process that forked them
            self._suspect(link.outstanding[0])
        jobs = [job for sent in link.outstanding for job in sent.jobs if not job.future.done()]
        self._queue.extendleft(reversed(jobs))
        self._changed()

    def _suspect(self, sent: Sent) -> None:
        """Let the requests that a worker died of go alone; one that two died of alone is given up."""
        was_alone = len(sent.jobs) == 1
        for job in sent.jobs:
            job.is_suspect = True
            job.num_deaths += was_alone
            if job.num_deaths >= MAX_DEATHS and not job.future.done():
                job.future.set_result(Reply(FAILED, "every worker that was given it has died"))

    def _changed(self) -> None:
        self._metrics.workers.set(len(self._links))
        self._feed()

    def _expire(self) -> None:
        """Answer what has waited too long, and end workers that are stuck."""
        now = time.monotonic()
        stuck_since = now - STUCK_FACTOR * self._config.request_seconds
        waiting = [job for link in self._links for sent in link.outstanding for job in sent.jobs]
        for job in [*self._queue, *waiting]:
            if now > job.deadline and not job.future.done():
                seconds = self._config.request_seconds
                job.future.set_exception(BusyError(f"no answer within {seconds:g} s"))
        for link in self._links:
            if link.outstanding and link.outstanding[0].started < stuck_since:
                log("worker stuck", pid=link.pid)
                link.kill()

    async def close(self) -> None:
        """End all workers; what they compute is given up."""
        if self._starting is not None:
            self._starting.cancel()
        for task in list(self._tasks):
            task.cancel()
        for link in self._links:
            link.close()
        self._close_opened(lambda other: True)
        if self._zygote is not None:
            await asyncio.to_thread(self._zygote.close)
