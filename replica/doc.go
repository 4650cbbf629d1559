// Package replica replicates a volume's log with Raft and drives the state
// machine with what is committed.
package replica
