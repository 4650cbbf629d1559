package stream

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/gearsfs/gearsfs"
)

// Memory keeps a stream's rows in memory. The zero value is empty. It is not
// safe for concurrent use.
type Memory struct {
	rows sorted[Record]
	outs sorted[Out]
}

var _ Records = (*Memory)(nil)

// Set implements Rows.
func (m *Memory) Set(at gearsfs.Place, r *Record) {
	kept := *r
	kept.Data = bytes.Clone(r.Data)
	kept.Extents = CloneExtents(r.Extents)
	kept.Type = strings.Clone(r.Type)
	m.rows.set(at, kept)
}

// Replace implements Rows.
func (m *Memory) Replace(at gearsfs.Place, _ []gearsfs.Extent, r *Record) { m.Set(at, r) }

// Get implements Rows.
func (m *Memory) Get(at gearsfs.Place) (Record, error) {
	r, ok := m.rows.get(at)
	if !ok {
		return r, fmt.Errorf("%w: no record at %v", gearsfs.ErrDamaged, at)
	}
	r.Data = bytes.Clone(r.Data)
	r.Extents = CloneExtents(r.Extents)
	return r, nil
}

// Has implements Rows.
func (m *Memory) Has(at gearsfs.Place) (bool, error) {
	_, ok := m.rows.get(at)
	return ok, nil
}

// Scan implements Rows.
func (m *Memory) Scan(from, to gearsfs.Place, yield func(at gearsfs.Place, r *Record) bool) error {
	for at, r := range m.rows.from(from) {
		if !at.Less(to) {
			break
		}
		row := *r
		if !yield(at, &row) {
			break
		}
	}
	return nil
}

// Before implements Rows.
func (m *Memory) Before(at gearsfs.Place) (found gearsfs.Place, ok bool, err error) {
	found, ok = m.rows.before(at)
	return found, ok, nil
}

// Delete implements Rows.
func (m *Memory) Delete(from, to gearsfs.Place) error {
	m.Discard(from, to)
	return nil
}

// Discard implements Rows. It holds nothing back.
func (m *Memory) Discard(from, to gearsfs.Place) {
	var gone []gearsfs.Place
	for at := range m.rows.from(from) {
		if !at.Less(to) {
			break
		}
		gone = append(gone, at)
	}
	for _, at := range gone {
		m.rows.delete(at)
	}
}

// AddOut implements Outs.
func (m *Memory) AddOut(at gearsfs.Place, out Out) { m.outs.set(at, out) }

// SetOut implements Outs.
func (m *Memory) SetOut(at gearsfs.Place, _, out Out) { m.outs.set(at, out) }

// DeleteOut implements Outs.
func (m *Memory) DeleteOut(at gearsfs.Place, _ Out) { m.outs.delete(at) }

// ScanOuts implements Outs.
func (m *Memory) ScanOuts(yield func(at gearsfs.Place, out Out)) error {
	for at, out := range m.outs.from(gearsfs.Place{}) {
		yield(at, *out)
	}
	return nil
}
