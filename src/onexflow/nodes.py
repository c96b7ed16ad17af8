"""The specification's node protocols, by the published package's other path (`protocols.nodes`): the same objects as in
`onexflow.onex`, with the bases for those who write nodes."""

from __future__ import annotations

from onexflow.spi import ProtocolComputeNode, ProtocolEffectNode, ProtocolOrchestratorNode, ProtocolReducerNode
from onexflow.worker.nodes import BaseComputeNode, BaseEffectNode, BaseOrchestratorNode, BaseReducerNode, Node

__all__ = [
    "BaseComputeNode",
    "BaseEffectNode",
    "BaseOrchestratorNode",
    "BaseReducerNode",
    "Node",
    "ProtocolComputeNode",
    "ProtocolEffectNode",
    "ProtocolOrchestratorNode",
    "ProtocolReducerNode",
]
