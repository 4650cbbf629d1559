package dgm

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// doLocked does what an operation asks for, or nothing and says why.
func (m *memory) doLocked(o *op, at place) (*wire.Answer, error) {
	caller, machine := o.sess.caller, m.vol.machine
	switch op := o.change.Command.Op.(type) {
	case *wire.Command_Put:
		if err := machine.MayWait(at.ino, false, true, caller); err != nil {
			return nil, err
		}
		return m.putLocked(at, op.Put)
	case *wire.Command_Take:
		if err := machine.MayWait(at.ino, true, true, caller); err != nil {
			return nil, err
		}
		return m.takeLocked(o, at, op.Take)
	case *wire.Command_Update:
		if err := machine.MayWait(at.ino, false, true, caller); err != nil {
			return nil, err
		}
		return m.updateLocked(at, op.Update)
	case *wire.Command_Settle:
		return m.settleLocked(o, op.Settle)
	}
	return nil, gearsfs.ErrUnknownOp
}

func (m *memory) putLocked(at place, p *wire.Put) (*wire.Answer, error) {
	m.dueLocked(at)
	q := m.queueLocked(at)
	records, bytes := sizeOf(p)
	if err := mayAppend(q.State(), p.Records); err != nil {
		return nil, err
	}
	if s := q.State(); !s.Fits(records, bytes) {
		l := s.Limits
		switch {
		case s.Full != gearsfs.FullDropOldest:
			return nil, gearsfs.ErrFull
		case l.Records != 0 && records > l.Records || l.Bytes != 0 && bytes > l.Bytes:
			return nil, gearsfs.ErrTooBig.Because("larger than the stream's limits")
		}
		if err := q.DropOldest(records, bytes); err != nil {
			return nil, err
		}
	}
	now := m.vol.group.Time()
	until := p.At
	if p.Delay != 0 {
		until = now + p.Delay
	}
	answer := &wire.Answer{Ino: uint64(at.ino)}
	for i, r := range p.Records {
		var seq gearsfs.Seq
		if until > now {
			seq = q.AppendDelayed(r.Data, r.Type, now, until).Seq
		} else {
			seq = q.Append(r.Data, r.Type, now).Seq
		}
		answer.LastSeq = uint64(seq)
		if i == 0 {
			answer.FirstSeq = answer.LastSeq
		}
	}
	if until > now {
		m.later(at, until-now)
	}
	if age := q.State().Age; age != 0 {
		m.later(at, age)
	}
	return answer, nil
}

// mayAppend says why records can't be put to a stream.
func mayAppend(s *stream.State, records []*wire.NewRecord) error {
	if len(records) > gearsfs.BatchRecordsMax {
		return gearsfs.ErrTooBig.Because("a put has at most %d records", gearsfs.BatchRecordsMax)
	}
	if s.Sealed && len(records) > 0 {
		return gearsfs.ErrSealed
	}
	var bytes uint64
	for _, r := range records {
		switch {
		case len(r.Data) > gearsfs.RecordBytesMax:
			return gearsfs.ErrTooBig.Because("a record has at most %d bytes", gearsfs.RecordBytesMax)
		case s.Type != "" && r.Type != s.Type:
			return gearsfs.ErrType.Because("a record of type %q, the stream is for %q", r.Type, s.Type)
		case r.Id != "":
			return errMemoryOnly.Because("a stream that is in memory does not remember ids")
		}
		bytes += uint64(len(r.Data))
	}
	if bytes > gearsfs.BatchBytesMax {
		return gearsfs.ErrTooBig.Because("a put has at most %d bytes", gearsfs.BatchBytesMax)
	}
	return nil
}

func (m *memory) takeLocked(o *op, at place, take *wire.Take) (*wire.Answer, error) {
	if len(o.keys) > 1 {
		return nil, errMemoryOnly
	}
	m.dueLocked(at)
	q := m.queueLocked(at)
	if s := q.State(); s.Ready == 0 {
		if s.Sealed && s.Drained() {
			return nil, gearsfs.ErrEnd
		}
		return nil, gearsfs.ErrEmpty
	}
	var taken []stream.Taken
	var err error
	if take.Lease {
		g := stream.Grant{Holder: o.sess.id, Fence: m.nextFence(), Tries: take.Tries}
		if take.ByReceipt {
			g.Holder = gearsfs.SessionID{}
		}
		if take.LeaseFor != 0 {
			g.Deadline = m.vol.group.Time() + take.LeaseFor
			m.later(at, take.LeaseFor)
		}
		taken, err = q.Lease(nil, int(take.Max), gearsfs.BatchBytesMax, g)
		m.fence += uint64(len(taken))
	} else {
		taken, err = q.Take(nil, int(take.Max), gearsfs.BatchBytesMax, false)
	}
	return &wire.Answer{Ino: uint64(at.ino), Records: shown(at, taken)}, err
}

// nextFence is the fence of the next lease: no former process gave it, and none
// did whose clock went right.
func (m *memory) nextFence() uint64 {
	if m.fence == 0 {
		m.fence = m.vol.group.Time()
	}
	return m.fence
}

func shown(at place, taken []stream.Taken) []*wire.TakenRecord {
	out := make([]*wire.TakenRecord, len(taken))
	for i, t := range taken {
		out[i] = &wire.TakenRecord{
			Ino: uint64(at.ino), Key: string(at.key), Pos: uint64(t.Place.Pos), Seq: uint64(t.Place.Seq),
			Data: slices.Clone(t.Record.Data), Type: t.Record.Type, Time: t.Record.Time,
			Deliveries: t.Deliveries, Fence: t.Fence, Deadline: t.Deadline,
		}
	}
	return out
}

func (m *memory) updateLocked(at place, u *wire.Update) (*wire.Answer, error) {
	q := m.queueLocked(at)
	s := q.State()
	if err := mayAppend(s, []*wire.NewRecord{u.Record}); err != nil {
		return nil, err
	}
	switch {
	case s.AppendOnly:
		return nil, gearsfs.ErrPermission.Because("the stream is append-only")
	case u.IfSeq != nil && *u.IfSeq != uint64(s.Newest()):
		return nil, gearsfs.ErrUnmet.Because("the newest seq is %d, not %d", s.Newest(), *u.IfSeq)
	}
	if err := q.Clear(); err != nil {
		return nil, err
	}
	seq := uint64(q.Append(u.Record.Data, u.Record.Type, m.vol.group.Time()).Seq)
	return &wire.Answer{Ino: uint64(at.ino), FirstSeq: seq, LastSeq: seq}, nil
}

// receiptAt is the stream and the place of a receipt.
func receiptAt(r *wire.Receipt) (place, gearsfs.Place) {
	return place{gearsfs.Ino(r.Ino), gearsfs.Key(r.Key)}, gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)}
}

// settleLocked ends or extends leases, all or none.
func (m *memory) settleLocked(o *op, s *wire.Settle) (*wire.Answer, error) {
	if len(s.Receipts) > gearsfs.BatchRecordsMax {
		return nil, gearsfs.ErrInvalid.Because("1 to %d receipts are settled at once", gearsfs.BatchRecordsMax)
	}
	seen := make(map[uint64]bool, len(s.Receipts))
	for _, r := range s.Receipts {
		at, record := receiptAt(r)
		if !m.vol.machine.InMemory(at.ino, at.key) {
			return nil, errMemoryOnly
		}
		m.dueLocked(at)
		out, ok := m.queueLocked(at).Out(record)
		if !ok || !out.Leased || out.Fence != r.Fence || seen[r.Fence] || !out.Holder.IsZero() && out.Holder != o.sess.id {
			return nil, gearsfs.ErrGone
		}
		seen[r.Fence] = true
		if out.Holder.IsZero() {
			if err := m.vol.machine.MayWait(at.ino, true, true, o.sess.caller); err != nil {
				return nil, err
			}
		}
	}
	now := m.vol.group.Time()
	for _, r := range s.Receipts {
		at, record := receiptAt(r)
		q := m.queueLocked(at)
		switch out, _ := q.Out(record); {
		case s.Return:
			m.comeBackLocked(at, q, record, s.Tries, s.Delay)
		case s.Extend != 0 && out.Deadline != 0:
			q.Extend(record, now+s.Extend, 0)
			m.later(at, s.Extend)
		case s.Extend == 0:
			if err := q.Ack(record); err != nil {
				return nil, err
			}
		}
	}
	return &wire.Answer{}, nil
}

// comeBackLocked ends a lease: the record is ready again, or after a delay; or it
// goes to the dead, where it was handed out too often.
func (m *memory) comeBackLocked(at place, q *stream.Queue, record gearsfs.Place, tries uint32, delay uint64) {
	out, _ := q.Out(record)
	for _, t := range []uint32{out.Tries, q.State().Tries} {
		if tries == 0 {
			tries = t
		}
	}
	dead := place{at.ino, at.key + ".dead"}
	switch {
	case tries != 0 && out.Deliveries >= tries && dead.key.Check() == nil:
		m.buryLocked(q, record, dead)
	case delay != 0:
		q.Delay(record, m.vol.group.Time()+delay)
		m.later(at, delay)
	default:
		q.Return(record)
	}
}

// buryLocked moves a record to a stream of the dead, which is in memory, too: it
// gets the setting where it is missing.
func (m *memory) buryLocked(q *stream.Queue, record gearsfs.Place, dead place) {
	row, err := q.Row(record)
	if err == nil {
		err = q.Ack(record)
	}
	if err != nil {
		panic(err) // rows in memory are read without errors
	}
	m.queueLocked(dead).Append(row.Data, row.Type, row.Time)
	t := m.vol.tenure.Load()
	if t == nil {
		return
	}
	if m.vol.machine.InMemory(dead.ino, dead.key) {
		m.push(func() { t.wake(dead.ino, dead.key) })
		return
	}
	yes := true
	c := &wire.Configure{
		Target: &wire.Target{Ino: uint64(dead.ino)}, Key: string(dead.key), Settings: &wire.Settings{Memory: &yes},
	}
	m.push(func() {
		t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Configure{Configure: c}}, func(*wire.Answer, error) {
			t.configured(c)
		})
	})
}

// peek shows records of a stream that is in memory.
func (m *memory) peek(at place, what *wire.Peek, caller gearsfs.Caller) ([]*wire.TakenRecord, error) {
	if err := m.vol.machine.MayWait(at.ino, true, false, caller); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dueLocked(at)
	q := m.queueLocked(at)
	s := q.State()
	var taken []stream.Taken
	var err error
	switch limit := int(max(1, what.Max)); {
	case what.Last:
		for err == nil && !s.Drained() {
			var more []stream.Taken
			after := gearsfs.Seq(0)
			if len(taken) > 0 {
				after = taken[len(taken)-1].Place.Seq
			}
			if more, err = q.Newer(nil, after, gearsfs.BatchRecordsMax, gearsfs.BatchBytesMax); len(more) == 0 {
				break
			}
			taken = more[len(more)-1:]
		}
	case what.Follow:
		taken, err = q.Newer(nil, gearsfs.Seq(what.After), limit, gearsfs.BatchBytesMax)
	default:
		taken, err = q.Peek(nil, limit, gearsfs.BatchBytesMax)
	}
	switch {
	case err != nil:
		return nil, err
	case len(taken) == 0 && s.Sealed && (what.Follow || s.Drained()):
		return nil, gearsfs.ErrEnd
	case len(taken) == 0:
		return nil, gearsfs.ErrEmpty
	}
	return shown(at, taken), nil
}

// describe fills in what the state does not know of a stream that is in memory.
func (m *memory) describe(ino gearsfs.Ino, info *gearsfs.StreamInfo) {
	if !info.Settings.Memory || m.count.Load() == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.streams[place{ino, info.Key}]
	if q == nil {
		return
	}
	s := q.State()
	info.Records, info.Leased, info.Delayed, info.Bytes = s.Ready, s.Leased, s.Delayed, s.Bytes
	info.Head, info.Tail, info.Version, info.Discarded = s.Head, s.End(), s.Version, s.Discarded
}
