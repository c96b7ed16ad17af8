"""Wire form: domain values ↔ messages of `onexflow.v1`, both ways.

`common` has what all share, `worker` the worker's stream, `workflow` the calls of clients, `admin` those of operators.
What comes from the wire is judged here and nowhere else: a wrong field of a request is an InvalidArgument, of a stream's
message a ProtocolViolation, either naming the field. What goes out is trusted.
"""
