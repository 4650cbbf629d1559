// Package dgm is the DataGearManager: the API to a volume. A Volume runs one
// here, on the replicated state machine; Local is a session of it in this
// process and Remote a session of another node's over a socket.
package dgm
