package persist

import (
	"errors"
	"fmt"

	"github.com/gearsfs/gearsfs"
)

// Entries returns the entries in [lo, hi), the first of them in any case, and
// more as long as their Data together are at most bytesMax bytes. Recent ones
// come from memory, others are read from disk. Data must not be changed.
//
// gearsfs.ErrRange: not all of [lo, hi) is in the log. gearsfs.ErrDamaged: what is
// on disk is not what was written.
func (l *Log) Entries(lo, hi, bytesMax uint64) ([]LogEntry, error) {
	if lo >= hi {
		return nil, nil
	}
	var out []LogEntry
	for index := lo; index < hi; {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return nil, gearsfs.ErrClosed
		}
		if lo <= l.index.frontIndex || hi > l.index.last+1 {
			err := gearsfs.ErrRange.Because("no entries %d to %d in the log from %d to %d",
				lo, hi-1, l.index.frontIndex+1, l.index.last)
			l.mu.Unlock()
			return nil, err
		}
		if cached := l.recent.first(); index >= cached {
			out, _ = takeEntries(out, l.recent.entries[index-cached:hi-cached], bytesMax)
			l.mu.Unlock()
			return out, nil
		}
		run, point := l.index.find(index)
		until := min(hi, run.last+1, l.recent.first())
		run.seg.pins++
		l.mu.Unlock()

		read, err := readRun(run.seg, point, index, until, bytesMax-min(bytesMax, entriesBytes(out)))
		if err = errors.Join(err, l.unpin(run.seg)); err != nil {
			return nil, err
		}
		var full bool
		if out, full = takeEntries(out, read, bytesMax); full || uint64(len(read)) < until-index {
			return out, nil
		}
		index = until
	}
	return out, nil
}

// takeEntries appends entries to out while they fit; full says that one did not.
func takeEntries(out, entries []LogEntry, bytesMax uint64) (_ []LogEntry, full bool) {
	bytes := entriesBytes(out)
	for i := range entries {
		bytes += uint64(len(entries[i].Data))
		if bytes > bytesMax && len(out)+i > 0 {
			return append(out, entries[:i]...), true
		}
	}
	return append(out, entries...), false
}

func entriesBytes(entries []LogEntry) (n uint64) {
	for i := range entries {
		n += uint64(len(entries[i].Data))
	}
	return n
}

// readRun reads the entries in [lo, hi) of a run from disk, beginning at a
// point at or before lo, and stops behind the first one that goes over bytesMax.
func readRun(seg *segment, from logPoint, lo, hi, bytesMax uint64) ([]LogEntry, error) {
	var out []LogEntry
	var bytes uint64
	reader := segmentReader{f: seg.f, size: seg.size}
	want := from.index
	for off := from.off; want < hi; {
		r, ok, err := reader.record(off)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", seg.path, err)
		}
		if !ok || r.kind == kindEntry && r.index != want || r.kind == kindSeal {
			return nil, damagedAt(seg.path, off, "log entry %d is missing", want)
		}
		if r.kind == kindEntry {
			if want >= lo {
				out = append(out, LogEntry{Index: r.index, Term: r.term, Type: r.typ, Data: append([]byte(nil), r.payload...)})
				if bytes += uint64(len(r.payload)); bytes > bytesMax {
					return out, nil
				}
			}
			want++
		}
		off += recordBytes(len(r.payload))
	}
	return out, nil
}
