package persist

import (
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

const (
	// overlayBytesMax bounds the values in an overlay. More costs memory and the
	// time for which a reader may wait until they have moved; with less, rows that
	// are written with every entry move more often.
	overlayBytesMax = 512 << 10
	// overlayRowsMax bounds its rows.
	overlayRowsMax = 8 << 10
	// overlayKeysBytes is how many bytes of keys are allocated at once.
	overlayKeysBytes = 32 << 10
)

// overlay is the rows that were changed since rows were last moved into
// Pebble. Many rows are written again with every entry, as those of sessions
// and streams, and others are gone some entries later, as those of leases:
// here the one is the exchange of some bytes and the other forgotten, and Pebble
// gets what is left of many entries as one batch.
//
// Invariants:
//
//  1. A row is what the open batch makes of it, else what is committed here,
//     else what Pebble has.
//  2. What is committed here moves as a whole, in one batch: Pebble, which may
//     flush behind any batch, always has the rows as they were after some Commit.
//  3. Whoever reads otherwise than by Get reads Pebble, and has all rows moved
//     there before; but what scans tables of which no row is here reads them as
//     they are.
type overlay struct {
	index  map[string]int // of rows
	rows   []overlayRow
	open   []int           // the rows that the open batch changes
	keys   strings.Builder // of rows; what was handed out of it stays
	values []byte          // of rows; there is no other memory for them
	tables [256]int        // how many rows are of each table, by the first byte of its keys
}

// overlayRow is a row as it was committed and as the open batch leaves it.
type overlayRow struct {
	key             string
	committed, open change
	absent          bool // Pebble has no such row
}

// change is what is to become of a row.
type change struct {
	kind  changeKind
	value []byte
}

type changeKind uint8

const (
	unchanged changeKind = iota
	deleted
	set
	added // set, where there is no such row
)

// change makes the open batch change a row. It reports false, and has done
// nothing, where the overlay is full.
func (o *overlay) change(key []byte, kind changeKind, value []byte) bool {
	i, ok := o.index[string(key)]
	var r *overlayRow
	if ok {
		r = &o.rows[i]
	}
	if !ok || cap(r.open.value) < len(value) {
		if o.values == nil {
			o.values = make([]byte, 0, overlayBytesMax)
			o.index = make(map[string]int)
		}
		if len(o.values)+len(value) > cap(o.values) || !ok && len(o.rows) == overlayRowsMax {
			return false
		}
		if !ok {
			i = o.add(key, kind == added)
			r = &o.rows[i]
		}
		r.open.value = o.room(len(value))
	}
	if r.open.kind == unchanged {
		o.open = append(o.open, i)
	}
	if kind == added {
		kind = set
	}
	r.open.kind, r.open.value = kind, append(r.open.value[:0], value...)
	return true
}

// add makes a row that is not changed.
func (o *overlay) add(key []byte, absent bool) int {
	if o.keys.Cap()-o.keys.Len() < len(key) {
		o.keys.Reset()
		o.keys.Grow(max(overlayKeysBytes, len(key)))
	}
	at := o.keys.Len()
	o.keys.Write(key)
	kept := o.keys.String()[at:]
	o.index[kept] = len(o.rows)
	o.tables[tableByte(kept)]++
	o.rows = append(o.rows, overlayRow{key: kept, absent: absent})
	return len(o.rows) - 1
}

// room returns memory for a value of n bytes, and, where there is, for it to grow.
func (o *overlay) room(n int) []byte {
	at := len(o.values)
	to := min(at+n+n/8, cap(o.values))
	o.values = o.values[:to]
	return o.values[at:at:to]
}

// get returns what is known about a row; its value is valid until the next change.
func (o *overlay) get(key []byte) (value []byte, kind changeKind) {
	i, ok := o.index[string(key)]
	if !ok {
		return nil, unchanged
	}
	c := &o.rows[i].open
	if c.kind == unchanged {
		c = &o.rows[i].committed
	}
	return c.value, c.kind
}

// commit commits what is open.
func (o *overlay) commit() {
	for _, i := range o.open {
		r := &o.rows[i]
		r.committed, r.open = r.open, r.committed
		r.open.kind = unchanged
	}
	o.open = o.open[:0]
}

// putCommitted puts what is committed into a batch.
func (o *overlay) putCommitted(b *pebble.Batch) (err error) {
	for i := 0; i < len(o.rows) && err == nil; i++ {
		r := &o.rows[i]
		err = r.put(b, &r.committed)
	}
	return err
}

// putOpen puts what is open into a batch, once Pebble has what is committed.
func (o *overlay) putOpen(b *pebble.Batch) (err error) {
	for i := 0; i < len(o.open) && err == nil; i++ {
		r := &o.rows[o.open[i]]
		err = r.put(b, &r.open)
	}
	return err
}

func (r *overlayRow) put(b *pebble.Batch, c *change) error {
	switch {
	case c.kind == set:
		op := b.SetDeferred(len(r.key), len(c.value))
		copy(op.Key, r.key)
		copy(op.Value, c.value)
		return op.Finish()
	case c.kind == deleted && !r.absent:
		op := b.DeleteDeferred(len(r.key))
		copy(op.Key, r.key)
		return op.Finish()
	}
	return nil
}

// tableByte is the byte of a key that names its table.
func tableByte[K string | []byte](key K) byte {
	if len(key) == 0 {
		return 0
	}
	return key[0]
}

// mayTouch reports whether a row of a table that [lo, hi) has a part of is here.
func (o *overlay) mayTouch(lo, hi []byte) bool {
	from, to := tableByte(lo), tableByte(hi)
	if len(hi) == 0 {
		to = 255
	}
	for t := int(from); t <= int(to); t++ {
		if o.tables[t] > 0 {
			return true
		}
	}
	return false
}

// moved says that Pebble has what is committed.
func (o *overlay) moved() {
	if len(o.open) == 0 {
		o.clear()
		return
	}
	for i := range o.rows {
		r := &o.rows[i]
		if r.committed.kind != unchanged {
			r.absent = r.committed.kind == deleted
		}
		r.committed.kind = unchanged
	}
}

// clear forgets all rows.
func (o *overlay) clear() {
	clear(o.index)
	clear(o.rows)
	o.tables = [256]int{}
	o.rows, o.open, o.values = o.rows[:0], o.open[:0], o.values[:0]
}

func (o *overlay) empty() bool { return len(o.rows) == 0 }
