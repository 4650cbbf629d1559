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
// sleeps. Nothing is delayed to make batches, but for what waits for a sync
// anyway: others form because the loop is busy while proposals come, and because
// it yields once before it sleeps, so that whoever is ready to run proposes first.
// One pass makes one entry.
//
// Raft runs with asynchronous storage writes: it hands out the work as messages
// with answers attached, and takes the answers when the work is done. Where a
// node is the only member, an entry that is written is committed: the loop
// answers raft right after write(2), raft commits, and the entry is applied in
// the same pass. It is not decoded again: what was proposed here is remembered
// by index and term. Term and vote are written along with entries; a commit
// index alone is not, because applying knows better: the state carries its
// applied index.
//
// In a group of several it travels so, and the two disks work at once:
//
//	leader's loop      its syncer     follower's loop     its syncer
//	     |                 |                 |                 |
//	  propose              |                 |                 |
//	     |                 |                 |                 |
//	   send -- MsgApp ------------------> receive              |
//	     |                 |                 |                 |
//	  append ----------> sync             append ----------> sync
//	     |                 |                 |                 |
//	  release <------------+              release <------------+
//	     |                                   |
//	  receive <------------- MsgAppResp -- send
//	     |
//	  raft: a majority has it, it is committed
//	     |
//	  apply, answer all
//	     |
//	   send -- how much is committed, with the next entry, or 1 ms later
//
// What raft may say before it is on disk is in Ready.Messages, and leaves first
// (send). What others count on, the acknowledgement of entries and votes, comes
// along with the write as its answers, which wait in loop.acks for the sync. One
// pass gives raft all messages that came in, so one write and one sync serve
// them, and what goes to one member leaves in one call of Peers, without the
// messages that a later one makes needless (replaces). Entries are encoded by
// hand (codec.go), and once for all members.
//
// # Who does the work
//
// All of it is run's, a goroutine of the Group's own. Where it sleeps, a goroutine
// that brings something does a pass or a few in its place (help.go), and syncs the
// log there if that is quick: a lone entry of a group of three would else wake four
// goroutines on each node. Where proposals come in crowds the loop is woken
// instead, and finds them together. A follower syncs there up to 2 ms: what it is
// to do next is to write and sync what its leader has sent meanwhile, which is read
// together, and has one write, one sync and one answer. Who is behind with what is committed hears
// of it with the next entry, or after 1 ms, behind entries that followed each other
// closely after 5, or at once where somebody reads there.
//
// # Tenures
//
// A node takes proposals only in a tenure. It begins when the node leads and has
// applied the first entry of its own term: then its state has everything that
// was ever acknowledged, by whomever. It ends when raft says so: a majority was
// silent for an election timeout, or another term began. At that moment all that
// is in flight is answered with gearsfs.ErrMaybe, because another leader may
// still find it in a log and commit it, and all that was not written with
// gearsfs.ErrNotLeader. Config.Leads is told of both.
//
//	follower -- timeout, campaignAgain, MsgTimeoutNow --> candidate
//	candidate -- votes of a majority --> leader      (leaderChanged)
//	leader -- its first entry is applied --> tenure  (apply: beginTenure)
//	tenure -- raft steps down --> follower           (leaderChanged: endTenure)
//
// Log time is, in a tenure, the clock's at its begin and the monotonic time
// since, but not less than that of any entry before. So a clock that is set, or
// one that is an hour off on one node, moves nothing but when the lead changes. Then
// the first entry of the tenure says by how much more log time has grown than the
// leader knows to have passed since the last entry, and the state machine discounts
// that. A node that did not run knows of nothing that passed.
//
// Where the leader's process is known to be gone (Died), its followers forget it
// and hold an election within milliseconds, each after a short time of its own,
// and again if that was in vain. They forget it first because raft does not vote
// against a leader from whom it heard lately. A candidate that is not elected tries
// again within 100 ms (400 while votes may still come), and so does a leader whom
// another's term has deposed: raft's own timeouts are whole ticks, and nodes that
// began together could ask together several times in a row. A leader that is closed
// hands over to the member that knows most.
//
// # Reads
//
// WhenCertain and Barrier share ReadIndex rounds (reads.go): raft asks a majority
// whether this node leads, or has the leader ask. One round serves all who came
// before it began. The answers carry a context that is not used again in the
// node's next life, or a late answer to an old question would do for a new one. A round
// can be lost, with a message or a leader; as long as somebody waits, a new one
// begins with each tick.
//
// # When it is durable
//
// An entry with a durable proposal starts a sync as soon as it is written, so
// that applying it runs beside. What is written during a sync waits for the
// next one, which begins at once: that is all the group commit there is. As long
// as the only member syncs, durable proposals are not even made an entry until
// there are half as many as wait for a sync already (leastLocked): those that are
// left when it ends become one, by the syncer, which then syncs again (relieve). When
// a sync returns, the syncer calls the Dones of all entries that it covers, so
// that their answers can leave in one flush. What nobody waits for is synced
// within 100 ms. If the entry is on disk before it is applied, the loop answers.
// Who writes a lone entry of the only member, and is going to sync it behind applying
// it, has the disk begin between (Log.Hasten); where others come too that costs more
// than it gains (lonely).
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
// counts the bytes that such a replay would read. After 32 MiB, or some 40,000
// small entries, it asks for a flush of the state (Config.Flush), remembers the
// applied index of that moment, and cuts the log up to there when the flush is
// done. If flushing can't keep up, proposals wait, so that no restart reads more
// than 128 MiB.
//
// In a group of several the log is kept further back, for members that are
// behind (cutIndex): what the leader knows that somebody lacks, on the other
// nodes anything, since they may lead next; but no more than
// Config.KeepLogBytes. A member that needs what is cut off gets a copy of the
// state (copies.go): raft asks for a snapshot, is put off until one is made, and
// then its message does not go to Peers but to Snapshots, which has the member
// fetch the copy and only then gives it the message. There raft hands it out
// again with an append, and the loop has Snapshots.Install replace state and log
// before it writes anything else. A copy that took longer to fetch than its
// sender led is as good under the next leader, since all that is in it was
// committed (renew).
//
// A power cut may take the end of the log of a node that is the only member, if
// that was never synced while a flush kept its effects in the state. Then the
// log ends below the applied index; it is emptied and goes on behind that.
// Nothing durable is in the gap, since it is in the state. In a group of several
// such a log is damage: others counted this node's copy. Nor can raft go on when
// it finds that a log lacks what it acknowledged: it panics, and the Group ends
// with gearsfs.ErrDamaged (guard).
//
// # Who is in the group
//
// The log of a founder begins with entry 1 of term 1: the change that makes it
// the only voter. A node that joins begins with an empty log and waits for a
// leader. All that raft knows of its members comes out of entries: applying one
// hands the new configuration to the state machine, along with the context that
// it was proposed with, and the state machine keeps it in the batch that moves
// the applied index, and gives it back on the next Open. So log and state
// together always tell raft its voters as of the applied index.
//
// That must never go back in time: a node that restarted with a configuration
// from before others joined would elect itself, and go on alone. So before a
// change takes effect, the log is on disk up to it, with a hard state that says
// that it is committed (keepCommit); then the next Open applies it before
// anything else.
//
// A member is added as a learner, and given a vote by the leader, through joint
// consensus, once it has what was committed a tick ago (promote). From the first
// learner on nothing is committed any more that is not on disk: it could have
// entries that a power cut takes from the only voter. One change is on its way
// at a time. A node that is removed stays as it is and says so in its Status. Who
// asks for a vote says what is committed, or one who does not know yet that it has
// a vote could keep the others from electing anybody (known.go).
//
// Open elects a single voter at once. The empty entry of the new term commits
// what the log holds, so replaying is nothing but applying.
//
// # Without goroutines
//
// What a Group does depends only on what it is given and when its timers fire.
// A simulation steps it on one goroutine: see step.go.
//
// # Invariants
//
//  1. Entries are applied in the order of the log, each once; the applied index
//     is the state machine's own.
//  2. Done is called once for each proposal: by refuse, by endTenure or abandon,
//     or with its batch, which is either in loop.inflight or in disk.queue, never
//     in both.
//  3. An answer that promises durability follows a sync that began after its
//     entry was written.
//  4. Log time never falls, also over restarts and changes of leader.
//  5. No lock is held over I/O, a Done or a call of the state machine.
//  6. What another member may count on, it hears after it is on disk, and in the
//     order in which it was written.
//  7. Proposals are written only in a tenure; outside of one loop.inflight is
//     empty and nobody waits for certainty.
//  8. A configuration that raft works with is in the log on disk, known as
//     committed, or in the state's files.
package replica
