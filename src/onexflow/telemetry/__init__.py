"""Traces, metrics and logs over the OpenTelemetry *API*; the SDK is wired by `onexflow.app.telemetry` alone."""

from __future__ import annotations
