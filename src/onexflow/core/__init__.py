"""The domain: what a run is, what may happen to it, and what follows. Values in, values out.

A **workflow definition** (`definition`) is a graph of **tasks**; `compiler` checks it whole and compiles it (`graph`),
`expressions` and `mapping` say what a task gets of what came before. A **run** is one instance of it, and its truth is
its history: a list of **events** (`events`: the specification's 18 types, each with its kinds). All else is derived:

    decide(graph, state, command, context) → Turn(events, instructions)         `decide`, for tasks `scheduling`, `attempts`
    evolve(graph, state, event, …) → state                                      `evolve`, `state`

`decide` is where things are decided, by the tables of `machine`. The shell writes the events, then carries out the
instructions (`instructions` says which may go ahead of the write). `evolve` folds events into state, evaluates no
expression and decides nothing; rebuilding a run by it alone gives the live state again, always. A task of a plain
workflow has one **item**, a mapped one an item for each element of its list; an **attempt** is one execution of an
item, named by the place of the event that authorised it (`ids.Token`). A result counts if and only if the log holds
that event.

Nothing here does I/O, reads a clock, draws a random number or waits: a decision is given the time and the chance that
it needs (`turn.Context`). That is checked (pyproject.toml, import-linter), and is why everything else can be tested
against these functions. Read on in `decide`, then `scheduling` and `attempts`, then `evolve`.
"""
