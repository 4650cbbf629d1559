package file

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// timeModel is what log time has to do with a record.
type timeModel struct {
	until   uint64 // when its lease ends, or, where it has none, its delay
	owed    uint64 // by how much longer the lease lasts, because log time jumped
	tries   uint32 // of its lease
	receipt bool   // the lease is held by its receipt
	time    uint64 // of the put
}

// careModel is what a stream's settings say of records that are there.
type careModel struct {
	full      gearsfs.Full
	tries     uint32
	age       uint64
	ageDue    uint64
	idsDue    uint64
	older     bool // a record became ready in front of others in this entry
	discarded uint64
	// What this entry has moved to the dead stream makes no room for it.
	gone      int
	goneBytes uint64
}

// tally is what mayPass asks of a step's stream.
func (m *queueModel) tally(step *wire.Step) *tally {
	t := new(tally)
	if st := m.streams[step.GetPut().GetKey()]; st != nil {
		t.state.Full = st.full
	}
	return t
}

func (r *recModel) ready() bool { return r.fence == 0 && r.until == 0 }

func (r *recModel) lease(op *wire.Take, now uint64) {
	r.tries, r.receipt, r.until, r.owed = op.Tries, op.ByReceipt, 0, 0
	if op.LeaseFor != 0 {
		r.until = now + op.LeaseFor
	}
}

func (r *recModel) extend(now, by uint64) {
	if r.until != 0 {
		r.until, r.owed = now+by, 0
	}
}

// delay makes the last n records be taken later.
func (s *streamModel) delay(n int, op *wire.Put, now uint64) {
	until := op.At
	if op.Delay != 0 {
		until = max(until, now+op.Delay)
	}
	for _, r := range s.recs[len(s.recs)-n:] {
		if until > now {
			r.until = until
		}
	}
}

func (s *streamModel) tooBig(n int, bytes uint64) bool {
	return s != nil && n > 0 && s.full == gearsfs.FullDropOldest &&
		(s.limits.Records != 0 && uint64(n) > s.limits.Records || s.limits.Bytes != 0 && bytes > s.limits.Bytes)
}

// room returns why records find no room.
func (s *streamModel) room(records []*wire.NewRecord) error {
	switch {
	case s == nil || len(records) == 0:
	case s.tooBig(len(records), bytesOf(records)):
		return gearsfs.ErrTooBig
	case s.full != gearsfs.FullDropOldest && !s.fits(len(records), bytesOf(records)):
		return gearsfs.ErrFull
	}
	return nil
}

func (s *streamModel) makeRoom(records []*wire.NewRecord) {
	s.gone, s.goneBytes = 0, 0
	for s.full == gearsfs.FullDropOldest && len(records) > 0 && !s.fits(len(records), bytesOf(records)) {
		s.recs = s.recs[1:]
		s.discarded++
	}
}

// firstReady is the first record that can be taken, nil where there is none.
func (s *streamModel) firstReady() *recModel {
	if i := slices.IndexFunc(s.recs, (*recModel).ready); i >= 0 {
		return s.recs[i]
	}
	return nil
}

func (s *streamModel) remove(r *recModel) {
	s.recs = slices.DeleteFunc(s.recs, func(x *recModel) bool { return x == r })
}

// comeBack ends a lease without an acknowledgement.
func (m *queueModel) comeBack(key string, r *recModel, tries uint32, delay uint64) {
	st := m.streams[key]
	if tries = cmp.Or(tries, r.tries, st.tries); tries != 0 && r.deliveries >= tries {
		st.remove(r)
		st.gone, st.goneBytes = st.gone+1, st.goneBytes+uint64(len(r.data))
		dead := m.stream(key + ".dead")
		dead.recs = append(dead.recs, &recModel{seq: dead.next, data: r.data, typ: r.typ, timeModel: timeModel{time: m.now}})
		dead.next++
		return
	}
	r.holder, r.fence, r.timeModel = nil, 0, timeModel{time: r.time}
	if delay != 0 {
		r.until = m.now + delay
		return
	}
	st.older = true
}

// timerModel is something that is due: for a record, or for a stream's age.
type timerModel struct {
	due uint64
	key string
	rec *recModel
	seq uint64 // for the order
}

// pass does what is due at the time of the entry to come.
func (m *queueModel) pass(now uint64) {
	m.now = now
	var due []timerModel
	for key, st := range m.streams {
		if st.ageDue != 0 && st.ageDue <= now {
			due = append(due, timerModel{st.ageDue, key, nil, 1 << 63})
		}
		for _, r := range st.recs {
			if r.until != 0 && r.until <= now {
				due = append(due, timerModel{r.until, key, r, r.seq})
			}
		}
	}
	slices.SortFunc(due, func(a, b timerModel) int {
		return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.key, b.key), cmp.Compare(a.seq, b.seq))
	})
	for _, t := range due {
		st := m.streams[t.key]
		switch {
		case t.rec == nil:
			st.ageDue = 0
			for r := st.firstReady(); r != nil && st.age != 0 && r.time+st.age <= now; r = st.firstReady() {
				st.remove(r)
				st.discarded++
			}
		case t.rec.fence != 0 && t.rec.owed != 0:
			t.rec.until, t.rec.owed = t.rec.until+t.rec.owed, 0
		case t.rec.fence != 0:
			m.comeBack(t.key, t.rec, 0, 0)
		default:
			t.rec.until = 0
			st.older = true
		}
	}
	for _, st := range m.streams {
		st.gone, st.goneBytes = 0, 0
		if st.idsDue != 0 && st.idsDue <= now {
			st.idsDue = 0
			st.forget(now)
		}
	}
}

// jump makes all that has a past younger.
func (m *queueModel) jump(by uint64) {
	for _, st := range m.streams {
		for _, r := range st.recs {
			if r.time += by; r.fence != 0 && r.until != 0 {
				r.owed += by
			}
		}
		for i := range st.ids {
			st.ids[i].time += by
		}
	}
}

// jumpSometimes lets log time jump before the next entry.
func (p *queuePlayer) jumpSometimes() {
	if p.rng.IntN(40) != 0 || p.jumps == jumpsMax {
		return
	}
	by := p.someTime()
	p.now += by
	p.jump += by
	p.jumps++
	p.model.jump(by)
}

// flush is the end of an entry.
func (m *queueModel) flush() {
	for _, st := range m.streams {
		r := st.firstReady()
		if st.age != 0 && r != nil && (st.ageDue == 0 || st.older) {
			if due := r.time + st.age; st.ageDue == 0 || due < st.ageDue {
				st.ageDue = due
			}
		}
		st.older, st.gone, st.goneBytes = false, 0, 0
		if len(st.ids) > 0 && st.idsDue == 0 {
			st.idsDue = st.idWindow() // of one that was put again: it goes at once
			if oldest := st.ids[0]; oldest.id != "" {
				st.idsDue += oldest.time
			}
		}
	}
}

// care changes settings.
func (m *queueModel) care(key string, set *wire.Settings) {
	st := m.stream(key)
	if set.Age != nil && *set.Age != st.age {
		st.age, st.ageDue = *set.Age, 0
	}
	if set.Full != nil {
		st.full = gearsfs.Full(*set.Full)
	}
	if set.Tries != nil {
		st.tries = *set.Tries
	}
	if set.Records != nil {
		st.limits.Records = *set.Records
	}
}

func (p *queuePlayer) pass() { p.model.pass(p.now + 1e6) }

func (p *queuePlayer) someTime() uint64 { return 1 + p.rng.Uint64N(60e6) }

func (p *queuePlayer) delayPut(op *wire.Put) {
	switch p.rng.IntN(6) {
	case 0:
		op.At = p.now + p.someTime()
	case 1:
		op.Delay = p.someTime()
	}
}

func (p *queuePlayer) boundLease(op *wire.Take) {
	if p.rng.IntN(4) == 0 {
		op.Keys = append(op.Keys, pick(p.rng, modelKeys)+".dead")
	}
	if !op.Lease || p.rng.IntN(2) == 0 {
		return
	}
	op.LeaseFor = p.someTime()
	op.ByReceipt = p.rng.IntN(2) == 0
	op.Tries = p.rng.Uint32N(3)
}

func (p *queuePlayer) kindOfSettle(op *wire.Settle) {
	switch p.rng.IntN(4) {
	case 0:
		if op.Return = true; p.rng.IntN(2) == 0 {
			op.Delay = p.someTime()
		}
		op.Tries = p.rng.Uint32N(4)
	case 1:
		op.Return, op.Extend = false, p.someTime()
	}
}

// receiptsOf is whose receipts a session settles: its own, or now and then
// those of any.
func (p *queuePlayer) receiptsOf(s *sessionModel) []doneModel {
	if p.rng.IntN(5) == 0 {
		return pick(p.rng, p.sessions).done
	}
	return s.done
}

func (p *queuePlayer) careOp(key string) *wire.Configure {
	set := &wire.Settings{}
	switch p.rng.IntN(5) {
	case 0, 1:
		set.Age = ptr(p.rng.Uint64N(2) * p.someTime() * 2)
	case 2, 3:
		set.Full, set.Records = ptr(p.rng.Uint32N(3)), ptr(3+p.rng.Uint64N(9))
	case 4:
		set.Tries = ptr(p.rng.Uint32N(4))
	}
	return configure(key, func(c *wire.Configure) { c.Settings = set })
}

func (p *queuePlayer) allKeys() []string {
	keys := slices.Sorted(maps.Keys(p.model.streams))
	for _, key := range modelKeys {
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// compareCare compares what log time and settings have done to a stream.
func (p *queuePlayer) compareCare(key string, st *streamModel, info gearsfs.StreamInfo) {
	p.t.Helper()
	var delayed, first uint64
	for _, r := range st.recs {
		if r.fence == 0 && !r.ready() {
			delayed++
		}
	}
	require.Equal(p.t, []uint64{delayed, st.discarded}, []uint64{info.Delayed, info.Discarded}, "stream %q", key)
	require.Equal(p.t, []any{st.full, st.tries, time.Duration(st.age)}, []any{info.Settings.Full, info.Settings.Tries, info.Settings.Age})
	for _, st := range p.model.streams {
		dues := []uint64{st.ageDue, st.idsDue}
		for _, r := range st.recs {
			dues = append(dues, r.until)
		}
		for _, due := range dues {
			if due != 0 && (first == 0 || due < first) {
				first = due
			}
		}
	}
	require.Equal(p.t, first, p.nextDue())
}
