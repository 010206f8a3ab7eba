// Package state keeps what outlives one process: that an agent runs in this network namespace, what
// operators said, which services live untracked, and the files that all of this is in.
//
// What a caller can get wrong:
//
//   - [LockInstance] and [Running] are about the network namespace of the calling thread.
//   - A nil [*Dir] is a dry run's: it writes nothing and knows nothing. Every method but Lock may be called on it.
//   - [Dir.Lock] comes before anything is written: the directory belongs to one agent.
//   - [Replace] survives a kill of the process; only [ReplaceSynced] survives a crash of the machine.
package state
