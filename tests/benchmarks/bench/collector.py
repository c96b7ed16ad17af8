"""A collector of OpenTelemetry metrics inside the bench: it keeps the newest value of each sum and gauge."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb

from .processes import free_port

_EXPORT: Final = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
_EVERY_MS: Final = 200


class Collector:
    """Give a process `environment`, and read what it counts."""

    def __init__(self) -> None:
        self._endpoint = f"127.0.0.1:{free_port()}"
        self._server = grpc.aio.server()
        self._values: dict[str, float] = {}
        self._arrived = asyncio.Condition()
        self._exports = 0

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self._endpoint}",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRIC_EXPORT_INTERVAL": str(_EVERY_MS),
        }

    async def read(self, metric: str) -> float:
        """The metric's value at a moment after this call."""
        async with self._arrived:
            # What comes first may have been read before.
            wanted = self._exports + 2
            await asyncio.wait_for(self._arrived.wait_for(lambda: self._exports >= wanted), 60.0)
        return self._values[metric]

    async def _export(self, request: pb.ExportMetricsServiceRequest, _: Any) -> pb.ExportMetricsServiceResponse:
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in (*metric.sum.data_points, *metric.gauge.data_points):
                        self._values[metric.name] = point.as_double or point.as_int
        async with self._arrived:
            self._exports += 1
            self._arrived.notify_all()
        return pb.ExportMetricsServiceResponse()

    async def __aenter__(self) -> Self:
        handler = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=pb.ExportMetricsServiceRequest.FromString,
            response_serializer=pb.ExportMetricsServiceResponse.SerializeToString,
        )
        service, method = _EXPORT.strip("/").split("/")
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        self._server.add_insecure_port(self._endpoint)
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(0)
