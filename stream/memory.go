package stream

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/gearsfs/gearsfs/gears"
)

// Memory keeps a stream's rows in memory. The zero value is empty. It is not
// safe for concurrent use.
type Memory struct {
	rows sorted[Record]
	outs sorted[Out]
}

var _ Records = (*Memory)(nil)

// Set implements Rows.
func (m *Memory) Set(at gears.Place, r *Record) {
	kept := *r
	kept.Data = bytes.Clone(r.Data)
	kept.Type = strings.Clone(r.Type)
	m.rows.set(at, kept)
}

// Get implements Rows.
func (m *Memory) Get(at gears.Place) (Record, error) {
	r, ok := m.rows.get(at)
	if !ok {
		return r, fmt.Errorf("%w: no record at %v", gears.ErrDamaged, at)
	}
	r.Data = bytes.Clone(r.Data)
	return r, nil
}

// Scan implements Rows.
func (m *Memory) Scan(from, to gears.Place, yield func(at gears.Place, r *Record) bool) error {
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
func (m *Memory) Before(at gears.Place) (found gears.Place, ok bool, err error) {
	found, ok = m.rows.before(at)
	return found, ok, nil
}

// Delete implements Rows.
func (m *Memory) Delete(from, to gears.Place) error {
	m.Discard(from, to)
	return nil
}

// Discard implements Rows. It holds nothing back.
func (m *Memory) Discard(from, to gears.Place) {
	var gone []gears.Place
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

// SetOut implements Outs.
func (m *Memory) SetOut(at gears.Place, _, out Out) { m.outs.set(at, out) }

// DeleteOut implements Outs.
func (m *Memory) DeleteOut(at gears.Place, _ Out) { m.outs.delete(at) }

// ScanOuts implements Outs.
func (m *Memory) ScanOuts(yield func(at gears.Place, out Out)) error {
	for at, out := range m.outs.from(gears.Place{}) {
		yield(at, *out)
	}
	return nil
}
