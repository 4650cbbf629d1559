package gearsfs

// What a Fault is about.
const (
	FaultDamaged = "damaged" // bytes are others than were written, or can't be read
	FaultMissing = "missing" // bytes are not on this node
	FaultTables  = "tables"  // the tables of the volume contradict each other
)

// FsckReport is what a check of a node's data has found.
type FsckReport struct {
	Faults       []Fault // the first of them
	Found        uint64  // faults in all
	Mended       uint64  // of these, with bytes of other nodes
	Extents      uint64  // pieces of large payloads that were looked at
	Bytes        uint64  // read and compared with their checksums
	Segments     uint64  // files of the block store
	Allocated    uint64  // bytes of disk that they take
	Unreferenced uint64  // bytes of these that nothing refers to
	Recent       uint64  // likewise, in segments that were written to lately: they may be uploads
	Freed        uint64  // unreferenced bytes that were given back
	Unswept      string  // why none were, where they should have been
}

// Wrong is how many faults are there still.
func (r FsckReport) Wrong() uint64 { return r.Found - r.Mended }

// Fault is something in a node's data that is not as it should be. Which file it
// is of is known for what is damaged or missing, and at times for the tables.
type Fault struct {
	What    string
	Path    string // in the volume; "" where the file has no name or none was found
	Ino     Ino
	Key     Key
	Pos     Pos    // in the stream
	Bytes   uint64 // of the stream, from Pos on
	Segment string // the segment's file
	At      uint64 // in it
	Reason  string
	Mended  bool
}
