"""The registry on etcd, over a small client of our own (docs/decisions/0001 says why no package serves).

url.py       `etcd3://host:port,host:port?ttl=5`, and every number with its reason
client.py    unary calls: endpoints, deadlines, retries (grpc.aio)
watch.py     the view kept: resume, fragments, silence, compaction, a wiped etcd
lease.py     the lease kept, on a thread of its own (blocking stubs)
registry.py  `EtcdRegistry`, which puts the three together
embedded.py  a private, ephemeral etcd, or a cluster of them, for `onexflow dev`, the demo and the tests
member.py    one process of it
v1/          generated messages of the part of etcd's API that we use
"""
