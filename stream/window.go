package stream

import (
	"bytes"
	"strings"

	"github.com/gearsfs/gearsfs"
)

// Bounds of one queue's window.
const (
	windowRecordsMax = 1024
	windowBytesMax   = 256 << 10
	windowRecordCost = 96 // what a record takes beside its bytes

	chunkBytes     = 4 << 10
	chunkRecordMax = chunkBytes / 4
)

// Pool is the memory that the windows of many queues share. It is used by one
// goroutine at a time.
type Pool struct {
	left  int
	chunk []byte // small records are copied into it: an allocation for many
}

// NewPool returns a pool for windows of that many bytes in all. Each queue may
// hold one record more than its share.
func NewPool(bytesMax int) *Pool { return &Pool{left: bytesMax} }

// copy returns a copy of data that is never written to again.
func (p *Pool) copy(data []byte) []byte {
	n := len(data)
	if n == 0 {
		return nil
	}
	if n > chunkRecordMax {
		return bytes.Clone(data) // does not zero it first
	}
	if n > cap(p.chunk)-len(p.chunk) {
		p.chunk = make([]byte, 0, chunkBytes)
	}
	at := len(p.chunk)
	p.chunk = append(p.chunk, data...)
	return p.chunk[at : at+n : at+n]
}

// window holds the first records from the cursor on.
type window struct {
	pool  *Pool
	recs  []windowed
	first int // recs in front of it were taken
	bytes int
}

type windowed struct {
	at  gearsfs.Place
	rec Record
}

func (w *window) len() int { return len(w.recs) - w.first }

func cost(r *Record) int { return r.kept() + windowRecordCost }

// room reports whether r may join: the first always may.
func (w *window) room(r *Record) bool {
	n := w.len()
	return n == 0 || n < windowRecordsMax && w.bytes+cost(r) <= windowBytesMax && w.pool.left >= cost(r)
}

func (w *window) push(at gearsfs.Place, r *Record) {
	if w.first > 0 && len(w.recs) == cap(w.recs) {
		n := copy(w.recs, w.recs[w.first:])
		clear(w.recs[n:])
		w.recs, w.first = w.recs[:n], 0
	}
	kept := Record{Data: w.pool.copy(r.Data), Time: r.Time, Block: r.Block, Extents: CloneExtents(r.Extents)}
	switch n := len(w.recs); {
	case r.Type == "":
	case n > 0 && w.recs[n-1].rec.Type == r.Type:
		kept.Type = w.recs[n-1].rec.Type
	default:
		kept.Type = strings.Clone(r.Type)
	}
	w.recs = append(w.recs, windowed{at, kept})
	w.bytes += cost(r)
	w.pool.left -= cost(r)
}

func (w *window) front() *windowed { return &w.recs[w.first] }

func (w *window) back() *windowed { return &w.recs[len(w.recs)-1] }

func (w *window) pop() {
	c := cost(&w.recs[w.first].rec)
	w.bytes -= c
	w.pool.left += c
	w.recs[w.first] = windowed{}
	w.first++
	if w.first == len(w.recs) {
		w.recs, w.first = w.recs[:0], 0
	}
}

// drop forgets everything.
func (w *window) drop() {
	w.pool.left += w.bytes
	w.recs, w.first, w.bytes = nil, 0, 0
}
