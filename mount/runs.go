package mount

import (
	"cmp"
	"slices"
	"sync"

	"github.com/gearsfs/gearsfs"
)

// run is bytes of a file that follow each other.
type run struct {
	pos  gearsfs.Pos
	data []byte
}

func (r *run) end() gearsfs.Pos { return r.pos + gearsfs.Pos(len(r.data)) }

// runs are the bytes that were written to a file: runs in the order of their
// places, no two of which have a byte in common.
type runs []run

const (
	runBytesMax = writeMax // of what goes as one command
	runsMax     = 1024     // of what is held of a file
)

// add adds a write, of runBytesMax at most, which it copies. It returns by how many
// bytes the runs have grown; or false where the write would make one of several, or
// there are too many.
func (r *runs) add(pos gearsfs.Pos, data []byte) (grown int, ok bool) {
	all, end := *r, pos+gearsfs.Pos(len(data))
	i, _ := slices.BinarySearchFunc(all, pos+1, func(r run, pos gearsfs.Pos) int { return cmp.Compare(r.end(), pos) })
	over := i < len(all) && all[i].pos <= pos
	next, at := i, i-1 // at is the run that the write may go on with
	if over {
		next, at = i+1, i
	}
	if next < len(all) && all[next].pos < end {
		return 0, false
	}
	if over || at >= 0 && all[at].end() == pos {
		have, off := &all[at].data, int(pos-all[at].pos)
		if size := max(off+len(data), len(*have)); size <= runBytesMax {
			*have = withRoom(*have, size)
			n := copy((*have)[off:], data)
			*have = append(*have, data[n:]...)
			return len(data) - n, true
		}
	}
	if over || len(all) == runsMax {
		return 0, false
	}
	*r = slices.Insert(all, i, run{pos, append(withRoom(nil, len(data)), data...)})
	return len(data), true
}

// full says that one of the runs, if there is but one, takes no more.
func (r runs) full() bool { return len(r) == 1 && len(r[0].data) == runBytesMax }

// end is behind all bytes, 0 where there are none.
func (r runs) end() gearsfs.Pos {
	if len(r) == 0 {
		return 0
	}
	return r[len(r)-1].end()
}

func (r runs) bytes() (n int) {
	for i := range r {
		n += len(r[i].data)
	}
	return n
}

// overlap says whether two have a byte in common.
func (r runs) overlap(other runs) bool {
	for len(r) > 0 && len(other) > 0 {
		switch {
		case r[0].end() <= other[0].pos:
			r = r[1:]
		case other[0].end() <= r[0].pos:
			other = other[1:]
		default:
			return true
		}
	}
	return false
}

// runMemory is what large runs are in. It is used again and again, because fresh memory,
// which is zeroed and faulted in page by page, costs more than the copying into it.
var runMemory = sync.Pool{New: func() any { b := make([]byte, 0, runBytesMax); return &b }}

// withRoom returns a run in memory for n bytes at least where these are many, else
// as it is. So of what runs keep half is used.
func withRoom(run []byte, n int) []byte {
	if n < runBytesMax/2 || cap(run) >= n {
		return run
	}
	return append((*runMemory.Get().(*[]byte))[:0], run...)
}

// forget gives the memory of runs back that nobody uses any more.
func (r runs) forget() {
	for i := range r {
		if data := r[i].data; cap(data) == runBytesMax {
			data = data[:0]
			runMemory.Put(&data)
		}
	}
}
