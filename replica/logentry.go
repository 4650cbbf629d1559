package replica

// LogEntry is an entry of the log.
type LogEntry struct {
	Index, Term uint64
	Type        uint8 // raft's
	Data        []byte
}
