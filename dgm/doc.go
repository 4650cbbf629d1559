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
package dgm
