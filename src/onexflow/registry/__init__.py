"""Adapters of `ports.registry`: who is there, and what is announced.

`memory` needs nothing, `etcd` is the real one. Both are a `base.BaseRegistry`, which holds what this process wants to
have registered and compares it, level-triggered, with what is there (`view.View`); `keys` says what the keys are
called. Neither is ever the truth of ownership: that is the store. Start at `open.open_registry`.
"""
