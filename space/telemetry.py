"""Numbers about the running server, for Prometheus. A registry of its own: two servers in one process do not mix."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """What is counted. Labels have few values: routes are those of the API, and all of Gradio's are `page`."""

    def __init__(self):
        self.registry = CollectorRegistry()
        to = {"registry": self.registry}
        self.requests = Counter("mmfusion_requests", "HTTP requests answered", ["route", "status"], **to)
        self.seconds = Histogram("mmfusion_request_seconds", "Seconds to answer", ["route"], buckets=SECONDS, **to)
        self.waiting = Gauge("mmfusion_samples_waiting", "Samples that wait or run", **to)
        self.batch_sizes = Histogram("mmfusion_batch_size", "Samples in a call of the model", buckets=SIZES, **to)
        self.model_seconds = Histogram("mmfusion_model_seconds", "Seconds of a call", ["task"], buckets=SECONDS, **to)
        self.refusals = Counter("mmfusion_refusals", "Samples refused, by error code", ["code"], **to)

    def exposition(self) -> tuple[bytes, str]:
        """Give (text, content type) of `/metrics`."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
