"""Every use of gRPC but the etcd client's. Translation only: nothing is decided here.

`server` puts the services up; `workflow_service`, `admin_service` and the two streams (`worker_session`,
`client_session`, both a `stream.ServerStream`) call the engine through `ports.client_link`. `worker_connection` is the
worker's end. `status` turns errors into gRPC's status and back, `channel` has every option of gRPC with its reason,
`liveness` is the proof of death, which needs no gRPC.
"""
