package stream

import (
	"fmt"
	"iter"

	"github.com/gearsfs/gearsfs"
)

// Consumed rows are removed when there are cleanEvery of them, or they may take
// cleanBytes, with at most cleanRangesMax range deletions. What an answer refers
// to then is removed on its own later: many times what is in flight, so that this
// is little, because range deletions slow down all readers of the same memtable.
const (
	cleanEvery     = 8 << 10
	cleanBytes     = 4 << 20
	cleanRangesMax = 512
)

// Queue is the deterministic core of a stream: what it does depends only on
// its State, its Records and the calls. It is not safe for concurrent use.
// Calls that return an error have met a broken store; the queue is then of no
// more use.
type Queue struct {
	s       State
	rows    Records
	outs    sorted[Out]
	back    sorted[struct{}] // of outs, those that were returned
	window  window
	scratch Record
	older   bool // see Older
}

// Taken is a record that was handed out. Its Data and Extents must not be written
// to; they stay as they are.
type Taken struct {
	Place      gearsfs.Place
	Record     Record
	Deliveries uint32
	Fence      uint64 // 0 where it is not leased
	Deadline   uint64 // of the lease
}

// NewQueue returns the queue of that state over rows. It reads the outs, where
// the state says that there are any.
func NewQueue(s State, rows Records, pool *Pool) (*Queue, error) {
	q := &Queue{s: s, rows: rows, window: window{pool: pool}}
	if s.Leased+s.Returned+s.Delayed == 0 {
		return q, nil
	}
	err := rows.ScanOuts(func(at gearsfs.Place, out Out) {
		q.outs.set(at, out)
		if !out.Leased && !out.Delayed() {
			q.back.set(at, struct{}{})
		}
	})
	return q, err
}

// State returns the state as of now; it changes with the queue.
func (q *Queue) State() *State { return &q.s }

// DropWindow gives the window's memory back to the pool. The queue reads its
// records again when they are asked for.
func (q *Queue) DropWindow() { q.window.drop() }

// SetSealed seals the stream or opens it again. Sealing is a rule for the
// callers of Append; the queue does not enforce it.
func (q *Queue) SetSealed(sealed bool) {
	q.s.Sealed = sealed
	q.s.Version++
}

// SetLimits sets what State.Fits answers by.
func (q *Queue) SetLimits(l gearsfs.Limits) {
	q.s.Limits = l
	q.s.Version++
}

// Append puts one record at the tail. Data and typ are not kept.
func (q *Queue) Append(data []byte, typ string, time uint64) gearsfs.Place {
	return q.AppendRecord(Record{Data: data, Type: typ, Time: time})
}

// AppendRecord is Append of a record of any form, of which nothing is kept.
func (q *Queue) AppendRecord(r Record) gearsfs.Place {
	if q.s.Drained() {
		q.s.Blocks = false // none of those is left
	}
	whole := q.windowIsWhole()
	q.scratch = r
	at := q.put()
	q.s.Ready++
	if whole && q.scratch.kept() <= windowBytesMax && q.window.room(&q.scratch) {
		q.window.push(at, &q.scratch)
	}
	q.scratch = Record{}
	return at
}

// put makes the row of a new record, which is in scratch, at the tail.
func (q *Queue) put() gearsfs.Place {
	at := q.s.End()
	n := q.scratch.Len()
	q.rows.Set(at, &q.scratch)
	q.s.NextSeq++
	q.s.Tail += gearsfs.Pos(n)
	q.s.Bytes += uint64(n)
	q.s.Version++
	return at
}

// fresh is the number of ready records from the cursor on.
func (q *Queue) fresh() uint64 { return q.s.Ready - q.s.Returned }

// windowIsWhole reports whether no ready record is behind the window.
func (q *Queue) windowIsWhole() bool { return uint64(q.window.len()) == q.fresh() }

// fill makes sure that the window holds the first ready record from the cursor
// on, of which there must be one; and the first n of them, where more than half
// of the window is free.
func (q *Queue) fill(n int) error {
	from := q.s.Cursor
	if have := q.window.len(); have > 0 {
		if have >= n || q.windowIsWhole() || q.window.bytes > windowBytesMax/2 {
			return nil
		}
		from = next(q.window.back().at)
	}
	err := q.rows.Scan(from, placeMax, func(at gearsfs.Place, r *Record) bool {
		if q.waits(at) {
			return true
		}
		if !q.window.room(r) {
			return false
		}
		q.window.push(at, r)
		return q.window.len() < windowRecordsMax && !q.windowIsWhole()
	})
	if err == nil && q.window.len() == 0 {
		err = fmt.Errorf("%w: a stream counts %d records from %v on and has none", gearsfs.ErrDamaged, q.fresh(), q.s.Cursor)
	}
	return err
}

// Take removes up to limit ready records, of at most bytesMax bytes but for the
// first, and appends them to dst: lease and acknowledgement in one. With keep,
// their rows stay until Forget.
func (q *Queue) Take(dst []Taken, limit int, bytesMax int, keep bool) ([]Taken, error) {
	h := handing{bytesLeft: bytesMax, keep: keep}
	had := len(dst)
	dst, err := q.hand(dst, limit, &h)
	if err != nil || len(dst) == had {
		return dst, err
	}
	return dst, q.moveHead()
}

// Lease hands out up to limit ready records under leases, of at most bytesMax bytes
// but for the first, and appends them to dst.
func (q *Queue) Lease(dst []Taken, limit int, bytesMax int, g Grant) ([]Taken, error) {
	h := handing{bytesLeft: bytesMax, Grant: g}
	return q.hand(dst, limit, &h)
}

// Grant is what the leases of one Lease have in common.
type Grant struct {
	Holder   gearsfs.SessionID
	Fence    uint64 // of the first, not 0; each other's is one more than that before it
	Deadline uint64 // see Out
	Jumped   uint64 // see Out
	Tries    uint32
}

// handing is one Take or, where Fence is not 0, Lease.
type handing struct {
	Grant
	bytesLeft int
	keep      bool
}

// out is the mark of a record of n bytes that is leased.
func (h *handing) out(t *Taken, n uint64) Out {
	t.Fence, t.Deadline = h.Fence, h.Deadline
	h.Fence++
	return Out{Leased: true, Holder: h.Holder, Fence: t.Fence, Deliveries: t.Deliveries, Tries: h.Tries,
		Bytes: n, Deadline: h.Deadline, Jumped: h.Jumped}
}

func (q *Queue) hand(dst []Taken, limit int, h *handing) ([]Taken, error) {
	for n := 0; n < limit && q.s.Ready > 0; n++ {
		var t Taken
		var ok bool
		var err error
		if q.s.Returned > 0 { // all of them stand in front of the cursor
			t, ok, err = q.handReturned(h, n == 0)
		} else {
			t, ok, err = q.handFresh(h, n == 0)
		}
		if err != nil {
			return dst, err
		}
		if !ok {
			break
		}
		q.s.Version++
		h.bytesLeft -= t.Record.Len()
		dst = append(dst, t)
	}
	return dst, nil
}

// handFresh hands out the record at the cursor.
func (q *Queue) handFresh(h *handing, must bool) (t Taken, ok bool, err error) {
	if err := q.fill(1); err != nil {
		return t, false, err
	}
	w := q.window.front()
	n := w.rec.Len()
	if !must && n > h.bytesLeft {
		return t, false, nil
	}
	t = Taken{Place: w.at, Record: w.rec, Deliveries: 1}
	q.window.pop()
	q.pass(behind(t.Place, n))
	q.s.Ready--
	if h.Fence == 0 {
		q.s.Bytes -= uint64(n)
		q.s.Dead++
		return t, true, nil
	}
	q.s.Leased++
	out := h.out(&t, uint64(n))
	q.outs.set(t.Place, out)
	q.rows.AddOut(t.Place, out)
	return t, true, nil
}

// handReturned hands out the first record that was returned.
func (q *Queue) handReturned(h *handing, must bool) (t Taken, ok bool, err error) {
	at, _ := q.back.min()
	out := q.outs.ref(at)
	if out == nil {
		return t, false, fmt.Errorf("%w: a stream counts %d returned records and has none", gearsfs.ErrDamaged, q.s.Returned)
	}
	if !must && int(out.Bytes) > h.bytesLeft {
		return t, false, nil
	}
	rec, err := q.rows.Get(at)
	if err != nil {
		return t, false, err
	}
	t = Taken{Place: at, Record: rec, Deliveries: out.Deliveries + 1}
	q.back.delete(at)
	q.s.Ready--
	q.s.Returned--
	if h.Fence == 0 {
		q.s.Bytes -= out.Bytes
		q.removeOut(at, *out)
		if !h.keep || !at.Less(q.s.Cleaned) {
			q.dead(at)
		}
		return t, true, nil
	}
	q.s.Leased++
	was := *out
	*out = h.out(&t, was.Bytes)
	q.rows.SetOut(at, was, *out)
	return t, true, nil
}

func (q *Queue) removeOut(at gearsfs.Place, out Out) {
	q.outs.delete(at)
	q.rows.DeleteOut(at, out)
}

// dead accounts for the row of a record that was out and is gone now.
func (q *Queue) dead(at gearsfs.Place) {
	if at.Less(q.s.Cleaned) {
		q.rows.Discard(at, next(at))
	} else {
		q.s.Dead++
	}
}

// Out returns the mark of the record at that place; ok is false where it has
// none.
func (q *Queue) Out(at gearsfs.Place) (out Out, ok bool) { return q.outs.get(at) }

// EachOut walks over the marks that there were when it began, in order.
func (q *Queue) EachOut() iter.Seq2[gearsfs.Place, Out] {
	type marked struct {
		at  gearsfs.Place
		out Out
	}
	var all []marked
	for at, out := range q.outs.from(gearsfs.Place{}) {
		all = append(all, marked{at, *out})
	}
	return func(yield func(gearsfs.Place, Out) bool) {
		for _, m := range all {
			if !yield(m.at, m.out) {
				return
			}
		}
	}
}

// Row reads the record at a place that has one.
func (q *Queue) Row(at gearsfs.Place) (Record, error) { return q.rows.Get(at) }

// Held reports whether holder's lease with that fence is on the record at at.
func (q *Queue) Held(at gearsfs.Place, holder gearsfs.SessionID, fence uint64) bool {
	out, ok := q.outs.get(at)
	return ok && out.Leased && out.Holder == holder && out.Fence == fence
}

// Ack ends the lease on a record, which is held: the record is gone.
func (q *Queue) Ack(at gearsfs.Place) error {
	out := q.leased(at)
	q.s.Leased--
	q.s.Bytes -= out.Bytes
	q.s.Version++
	q.removeOut(at, out)
	q.dead(at)
	return q.moveHead()
}

// Return ends the lease on a record, which is held: it is ready again, at its
// old place.
func (q *Queue) Return(at gearsfs.Place) {
	q.unlease(at, 0)
	q.giveBack(at)
}

// giveBack accounts for an out that is ready now.
func (q *Queue) giveBack(at gearsfs.Place) {
	q.back.set(at, struct{}{})
	q.s.Returned++
	q.s.Ready++
	q.older = true
}

// unlease makes the mark of a record that is leased that of one that is not.
func (q *Queue) unlease(at gearsfs.Place, until uint64) {
	was := q.leased(at)
	out := Out{Deliveries: was.Deliveries, Bytes: was.Bytes, Deadline: until}
	q.outs.set(at, out)
	q.rows.SetOut(at, was, out)
	q.s.Leased--
	q.s.Version++
}

func (q *Queue) leased(at gearsfs.Place) Out {
	out, ok := q.outs.get(at)
	if !ok || !out.Leased {
		panic(fmt.Sprintf("stream: the record at %v is not leased", at))
	}
	return out
}

// moveHead sets head to the first record left, or to the end.
func (q *Queue) moveHead() error {
	at, ok := q.outs.min()
	switch {
	case ok && (q.fresh() == 0 || at.Less(q.s.Cursor)):
		q.s.Head = at
		return nil
	case q.fresh() == 0:
		q.s.Head = q.s.End()
		return nil
	}
	if err := q.fill(1); err != nil {
		return err
	}
	q.s.Head = q.window.front().at
	if ok && at.Less(q.s.Head) {
		q.s.Head = at
	}
	return nil
}

// Forget says that the rows in [from, to), of one Take with keep, are not
// needed any more.
func (q *Queue) Forget(from, to gearsfs.Place) {
	if q.s.Cleaned.Less(to) {
		to = q.s.Cleaned
	}
	q.discard(from, to)
}

// Clean removes the rows of records that are gone, once there are enough. It is
// to be called now and then when the keeper of the rows knows the answers of all
// earlier takes.
func (q *Queue) Clean() {
	if q.s.Dead == 0 || q.s.Dead < cleanEvery && q.s.Cursor.Pos-q.s.Cleaned.Pos < cleanBytes {
		return
	}
	from, to, ranges, left := q.s.Cleaned, q.s.Cursor, 0, uint64(0)
	bare := from // as from, but behind the bytes of the record in front of it
	for at, out := range q.outs.from(from) {
		if !at.Less(to) {
			break
		}
		if ranges == cleanRangesMax {
			to, left = at, cleanEvery/2 // the rest next time, soon
			break
		}
		if from.Less(at) {
			q.discard(bare, at)
			ranges++
		}
		from = next(at)
		if bare = from; !q.s.Blocks { // else a row right behind may have a lower seq
			bare.Pos += gearsfs.Pos(out.Bytes)
		}
	}
	q.discard(bare, to)
	q.s.Cleaned = to
	q.s.Dead = left
}

// discard discards the rows in [from, to), if there can be any: a range deletion
// of none costs as much as one of many.
func (q *Queue) discard(from, to gearsfs.Place) {
	if from.Less(to) {
		q.rows.Discard(from, to)
	}
}
