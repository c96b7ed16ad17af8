"""Generated messages of etcd's API (proto/onexflow/registry/etcd/v1). Do not edit: see scripts/gen-proto."""
