// Package replica puts a volume's commands into one replicated order: it
// collects what waits into log entries, commits them with Raft and drives the
// state machine with them. It is the only package that knows Raft
// (go.etcd.io/raft/v3); a single node is a Raft group of one and takes the same
// way as a group of three.
//
// # How a command is committed
//
// Two goroutines work for a Group. The loop (loop.go) owns the RawNode, the end
// of the log and the state machine; the syncer (disk.go) does nothing but
// fdatasync. In a group of one a command travels like this:
//
//	callers                     loop                          syncer
//	   |                         |                              |
//	Propose --- pending ------> next      all that waits,       |
//	   .        (bounded)        |        whole calls           |
//	   .                      propose     log time, marshal     |
//	   .                         |                              |
//	   .              raft: MsgStorageAppend                    |
//	   .                         |                              |
//	   .                      append      Log.Append, write(2) -+-> sync
//	   .                         |                              |  Log.Sync
//	   .              raft: it is committed                     |   .
//	   .              raft: MsgStorageApply                     |   .
//	   .                         |                              |   .
//	   .                       apply      Machine.Apply         |   .
//	   .                         |                              |   .
//	 Done <--- not durable --- answer                           |   .
//	   .                         |                              |   .
//	   .                      settle ----- queue -------------> |   .
//	 Done <--- durable ---------------------------------------- sweep
//
// Propose only appends to a list under a mutex, and wakes the loop where it
// sleeps. Nothing is delayed to make batches: they form because the loop is
// busy while others propose, and because it yields once before it sleeps, so
// that whoever is ready to run proposes first. One pass makes one entry. Its
// log time is the clock's, or the last entry's where the clock is behind.
//
// Raft runs with asynchronous storage writes: it hands out the work as messages
// with answers attached, and takes the answers when the work is done. With one
// voter, an entry that is written is committed: the loop answers raft right
// after write(2), raft commits, and the entry is applied in the same pass. It
// is not decoded again: what was proposed here is remembered by index and term.
// With more voters raft hears of an append only when it is on disk (loop.acks).
// Term and vote are written along with entries; a commit index alone never is,
// because applying knows better: the state carries its applied index.
//
// # When it is durable
//
// An entry with a durable proposal starts a sync as soon as it is written, so
// that applying it runs beside. What is written during a sync waits for the
// next one, which begins at once: that is all the group commit there is. When
// a sync returns, the syncer calls the Dones of all entries that it covers, so
// that their answers can leave in one flush. What nobody waits for is synced
// within 100 ms. If the entry is on disk before it is applied, the loop answers.
//
// A sync that failed is never tried again, because the kernel may have dropped
// the pages and report success the next time. Any failure of log or state
// machine ends the Group: Config.Fatal is called, everything that waits gets
// an error, and nothing is acknowledged any more.
//
// # Log and state
//
// The state is written without a log of its own, so after a crash it is as of
// some earlier entry, and Open applies the rest of the log again. The loop
// counts the bytes that such a replay would read. After 32 MiB it asks for a
// flush of the state (Config.Flush), remembers the applied index of that
// moment, and cuts the log up to there when the flush is done. If flushing
// can't keep up, proposals wait, so that no restart reads more than 128 MiB.
//
// A power cut may take the end of a group-of-one log that was never synced
// while a flush kept its effects in the state. Then the log ends below the
// applied index; it is emptied and goes on behind that. Nothing durable is in
// the gap, since it is in the state. In a group of several such a log is
// damage: others counted this node's copy.
//
// # Who is in the group
//
// A fresh log begins with entry 1 of term 1: the change that makes this node
// the only voter. All that raft knows of its members comes out of such entries:
// applying one hands the new configuration to the state machine, which keeps it
// in the batch that moves the applied index, and gives it back on the next
// Open. So log and state together always tell raft its voters as of the applied
// index, whatever of the two was lost. Before the first change away from a
// single voter the log is synced, since from then on others count on it.
//
// Open elects a single voter at once. The empty entry of the new term commits
// what the log holds, so replaying is nothing but applying.
//
// # Invariants
//
//  1. Entries are applied in the order of the log, each once; the applied index
//     is the state machine's own.
//  2. Done is called once for each proposal: by refuse, by abandon, or with its
//     batch, which is either in loop.inflight or in disk.queue, never in both.
//  3. An answer that promises durability follows a sync that began after its
//     entry was written.
//  4. Log time never falls, also over restarts and changes of leader.
//  5. No lock is held over I/O, a Done or a call of the state machine.
package replica
