package stream

import (
	"github.com/gearsfs/gearsfs"
)

// Record is a record as its row holds it.
type Record struct {
	Data  []byte
	Type  string
	Time  uint64 // log time of the put, nanoseconds since the Unix epoch
	Block bool   // written in place: it may grow
	// Extents, in order, are the record's bytes where Data has none.
	Extents []gearsfs.Extent
}

// Out marks a record in front of the cursor that is not gone, or one anywhere
// that waits for its time.
type Out struct {
	Leased     bool              // else it is delayed where it has a deadline, or was returned and is ready
	Holder     gearsfs.SessionID // of the lease; zero: whoever has its receipt
	Fence      uint64
	Deliveries uint32
	Tries      uint32 // of the lease, for its holder's use
	Bytes      uint64 // the record's length
	Deadline   uint64 // log time at which the lease or the delay ends; 0 is none
	Jumped     uint64 // of the lease, for its holder's use, as Tries
}

// Delayed reports whether the record waits for its time.
func (o *Out) Delayed() bool { return !o.Leased && o.Deadline != 0 }

// Records is where a Queue's rows are kept. One stream has one of its own.
// An error of any method is that of a broken store: the queue that got it must
// not be used any more.
type Records interface {
	Rows
	Outs
}

// Rows are the records themselves, by place.
type Rows interface {
	// Set stores the row of a new record. r is not kept.
	Set(at gearsfs.Place, r *Record)
	// Replace stores the row of a record whose bytes changed and were those
	// extents, if any. Neither is kept.
	Replace(at gearsfs.Place, was []gearsfs.Extent, r *Record)
	// Get reads the row at a place that has one; a missing one is an error.
	// Its Data and Extents are the caller's.
	Get(at gearsfs.Place) (Record, error)
	// Has says whether a place has a row.
	Has(at gearsfs.Place) (bool, error)
	// Scan calls yield with the rows in [from, to), in order, until it returns
	// false. What r points to is valid during the call only.
	Scan(from, to gearsfs.Place, yield func(at gearsfs.Place, r *Record) bool) error
	// Before finds the last row in front of at, whatever became of its record.
	Before(at gearsfs.Place) (found gearsfs.Place, ok bool, err error)
	// Delete removes all rows in [from, to): afterwards Scan shows none there.
	Delete(from, to gearsfs.Place) error
	// Discard says that the rows in [from, to) are those of records that are
	// gone. The keeper may hold some back that it has another use for, and
	// removes those when Queue.Forget tells.
	Discard(from, to gearsfs.Place)
}

// Outs are the marks of the records in front of the cursor that live.
type Outs interface {
	// AddOut makes a mark where there is none.
	AddOut(at gearsfs.Place, out Out)
	// SetOut changes a mark; was is what it was.
	SetOut(at gearsfs.Place, was, out Out)
	// DeleteOut removes a mark; was is what it was.
	DeleteOut(at gearsfs.Place, was Out)
	// ScanOuts calls yield with all of them, in order.
	ScanOuts(yield func(at gearsfs.Place, out Out)) error
}

// State is what a stream is besides its records: the queue's own row.
type State struct {
	NextSeq gearsfs.Seq // of the next record to be put; the first is 1
	Head    gearsfs.Place
	Cursor  gearsfs.Place
	Tail    gearsfs.Pos
	Ready   uint64
	Leased  uint64
	// Returned counts those of Ready that stand in front of Cursor.
	Returned uint64
	// Delayed counts the records that wait for their time, which are not
	// ready; DelayedAhead those of them that stand at or behind Cursor.
	Delayed      uint64
	DelayedAhead uint64
	Bytes        uint64
	Version      uint64
	Sealed       bool
	Blocks       bool // bytes were written in place, since it was drained last
	Limits       gearsfs.Limits
	Discarded    uint64 // by DropOldest and DiscardOlder
	// Cleaned: rows of gone records in front of it are removed; Dead counts
	// what is gone since and not removed yet.
	Cleaned gearsfs.Place
	Dead    uint64

	// Rules for the callers of Append, and what they remember of ids.
	Type       string // of all records; "" is any
	AppendOnly bool
	IDWindow   uint64 // nanoseconds; 0 is the default
	IDs        uint64 // remembered: those of the numbers in front of NextID
	NextID     uint64
	IDsDue     uint64 // log time at which too old ids are looked for; 0 is none

	// Rules for the callers of Append, Return and DiscardOlder.
	Full   gearsfs.Full
	Tries  uint32 // deliveries after which a record does not come back; 0 is any number
	Age    uint64 // nanoseconds; 0 is any age
	AgeDue uint64 // log time at which too old records are looked for; 0 is none
	Memory bool   // records are somewhere else

	// See Queue.Lose. What Lost points to is never changed.
	Lost       []gearsfs.LostRun
	LostBefore gearsfs.Seq
}

// NewState is the state of a stream that never had a record.
func NewState() State { return State{NextSeq: 1, Head: gearsfs.Place{Seq: 1}} }

// Newest is the seq of the last record that was put, 0 where none was.
func (s *State) Newest() gearsfs.Seq { return s.NextSeq - 1 }

// End is the place that the next put gets.
func (s *State) End() gearsfs.Place { return gearsfs.Place{Pos: s.Tail, Seq: s.NextSeq} }

// Drained reports whether no record is left, leased and delayed ones included.
func (s *State) Drained() bool { return s.records() == 0 }

func (s *State) records() uint64 { return s.Ready + s.Leased + s.Delayed }

// Fits reports whether n more records of together that many bytes are within
// the limits. What is larger than a limit fits into a drained stream: it
// would wait for ever otherwise.
func (s *State) Fits(n, bytes uint64) bool {
	if s.Drained() {
		return true
	}
	l := s.Limits
	return (l.Records == 0 || s.records()+n <= l.Records) && (l.Bytes == 0 || s.Bytes+bytes <= l.Bytes)
}

// placeMax is behind every record.
var placeMax = gearsfs.Place{Pos: 1<<64 - 1, Seq: 1<<64 - 1}

// next is the place right behind at: nothing is between them.
func next(at gearsfs.Place) gearsfs.Place { return gearsfs.Place{Pos: at.Pos, Seq: at.Seq + 1} }

// behind is the first place that a record behind one of n bytes at p can have.
// The seq is 0 because a block written into a gap before a younger record has
// a greater seq and a lower pos than that.
func behind(p gearsfs.Place, n int) gearsfs.Place {
	if n == 0 {
		return next(p)
	}
	return gearsfs.Place{Pos: p.Pos + gearsfs.Pos(n)}
}
