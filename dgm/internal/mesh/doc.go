// Package mesh connects a node with the other members of its volume, and keeps their
// replicas alike. A Mesh dials every other member (link.go), carries raft's messages
// and questions about nodes, sends the state as a snapshot to who is too far behind
// for the log (snapshots.go, pull.go), has the replicas compared now and then
// (verify.go), and makes the connections that large payloads go over (bulk.go).
//
// It knows its node through Config, Roster and Group; the far ends of connections
// that others have made are given to it as Peers.
package mesh
