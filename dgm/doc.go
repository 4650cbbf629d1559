// Package dgm is the DataGearManager: the API to a volume. A Volume runs one
// here, on the replicated state machine; Local is a session of it in this
// process and Remote a session of another node's over a socket.
//
// # The way to the leader
//
// Both are sessions at the node that leads the volume, whichever that is, and
// have the same machinery (Remote): a route makes links, one at a time, and what
// has no answer when a link is lost is sent again on the next.
//
//	Remote  dialRoute  tries its addresses and those that it learns (hunt)
//	Local   homeRoute  this process's volume while that leads (inside), else
//	                   the node that does, as a member
//	Via     viaRoute   passed on by the node of another session
//
// # The nodes of a volume
//
// A node dials every other member of its volume (package mesh) and asks to join
// one with new data (Join). Each connection carries one thing:
//
//	who dials          begins with   carries
//	a client           Hello         its sessions' requests
//	a member, always   Peer          Notice: raft's messages, offers of
//	                                 snapshots; NodeOp: status, hashes
//	a member, to       Peer, bulk    Fetch: pieces of a snapshot; Blocks: large
//	fetch what is                    payloads (package payload)
//	large, or send it
//	anybody            NodeOp        questions about the cluster
//
// Members that are too far behind for the log get the state as a snapshot, and now
// and then all replicas are compared: both are jobs of package mesh, too.
//
// # Where it is
//
//	manager api* typed convert     the API, and its calls as requests
//	remote calls attempt lasting   a session at the client's end,
//	route hunt, local inside       and its way to the node that leads
//	cluster join                   questions to a node, and joining a volume
//	volume door progress space     a replica of a volume in this process
//	server peer replies forward    connections to it, and requests passed on
//	session opens watch target     the sessions of a tenure
//	tenure gate ticks              the time in which a node leads
//	op rewrite shrink uploads      an operation, and what it may need before
//	wake* wait* known locks        what can't be done yet, and when it can
//	listwaits recent               who waits, for people
//	query status quota fsck        what only looks
//	nodeops nodes fit payloads     what a node does for the others, and what it
//	memory moved configure         has from the packages in internal/
//
// What could be told apart from the rest is below internal/: mesh connects the
// nodes, payload keeps large payloads, memory has the streams that are in memory,
// answer says errors in answers. They know no session and no operation.
package dgm
