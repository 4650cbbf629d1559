package stream

import "github.com/gearsfs/gearsfs"

// Records that wait for their time. The queue does not know the time: its owner
// calls Due when it has come.

// AppendDelayed is Append of a record that can't be taken before Due is called
// for it; until, which is not 0, is kept for the caller.
func (q *Queue) AppendDelayed(data []byte, typ string, time, until uint64) gearsfs.Place {
	return q.AppendRecordDelayed(Record{Data: data, Type: typ, Time: time}, until)
}

// AppendRecordDelayed is AppendDelayed of a record of any form, of which nothing
// is kept.
func (q *Queue) AppendRecordDelayed(r Record, until uint64) gearsfs.Place {
	if q.s.Drained() {
		q.s.Blocks = false
	}
	next := q.s.Cursor.Pos == q.s.Tail && q.fresh()+q.s.DelayedAhead == 0
	q.scratch = r
	at := q.put()
	q.scratch = Record{}
	n := r.Len()
	q.s.Delayed++
	if next { // nothing is between: takes and looks need not pass it
		q.s.Cursor = behind(at, n)
	} else {
		q.s.DelayedAhead++
	}
	out := Out{Bytes: uint64(n), Deadline: until}
	q.outs.set(at, out)
	q.rows.AddOut(at, out)
	return at
}

// Delay ends the lease on a record, which is held: it is at its old place and
// can't be taken before Due is called for it. until is as in AppendDelayed.
func (q *Queue) Delay(at gearsfs.Place, until uint64) {
	q.unlease(at, until)
	q.s.Delayed++
}

// Due makes a record ready, which is delayed.
func (q *Queue) Due(at gearsfs.Place) {
	was, _ := q.outs.get(at)
	if !was.Delayed() {
		panic("stream: the record is not delayed")
	}
	q.s.Delayed--
	q.s.Version++
	if at.Less(q.s.Cursor) {
		out := Out{Deliveries: was.Deliveries, Bytes: was.Bytes}
		q.outs.set(at, out)
		q.rows.SetOut(at, was, out)
		q.giveBack(at)
		return
	}
	q.s.DelayedAhead--
	q.s.Ready++
	q.older = true
	q.removeOut(at, was)
	q.dropWindowBehind(at)
}

// Extend gives the lease on a record, which is held, another deadline; jumped is
// kept for the caller.
func (q *Queue) Extend(at gearsfs.Place, deadline, jumped uint64) {
	out := q.leased(at)
	q.Relet(at, Grant{Holder: out.Holder, Fence: out.Fence, Deadline: deadline, Jumped: jumped, Tries: out.Tries})
}

// Relet puts another lease in the place of that on a record, which is held.
// It is no delivery.
func (q *Queue) Relet(at gearsfs.Place, g Grant) {
	was := q.leased(at)
	out := was
	out.Holder, out.Fence, out.Deadline, out.Jumped, out.Tries = g.Holder, g.Fence, g.Deadline, g.Jumped, g.Tries
	q.outs.set(at, out)
	q.rows.SetOut(at, was, out)
	q.s.Version++
}

// waits reports whether the record at that place, at or behind the cursor, is
// delayed.
func (q *Queue) waits(at gearsfs.Place) bool { return q.s.DelayedAhead > 0 && q.outs.ref(at) != nil }

// pass moves the cursor on.
func (q *Queue) pass(to gearsfs.Place) {
	if q.s.DelayedAhead > 0 {
		for at := range q.outs.from(q.s.Cursor) {
			if !at.Less(to) {
				break
			}
			q.s.DelayedAhead--
		}
	}
	q.s.Cursor = to
}
