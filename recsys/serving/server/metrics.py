"""Metrics of the server for Prometheus: requests, queue, workers, bundle, events."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "tessera_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "tessera_request_seconds",
            "Time from a request's headers to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.batch = Histogram(
            "tessera_batch_requests",
            "Requests that a worker answers together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.queue = Gauge("tessera_queue_requests", "Requests without a worker", registry=registry)
        self.workers = Gauge("tessera_workers", "Workers that are ready", registry=registry)
        self.lost = Counter("tessera_workers_lost", "Workers that died", registry=registry)
        self.bundle = Gauge(
            "tessera_bundle_info", "Bundle that is served", ["version"], registry=registry
        )
        self.swaps = Counter("tessera_bundles_opened", "Bundles taken over", registry=registry)
        self.refused = Counter("tessera_bundles_refused", "Bundles refused", registry=registry)
        self.events = Counter("tessera_events_stored", "Events stored", registry=registry)
        self.store_errors = Counter(
            "tessera_store_errors", "Failed accesses to the event store", registry=registry
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        if (route, status) not in self._answered:  # looking labels up takes longer than counting
            counter = self.requests.labels(route, str(status))
            self._answered[route, status] = counter, self.seconds.labels(route)
        counter, histogram = self._answered[route, status]
        counter.inc()
        histogram.observe(seconds)

    def text(self) -> bytes:
        """Return all of them in Prometheus's text format."""
        return generate_latest(self._registry)
