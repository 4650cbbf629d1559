package dgm

import (
	"cmp"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// doLocked does what an operation asks for, or nothing and says why.
func (m *memory) doLocked(o *op, at place) (*wire.Answer, error) {
	if err := m.vol.machine.MayWait(at.ino, false, true, o.sess.caller); err != nil {
		return nil, err
	}
	switch op := o.change.Command.Op.(type) {
	case *wire.Command_Put:
		return m.putLocked(at, op.Put)
	case *wire.Command_Update:
		return m.updateLocked(at, op.Update)
	}
	return nil, gearsfs.ErrUnknownOp
}

func (m *memory) putLocked(at place, p *wire.Put) (*wire.Answer, error) {
	if err := file.CheckRecords(p.Records); err != nil {
		return nil, err
	}
	s := m.currentLocked(at)
	fresh, known := m.freshLocked(s, p.Records)
	answer := &wire.Answer{Ino: uint64(at.ino)}
	if len(p.Records) == 1 {
		answer.FirstSeq, answer.LastSeq = known, known
	}
	if len(fresh) == 0 {
		return answer, nil
	}
	now := m.vol.group.Time()
	until := p.At
	if p.Delay != 0 {
		until = max(until, now+p.Delay)
	}
	if err := file.CheckAppend(s.State(), fresh, until > now); err != nil {
		return nil, err
	}
	records, bytes := sizeOf(&wire.Put{Records: fresh})
	if s.State().Full == gearsfs.FullDropOldest {
		if err := s.DropOldest(records, bytes); err != nil {
			return nil, err
		}
	} else if !s.State().Fits(records, bytes) {
		return nil, gearsfs.ErrFull
	}
	for i, r := range fresh {
		var seq gearsfs.Seq
		if until > now {
			seq = s.AppendDelayed(r.Data, r.Type, now, until).Seq
		} else {
			seq = s.Append(r.Data, r.Type, now).Seq
		}
		if r.Id != "" {
			s.ids.remember(r.Id, uint64(seq), now)
		}
		answer.LastSeq = uint64(seq)
		if i == 0 {
			answer.FirstSeq = answer.LastSeq
		}
	}
	s.ids.forget(now, s.idWindow())
	m.touchLocked(at)
	return answer, nil
}

// freshLocked returns those of the records of a put whose ids their stream does
// not know, and the seq of the last one that it knows.
func (m *memory) freshLocked(s *memoryStream, records []*wire.NewRecord) (fresh []*wire.NewRecord, known uint64) {
	now := m.vol.group.Time()
	var seen map[string]struct{}
	for _, r := range records {
		if r.Id != "" {
			if seq, ok := s.ids.known(r.Id, now, s.idWindow()); ok {
				known = seq
				continue
			}
			if _, twice := seen[r.Id]; twice {
				continue
			}
			if seen == nil {
				seen = make(map[string]struct{})
			}
			seen[r.Id] = struct{}{}
		}
		fresh = append(fresh, r)
	}
	return fresh, known
}

// lacksID is LacksID of a stream in memory.
func (m *memory) lacksID(at place, records []*wire.NewRecord) (lacks string, all bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lacksIDLocked(at, records)
}

func (m *memory) lacksIDLocked(at place, records []*wire.NewRecord) (lacks string, all bool) {
	if len(records) == 0 || slices.ContainsFunc(records, func(r *wire.NewRecord) bool { return r.Id == "" }) {
		return "", false
	}
	s, now := m.streamLocked(at), m.vol.group.Time()
	for _, r := range records {
		if _, ok := s.ids.known(r.Id, now, s.idWindow()); !ok {
			return r.Id, true
		}
	}
	return "", true
}

// addsNothingLocked says whether a put, which waits behind others, changes nothing.
func (m *memory) addsNothingLocked(o *op) bool {
	p := o.change.Command.GetPut()
	lacks, all := m.lacksIDLocked(place{o.ino, o.keys[0]}, p.Records)
	return all && lacks == "" && !p.Seal
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
	if u.Record == nil {
		return nil, gearsfs.ErrInvalid.Because("an update has one record")
	}
	record := []*wire.NewRecord{u.Record}
	if err := file.CheckRecords(record); err != nil {
		return nil, err
	}
	s := m.currentLocked(at)
	if fresh, known := m.freshLocked(s, record); len(fresh) == 0 {
		return &wire.Answer{Ino: uint64(at.ino), FirstSeq: known, LastSeq: known}, nil
	}
	state := *s.State()
	state.Limits = gearsfs.Limits{} // an update fits always
	if err := file.CheckAppend(&state, record, false); err != nil {
		return nil, err
	}
	switch newest := uint64(s.newest()); {
	case state.AppendOnly:
		return nil, gearsfs.ErrPermission.Because("the stream is append-only")
	case u.IfSeq != nil && *u.IfSeq != newest:
		return nil, gearsfs.ErrUnmet.Because("the newest seq is %d, not %d", newest, *u.IfSeq)
	}
	if err := s.Clear(); err != nil {
		return nil, err
	}
	now := m.vol.group.Time()
	seq := uint64(s.Append(u.Record.Data, u.Record.Type, now).Seq)
	if u.Record.Id != "" {
		s.ids.remember(u.Record.Id, seq, now)
	}
	m.touchLocked(at)
	return &wire.Answer{Ino: uint64(at.ino), FirstSeq: seq, LastSeq: seq}, nil
}

// receiptAt is the stream and the place of a receipt.
func receiptAt(r *wire.Receipt) (place, gearsfs.Place) {
	return place{gearsfs.Ino(r.Ino), gearsfs.Key(r.Key)}, gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)}
}

// checkSettleLocked checks whether a session may settle leases, all of them.
func (m *memory) checkSettleLocked(o *op, receipts []*wire.Receipt) error {
	seen := make(map[uint64]bool, len(receipts))
	for _, r := range receipts {
		at, record := receiptAt(r)
		out, ok := m.currentLocked(at).Out(record)
		if !ok || !out.Leased || out.Fence != r.Fence || seen[r.Fence] || !out.Holder.IsZero() && out.Holder != o.sess.id {
			return gearsfs.ErrGone
		}
		seen[r.Fence] = true
		if out.Holder.IsZero() {
			if err := m.vol.machine.MayWait(at.ino, true, true, o.sess.caller); err != nil {
				return err
			}
		}
	}
	return nil
}

// settleLocked ends or extends leases that may be settled.
func (m *memory) settleLocked(s *wire.Settle, receipts []*wire.Receipt) error {
	now := m.vol.group.Time()
	for _, r := range receipts {
		at, record := receiptAt(r)
		q := m.streamLocked(at)
		switch out, _ := q.Out(record); {
		case s.Return:
			m.comeBackLocked(q, record, s.Tries, s.Delay)
		case s.Extend != 0 && out.Deadline != 0:
			q.Extend(record, now+s.Extend, 0)
		case s.Extend == 0:
			if err := q.Ack(record); err != nil {
				return err
			}
			q.Clean()
		}
		m.touchLocked(at)
	}
	return nil
}

// comeBackLocked ends a lease: the record is ready again, or after a delay; or it
// goes to the dead, where it was handed out too often.
func (m *memory) comeBackLocked(s *memoryStream, record gearsfs.Place, tries uint32, delay uint64) {
	out, _ := s.Out(record)
	tries = cmp.Or(tries, out.Tries, s.State().Tries)
	dead := place{s.at.ino, s.at.key + ".dead"}
	if tries != 0 && out.Deliveries >= tries && dead.key.Check() == nil && m.buryLocked(s, record, dead) {
		return
	}
	if delay != 0 {
		s.Delay(record, m.vol.group.Time()+delay)
		return
	}
	s.Return(record)
}

// buryLocked moves a record to a stream of the dead, which is in memory, too: it
// is made where it is missing. Where there is one on disk it reports false.
func (m *memory) buryLocked(s *memoryStream, record gearsfs.Place, dead place) bool {
	if m.vol.machine.InMemory(dead.ino, dead.key) {
		m.moveLocked(s, record, dead)
		return true
	}
	t := m.vol.tenure.Load()
	if st := m.vol.machine.StreamState(dead.ino, dead.key); t == nil || st.State().NextSeq != 0 {
		return false
	}
	fence := m.nextFence()
	m.fence++
	s.Relet(record, stream.Grant{Fence: fence}) // nobody's, until there is a stream for it
	yes := true
	c := &wire.Configure{
		Target: &wire.Target{Ino: uint64(dead.ino)}, Key: string(dead.key), Settings: &wire.Settings{Memory: &yes},
	}
	m.push(func() {
		t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Configure{Configure: c}}, func(*wire.Answer, error) {
			t.configured(c, func() {})
			m.push(func() {
				m.mu.Lock()
				if out, ok := s.Out(record); ok && out.Leased && out.Fence == fence && m.streams[s.at] == s {
					if m.vol.machine.InMemory(dead.ino, dead.key) {
						m.moveLocked(s, record, dead)
					} else {
						s.Return(record)
					}
					m.touchLocked(s.at)
				}
				m.mu.Unlock()
				m.wakeTouched()
			})
		})
	})
	return true
}

// moveLocked moves a leased record to another stream in memory.
func (m *memory) moveLocked(s *memoryStream, record gearsfs.Place, to place) {
	row, err := s.Row(record)
	if err == nil {
		s.Lose(record.Seq, record.Seq, gearsfs.FateDead)
		err = s.Ack(record)
	}
	if err != nil {
		panic(err) // rows in memory are read without errors
	}
	m.streamLocked(to).Append(row.Data, row.Type, m.vol.group.Time())
	m.touchLocked(to)
}

// peek shows records of a stream that is in memory.
func (m *memory) peek(at place, what *wire.Peek, caller gearsfs.Caller) ([]*wire.TakenRecord, error) {
	if err := m.vol.machine.MayWait(at.ino, true, false, caller); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.streamLocked(at)
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
	info.Lost, info.LostBefore = s.Lost, s.LostBefore
}
