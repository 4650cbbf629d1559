package replica

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/gearsfs/gearsfs"
)

// simSegment is how many entries a simulated segment holds: cutting the log
// frees whole ones.
const simSegment = 8

// logContent is what a log holds.
type logContent struct {
	front   LogEntry // before the first: index and term
	entries []LogEntry
	hard    []byte
}

func (c *logContent) last() uint64 { return c.front.Index + uint64(len(c.entries)) }

// write does what one record of the log's files says.
func (c *logContent) write(r logRecord) {
	if r.hard != nil {
		c.hard = r.hard
		return
	}
	if r.entry.Index <= c.front.Index { // cut off meanwhile
		return
	}
	c.entries = append(c.entries[:r.entry.Index-c.front.Index-1], r.entry)
}

// cut removes the entries up to index.
func (c *logContent) cut(index uint64) {
	if index > c.front.Index {
		n := index - c.front.Index
		c.front = LogEntry{Index: index, Term: c.entries[n-1].Term}
		c.entries = slices.Clone(c.entries[n:])
	}
}

// logRecord is an entry or a hard state on its way to the disk.
type logRecord struct {
	entry LogEntry
	hard  []byte
}

// simLog is a node's log on a simulated disk: records follow each other in
// files, a sync makes all of them durable that were written when it began, and
// a crash keeps the others up to some record.
type simLog struct {
	logContent            // as the process sees it
	disk       logContent // what is durable
	written    []logRecord
	dropped    int // records in front of those that became durable
	// sync lets the simulation take over a Sync: it returns when that is over.
	sync   func() error
	broken error
}

var _ Log = (*simLog)(nil)

func (l *simLog) Append(entries []LogEntry, hard []byte) error {
	if l.broken != nil {
		return l.broken
	}
	for i, e := range entries {
		if e.Index <= l.front.Index || e.Index > l.last()+1 || i > 0 && e.Index != l.last()+1 {
			return fmt.Errorf("append of %d to a log of (%d, %d]", e.Index, l.front.Index, l.last())
		}
		l.put(logRecord{entry: e})
	}
	if hard != nil {
		l.put(logRecord{hard: slices.Clone(hard)})
	}
	return nil
}

func (l *simLog) put(r logRecord) {
	l.logContent.write(r)
	l.written = append(l.written, r)
}

// begin begins a sync; done says that it is over.
func (l *simLog) begin() (done func()) {
	n := l.dropped + len(l.written)
	return func() {
		for ; l.dropped < n; l.dropped++ {
			l.disk.write(l.written[0])
			l.written = l.written[1:]
		}
	}
}

func (l *simLog) Hasten() {}

func (l *simLog) Sync() error {
	if l.broken != nil {
		return l.broken
	}
	done := l.begin()
	if l.sync != nil {
		if err := l.sync(); err != nil {
			l.broken = err
			return err
		}
	}
	done()
	return nil
}

func (l *simLog) Entries(lo, hi, bytesMax uint64) ([]LogEntry, error) {
	if lo <= l.front.Index || hi > l.last()+1 || lo >= hi {
		return nil, gearsfs.ErrRange.Because("entries [%d, %d) of (%d, %d]", lo, hi, l.front.Index, l.last())
	}
	out, size := []LogEntry(nil), uint64(0)
	for _, e := range l.entries[lo-l.front.Index-1 : hi-l.front.Index-1] {
		size += uint64(len(e.Data))
		if len(out) > 0 && size > bytesMax {
			break
		}
		out = append(out, e)
	}
	return out, nil
}

func (l *simLog) Term(index uint64) (uint64, error) {
	switch {
	case index == l.front.Index:
		return l.front.Term, nil
	case index < l.front.Index || index > l.last():
		return 0, gearsfs.ErrRange.Because("term of %d in (%d, %d]", index, l.front.Index, l.last())
	}
	return l.entries[index-l.front.Index-1].Term, nil
}

func (l *simLog) First() uint64     { return l.front.Index + 1 }
func (l *simLog) Last() uint64      { return l.last() }
func (l *simLog) HardState() []byte { return l.hard }
func (l *simLog) Bytes() uint64     { return l.BytesFrom(l.front.Index) }

// BytesFrom is what the entries behind index take.
func (l *simLog) BytesFrom(index uint64) (n uint64) {
	for i := range l.entries {
		if l.entries[i].Index > index {
			n += uint64(len(l.entries[i].Data)) + entryOverhead
		}
	}
	return n
}

// TruncateFront syncs where it frees a segment. What stays in the others comes
// back with a restart.
func (l *simLog) TruncateFront(index uint64) error {
	switch {
	case l.broken != nil:
		return l.broken
	case index > l.last():
		return gearsfs.ErrRange.Because("cut %d of (%d, %d]", index, l.front.Index, l.last())
	}
	if segment := index - index%simSegment; segment > l.disk.front.Index {
		l.begin()()
		l.disk.cut(segment)
	}
	l.logContent.cut(index)
	return nil
}

func (l *simLog) Reset(index, term uint64) error {
	if l.broken != nil {
		return l.broken
	}
	l.logContent = logContent{front: LogEntry{Index: index, Term: term}, hard: l.hard}
	l.disk = l.logContent
	l.dropped += len(l.written)
	l.written = nil
	return nil
}

// synced is the last index that survives any crash.
func (l *simLog) synced() uint64 {
	last := l.disk.last()
	for _, r := range l.written {
		if r.hard == nil {
			last = min(last, r.entry.Index-1)
		}
	}
	return last
}

// crash returns the log as a crash may leave it: without sync of a machine
// that stays up only the process died, and all is there.
func (l *simLog) crash(rng *rand.Rand) *simLog {
	kept := 0
	switch rng.IntN(3) {
	case 0:
		kept = rng.IntN(len(l.written) + 1)
	case 1:
		kept = len(l.written)
	}
	disk := logContent{front: l.disk.front, hard: l.disk.hard, entries: slices.Clone(l.disk.entries)}
	for _, r := range l.written[:kept] {
		disk.write(r)
	}
	again := disk
	again.entries = slices.Clone(disk.entries)
	return &simLog{logContent: again, disk: disk}
}
